"""The tensors of a pickled file, read in a process of its own that unpickles tensors and plain containers alone.

The parent takes a safetensors file and one line of text from it, so nothing is unpickled there. A file that ends or
hangs its reader ends nobody else.
"""

from __future__ import annotations

import multiprocessing
import re
import tempfile
import time
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from finepseudo.errors import WeightsError
from finepseudo.models import weights

LIMIT_S = 900.0  # longest time for one file
_TABLES = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "teacher", "weights"),
    *("target_encoder", "encoder"),  # of V-JEPA 2: the averaged weights, which its authors evaluate, and the others
)
"""Keys under which training scripts keep the weights, beside optimiser and counters."""


def read_pickled(path: str, *, limit_s: float = LIMIT_S) -> dict[str, Tensor]:
    """The tensors of a pickled checkpoint, by name.

    Raises WeightsError: damaged, wants more than tensors, holds no table of them, or its reader died or hung.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        target = f"{folder}/weights.safetensors"
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_convert, args=(path, target, sender), daemon=True)
        child.start()
        sender.close()
        said = _answer(receiver, limit_s)
        child.join(5)
        if child.is_alive():
            child.kill()
            child.join()
        if said is None:
            raise WeightsError(f"the process that read the pickled file ended by itself (exit code {child.exitcode})")
        if said:
            raise WeightsError(said)
        return weights.read_state(Path(target).read_bytes())


def _answer(receiver: Connection, limit_s: float) -> str | None:
    """What the child says, empty where all is well; None where it went without a word."""
    ends = time.monotonic() + limit_s
    try:
        while not receiver.poll(0.2):
            if time.monotonic() > ends:
                return f"the pickled file could not be read within {limit_s:g} s"
        return receiver.recv_bytes().decode()
    except EOFError:
        return None


def _convert(path: str, target: str, sender: Connection) -> None:
    """In the child."""
    said = ""
    warnings.simplefilter("ignore")  # what is wrong with the file is told in one line, by `_told`
    try:
        # Tensors, numbers, text and containers of them: anything else is an error before it runs.
        found = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
        Path(target).write_bytes(weights.to_bytes(_table(found), {}))
    except WeightsError as error:
        said = str(error)
    except Exception as error:  # noqa: BLE001 (whatever a damaged file raises is told to the parent)
        said = _told(error)
    sender.send_bytes(said.encode())


def _table(found: Any) -> dict[str, Tensor]:
    """The table of tensors in what a checkpoint holds."""
    if isinstance(found, Mapping):
        body = cast(Mapping[Any, Any], found)
        tensors = {str(name): value for name, value in body.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        for key in _TABLES:
            if isinstance(body.get(key), Mapping):
                return _table(body[key])
    keys = ", ".join(map(str, list(cast(Any, found))[:5])) if isinstance(found, Mapping) else type(found).__name__
    raise WeightsError(f"the pickled file holds no table of tensors; expected one, got {keys or 'nothing'}")


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    if wants := re.search(r"GLOBAL (\S+)", text):
        return (
            f"the pickled file wants {wants[1]}; expected tensors and plain containers alone: nothing of it was run. "
            "Save its state dict alone, or take it as safetensors"
        )
    if "TorchScript" in text:
        return "the file is a TorchScript program; expected weights: save its state_dict(), or take it as safetensors"
    return f"the pickled file is damaged, or none of PyTorch's ({type(error).__name__}: {text[:160]})"
