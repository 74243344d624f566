"""Weights as bytes: safetensors with text metadata, loaded strictly. Storage is the caller's; pickle is nobody's."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from finepseudo.errors import ArtefactError

_LENGTH_BYTES = 8  # a safetensors file: length of the header, little endian; the header, JSON; the tensors
_METADATA = "__metadata__"


def to_bytes(weights: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Parameters and buffers as one safetensors file; equal input gives equal bytes.

    Args:
        weights: a module or a state dict, on any device; the file holds plain contiguous copies.
        metadata: text to text, read back by `read_metadata`.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    data = safetensors.torch.save(plain)
    # The library writes metadata in an order that differs from call to call, so that part of the header is ours.
    header, start = _header(data)
    header.pop(_METADATA, None)
    text = json.dumps({_METADATA: dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # keeps the tensors aligned
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data[start:]


def read_metadata(data: bytes) -> dict[str, str]:
    """The metadata given to `to_bytes`; empty for a file without any. Raises ArtefactError for any other file."""
    return dict(_header(data)[0].get(_METADATA, {}))


def read_state(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name. Raises ArtefactError for any other file."""
    _header(data)
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise ArtefactError(f"weights are a damaged safetensors file ({error}); fetch or export them again") from error


def load_bytes(
    module: nn.Module,
    data: bytes,
    *,
    sha256: str | None,
    allow_missing: tuple[str, ...] = (),
    allow_unexpected: tuple[str, ...] = (),
) -> None:
    """Copy the tensors of a safetensors file into `module`: all of them or, when anything is amiss, none.

    Args:
        module: its state dict says which names and shapes are expected; numbers are converted to its precision.
        data: the file.
        sha256: its expected digest in hexadecimal; None only where the caller has no digest to compare with.
        allow_missing: names the file lacks; the module keeps its own values for them.
        allow_unexpected: names the module lacks; the file's tensors are left aside. A name in *both* tuples may be
            on both sides, whatever its shapes: it is left aside and the module keeps its own (another classifier).
    Raises:
        ArtefactError: another digest, not a safetensors file, names missing or unexpected, another shape or kind of
            number, or an allowed name that is not needed. The message lists every kind of fault with its names.
    """
    found_digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found_digest != sha256.lower():
        raise ArtefactError(
            f"weights have sha256 {found_digest}, expected {sha256}: the file is another one or was cut short; "
            "fetch it again, or correct the digest where the weights are named"
        )
    found = read_state(data)
    wanted = module.state_dict()
    aside = set(allow_missing) & set(allow_unexpected) & found.keys()
    missing = wanted.keys() - (found.keys() - aside)
    unexpected = found.keys() - (wanted.keys() - aside)
    common = wanted.keys() - missing
    differ = [name for name in wanted if name in common and not _fits(found[name], wanted[name])]
    idle = (set(allow_missing) - missing) | (set(allow_unexpected) - unexpected)
    faults = [
        _fault("missing from the file", _ordered(missing - set(allow_missing), wanted)),
        _fault("unknown to the model", _ordered(unexpected - set(allow_unexpected), found)),
        _fault(
            "of another shape or kind of number",
            [f"{name} (file {_describe(found[name])}, model {_describe(wanted[name])})" for name in differ],
        ),
        _fault("allowed to be absent on one side but not so", sorted(idle)),
    ]
    if any(faults):
        raise ArtefactError(
            f"weights do not fit {type(module).__name__}: {'; '.join(filter(None, faults))}. Nothing was loaded: "
            "build the model that the weights were made for, or correct allow_missing and allow_unexpected"
        )
    module.load_state_dict({name: found[name] for name in common}, strict=False)


def _header(data: bytes) -> tuple[dict, int]:
    """The header of a safetensors file and where its tensors start."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    try:
        if len(data) < start:
            raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
        header = json.loads(data[_LENGTH_BYTES:start])
        if not isinstance(header, dict):
            raise ValueError("a header that is no table")
    except ValueError as error:
        raise ArtefactError(
            f"weights are not a safetensors file ({error}); convert them first, pickled files are never read"
        ) from error
    return header, start


def _fits(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and (
        found.dtype == wanted.dtype or (found.is_floating_point() and wanted.is_floating_point())
    )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _ordered(names: Collection[str], order: Iterable[str]) -> list[str]:
    return [name for name in order if name in names]


def _fault(what: str, names: list[str]) -> str:
    """'2 missing from the file: a, b', at most ten names; empty without names."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {what}: {', '.join(names[:10])}{more}" if names else ""
