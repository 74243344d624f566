"""TensorBoard's files of a run, a folder a series and a file a part: a file that is there is never changed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter

from finepseudo.storage.store import Store
from finepseudo.tracking.parts import Part, Points

FOLDER = "tensorboard"  # below the run directory


def write_events(run: Store, parts: Sequence[Part]) -> None:
    """Write what is missing, and take away what belongs to no part: of a training whose folder somebody deleted."""
    wanted = {f"{FOLDER}/{part.series}": dict[str, Part]() for part in parts}
    for part in parts:
        # TensorBoard reads the files of a folder in the order of their names.
        wanted[f"{FOLDER}/{part.series}"][f"events.out.tfevents.{part.last:010d}.{part.digest}"] = part
    for folder, files in wanted.items():
        there = [name for name in run.list(folder) if ".tfevents." in name]
        for name in there:
            if name not in files:
                run.delete(f"{folder}/{name}")
        for name, part in files.items():
            if name not in there:
                run.write(f"{folder}/{name}", _events(part.points()))


def _events(points: Points) -> bytes:
    now = time.time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        writer = RecordWriter(str(path))
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for point in points:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.items() if tag != "step"]
            event = Event(wall_time=now, step=int(point["step"]), summary=Summary(value=values))
            writer.write(event.SerializeToString())
        writer.close()
        return path.read_bytes()
