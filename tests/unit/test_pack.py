"""A packed file shows the same frames at the same times; a packed data set has the same clips."""

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from test_video import CASES, HEIGHT, KNOWN, SHARED, WIDTH, encoded, numbers

from finepseudo.data import probe, video
from finepseudo.data.pack import How, pack, psnr, ssim
from finepseudo.driver.executor import InProcess
from finepseudo.driver.pack import ensure_packed, packed_data, packed_names, summary
from finepseudo.driver.prepare import ensure_manifest
from finepseudo.errors import ArtefactError, DecodeError, RecipeError
from finepseudo.recipe import Data, Frames, Recipe
from finepseudo.storage.store import Store

HOW = How(HEIGHT, WIDTH)
REAL = SHARED / "data/videos"
here = pytest.mark.skipif(not REAL.exists() or not KNOWN, reason="the folders of files are not beside this checkout")


def tick_s(data):
    """Times of all frames in seconds, counted from the first."""
    with av.open(io.BytesIO(data)) as file:
        times = [frame.pts * frame.time_base for frame in file.decode(video=0)]
    return [time_s - times[0] for time_s in times]


@here
@pytest.mark.parametrize("name", [name for name in KNOWN if isinstance(KNOWN[name].get("indices"), list)])
def test_a_packed_file_shows_the_frames_of_the_original(name):
    known, data = KNOWN[name], (CASES / "frames" / name).read_bytes()
    shown = probe.examine(data)
    found, packed = pack(data, shown, HOW)
    assert (found["num_frames"], found["access"]) == (shown.num_frames, "decord")
    assert shown.num_frames == 1 or found["fps"] == shown.fps
    assert found["psnr"] > 35
    if not known["rotation"] and known["size"] == [WIDTH, HEIGHT]:
        shown = video.Shown(*(found[key] for key in ("num_frames", "height", "width", "access")))
        every = [number for first, last in known["indices"] for number in range(first, last + 1)]
        assert numbers(video.frames(packed, shown, range(shown.num_frames), HEIGHT, WIDTH)) == every


@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts"])
def test_uneven_times_are_kept(form):
    data = encoded(90, form=form, times=[n + 5 * (n // 11) for n in range(90)], g=20)
    packed = pack(data, probe.examine(data), HOW)[1]
    assert tick_s(packed) == tick_s(data)
    assert tick_s(packed)[-1] == pytest.approx((89 + 40) / 30, abs=0.002)


def test_frames_without_times_are_evenly_spaced():
    data = encoded(60, form="h264", g=12)
    shown = probe.examine(data)
    found, packed = pack(data, shown, HOW)
    assert tick_s(packed) == [Fraction(number, round(shown.fps)) for number in range(60)]
    assert found["fps"] == shown.fps


def test_key_frames_are_near_nothing_refers_ahead_and_the_index_is_in_front():
    data = encoded(100, g=100, bf=3)
    packed = pack(data, probe.examine(data), replace(HOW, gop=7))[1]
    with av.open(io.BytesIO(packed)) as file:
        assert [stream.type for stream in file.streams] == ["video"]
        packets = [packet for packet in file.demux(video=0) if packet.size]
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == list(range(0, 100, 7))
    with av.open(io.BytesIO(packed)) as file:
        assert {int(frame.pict_type) for frame in file.decode(video=0)} == {1, 2}, "I and P, no B"
    assert packed.index(b"moov") < packed.index(b"mdat")


@pytest.mark.parametrize(
    ("height", "width", "sides"),
    [(32, 32, (32, 80)), (33, 33, (34, 84)), (20, 100, (40, 100)), (64, 160, (64, 160)), (500, 500, (64, 160))],
)
def test_a_packed_file_covers_what_is_needed_and_is_never_enlarged(height, width, sides):
    data = encoded(10)
    found, _ = pack(data, probe.examine(data), How(height, width))
    assert (found["height"], found["width"]) == sides


def test_quality_is_the_samples():
    data = encoded(60)
    fine, coarse = (pack(data, probe.examine(data), replace(HOW, crf=crf)) for crf in (10, 50))
    assert fine[0]["psnr"] > coarse[0]["psnr"] + 5
    assert fine[0]["ssim"] > coarse[0]["ssim"]
    assert len(fine[1]) > len(coarse[1])


def test_measures_of_likeness():
    a = np.random.default_rng(0).integers(0, 200, (2, 20, 30, 3)).astype(np.uint8)
    assert (psnr(a, a), ssim(a, a)) == (99.0, pytest.approx(1.0))
    assert psnr(a, a + 10) == pytest.approx(20 * np.log10(255 / 10))
    flat = np.full((1, 9, 9, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(flat, flat + 20) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))
    assert ssim(a, a[:, ::-1]) < 0.2
    assert ssim(flat[:, :4], flat[:, :4]) == pytest.approx(1.0), "smaller than a window"


def test_a_file_with_another_number_of_frames_is_refused():
    data = encoded(60)
    with pytest.raises(DecodeError, match="expected 61 frames, packed 60"):
        pack(data, replace(probe.examine(data), num_frames=61), HOW)


def test_no_two_files_become_one():
    names = packed_names(["x/a.avi", "x/a.mp4", "x/b.MP4", "x/a.mkv", "x/a.mkv.mp4", "y/1"])
    assert names == {
        "x/a.mp4": "x/a.mp4", "x/a.mkv.mp4": "x/a.mkv.mp4", "x/a.avi": "x/a.avi.mp4",
        "x/a.mkv": "x/a.mkv.mp4.mp4", "x/b.MP4": "x/b.mp4", "y/1": "y/1.mp4",
    }  # fmt: skip


# --- a data set ---

FILES = {
    "cart/wheel.avi": REAL / "torchvision_assets/hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi",
    "cart/walk.avi": REAL / "torchvision_assets/TrumanShow_wave_f_nm_np1_fr_med_26.avi",
    "dance/long.mp4": REAL / "mmaction2_assets/demo.mp4",
    "dance/few.mp4": REAL / "mmaction2_assets/demo_spatiotemporal_det.mp4",
    "dance/more 1.mkv": REAL / "torchcodec_assets/av1_video.mkv",
    "un/stripes.ts": CASES / "frames/x.ts",
    "un/bad.mp4": None,
}
CLIPS = [
    ("wheel", "cart/wheel.avi", "cart", {}),
    ("walk", "cart/walk.avi", "cart", {"start_s": 0.25, "end_s": 1.5}),
    ("one", "dance/long.mp4", "dance", {"start_frame": 10, "end_frame": 60}),
    ("two", "dance/long.mp4", "dance", {"start_frame": 100}),
    ("few", "dance/few.mp4", "dance", {"start_s": 1, "end_s": 9}),
]


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    for name, source in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(source.read_bytes() if source else b"no video " * 99)
    return folder


def write_json(folder):
    rows = [{"vid_name": name, "file": file, "label": label, **span} for name, file, label, span in CLIPS]
    (folder / "train.json").write_text(json.dumps(rows))
    (folder / "test.json").write_text(json.dumps([{"file": "dance/more 1.mkv", "label": 1}]))
    return Data(root=str(folder), unlabelled="un", vocab="names.txt")


def write_csv(folder):
    columns = ("start_frame", "end_frame", "start_s", "end_s")
    rows = [[name, file, label, *(span.get(key, "") for key in columns)] for name, file, label, span in CLIPS]
    lines = [["video_id", "file", "label", *columns], *rows]
    (folder / "train.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))
    (folder / "test.txt").write_text("dance/more 1.mkv dance\n")
    return Data(root=str(folder), train="train.csv", test="test.txt", unlabelled="un", vocab="")


def write_txt(folder):
    lines = ["cart/wheel.avi 0", "cart/walk.avi 0", "dance/long.mp4 1", "dance/few.mp4", "dance/more 1.mkv 1"]
    (folder / "train.txt").write_text("\n".join(lines))
    return Data(root=str(folder), train="train.txt", test="", unlabelled="un", vocab="names.txt")


def described(manifest):
    keys = ("video_id", "split", "start", "num_frames", "file_frames", "fps", "status")
    labels = manifest.label.to_pylist()
    rows = zip(labels, manifest.clips.to_pylist(), strict=True)
    return [(label, *(row[key] for key in keys)) for label, row in rows if row["status"] == "ok"]


def recipe_of(data, **options):
    return Recipe(name="packing", data=data, frames=Frames(height=64, width=64, crop=56), **options)


@here
@pytest.mark.parametrize("write", [write_json, write_csv, write_txt])
def test_a_packed_data_set_has_the_same_clips(raw, tmp_path, write):
    (raw / "names.txt").write_text("cart\ndance\n")
    recipe = recipe_of(write(raw))
    executor, to, run = InProcess(recipe), Store(str(tmp_path / "packed")), Store(str(tmp_path / "run"))
    rows = ensure_packed(recipe, to, How(64, 64), executor)
    moved = replace(recipe, data=packed_data(recipe.data, to))
    before, after = (
        ensure_manifest(recipe, run.child("raw"), executor),
        ensure_manifest(moved, run.child("new"), executor),
    )
    assert described(after) == described(before)
    assert len(described(after)) == len(CLIPS) + 2 - (write is write_txt)
    assert after.class_names == before.class_names
    assert [(row["path"], row["reason"].partition(":")[0]) for row in rows if row["reason"]] == [
        ("un/bad.mp4", "undecodable")
    ]
    gains = {row["path"]: row for row in rows if not row["reason"]}
    assert len(gains) == 6
    for old, new in zip(
        *([row for row in m.clips.to_pylist() if row["status"] == "ok"] for m in (before, after)), strict=True
    ):
        assert new["path"] == str(Path(old["path"]).with_suffix(".mp4"))
        assert min(new["height"], new["width"]) == 64
        assert gains[old["path"]]["sha256"] == old["sha256"]
        assert gains[old["path"]]["packed_bytes"] == (tmp_path / "packed" / new["path"]).stat().st_size
    assert "files    6 packed, 1 rejected" in summary(rows)
    assert ensure_packed(recipe, to, How(64, 64), executor) == rows
    with pytest.raises(ArtefactError, match=r"how.crf: 18 -> 30"):
        ensure_packed(recipe, to, How(64, 64, crf=30), executor)


@here
def test_the_pictures_of_a_packed_file_are_those_of_the_original():
    for path in (FILES["cart/wheel.avi"], FILES["dance/long.mp4"], FILES["dance/more 1.mkv"]):
        data = path.read_bytes()
        shown = probe.examine(data)
        found, packed = pack(data, shown, How(64, 64, crf=8))
        new = video.Shown(*(found[key] for key in ("num_frames", "height", "width", "access")))
        every = video.frames(data, replace(shown, access=video.SCAN), range(shown.num_frames), 64, 64).astype(np.int16)
        for number in (0, 1, shown.num_frames // 2, shown.num_frames - 1):
            gaps_F = np.abs(every - video.frames(packed, new, [number], 64, 64)[0]).mean((1, 2, 3))
            assert gaps_F[number] <= gaps_F.min() + 0.5
            assert gaps_F[number] < 5


@here
def test_a_killed_packing_goes_on(raw, tmp_path):
    """What was finished before the kill is not made again."""
    (raw / "names.txt").write_text("cart\ndance\n")
    recipe, to = recipe_of(write_json(raw)), tmp_path / "packed"
    code = f"""
from finepseudo.driver import pack
from test_pack import How, InProcess, Store, recipe_of, Data
recipe = recipe_of({recipe.data!r})
pack.ensure_packed(recipe, Store({str(to)!r}), How(64, 64), InProcess(recipe))
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent) as packing:
        ends = time.monotonic() + 120
        while len(list(to.glob("pack/records/*.json"))) < 2 and time.monotonic() < ends:
            time.sleep(0.02)
        packing.send_signal(signal.SIGKILL)
    finished = {path: path.stat().st_mtime_ns for path in to.glob("*/*.mp4")}
    records = list(to.glob("pack/records/*.json"))
    assert 2 <= len(records) < 6
    known = {to / json.loads(path.read_text())["row"]["packed"] for path in records}
    rows = ensure_packed(recipe, Store(str(to)), How(64, 64), InProcess(recipe))
    assert len([row for row in rows if not row["reason"]]) == 6
    assert all(path.stat().st_mtime_ns == finished[path] for path in known)
    assert not (to / "pack/records").exists()


@here
def test_a_quick_look_makes_the_same_manifest_and_can_be_packed(raw, tmp_path):
    (raw / "names.txt").write_text("cart\ndance\n")
    recipe = recipe_of(write_json(raw))
    quick = replace(recipe, data=replace(recipe.data, probe="quick"))
    run, executor = Store(str(tmp_path / "run")), InProcess(recipe)
    thorough, looked = (
        ensure_manifest(recipe, run.child("a"), executor),
        ensure_manifest(quick, run.child("b"), executor),
    )
    assert described(thorough) == described(looked)
    tags = {row["path"]: row["sha256"][:4] == "tag-" for row in looked.clips.to_pylist() if row["status"] == "ok"}
    assert set(tags.values()) == {True}
    with pytest.raises(ArtefactError, match="probe: '\\(absent\\)' -> 'quick'"):
        ensure_manifest(quick, run.child("a"), executor)
    rows = ensure_packed(quick, Store(str(tmp_path / "packed")), How(64, 64), executor)
    assert sum(not row["reason"] for row in rows) == 6


def test_places_that_cannot_be_packed_to(tmp_path):
    recipe, how = recipe_of(Data(root=str(tmp_path / "raw"))), How(64, 64)
    for to in (tmp_path, tmp_path / "raw", tmp_path / "raw/new"):
        with pytest.raises(RecipeError, match="--to: expected a place outside of data.root"):
            ensure_packed(recipe, Store(str(to)), how, InProcess(recipe))
    for data, match in ((Data(), "data.root: "), (Data(root="x", videos="../{video_id}.mp4"), "data.videos: ")):
        with pytest.raises(RecipeError, match=match):
            ensure_packed(recipe_of(data), Store(str(tmp_path / "new")), how, InProcess(recipe))
