"""Broken inputs, seeded: what becomes of videos, annotation files and artefacts that were changed at random.

    python benchmarks/fuzz.py --videos DIR DIR --run runs/demo --export models/demo [--seed 0] [--counts 500 200 100]

Each input is a whole one with one change. Right is: accepted with what it truly holds, or refused with a reason, within
the deadline, by one of `finepseudo.errors`, and whoever asked lives. Printed is a table by kind, and what is not right,
with the seed of the attempt; the exit code is 1 then. `--keep DIR` keeps those inputs.

    hangs     past the deadline
    crashes   of the process that asked, or of its decoder (the child of a decoder may die, and is counted apart)
    untyped   an error that is none of the package's
    silent    accepted, and not what it holds: other frames than decoding from the start gives, or an unsafe name
"""

# ruff: noqa: S311  (numbers that anyone can draw again)
from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finepseudo.data.child import Child
from finepseudo.errors import DecodeError, FinePseudoError

DEADLINE_S = 30.0  # of a video, as `scale.decode_deadline_s` is one
ASK_S = 120.0  # of an annotation file or an artefact
ROOM = 12 << 30  # bytes of address space of the process that reads annotations and artefacts
SIDE = 32  # pixels of compared frames
ALIKE = 6.0  # grey levels by which two decoders' frames may differ in the mean
HUGE = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"udta")

Change = Callable[[random.Random, bytes], bytes]


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    tried: int = 0
    accepted: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])
    wrong: Counter[str] = field(default_factory=Counter[str])


@dataclass
class Report:
    """By kind, and a line for each input that was not treated as it should be."""

    kinds: dict[str, Tally] = field(default_factory=dict[str, Tally])
    wrong: list[str] = field(default_factory=list[str])

    def add(self, kind: str, verdict: str, said: str, what: str) -> bool:
        """Count one input; whether it was treated as it should be."""
        tally = self.kinds.setdefault(kind, Tally())
        tally.tried += 1
        if verdict == "accepted":
            tally.accepted += 1
        elif verdict == "rejected":
            tally.rejected += 1
            tally.reasons[_class_of(said)] += 1
        else:
            tally.wrong[verdict] += 1
            self.wrong.append(f"{verdict}: {kind}, {what}: {said[:300]}")
        return verdict in ("accepted", "rejected")

    def lines(self) -> Iterator[str]:
        yield f"{'kind':24} tried accepted rejected hangs crashes untyped silent  reasons"
        for kind, tally in sorted(self.kinds.items()):
            counts = "".join(f"{tally.wrong[name]:{width}}" for name, width in WRONG.items())
            reasons = ", ".join(f"{count} {reason}" for reason, count in tally.reasons.most_common())
            yield f"{kind:24} {tally.tried:5} {tally.accepted:8} {tally.rejected:8}{counts}  {reasons}"


WRONG = {"hang": 6, "crash": 8, "untyped": 8, "silent": 7}  # and the width of its column


def _class_of(said: str) -> str:
    """The beginning of a reason, which says of what kind it is."""
    for known in ("deadline", "decoder crashed", "empty", "no room"):
        if said.startswith(known):
            return known
    return said.partition(":")[0][:24]


# Videos


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Some bits, anywhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 4, 32, 256))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def header_flipped(rng: random.Random, data: bytes) -> bytes:
    """Some bits where a file says what it holds: its beginning, or its index."""
    changed, starts = bytearray(data), [0, *(at for at in (data.find(b"moov"), data.find(b"idx1")) if at > 0)]
    start = rng.choice(starts)
    for _ in range(rng.choice((1, 2, 8))):
        changed[min(len(data) - 1, start + rng.randrange(2048))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def zeroed(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    count = min(len(data) - start, rng.choice((16, 1024, 65536)))
    return data[:start] + bytes(count) + data[start + count :]


def lengthened(rng: random.Random, data: bytes) -> bytes:
    """A number of four bytes that is far too large, where headers are."""
    changed, at = bytearray(data), rng.randrange(min(len(data) - 4, 4096))
    if (
        rng.random() < 0.5
        and (found := data.find(rng.choice((b"stsz", b"stts", b"stsc", b"stco", b"ctts", b"elst")))) > 0
    ):
        at = found + 8 + 4 * rng.randrange(3)
    changed[at : at + 4] = rng.choice(HUGE).to_bytes(4, rng.choice(("big", "little")))
    return bytes(changed[: len(data)])


def endless(rng: random.Random, data: bytes) -> bytes:
    """Headers, or the whole file, again and again."""
    head = data[: rng.choice((64, 512, 4096))]
    if rng.random() < 0.3:
        return data * rng.choice((2, 3))
    return head * ((2 << 20) // len(head)) + data


def boxes(data: bytes) -> list[tuple[int, int, bytes]]:
    """Start, length and name of the boxes of an MP4, at all depths; of the chunks of another file, pieces of it."""
    found: list[tuple[int, int, bytes]] = []

    def look(at: int, end: int) -> None:
        while at + 8 <= end:
            size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
            if size < 8 or at + size > end:
                return
            found.append((at, size, name))
            if name in BOXES:
                look(at + 8, at + size)
            at += size

    if data[4:8] == b"ftyp":
        look(0, len(data))
    return found or [(at, 512, b"") for at in range(0, max(1, len(data) - 512), 512)]


def rearranged(rng: random.Random, data: bytes) -> bytes:
    """Two boxes swapped, one doubled or left out, or one whose size is another."""
    (a, size, _), (b, other, _) = sorted(rng.sample(there, 2)) if len(there := boxes(data)) > 1 else (there[0],) * 2
    how = rng.choice(("swap", "double", "leave out", "resize"))
    if how == "swap" and a + size <= b:
        return data[:a] + data[b : b + other] + data[a + size : b] + data[a : a + size] + data[b + other :]
    if how == "double":
        return data[: a + size] + data[a : a + size] * rng.choice((1, 50)) + data[a + size :]
    if how == "resize":
        new = max(0, size + rng.choice((-8, -1, 1, 8, 1 << 20))) if rng.random() < 0.7 else rng.choice(HUGE)
        return data[:a] + (new & 0xFFFFFFFF).to_bytes(4) + data[a + 4 :]
    return data[:a] + data[a + size :]


def enlarged(
    rng: random.Random, data: bytes, sides: Sequence[tuple[int, int]] = ((160, 64), (64, 160), (320, 240))
) -> bytes:
    """Sides that a header claims, as MP4, Matroska and AVI write them, made huge."""
    wide, tall = rng.choice(((16384, 16384), (65535, 65535), (32767, 2), (2, 32767), (1, 1), (0, 0)))
    changed = data
    for width, height in sides:
        for form in (">HH", ">II", "<II", "<HH"):
            old = struct.pack(form, width, height)
            changed = changed.replace(old, struct.pack(form, wide, tall))
        old = struct.pack(">II", width << 16, height << 16)
        changed = changed.replace(old, struct.pack(">II", wide << 16, tall << 16))
    return changed if changed != data else header_flipped(rng, data)


VIDEO_CHANGES: tuple[Change, ...] = (
    flipped, header_flipped, truncated, zeroed, lengthened, endless, rearranged, enlarged,
)  # fmt: skip


def fuzz_videos(sources: Sequence[Path], count: int, seed: int, report: Report, keep: Path | None = None) -> None:
    """Each change of each file in turn, probed as a run does, by a thorough and by a quick look."""
    child = Child(DEADLINE_S)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            change = VIDEO_CHANGES[number % len(VIDEO_CHANGES)]
            source = sources[number // len(VIDEO_CHANGES) % len(sources)]
            rng = random.Random(f"{seed} {number}")
            path = Path(folder) / f"{number}{source.suffix}"
            path.write_bytes(change(rng, source.read_bytes()))
            rights = []
            for quick in (False, True):
                kind = f"video {change.__name__}{' quick' * quick}"
                verdict, said = _watched_video(child, path, quick=quick, rng=rng)
                rights.append(report.add(kind, verdict, said, f"{source.name} number {number}"))
            if keep and not all(rights):
                shutil.copy(path, keep / f"{number}-{source.name}")
            path.unlink()
    child.close()


def _watched_video(child: Child, path: Path, *, quick: bool, rng: random.Random) -> tuple[str, str]:
    try:
        return _one_video(child, path, quick=quick, rng=rng)
    except Exception as error:  # noqa: BLE001  what it raises beside its own errors is what is looked for
        return "untyped", f"{type(error).__name__}: {error}"


def _one_video(child: Child, path: Path, *, quick: bool, rng: random.Random) -> tuple[str, str]:
    found = child.probe(str(path), quick=quick)
    if "error" in found:
        return "rejected", str(found["error"])
    row = {**found, "file_frames": found["num_frames"]}
    count = found["num_frames"]
    wanted = sorted({0, count // 2, count - 1, *(rng.randrange(count) for _ in range(4))})
    try:
        frames = child.frames(str(path), row, wanted, SIDE, SIDE)
    except DecodeError as error:
        return ("rejected", f"when read, {str(error).removeprefix(f'{path}: ')}")
    try:
        known = child.frames(str(path), {**row, "access": "scan"}, wanted, SIDE, SIDE)
    except DecodeError as error:
        if "frame" not in str(error):
            return "rejected", f"from the start, {str(error).removeprefix(f'{path}: ')}"
        if not quick:
            return "silent", f"{count} frames by {found['access']}, from the start: {error}"
        # A quick look sees no broken packets. Decoding from the start leaves their frames out, so it counts fewer; the
        # times of the packets say which frames are meant.
        try:
            known = child.frames(str(path), {**row, "access": "packets"}, wanted, SIDE, SIDE)
        except DecodeError as other:
            return "silent", f"{count} frames by {found['access']}, by packets: {other}"
    gap = np.abs(frames.astype(float) - known).mean((1, 2, 3)).max()
    return ("accepted", "") if gap < ALIKE else ("silent", f"frames {wanted} by {found['access']} differ by {gap:.1f}")


# Annotations and artefacts, read in a process of its own


class Asked:
    """A process that reads what it is told to, and is replaced when it hangs or dies."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, request: dict[str, Any]) -> tuple[str, str]:
        if self.process is None:
            command = [sys.executable, __file__, "--serve"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], ASK_S)[0]:
            self.close()
            return "hang", f"{ASK_S:g} s"
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait(10)
            self.close()
            return "crash", f"exit status {code}"
        verdict, said = json.loads(line)
        return verdict, said

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


def serve() -> None:
    """Read what each line names, and say what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = read_annotation(request) if "format" in request else read_artefact(request)
        except FinePseudoError as error:
            place, _, name = request["names"].rpartition("/")
            names = (place if name == "committed.json" else request["names"]) in str(error)
            answer = ("rejected", type(error).__name__) if names else ("untyped", f"does not name the file: {error}")
        except BaseException as error:  # noqa: BLE001  what is looked for
            answer = ("untyped", f"{type(error).__name__}: {error} ({_where(error)})")
        said.write(json.dumps(answer) + "\n")
        said.flush()


def _where(error: BaseException) -> str:
    """The innermost place in the package."""
    place, trace = "", error.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        place = f"{Path(file).name}:{trace.tb_lineno}" if "finepseudo/" in file else place
        trace = trace.tb_next
    return place


def read_annotation(request: dict[str, Any]) -> tuple[str, str]:
    from finepseudo.data.formats import read_collection
    from finepseudo.recipe import Data
    from finepseudo.storage.store import Store

    found = read_collection(Store(request["root"]), Data(**request["data"]))
    for row in found.clips.to_pylist():
        bad = {*"/\\\0\n"} & {*row["video_id"]} or ".." in row["video_id"]
        if bad or row["file"].startswith("/") or ".." in row["file"].split("/") or "\0" in row["file"]:
            return "silent", f"an unsafe name: {row['video_id']!r} {row['file']!r}"
        if row["label"] is not None and not 0 <= row["label"] < len(found.class_names):
            return "silent", f"label {row['label']}"
    return "accepted", ""


CLIPS = [{"vid_name": f"v{n:03}", "label": n % 3, "start_frame": 0, "end_frame": 20 + n} for n in range(30)]
TABLE = "file,label,split,start_s,end_s\n" + "".join(f"videos/v{n:03}.mp4,c{n % 3},train,,\n" for n in range(30))
KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\n" + "".join(
    f"c{n % 3},abcdefgh{n:03},{n},{n + 10},train,0\n" for n in range(30)
)
FINEGYM = "".join(f"abcdefghijk_E_000010_000020_A_00{n:02}_00{n + 2} {n % 3}\n" for n in range(10, 40))
VOCAB = json.dumps(["c0", "c1", "c2"])


def annotation_files() -> dict[str, tuple[dict[str, str], dict[str, bytes], str]]:
    """By format: options, files, and which of them is changed."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(
        pa.table({"file": [f"v{n}.mp4" for n in range(30)], "label": [f"c{n % 3}" for n in range(30)]}), sink
    )
    pairs = [(f"diving{n % 4}", n) for n in range(30)]
    kinds = {pair: {"action_type": f"{pair[1] % 3}07c", "frames": np.arange(4)} for pair in pairs}
    events = [{"video": f"diving__{n}", "_source_info": {"action_type": f"{n % 3}07c"}} for n in range(30)]
    ssv2 = [{"id": f"{n}", "label": "moves", "template": f"c{n % 3}", "placeholders": []} for n in range(30)]
    diving = "FineDiving_coarse_annotation.pkl"
    found: dict[str, tuple[dict[str, str], dict[str, bytes], str]] = {
        "json": ({"train": "a.json", "vocab": "v.json"}, {"a.json": json.dumps(CLIPS).encode()}, "a.json"),
        "vocabulary": (
            {"train": "a.json", "vocab": "v.json"}, {"a.json": json.dumps(CLIPS).encode(), "v.json": VOCAB.encode()},
            "v.json",
        ),
        "table": ({"train": "a.csv", "vocab": ""}, {"a.csv": TABLE.encode()}, "a.csv"),
        "tabs": ({"train": "a.tsv", "vocab": ""}, {"a.tsv": TABLE.replace(",", "\t").encode()}, "a.tsv"),
        "kinetics400": (
            {"train": "a.csv", "vocab": "", "format": "kinetics400"}, {"a.csv": KINETICS.encode()}, "a.csv",
        ),
        "parquet": ({"train": "a.parquet", "vocab": ""}, {"a.parquet": sink.getvalue()}, "a.parquet"),
        "list": (
            {"train": "a.txt", "vocab": "v.json"},
            {"a.txt": "".join(f"videos/v{n}.mp4 {n % 3}\n" for n in range(30)).encode()}, "a.txt",
        ),
        "finegym": ({"train": "a.txt", "format": "finegym", "vocab": "v.json"}, {"a.txt": FINEGYM.encode()}, "a.txt"),
        "finegym times": (
            {"train": "a.txt", "format": "finegym_whole", "vocab": "v.json"},
            {"a.txt": FINEGYM.encode(), "finegym_annotation_info_v1.1.json": json.dumps(_times()).encode()},
            "finegym_annotation_info_v1.1.json",
        ),
        "finediving": (
            {"train": "a.pkl", "format": "finediving", "vocab": ""},
            {"a.pkl": pickle.dumps(pairs), diving: pickle.dumps(kinds)}, "a.pkl",
        ),
        "finediving kinds": (
            {"train": "a.pkl", "format": "finediving", "vocab": ""},
            {"a.pkl": pickle.dumps(pairs), diving: pickle.dumps(kinds)}, diving,
        ),
        "finediving json": (
            {"train": "a.json", "format": "finediving", "vocab": ""}, {"a.json": json.dumps(events).encode()}, "a.json",
        ),
        "something_v2": (
            {"train": "a.json", "format": "something_v2", "vocab": ""}, {"a.json": json.dumps(ssv2).encode()}, "a.json",
        ),
        "ucf101": (
            {"train": "a.txt", "format": "ucf101", "vocab": ""},
            {"a.txt": "".join(f"C{n % 3}/v_{n}.avi {n % 3 + 1}\n" for n in range(30)).encode()}, "a.txt",
        ),
        "hmdb51": (
            {"train": "*_test_split1.txt", "format": "hmdb51", "vocab": ""},
            {f"c{k}_test_split1.txt": "".join(f"v{k}_{n}.avi {n % 3}\n" for n in range(30)).encode() for k in "01"},
            "c1_test_split1.txt",
        ),
    }  # fmt: skip
    return found


def _times() -> dict[str, Any]:
    stages = {f"A_00{n:02}_00{n + 2}": {"timestamps": [[n, n + 2]]} for n in range(10, 40)}
    return {"abcdefghijk": {"E_000010_000020": {"timestamps": [[10, 20]], "segments": stages}}}


def _text_changes() -> tuple[Change, ...]:
    """Ways in which an annotation file is broken."""

    def encoding(rng: random.Random, data: bytes) -> bytes:
        text = data.decode("latin-1")
        return rng.choice(
            (text.encode("utf-16"), b"\xff" + data, ("é" + text).encode("latin-1"), b"\xef\xbb\xbf" + data)
        )

    def nul(rng: random.Random, data: bytes) -> bytes:
        at = rng.randrange(len(data))
        return data[:at] + rng.choice((b"\0", b"\n", b"\r", b"\x1b[2J", b'"', b"\\u0000", b"\\ud800")) + data[at:]

    def huge(rng: random.Random, data: bytes) -> bytes:
        at = rng.randrange(len(data))
        return data[:at] + rng.choice((b"9" * 5000, b"x" * (1 << 20), b"9" * 400)) + data[at:]

    def deep(rng: random.Random, data: bytes) -> bytes:
        at = rng.choice((0, rng.randrange(len(data))))
        return data[:at] + rng.choice((b"[", b'{"a":')) * 200_000 + data[at:]

    def value(rng: random.Random, data: bytes) -> bytes:
        word = rng.choice(
            (b"NaN", b"1e999", b"-1", b"null", b"true", b"{}", b"[]", b"../../etc/passwd", b"s3://other/x")
        )
        places = [at for at in range(len(data)) if data[at : at + 1].isdigit()]
        at = rng.choice(places or [0])
        end = at
        while end < len(data) and data[end : end + 1].isdigit():
            end += 1
        return data[:at] + word + data[end:]

    def column(rng: random.Random, data: bytes) -> bytes:
        words = (b"label", b"vid_name", b"file", b"split", b"start_frame", b"video", b"action_type", b"id", b"template")
        there = [word for word in words if word in data]
        word = rng.choice(there or [data[:1]])
        return data.replace(word, rng.choice((b"other", b"", b"label", b"start", b"end_s")), rng.choice((1, -1)))

    return (encoding, nul, huge, deep, value, column, flipped, truncated, zeroed)


class _Runs:
    """What a pickle may ask for that would run something."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return {"system": (os.system, ("true",)), "eval": (eval, ("1",)), "open": (open, (os.devnull,))}[self.how]


def pickled_code(rng: random.Random, data: bytes) -> bytes:
    return pickle.dumps([_Runs(rng.choice(("system", "eval", "open"))), data])


def fuzz_annotations(count: int, seed: int, report: Report, keep: Path | None = None) -> None:
    """Each change of each format in turn."""
    asked, files, changes = Asked(), annotation_files(), _text_changes()
    turns = [(form, change) for change in changes for form in files]
    turns += [(form, pickled_code) for form in ("finediving", "finediving kinds", "json")]
    random.Random(seed).shuffle(turns)
    for number in range(count):
        form, change = turns[number % len(turns)]
        rng = random.Random(f"{seed} annotation {number}")
        with tempfile.TemporaryDirectory() as folder:
            options, bodies, name = files[form]
            (Path(folder) / "v.json").write_text(VOCAB)
            for each, data in bodies.items():
                (Path(folder) / each).write_bytes(change(rng, data) if each == name else data)
            request = {"format": form, "root": folder, "data": {"test": "", **options}, "names": folder}
            verdict, said = asked(request)
            right = report.add(f"annotation {form}", verdict, said, f"{change.__name__} number {number}")
            if keep and not right:
                shutil.copytree(folder, keep / f"annotation-{number}", dirs_exist_ok=True)
    asked.close()


def read_artefact(request: dict[str, Any]) -> tuple[str, str]:
    """All that a run's readers, or those of an exported classifier, read."""
    from finepseudo.classifier import Classifier
    from finepseudo.run import Run
    from finepseudo.storage import artefacts
    from finepseudo.storage.store import Store

    tempfile.tempdir = request["temporary"]  # no table that was mapped before stands in for a damaged one
    store = Store(request["root"])
    if request["names"].partition("/")[0] == "export":
        Classifier.at(store.child("export"))
        _read_all(store, "export")
        return "accepted", ""
    run = Run.at(store)
    run.recipe(), run.results(), run.manifest(), run.labelled(), run.predictions(), run.timing()
    for name in run.rounds():
        run.labels(name), run.fusion(name), run.known_from(name)
    run.asked(), run.plans()
    for where, folder in run.trainings():
        run.curve(folder.removeprefix("train/"))
        if where.exists(f"{folder}/snapshot/{artefacts.MARKER}"):
            artefacts.read_part(where, f"{folder}/snapshot", "weights.safetensors")
    for name in store.list("embeddings"):
        run.embeddings(name)
    Classifier.at(store)
    _read_all(store)
    return "accepted", ""


def _read_all(store: Any, inside: str = "") -> None:
    """Parts of all artefacts below a folder, by their digests, whoever else reads them."""
    from finepseudo.data.plan import Plan
    from finepseudo.storage import artefacts

    for file in [file for file in store.walk(inside) if file.endswith(f"/{artefacts.MARKER}")]:
        folder = file.rpartition("/")[0]
        for name in artefacts.required(store, folder)["parts"]:
            artefacts.read_part(store, folder, name)
        if folder.startswith("plans/"):
            Plan.load(store, folder)


def _body_changes() -> tuple[Change, ...]:
    """Ways in which a committed file is broken; the last ones are for JSON."""

    def other_json(rng: random.Random, data: bytes) -> bytes:
        return rng.choice((b"[]", b"null", b"{}", b"3", b'"x"', b"[" * 100_000, b"\xff\xfe", b'{"parts": 3}', b""))

    def key(rng: random.Random, data: bytes) -> bytes:
        body = json.loads(data)
        if isinstance(body, dict) and body:
            name = rng.choice(sorted(body))
            if rng.random() < 0.5:
                del body[name]
            else:
                body[name] = rng.choice((None, 3, [], {}, "x", {"x": 1}))
        return json.dumps(body).encode()

    return (flipped, truncated, zeroed, other_json, key)


def fuzz_artefacts(
    run: Path, export: Path | None, count: int, seed: int, report: Report, keep: Path | None = None
) -> None:
    """Each file of a run that its readers read, changed; nothing of the run itself is touched."""
    asked, rng = Asked(), random.Random(f"{seed} artefacts")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        skip = shutil.ignore_patterns("data", "logs", "tensorboard", "timing", "*.html")
        shutil.copytree(run, root, ignore=skip)
        if export is not None:
            shutil.copytree(export, root / "export")
        (Path(folder) / "whole").mkdir()
        told = asked({"root": str(root), "names": "", "temporary": f"{folder}/whole"})
        if told[0] != "accepted":
            raise SystemExit(f"the run itself is not read: {told}")
        files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".")]
        rng.shuffle(files)
        for number in range(count):
            path, change = files[number % len(files)], _body_changes()[number % 5]
            data = path.read_bytes()
            if path.suffix != ".json" and change.__name__ in ("other_json", "key"):
                change = flipped
            path.write_bytes(changed := change(rng, data))
            name, temporary = str(path.relative_to(root)), Path(folder) / f"tmp{number}"
            temporary.mkdir()
            verdict, said = asked({"root": str(root), "names": name, "temporary": str(temporary)})
            path.write_bytes(data)
            if changed == data:
                continue
            # A marker and what lies beside no marker has no digest: there a change that makes sense is another value.
            if verdict == "accepted" and path.suffix != ".json":
                verdict, said = "silent", "read without a word"
            kind = f"artefact {path.name if path.suffix == '.json' else path.suffix}"
            if not report.add(kind, verdict, said, f"{name} {change.__name__} number {number}") and keep:
                (keep / f"artefact-{number}{path.suffix}").write_bytes(changed)
            shutil.rmtree(temporary)
    asked.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", nargs="*", default=[], help="folders of whole videos")
    parser.add_argument("--run", help="a finished run, whose artefacts are copied and changed")
    parser.add_argument("--export", help="a classifier exported from it")
    parser.add_argument(
        "--counts", nargs=3, type=int, default=(500, 200, 100), help="of videos, annotations, artefacts"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder for inputs that were not treated as they should be")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    report, keep = Report(), Path(options.keep) if options.keep else None
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    videos, annotations, artefacts = options.counts
    files = [path for folder in options.videos for path in sorted(Path(folder).rglob("*")) if is_video(path)]
    with contextlib.suppress(KeyboardInterrupt):
        if files:
            random.Random(options.seed).shuffle(files)
            fuzz_videos(files, videos, options.seed, report, keep)
        fuzz_annotations(annotations, options.seed, report, keep)
        if options.run:
            export = Path(options.export) if options.export else None
            fuzz_artefacts(Path(options.run), export, artefacts, options.seed, report, keep)
    print(*report.lines(), *report.wrong, sep="\n")
    return 1 if report.wrong else 0


def is_video(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (".mp4", ".avi", ".mkv", ".webm", ".mpg", ".ts", ".h264")


if __name__ == "__main__":
    sys.exit(main())
