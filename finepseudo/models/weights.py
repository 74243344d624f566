"""Weights as bytes: safetensors with text metadata, loaded strictly. Storage is the caller's; pickle is nobody's."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from finepseudo.errors import ArtefactError, WeightsError


def to_bytes(weights: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Parameters and buffers as one safetensors file; equal input gives equal bytes.

    Args:
        weights: a module or a state dict, on any device; the file holds plain contiguous copies.
        metadata: one text at most: the library writes several in an order that differs from call to call.
    """
    assert len(metadata) <= 1
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    return safetensors.torch.save(plain, metadata=dict(metadata))


def read_state(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name. Raises ArtefactError for any other file."""
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise ArtefactError(
            f"weights are a damaged safetensors file, or not a safetensors file at all ({error}); fetch or convert "
            "them again, pickled files are never read"
        ) from error


def read_text(data: bytes) -> dict[str, str]:
    """The text metadata of a safetensors file whose tensors were read; empty where it has none."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__", {})


def load_bytes(
    module: nn.Module, data: bytes, *, sha256: str | None, allow_missing: Collection[str] = frozenset()
) -> None:
    """Copy the tensors of a safetensors file into `module`: all of them or, when anything is amiss, none.

    Args:
        module: its state dict says which names and shapes are expected; numbers are converted to its precision.
        sha256: expected digest in hexadecimal; None only where the caller has no digest to compare with.
        allow_missing: names the file lacks; the module keeps its own values for them.
    Raises ArtefactError for another digest, no safetensors file, names missing or unexpected, another shape or kind of
    number, or an allowed name that is not needed; the message lists every kind of fault with its names.
    """
    check_digest(hashlib.sha256(data).hexdigest(), sha256)
    load_state(module, read_state(data), allow_missing=allow_missing)


def check_digest(found: str, expected: str | None, where: str = "") -> None:
    """Raises WeightsError, its text beginning with `where`, unless two hexadecimal digests are equal; None fits all."""
    if expected is not None and found != expected.lower():
        raise WeightsError(
            f"{where}weights have sha256 {found}, expected {expected}: the file is another one or was cut short; "
            "fetch it again, or correct the digest where the weights are named"
        )


def load_state(module: nn.Module, found: Mapping[str, Tensor], *, allow_missing: Collection[str] = frozenset()) -> None:
    """As `load_bytes`, of tensors by name."""
    wanted = module.state_dict()
    if said := faults(wanted, found, allow_missing=allow_missing):
        raise ArtefactError(
            f"weights do not fit {type(module).__name__}: {said}. Nothing was loaded: "
            "build the model that the weights were made for, or correct allow_missing"
        )
    module.load_state_dict(found, strict=False)


def faults(
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    allow_missing: Collection[str] = frozenset(),
    unknown: Sequence[str] = (),
) -> str:
    """What is amiss with tensors for a model, each kind of fault with its names; empty where nothing is.

    Args:
        wanted: the model's state dict.
        allow_missing: names that must not be in `found`; the model keeps its own values for them.
        unknown: more names that the model does not know.
    """
    differ = [name for name in wanted if name in found and not _fits(found[name], wanted[name])]
    told = [
        _fault("missing from the file", [name for name in wanted if name not in found and name not in allow_missing]),
        _fault("unknown to the model", [*unknown, *(name for name in found if name not in wanted)]),
        _fault(
            "of another shape or kind of number",
            [f"{name} (file {_describe(found[name])}, model {_describe(wanted[name])})" for name in differ],
        ),
        _fault(
            "allowed to be absent on one side but not so",
            sorted(name for name in allow_missing if name in found or name not in wanted),
        ),
    ]
    return "; ".join(filter(None, told))


def _fits(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and (
        found.dtype == wanted.dtype or (found.is_floating_point() and wanted.is_floating_point())
    )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _fault(what: str, names: list[str]) -> str:
    """'2 missing from the file: a, b', at most ten names; empty without names."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {what}: {', '.join(names[:10])}{more}" if names else ""
