"""What reading clips costs: of a file of two hours, and through Ray Data, beside the bare decoder.

    python benchmarks/ingest.py long         # 16 frames of a 2 h file against the same of a 10 s cut of it
    python benchmarks/ingest.py look         # probing a 10 s clip: thorough and quick
    python benchmarks/ingest.py stream       # clips a second: raw and packed files, cache off, cold and warm

Files are generated. Whatever is compared runs in turn within each repetition; figures are medians with the least and
the most, and ratios are of neighbours.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
import pyarrow as pa

from finepseudo.data import probe, video
from finepseudo.data.cache import PAYS
from finepseudo.data.child import Child, answer
from finepseudo.data.manifest import FOLDER, FOUND, Annotated, Manifest, manifest_parts
from finepseudo.data.pack import How, pack
from finepseudo.data.plan import plan_classify, samples
from finepseudo.recipe import Augment, Frames, Recipe, Scale
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

FPS, GOP, FRAMES, SIDE = 30, 250, 16, 128
"""Of the files, and of the clips that are asked for."""
SCENES = 12  # different ones
DETAIL, NOISE = 24, 8.0  # grey levels: 340x256 pixels then take about as many bytes as those of Kinetics
PLAN, BATCH, EPOCHS = "plan", 8, round(PAYS)
WAYS = ("bare decord", "cache off", "cache filling", "cache full")


def spread(values: list[float]) -> str:
    """Median (least to most)."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def scene(count: int, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """A camera that moves over a random picture, with the noise of a sensor."""
    rng, margin = np.random.default_rng(seed), 64
    coarse = rng.integers(0, 255, (height // 24, width // 24, 3)).astype(np.uint8)
    tall, wide = height + margin, width + margin
    smooth = av.VideoFrame.from_ndarray(coarse, format="rgb24").reformat(
        width=wide, height=tall, interpolation="BICUBIC"
    )
    fine = rng.integers(-DETAIL, DETAIL + 1, (tall // 2 + 1, wide // 2 + 1, 1)).repeat(2, 0).repeat(2, 1)
    picture = np.clip(smooth.to_ndarray() + fine[:tall, :wide], 0, 255).astype(np.int16)
    noise = np.round(rng.standard_normal(1 << 22) * NOISE).astype(np.int16)
    for number in range(count):
        y, x = (round(margin / 2 * (1 + np.sin(number / period))) for period in (17 + seed, 23))
        frame = picture[y : y + height, x : x + width]
        start = int(rng.integers(0, len(noise) - frame.size))
        frame = frame + noise[start : start + frame.size].reshape(frame.shape)
        yield np.clip(frame, 0, 255).astype(np.uint8)


def encoded(count: int, height: int, width: int, preset: str, seed: int = 0) -> bytes:
    """A file as data sets have them: H.264 in MP4 with a key frame every 250."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as file:
        stream: Any = file.add_stream("libx264", rate=FPS, options={"preset": preset, "g": str(GOP)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number, pixels in enumerate(scene(count, height, width, seed)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return sink.getvalue()


def looped(data: bytes, count: int, path: Path) -> None:
    """A file of so many frames: the packets of another again and again, which have no B-frames."""
    with av.open(io.BytesIO(data)) as old:
        packets = [(bytes(packet), packet.is_keyframe) for packet in old.demux(video=0) if packet.size]
        with av.open(str(path), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for number in range(count):
                body, key = packets[number % len(packets)]
                packet = av.Packet(body)
                packet.stream, packet.is_keyframe, packet.time_base = stream, key, Fraction(1, FPS)
                packet.pts = packet.dts = number
                packet.duration = 1
                new.mux(packet)


# --- a long file ----------------------------------------------------------------------------------------------------


class Measured:
    """A process that opens one file, and the most memory that it takes."""

    def __init__(self, path: Path, *, quick: bool = False) -> None:
        self.uri, self.child = str(path), Child(600)
        self.child.probe(self.uri, quick=True)  # starts it
        self.started_mib = self.peak_mib
        self.probe_s = seconds(lambda: setattr(self, "found", self.child.probe(self.uri, quick=quick)))
        self.probe_mib = self.peak_mib
        self.child.close()
        self.child.probe(self.uri, quick=True)  # anew, so that its peak is that of decoding
        self.row = {**self.found, "file_frames": self.found["num_frames"]}

    found: dict[str, Any]

    @property
    def peak_mib(self) -> float:
        """VmHWM of the process."""
        assert self.child._process is not None
        lines = Path(f"/proc/{self.child._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

    def clip(self, first: int, stop: int) -> np.ndarray:
        """16 frames that are spread over a part of the file."""
        index = np.linspace(first, stop - 1, FRAMES).round().astype(int).tolist()
        return self.child.frames(self.uri, self.row, index, SIDE, SIDE)


def measure_long(folder: Path, hours: float, repetitions: int) -> None:
    """Print what a clip of a long file costs beside the same clip of a cut."""
    count, cut = round(hours * 3600 * FPS), 10 * FPS
    base = encoded(8 * GOP, 360, 640, "ultrafast")
    looped(base, count, folder / "long.mp4")
    looped(base, cut, folder / "cut.mp4")
    first = count // 2 // (8 * GOP) * (8 * GOP)  # where the cut's packets are once more
    long, short = Measured(folder / "long.mp4"), Measured(folder / "cut.mp4")
    sought = Measured(folder / "cut.mp4", quick=True)
    assert (long.clip(first, first + cut) == sought.clip(0, cut)).all(), "not the same frames"
    mib = os.path.getsize(folder / "long.mp4") / (1 << 20)
    print(f"{count} frames of 640x360, {mib:.0f} MiB, a key frame every {GOP}; 16 frames at {SIDE}x{SIDE}")
    print(f"  a process that has started: {short.started_mib:.0f} MiB")
    for name, file in (("long file", long), ("cut", short)):
        print(f"  probing the {name}: {file.probe_s:.1f} s, {file.probe_mib:.0f} MiB")
    times: dict[str, list[float]] = {"long": [], "cut": [], "cut by time": [], "all": []}
    for _ in range(repetitions):
        times["cut"].append(seconds(lambda: short.clip(0, cut)))
        times["long"].append(seconds(lambda: long.clip(first, first + cut)))
        times["cut by time"].append(seconds(lambda: sought.clip(0, cut)))
    print(f"  10 s within it: {spread(times['long'])} s, {long.peak_mib:.0f} MiB")
    for name, file in (("cut", short), ("cut by time", sought)):
        ratios = [a / b for a, b in zip(times["long"], times[name], strict=True)]
        access = file.found["access"].split()[0]
        print(
            f"  the same as a file ({access}): {spread(times[name])} s, {file.peak_mib:.0f} MiB; ratio {spread(ratios)}"
        )
    for _ in range(repetitions):
        times["all"].append(seconds(lambda: long.clip(0, count)))
    print(f"  16 frames spread over all of it: {spread(times['all'])} s, {long.peak_mib:.0f} MiB")


def measure_look(folder: Path, repetitions: int) -> None:
    """Print what probing costs."""
    path, child = folder / "clip.mp4", Child(60)
    path.write_bytes(encoded(10 * FPS, 256, 340, "medium"))
    child.probe(str(path))
    thorough, quick = list[float](), list[float]()
    for _ in range(repetitions):
        thorough.append(seconds(lambda: child.probe(str(path))))
        quick.append(seconds(lambda: child.probe(str(path), quick=True)))
    ratios = [a / b for a, b in zip(thorough, quick, strict=True)]
    print(f"probing 10 s of 340x256: thorough {spread(thorough)} s, quick {spread(quick)} s, ratio {spread(ratios)}")


# --- through Ray Data -----------------------------------------------------------------------------------------------


def bare(paths: list[str]) -> None:
    """Decode clips by decord alone, scaled as a stream's are."""
    for path in paths:
        size = dict(zip(("height", "width"), video.covering(256, 340, SIDE, SIDE), strict=True))
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1, **size)
        reader.get_batch(np.linspace(0, len(reader) - 1, FRAMES).round().astype(int).tolist()).asnumpy()


def bare_rate(processes: ProcessPoolExecutor, workers: int, paths: list[str]) -> float:
    """Clips a second of as many processes as the stream has."""
    shares = [paths[part::workers] for part in range(workers)]
    return len(paths) / seconds(lambda: list(processes.map(bare, shares)))


def stream_rate(run: Store, data: Store, blocks: int, recipe: Recipe) -> float:
    """Clips a second of a training's first blocks that reach a consumer, from the first one on."""
    from finepseudo.runtime.ingest import scoring_stream

    ends, clips = list[float](), list[int]()
    stream: Any = scoring_stream(run, data, PLAN, range(blocks), recipe)
    for block in stream.iter_batches(batch_size=None, prefetch_batches=0):
        assert not any(block["error"]), block["error"]
        ends.append(time.perf_counter())
        clips.append(len(block["row"]))
    return sum(clips[1:]) / (ends[-1] - ends[0])


def planned(data: Store, run: Store, bodies: list[bytes]) -> None:
    """The files in a store, probed; and a training that reads each so often that the cache keeps them."""
    rows: list[dict[str, Any]] = []
    for number, body in enumerate(bodies):
        data.write(f"{number:04d}.mp4", body)
        path = f"{number:04d}.mp4"
        rows.append({"path": path, **answer({"uri": data.uri(path)})[0]})
    found = pa.Table.from_pylist(rows, schema=FOUND)
    nothing = pa.nulls(len(rows), pa.float64())
    label, all_of_it = pa.array(np.arange(len(rows)) % 2, pa.int32()), pa.array([False] * len(rows))
    columns = {"video_id": found["path"], "file": found["path"], "label": label, "split": ["train"] * len(rows)}
    clips = pa.table(columns | {"start": nothing, "end": nothing, "seconds": all_of_it})
    artefacts.commit(run, FOLDER, manifest_parts(Annotated(clips), ["a", "b"], found.take, min_frames=8), {})
    manifest = Manifest.load(run)
    row_N = manifest.rows("train")
    plan_classify(
        manifest, samples(row_N, manifest.truth(row_N)), frames=FRAMES, augment=Augment(), batch=BATCH,
        steps=EPOCHS * len(rows) // BATCH, label_share=1.0, blocks_per_step=1, seed=0,
    ).ensure(run, PLAN)  # fmt: skip


def measure_stream(folder: Path, files: int, workers: int, repetitions: int) -> None:
    """Print clips a second, raw and packed, beside those of bare decord on the same files in as many processes."""
    from finepseudo.runtime.cluster import cluster

    frames = Frames(height=SIDE, width=SIDE, crop=SIDE - 16, align=FRAMES, video=FRAMES)
    scale = Scale(decode_workers=workers, cache_dir=str(folder / "cache"), object_store_mib=300)
    recipe = Recipe(name="ingest", frames=frames, scale=scale)
    off = replace(recipe, scale=replace(scale, cache_gib=0.0))
    stores, runs = ({name: Store(str(folder / what / name)) for name in ("raw", "packed")} for what in ("data", "run"))
    bodies = {"raw": [encoded(10 * FPS, 256, 340, "medium", seed) for seed in range(min(files, SCENES))]}
    bodies["packed"] = [pack(body, probe.examine(body), How(SIDE, SIDE))[1] for body in bodies["raw"]]
    for name, of_name in bodies.items():
        # Not equal, which the cache would notice: each has a free box of its own.
        all_of_it = [of_name[n % len(of_name)] + struct.pack(">I4sI", 12, b"free", n) for n in range(files)]
        planned(stores[name], runs[name], all_of_it)
    rates: dict[tuple[str, str], list[float]] = {(name, way): [] for name in stores for way in WAYS}
    with cluster(recipe), ProcessPoolExecutor(workers, get_context("spawn")) as processes:
        for _ in range(repetitions):
            for name, store in stores.items():
                paths = [store.uri(f"{index:04d}.mp4") for index in range(files)]
                shutil.rmtree(folder / "cache", ignore_errors=True)
                bare_rate(processes, workers, paths[: 2 * workers])  # starts them
                rates[name, "bare decord"].append(bare_rate(processes, workers, paths))
                epoch = files // BATCH
                for way, of_way, blocks in zip(
                    WAYS[1:], (off, recipe, recipe), (epoch, EPOCHS * epoch, epoch), strict=True
                ):
                    rates[name, way].append(stream_rate(runs[name], store, blocks, of_way))
    sizes = " and ".join(
        f"{statistics.mean(map(len, of_name)) / 1000:.0f} kB {name}" for name, of_name in bodies.items()
    )
    print(
        f"{files} files of 10 s, 340x256, {sizes}; 16 frames at {SIDE}x{SIDE}; {workers} processes; clips a second\n"
        f"(cache filling: a training of {EPOCHS} epochs, whole)"
    )
    for (name, way), found in rates.items():
        of_bare = spread([a / b for a, b in zip(found, rates[name, WAYS[0]], strict=True)])
        of_raw = spread([a / b for a, b in zip(found, rates["raw", way], strict=True)])
        print(f"  {name:6} {way:18} {spread(found)}; of bare {of_bare}; of raw {of_raw}")


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("long", "look", "stream"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--hours", type=float, default=2.0, help="length of the long file")
    parser.add_argument("--files", type=int, default=48)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == "long":
            measure_long(folder, options.hours, options.repetitions)
        elif options.what == "look":
            measure_look(folder, options.repetitions)
        else:
            measure_stream(folder, options.files, options.workers, options.repetitions)


if __name__ == "__main__":
    main()
