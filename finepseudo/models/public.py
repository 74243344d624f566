"""Public weights for our encoders: recognised by their names, renamed, checked; loaded whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finepseudo.errors import RecipeError, WeightsError
from finepseudo.models import weights
from finepseudo.models.layouts import LAYOUTS, Layout, recognise
from finepseudo.models.positions import fitted, tables
from finepseudo.models.table import Preprocessing

KEY = "finepseudo"
"""Of the text in a converted file's metadata: JSON with `encoder`, `preprocessing`, `source`, `licence`."""
HEADS = (".fc.weight", ".head.weight", ".classifier.weight")  # ends of what libraries call the classifier
COUNTER = ".num_batches_tracked"  # BatchNorm's, which older files do not have; nothing here depends on it


@dataclass(frozen=True, eq=False)
class Converted:
    """What a file has for an encoder, by the encoder's names, and what became of the rest."""

    state: Mapping[str, Tensor]
    layout: Layout
    renamed: Mapping[str, str]  # names of the file that are others here
    aside: tuple[str, ...]  # names of the file that the encoder does not take
    initialised: tuple[str, ...]  # names of the encoder that the file does not have
    resampled: tuple[str, ...]  # tables of positions that were of another size, and how they came to this one


def convert(found: Mapping[str, Tensor], encoder: str, module: nn.Module) -> Converted:
    """Tensors of a public file by the names of an encoder.

    Args:
        encoder: its name in the table.
        module: one of its kind, for names and shapes; an f_E with the classes of the file (`classes_of`).
    Raises WeightsError: no known layout (the nearest are named), another encoder's, or names or shapes that differ.
    """
    ways = recognise(found)
    if ways[0].share < 1:
        near = ", ".join(f"{way.layout.name} ({way.share:.0%} of its marks)" for way in ways[:2] if way.share)
        raise WeightsError(
            f"names of no known layout, such as {_some(sorted(found))}; nearest: {near or 'none'}; "
            f"known: {', '.join(layout.name for layout in LAYOUTS)}"
        )
    way = next((way for way in ways if way.share == 1 and encoder in way.layout.encoders), ways[0])
    if encoder not in way.layout.encoders:
        takes = [layout.name for layout in LAYOUTS if encoder in layout.encoders]
        raise WeightsError(
            f"the file is of layout {way.layout.name}, for {' or '.join(way.layout.encoders)}; expected for "
            f"{encoder}: {' or '.join(takes) or 'none, it has no public weights'}"
        )
    before, wanted = str(getattr(module, "below")), module.state_dict()  # noqa: B009 (of both kinds of encoder)
    state, renamed, aside, unknown = dict[str, Tensor](), dict[str, str](), list[str](), list[str]()
    for name, tensor in sorted(found.items()):
        try:
            called = way.called(name)
        except KeyError:
            unknown.append(name)
            continue
        if called is None or (f"{before}{called}" not in wanted and _is_head(called)):
            aside.append(name)
            continue
        state[before + called] = tensor
        if before + called != name:
            renamed[name] = (before + called).partition("#")[0]  # several names stand as `<query,key,value>`
    state, resampled = _resampled(_shaped(_joined(_parted(state)), wanted), module)
    own = tuple(getattr(module, "own"))  # noqa: B009 (an attribute of both kinds of encoder)
    missing = [name for name in wanted if name not in state]
    initialised = [name for name in missing if name.startswith(own) or name.endswith(COUNTER)]
    counters = {name: wanted[name] for name in initialised if name.endswith(COUNTER) and not name.startswith(own)}
    faults = weights.faults(wanted, state | counters, allow_missing=set(initialised) - set(counters), unknown=unknown)
    if faults:
        raise WeightsError(f"weights of layout {way.layout.name} do not fit {encoder}: {faults}; nothing was converted")
    return Converted(state | counters, way.layout, renamed, tuple(aside), tuple(initialised), resampled)


def classes_of(found: Mapping[str, Tensor]) -> int:
    """K of a file's classifier, whatever stands before its name; 2 where there is none."""
    return next((len(tensor) for name, tensor in found.items() if f".{name}".endswith(HEADS)), 2)


def load(module: Any, encoder: str, data: bytes, *, sha256: str | None) -> str:
    """Copy a converted file, or one of the encoder's own names, into an encoder: all of it or, if amiss, nothing.

    Groups of `module.own` that the file does not have at all stay as they are, and so does a classifier of another
    number of classes. The module's preprocessing becomes that of the file's metadata.
    Returns what was loaded and what was left as it was initialised, in words.
    Raises ArtefactError: another digest, damaged, made for another encoder, names or shapes that differ.
    """
    weights.check_digest(hashlib.sha256(data).hexdigest(), sha256)
    found = weights.read_state(data)
    about = read_about(data)
    if about and about.get("encoder") != encoder:
        raise WeightsError(f"the weights were made for encoder {about.get('encoder')}, expected {encoder}")
    preprocessing = module.preprocessing
    if "preprocessing" in about:
        try:
            preprocessing = Preprocessing.of(about["preprocessing"])
        except RecipeError as error:
            raise WeightsError(f"preprocessing in the metadata: {error}") from error
    wanted = module.state_dict()
    heads = {name for name in found if _is_head(name) and name in wanted and found[name].shape != wanted[name].shape}
    other_k = bool(heads) and all(found[name].shape[1:] == wanted[name].shape[1:] for name in heads)
    state = {name: tensor for name, tensor in found.items() if not (other_k and _is_head(name))}
    absent = [part for part in module.own if not any(name.startswith(part) for name in state)]
    kept = [name for name in wanted if name.startswith(tuple(absent))]
    weights.load_state(module, state, allow_missing=kept)
    module.preprocessing = preprocessing
    said = f"{len(state)} tensors loaded"
    if other_k:
        k_file, k = (len(one["fc.weight"]) for one in (found, wanted))
        return f"{said}; its classifier of {k_file} classes is left aside, one of {k} is initialised"
    return f"{said}; initialised: {', '.join(part.rstrip('.') for part in absent) or 'nothing'}"


def read_about(data: bytes) -> dict[str, Any]:
    """What a converted file says of itself; empty for another. Raises WeightsError where that is not readable."""
    text = weights.read_text(data).get(KEY)
    if text is None:
        return {}
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise WeightsError(f"metadata {KEY!r}: expected a JSON object, got {text[:60]!r}")
    return about


def _is_head(name: str) -> bool:
    return name in ("fc.weight", "fc.bias")


def _parted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tensor named `a.<x,y,z>.b` as its equal parts `a.x.b`, `a.y.b`, `a.z.b`."""
    parts = {name: tensor for name, tensor in state.items() if "<" not in name}
    for name in state.keys() - parts.keys():
        front, _, rest = name.partition("<")
        inner, _, back = rest.partition(">")
        words = inner.split(",")
        for word, part in zip(words, state[name].chunk(len(words)), strict=False):  # too few: missing names
            parts[front + word + back] = part
    return parts


def _resampled(state: Mapping[str, Tensor], module: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tables of positions in the sizes of the encoder's, and what was done."""
    made, said, wanted = dict(state), list[str](), module.state_dict()
    for name, kind in tables(module).items():
        if name in state and (fit := fitted(kind, state[name], wanted[name])):
            made[name] = fit[0]
            said.append(f"{name}: {fit[1]}")
    return made, tuple(said)


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Thirds `name#q`, `name#k`, `name#v` as one tensor `name`; a third that is missing leaves a smaller one."""
    whole = {name: tensor for name, tensor in state.items() if "#" not in name}
    for name in dict.fromkeys(name.partition("#")[0] for name in state if "#" in name):
        thirds = [state[f"{name}#{third}"] for third in "qkv" if f"{name}#{third}" in state]
        whole[name] = torch.cat(thirds)
    return whole


def _shaped(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the axes of length 1 that some libraries put before class token and positions."""
    return {
        name: tensor.flatten(0, tensor.ndim - wanted[name].ndim)
        if name in wanted and tensor.ndim > wanted[name].ndim and set(tensor.shape[: -wanted[name].ndim]) == {1}
        else tensor
        for name, tensor in state.items()
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) or "(there are none)"
