"""Imported once by the fork server of training_helpers.py: what every training process needs, DeepSpeed included."""

import finepseudo.train.loop  # noqa: F401
from finepseudo.train.engine import compile_ahead

compile_ahead()

# DeepSpeed imports it, and torch's compiler with it, when it looks at the first optimiser: seconds in every process.
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401
