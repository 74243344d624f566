"""One's own videos, and the forms that many share: JSON, CSV, Parquet, lists of paths, a folder per class."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from finepseudo.data.formats.entries import (
    ENDINGS,
    FILES,
    IDS,
    Annotation,
    Source,
    below,
    id_of,
    note_unused,
    number,
    of_mapping,
    shown,
    split_line,
)

KINETICS = ("youtube_id", "time_start", "time_end")


def json_list(source: Source) -> Iterator[Annotation]:
    """A JSON list of objects, as Diving48 has: `{"vid_name", "label", "start_frame", "end_frame"}`."""
    for where, entry in json_entries(source):
        if not {*IDS, *FILES} & entry.keys():
            example = '{"vid_name": "abc_00001", "label": 3, "start_frame": 0, "end_frame": 99}'
            raise source.fault(where, f": expected vid_name or file, got {shown(entry)}; a correct entry: {example}")
        yield of_mapping(entry, where, source)


def json_entries(source: Source) -> Iterator[tuple[int, Mapping[str, object]]]:
    """The objects of a JSON list and their numbers, from 0."""
    body = source.json()
    if not isinstance(body, list) or not body:
        raise source.fault(None, f": expected a non-empty JSON list of clips, got {shown(body)}")
    for where, entry in enumerate(body):
        if not isinstance(entry, Mapping):
            raise source.fault(where, f": expected vid_name or file, got {shown(entry)}; entries are JSON objects")
        yield where, entry


def table(source: Source) -> Iterator[Annotation]:
    """CSV with a header (tabs in `.tsv`): an id or a file; label, split, start and end where known.

    Kinetics' own columns too: `label,youtube_id,time_start,time_end,split,is_cc` names `<id>_<start>_<end>`.
    """
    delimiter = "\t" if source.file.lower().endswith(".tsv") else ","
    rows = csv.reader(source.lines(), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        _check_header(header, source, 1)
        kinetics = {*KINETICS} <= {*header}
        note_unused(header, source, (*KINETICS, "is_cc") if kinetics else ())
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise source.fault(rows.line_num, f": expected {len(header)} columns, got {len(row)}")
            entry = dict(zip(header, row, strict=True))
            if kinetics:
                times = [number(entry[key], rows.line_num, key, source, whole=True) for key in KINETICS[1:]]
                clip = "_".join([entry["youtube_id"], *(f"{time:06.0f}" for time in times)])
                entry = {"youtube_id": clip, "label": entry.get("label", ""), "split": entry.get("split", "")}
            yield of_mapping(entry, rows.line_num, source)
    except csv.Error as error:
        raise source.fault(rows.line_num, f": not CSV: {error}") from None


def parquet(source: Source) -> Iterator[Annotation]:
    """The columns of `table`."""
    with source.opened() as file:
        try:
            batches = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise source.fault(None, f": not Parquet: {' '.join(str(error).split())}") from None
        _check_header(batches.schema_arrow.names, source, None)
        note_unused(batches.schema_arrow.names, source)
        where = 0
        for batch in _batches(batches, source):
            for entry in batch.to_pylist():
                if isinstance(entry.get("label"), float) and entry["label"].is_integer():
                    entry["label"] = int(entry["label"])  # whole numbers with gaps, as pandas writes them
                yield of_mapping(entry, where, source)
                where += 1


def _batches(file: pq.ParquetFile, source: Source) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(65_536)
    except (pa.ArrowException, OSError) as error:
        raise source.fault(None, f": damaged: {' '.join(str(error).split())}") from None


def _check_header(names: list[str], source: Source, where: int | None) -> None:
    if not {*IDS, *FILES} & {*names}:
        raise source.fault(where, f": expected a header with one of {', '.join(IDS + FILES)}, got {shown(names)}")


def lines(source: Source) -> Iterator[Annotation]:
    """`path label`, `path frames label` or `path` on each line, as mmaction2, VideoMAE and SVFormer have.

    A path from elsewhere (`/data/kinetics/abseiling/x.mp4`) is for `data.videos` with `**` alone: files are then found
    by their names.
    """
    for where, text in source.texts():
        path, label = split_line(text)
        if source.anywhere:
            path = path.lstrip("/")
        yield Annotation(id_of(below(path, where, source)), label, "", where, path)


def folders(source: Source) -> Iterator[Annotation]:
    """A folder per class: the class is the first folder below, the videos lie at any depth in it."""
    root, count = posixpath.normpath(source.file).strip("/"), 0
    root = "" if root == "." else f"{root}/"
    for file in source.store.walk(root.rstrip("/")):
        if file.lower().endswith(ENDINGS):
            label, _, rest = file.removeprefix(root).partition("/")
            yield Annotation(id_of(file), label if rest else None, "", None, file)
            count += 1
    if not count:
        raise source.fault(None, ": expected folders of classes with videos in them, found no video")
