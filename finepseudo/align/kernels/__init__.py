"""The implementations behind softdtw.py and score.py, each equal to `reference` within its stated bound."""
