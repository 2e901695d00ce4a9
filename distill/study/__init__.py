"""The study: every method, several students and languages, with spread, from one command.

python -m distill.study plan | run | report

units.py says what is to be run and in which order, run.py runs it, records.py keeps one record a
unit, report.py and figures.py turn the records into docs/study.md. help_text.py and multilingual.py
bring the multilingual text and its tasks.
"""
