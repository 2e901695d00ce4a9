"""The comparison of methods: it starts train.py and evaluate.py as a user does."""
