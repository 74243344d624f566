"""A manifest of clips that no file needs to be there for."""

import json
import tempfile

import numpy as np
import pyarrow as pa

from finepseudo.data.manifest import CLIPS, FOUND, Annotated, Manifest, manifest_parts
from finepseudo.data.plan import samples
from finepseudo.storage import artefacts, tables
from finepseudo.storage.store import Store


def manifest(count, labels=None, names=("a", "b", "c"), **columns):
    """Clips v000, v001, ... of 30, 31, ... frames; `columns` are lists, or one value for all; label None: not known."""
    every = {
        "video_id": [f"v{index:03d}" for index in range(count)],
        "path": [f"v/{index}.mp4" for index in range(count)],
        "sha256": [f"{index:064x}" for index in range(count)],
        "num_frames": [30 + index for index in range(count)],
        "split": "train",
        "status": "ok",
        "reason": "",
        "access": "scan",
        "start": 0,
        "file_frames": 99,
        "fps": 25.0,
        "height": 48,
        "width": 64,
        "bytes": 9,
        **columns,
    }
    arrays = [
        pa.array(value if isinstance(value, list) else [value] * count, kind)
        for value, kind in ((every[item.name], item.type) for item in CLIPS)
    ]
    label = pa.array(labels if labels is not None else [None] * count, pa.int32())
    return Manifest(pa.table(arrays, schema=CLIPS), pa.chunked_array([label]), tuple(names))


def commit(store, made):
    """Where plans look for it."""
    parts = {"clips": made.clips, "labels": pa.table([made.label], ["label"])}
    parts = {f"{name}.parquet": artefacts.table_bytes(table) for name, table in parts.items()}
    names = json.dumps(made.class_names).encode()
    artefacts.ensure(store, "manifest", {}, lambda: {**parts, "classes.json": names})


def build_manifest(annotated, class_names, found, *, min_frames):
    """What is committed of annotations and probes, read again."""
    made = Annotated(annotated)
    (files,) = made.groups(len(annotated))
    place_N = tables.pc.index_in(files, found["path"]).to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        parts = manifest_parts(
            made, class_names, lambda file_N: tables.take(found, place_N[file_N]), min_frames=min_frames
        )
        artefacts.commit(Store(folder), "manifest", parts, {})
        return Manifest.load(Store(folder))


def classed(first, stop, classes, **more):
    """Samples of some rows, of class row mod `classes`."""
    row_N = np.arange(first, stop)
    return samples(row_N, row_N % classes, **{key: np.full(len(row_N), value) for key, value in more.items()})


def annotated(*rows):
    """What readers of annotations give: (id, file, label, split, start, end, in seconds), the last ones optional."""
    whole = [(*row, *("train", None, None, False)[len(row) - 3 :]) for row in rows]
    names = ("video_id", "file", "label", "split", "start", "end", "seconds")
    kinds = (pa.string(), pa.string(), pa.int32(), pa.string(), pa.float64(), pa.float64(), pa.bool_())
    columns = zip(*whole, strict=True) if whole else [()] * len(names)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)], names=names)


def found(**files):
    """What probing finds: an error, or how the file differs from one of 30 frames."""
    usual = {"num_frames": 30, "fps": 25.0, "height": 48, "width": 64, "access": "scan", "bytes": 9, "sha256": "ab"}
    rows = [{"path": path, **({"error": of} if isinstance(of, str) else {**usual, **of})} for path, of in files.items()]
    return pa.Table.from_pylist(rows, schema=FOUND)
