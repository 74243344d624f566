"""Imported once by the fork server of training_helpers.py: what every training process needs, DeepSpeed included."""

import finepseudo.train.loop  # noqa: F401
from finepseudo.train.engine import compile_ahead

compile_ahead()
