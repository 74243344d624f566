"""Public weights as a run takes them: read from a file or a folder, converted, written with what they are."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from finepseudo.errors import ArtefactError, RecipeError, WeightsError
from finepseudo.models import public, weights
from finepseudo.models.encoders import build
from finepseudo.models.pickled import read_pickled
from finepseudo.models.table import ENCODERS, Preprocessing, choose
from finepseudo.storage.lineage import plain
from finepseudo.storage.store import Store, located

NOT_STATED = "not stated"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in a folder, the first that is there
INDEX = ".index.json"  # beside a name of WEIGHTS: which shard has which tensor
CONFIGS = ("preprocessor_config.json", "config.json")  # in a folder: what may say mean and deviation
SHOWN = 3  # names of each kind in the summary


@dataclass(frozen=True, kw_only=True)
class Source:
    """Tensors of a file or a folder as they were published."""

    name: str
    sha256: str  # of the file; of several the digest of all their digests, by name
    tensors: Mapping[str, Tensor]
    preprocessing: Mapping[str, Any] = field(default_factory=dict[str, Any])  # as the folder's configuration has it


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was written where, and how it came about."""

    uri: str
    sha256: str
    encoder: str
    converted: public.Converted
    preprocessing: Preprocessing

    def summary(self) -> str:
        """Lines for people, the last ones the options of a run that starts from it."""
        made, part = self.converted, ENCODERS[self.encoder].part
        counters = [name for name in made.initialised if name in made.state]
        others = [name for name in made.initialised if name not in made.state]
        head = made.state.get("fc.weight")
        lines = [
            f"layout: {made.layout.name}; {len(made.state) - len(counters)} tensors loaded",
            _line("renamed", [f"{old} -> {new}" for old, new in made.renamed.items()]),
            _line("left aside", list(made.aside)),
            _line("resampled", list(made.resampled)),
            _line("initialised when a run starts", sorted({f"{name.partition('.')[0]}.*" for name in others})),
            _line("counters of BatchNorm set to 0", counters),
            f"preprocessing: mean {_numbers(self.preprocessing.mean)}, std {_numbers(self.preprocessing.std)}",
            f"{self.uri}: sha256 {self.sha256}",
            f"start from it: --models.{part} {self.encoder} --models.{part}-weights {self.uri} "
            f"--models.{part}-sha256 {self.sha256}",
        ]
        if head is not None:
            lines.insert(5, f"classifier of {len(head)} classes; a run with another number of them initialises its own")
        return "\n".join(line for line in lines if line)


def import_weights(
    source: str,
    encoder: str,
    out: str,
    *,
    licence: str = "",
    sha256: str = "",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Imported:
    """Convert a public file, or a folder of one model, for an encoder of the table, and write it to `out`.

    Args:
        source, out: paths or URIs.
        sha256: expected digest of the source.
        mean, std: of three channels; empty: what the folder says, else what the encoder's family has.
    Raises:
        WeightsError: what is there is damaged, of another digest, layout or architecture, or `out` is another file.
        RecipeError: no such encoder, or means and deviations that are none.
    """
    chosen = choose(encoder)
    there = read_source(source, sha256)
    own = {"mean": chosen.preprocessing.mean, "std": chosen.preprocessing.std}
    given = {key: value for key, value in {"mean": mean, "std": std}.items() if value}
    preprocessing = Preprocessing.of({**own, **there.preprocessing, **given})
    module = build(chosen, num_classes=public.classes_of(there.tensors), size=224, seed=0)
    try:
        converted = public.convert(there.tensors, encoder, module)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    layout = converted.layout
    about = {
        "encoder": encoder,
        "licence": licence or NOT_STATED,
        "preprocessing": {
            **plain(preprocessing), "size": layout.size, "frames": layout.frames, "fps": layout.fps
        },
        "source": {"name": there.name, "sha256": there.sha256, "layout": layout.name},
    }  # fmt: skip
    data = weights.to_bytes(converted.state, {public.KEY: json.dumps(about, sort_keys=True)})
    _write(out, data)
    digest = hashlib.sha256(data).hexdigest()
    return Imported(uri=out, sha256=digest, encoder=encoder, converted=converted, preprocessing=preprocessing)


def read_source(source: str, sha256: str = "") -> Source:
    """Raises WeightsError: nothing there, no weights in it, damaged, or of another digest."""
    store = Store(source)
    names = store.list()
    inside = names and not (len(names) == 1 and _is_file(source))
    try:
        if not inside:
            folder, name = located(source)
            data = folder.read(name)
            digest = hashlib.sha256(data).hexdigest()
            weights.check_digest(digest, sha256 or None, f"{source}: ")
            return Source(name=name, sha256=digest, tensors=read_tensors(data, source))
        return _read_folder(store, names, sha256)
    except OSError as error:
        raise WeightsError(str(error) if source in str(error) else f"{source}: {error}") from error


def read_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a pickled one, by its first bytes. Raises WeightsError."""
    try:
        if data[8:9] == b"{":
            return weights.read_state(data)
        if data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            with tempfile.NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                return read_pickled(file.name)
    except ArtefactError as error:
        raise WeightsError(f"{where}: {error}") from error
    raise WeightsError(
        f"{where}: expected a safetensors file or a pickled one of PyTorch, got {len(data)} bytes that begin "
        f"with {data[:8]!r}"
    )


def _read_folder(store: Store, names: Sequence[str], sha256: str) -> Source:
    index = next((f"{name}{INDEX}" for name in WEIGHTS if f"{name}{INDEX}" in names), "")
    placed = _index(store, index) if index else dict[str, str]()
    files = sorted(set(placed.values())) if index else [_only_file(store, names)]
    digests, tensors = dict[str, str](), dict[str, Tensor]()
    for name in files:
        try:
            data = store.read(name)
        except FileNotFoundError:
            raise WeightsError(f"{store.uri(index)}: names the shard {name}, which is not there") from None
        digests[name] = hashlib.sha256(data).hexdigest()
        found = read_tensors(data, store.uri(name))
        lacks = [tensor for tensor, place in placed.items() if place == name and tensor not in found]
        if lacks:
            raise WeightsError(f"{store.uri(name)}: expected {lacks[0]} in it, as {index} says; it is not there")
        tensors |= found
    lines = "\n".join(f"{name} {digest}" for name, digest in digests.items())
    whole = hashlib.sha256(lines.encode()).hexdigest() if index else digests[files[0]]
    weights.check_digest(whole, sha256 or None, f"{store.uri()}: ")
    name = store.root.rpartition("/")[2]
    return Source(name=name, sha256=whole, tensors=tensors, preprocessing=_said(store, names))


def _only_file(store: Store, names: Sequence[str]) -> str:
    """The file of weights in a folder."""
    known = [name for name in WEIGHTS if name in names]
    others = [name for name in names if name.endswith((".safetensors", ".pth", ".pt", ".bin"))]
    if known or len(others) == 1:
        return (known or others)[0]
    what = ", ".join(others or names[:5])
    raise WeightsError(f"{store.uri()}: expected one file of weights ({' or '.join(WEIGHTS)}), got {what}")


def _index(store: Store, name: str) -> dict[str, str]:
    """Shard by tensor."""
    body = _json(store, name)
    placed = body.get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise WeightsError(f"{store.uri(name)}: expected a weight_map of tensors and shards, got none")
    shards = {str(tensor): str(shard) for tensor, shard in cast(dict[Any, Any], placed).items()}
    outside = [shard for shard in shards.values() if "/" in shard or shard.startswith(".")]
    if outside:
        raise WeightsError(f"{store.uri(name)}: expected shards beside it, got {outside[0]!r}")
    return shards


def _said(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """Mean and deviation as a folder's configuration has them: the hub's, or timm's."""
    for name in CONFIGS:
        body = _json(store, name) if name in names else {}
        inner = body.get("pretrained_cfg")
        body = cast(dict[str, Any], inner) if isinstance(inner, dict) else body
        for mean, std in (("image_mean", "image_std"), ("mean", "std")):
            if mean in body and std in body:
                try:
                    return plain(Preprocessing.of({"mean": body[mean], "std": body[std]}))
                except RecipeError as error:
                    raise WeightsError(f"{store.uri(name)}: {error}") from error
    return {}


def _json(store: Store, name: str) -> dict[str, Any]:
    try:
        body = json.loads(store.read(name))
    except ValueError as error:
        raise WeightsError(f"{store.uri(name)}: is not JSON ({error})") from None
    return cast(dict[str, Any], body) if isinstance(body, dict) else {}


def _is_file(source: str) -> bool:
    """A file is listed as itself."""
    folder, name = located(source)
    return name in folder.sizes()


def _write(out: str, data: bytes) -> None:
    """Raises WeightsError: there is another file already."""
    store, name = located(out)
    if not name:
        raise WeightsError(f"{out!r}: expected the name of a file to write")
    if not store.create(name, data) and store.read(name) != data:
        raise WeightsError(f"{out}: is there already and is another file; choose another name, or delete it")


def _line(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {len(names)} ({', '.join(names[:SHOWN])}{more})" if names else ""


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
