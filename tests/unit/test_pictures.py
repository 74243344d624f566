"""Folders of numbered pictures are clips: their order, what is left alone, and what is refused, on a disk and on S3."""

import io
import json
import re

import av
import numpy as np
import pytest
from test_video import HEIGHT, WIDTH, numbers, striped

from finepseudo.data import probe, video
from finepseudo.data.cache import ClipCache
from finepseudo.data.child import Child, answer
from finepseudo.data.decode import Decoder
from finepseudo.data.pack import How
from finepseudo.data.pictures import Pictures
from finepseudo.driver.executor import InProcess
from finepseudo.driver.prepare import ensure_manifest
from finepseudo.errors import DecodeError
from finepseudo.recipe import Data, Frames, Recipe
from finepseudo.storage.store import Store


def picture(number, ending="png", height=HEIGHT):
    sink, form = io.BytesIO(), {"png": ("png", "rgb24"), "jpg": ("mjpeg", "yuvj420p")}[ending]
    with av.open(sink, "w", format="image2pipe") as file:
        stream = file.add_stream(form[0], rate=1)
        stream.height, stream.width, stream.pix_fmt = height, WIDTH, form[1]
        file.mux(
            stream.encode(av.VideoFrame.from_ndarray(striped(number)[:height], format="rgb24").reformat(format=form[1]))
        )
        file.mux(stream.encode())
    return sink.getvalue()


def write(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number, name.rpartition(".")[2].lower()))
    return folder


NAMES = [f"img_{number}.jpg" for number in range(3, 15)]


@pytest.fixture
def child():
    made = Child(60)
    yield made
    made.close()


def row_of(found):
    return {**found, "file_frames": found["num_frames"], "start": 0, "path": "clip"}


@pytest.mark.parametrize("names", [NAMES, ["1.PNG", "2.PNG", "10.PNG"], [f"{n:05d}.png" for n in range(9)]])
def test_frames_are_the_pictures_by_number(tmp_path, child, names):
    folder = write(tmp_path / "clip", names)
    for extra in (".DS_Store", "._00001.png", "Thumbs.db", "labels.txt", "cover.jpg"):
        (folder / extra).write_bytes(b"not a frame")
    (folder / "flow_0001.png").mkdir()
    found = child.probe(str(folder))
    assert found["access"].split()[0] == "pictures"
    assert (found["num_frames"], found["height"], found["width"], found["fps"]) == (len(names), HEIGHT, WIDTH, 0.0)
    assert found["bytes"] == sum((folder / name).stat().st_size for name in names)
    assert child.probe(f"{folder}/") == found
    order = [len(names) - 1, 0, 1, 1]
    assert numbers(child.frames(str(folder), row_of(found), order, HEIGHT, WIDTH)) == order


def test_only_what_is_asked_for_is_opened(tmp_path, child):
    folder = write(tmp_path / "clip", NAMES)
    row = row_of(child.probe(str(folder)))
    for number in range(5, 12):
        path = folder / NAMES[number]
        path.write_bytes(b"x" * path.stat().st_size)
    assert numbers(child.frames(str(folder), row, [0, 4], HEIGHT, WIDTH)) == [0, 4]
    with pytest.raises(DecodeError, match="picture img_8.jpg: "):
        child.frames(str(folder), row, [0, 5], HEIGHT, WIDTH)


def test_identity_is_names_and_bytes(tmp_path):
    folder = write(tmp_path / "clip", NAMES)
    first = answer({"uri": str(folder)})[0]
    assert answer({"uri": str(write(tmp_path / "moved", NAMES))})[0] == first
    (folder / NAMES[2]).write_bytes(picture(99, "jpg"))
    assert answer({"uri": str(folder)})[0]["sha256"] != first["sha256"]
    renamed = answer({"uri": str(write(tmp_path / "renamed", [f"x{name}" for name in NAMES]))})[0]
    assert renamed["sha256"] != first["sha256"]


def test_another_folder_than_was_probed_is_noticed(tmp_path, child):
    folder = write(tmp_path / "clip", NAMES)
    row = row_of(child.probe(str(folder)))
    (folder / NAMES[3]).unlink()
    with pytest.raises(DecodeError, match="other pictures than when it was probed"):
        child.frames(str(folder), row, [0], HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / NAMES[7]).write_bytes(b"broken"), "picture img_10.jpg: "),
        (lambda folder: (folder / NAMES[11]).write_bytes(b""), "picture img_14.jpg: "),
        (
            lambda folder: (folder / NAMES[4]).write_bytes(picture(4, "jpg", 32)),
            r"pictures of several sizes: img_3.jpg is 64x160, img_7.jpg is 32x160",
        ),
        (
            lambda folder: write(folder, ["flow_1.jpg"]),
            r"several series of pictures, expected one: flow_\*.jpg, img_\*.jpg",
        ),
        (lambda folder: write(folder, ["img_03.jpg"]), "two pictures of one number: img_03.jpg, img_3.jpg"),
        (
            lambda folder: [path.rename(folder / f"{path.stem}.txt") for path in folder.iterdir()],
            "without numbered pict",
        ),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "is a folder"),
    ],
    ids=["broken", "empty", "size", "series", "twins", "other files", "nothing"],
)
def test_what_is_refused_says_why(tmp_path, child, spoil, reason):
    folder = write(tmp_path / "clip", NAMES)
    spoil(folder)
    found = child.probe(str(folder))
    assert found.keys() == {"error"}
    assert re.search(reason, found["error"])


def test_a_quick_look_opens_the_first_and_the_last(tmp_path, child):
    folder = write(tmp_path / "clip", NAMES)
    thorough = child.probe(str(folder))
    (folder / NAMES[5]).write_bytes(b"x" * (folder / NAMES[5]).stat().st_size)
    found = child.probe(str(folder), quick=True)
    assert {**found, "sha256": ""} == {**thorough, "sha256": ""}
    assert numbers(child.frames(str(folder), row_of(found), [4], HEIGHT, WIDTH)) == [4]
    (folder / NAMES[11]).write_bytes(picture(11, "jpg", 32))
    assert "picture img_8.jpg" in child.probe(str(folder), quick=True)["error"], "in doubt all are looked at"


def test_large_folders_are_not_held_in_memory(tmp_path):
    folder = write(tmp_path / "clip", NAMES)
    store = Store(str(folder))
    pictures = Pictures(store, store.sizes(), keep_bytes=4 * (folder / NAMES[0]).stat().st_size)
    pictures.identity()
    assert 2 <= len(pictures._kept) <= 6
    assert probe.examine(pictures).num_frames == len(NAMES)


def test_a_recipe_of_folders(tmp_path):
    """Probed, cut into parts by frames, decoded and packed as files are."""
    raw = tmp_path / "raw"
    write(raw / "clips/dive.1", NAMES)
    write(raw / "clips/two", NAMES[:9])
    rows = [{"vid_name": "dive.1", "label": 0, "start_frame": 2, "end_frame": 11}, {"vid_name": "two", "label": 1}]
    (raw / "train.json").write_text(json.dumps(rows))
    (raw / "vocab.json").write_text('["a", "b"]')
    data = Data(root=str(raw), videos="clips/{video_id}", test="")
    recipe = Recipe(name="folders", data=data, frames=Frames(height=HEIGHT, width=WIDTH, crop=40))
    manifest = ensure_manifest(recipe, Store(str(tmp_path / "run")), InProcess(recipe))
    dive = next(row for row in manifest.clips.to_pylist() if row["video_id"] == "dive.1")
    assert (dive["start"], dive["num_frames"], dive["file_frames"], dive["status"]) == (2, 9, 12, "ok")
    decoder = Decoder(Store(str(raw)), HEIGHT, WIDTH, ClipCache("", 0))
    assert numbers(decoder.clips(dive, [np.array([0, 8, 3])])[0]) == [2, 10, 5]
    found, packed = decoder.child.pack(str(raw / "clips/dive.1"), dive, How(HEIGHT, WIDTH))
    shown = video.Shown(*(found[key] for key in ("num_frames", "height", "width", "access")))
    assert numbers(video.frames(packed, shown, range(12), HEIGHT, WIDTH)) == list(range(12))
