"""The comparison of methods: which rows (rows.py), how they are run (run.py), their page
(report.py), and the text of many languages (help_text.py, languages.py). It starts train.py and
evaluate.py as a user does.
"""
