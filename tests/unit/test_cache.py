"""The cache of decoded videos keeps its bound, forgets the oldest, and never fails or spoils a decode."""

import os
import subprocess
import sys

import numpy as np
import pytest
from clips import classed, manifest

from finepseudo.data.cache import ROOM, ClipCache, Kept
from finepseudo.data.child import Child
from finepseudo.data.decode import Decoder as AnyDecoder
from finepseudo.data.plan import plan_classify, plan_score
from finepseudo.data.stream import BlockReader
from finepseudo.recipe import Augment
from finepseudo.storage.store import Store

VIDEO = np.arange(3 * 32 * 32 * 3, dtype=np.uint32).reshape(3, 32, 32, 3).astype(np.uint8)
LIMIT = 100_000
ROOT = Store("/")
CHILD = Child(60)


class Decoder(AnyDecoder):
    """Asked for columns of a row, whose clip its cache is to keep."""

    def __init__(self, data, height, width, cache):
        super().__init__(data, height, width, cache, CHILD)

    def clips(self, row, columns):
        return super().clips(row, [np.asarray(row[column]) for column in columns], keep=True)


def sha(number):
    return f"{number:02d}" * 32


def path_of(cache, number):
    return cache._path(sha(number), 32, 32)


def used(cache, number, when):
    os.utime(path_of(cache, number), (when, when))


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_is_put_comes_back(tmp_path):
    cache = ClipCache(str(tmp_path / "not/yet/there"), LIMIT)
    assert cache.get(sha(1), 32, 32) is None
    cache.put(sha(1), VIDEO)
    assert (cache.get(sha(1), 32, 32) == VIDEO).all()
    assert cache.get(sha(1), 32, 16) is None, "another size"
    assert cache.get(sha(2), 32, 32) is None
    assert (cache.hits, cache.misses) == (1, 3)
    assert (ClipCache(str(tmp_path / "not/yet/there"), LIMIT).get(sha(1), 32, 32) == VIDEO).all(), "shared"


def test_the_bound_holds_all_the_time(tmp_path):
    cache = ClipCache(str(tmp_path), LIMIT)
    for number in range(40):
        cache.put(sha(number), VIDEO)
        assert size(tmp_path) <= LIMIT + 2 * VIDEO.nbytes
    cache.evict()
    assert LIMIT / 2 < size(tmp_path) <= LIMIT


def test_the_least_recently_used_go_first(tmp_path):
    cache = ClipCache(str(tmp_path), LIMIT)
    for number in range(8):
        cache.put(sha(number), VIDEO)
        used(cache, number, 1_000_000 + number)
    assert cache.get(sha(0), 32, 32) is not None, "used a moment ago"
    for number in range(8, 13):
        cache.put(sha(number), VIDEO)
        used(cache, number, 1_000_000 + number)
    cache.evict()
    kept = [number for number in range(13) if path_of(cache, number).exists()]
    assert kept == [0, *range(13 - len(kept) + 1, 13)]
    assert len(kept) == LIMIT // (VIDEO.nbytes + 128)


def test_what_would_fill_the_cache_alone_is_not_kept(tmp_path):
    cache = ClipCache(str(tmp_path), LIMIT)
    cache.put(sha(1), np.zeros((4, 32, 32, 3), np.uint8))
    assert cache.get(sha(1), 32, 32) is None
    assert size(tmp_path) == 0


def test_what_is_mapped_survives_its_deletion(tmp_path):
    cache = ClipCache(str(tmp_path), LIMIT)
    cache.put(sha(1), VIDEO)
    mapped = cache.get(sha(1), 32, 32)
    ClipCache(str(tmp_path), 0).evict()
    assert size(tmp_path) == 0
    assert (mapped == VIDEO).all()


def test_processes_share_the_folder_without_harm(tmp_path):
    code = (
        "import sys, numpy as np; from finepseudo.data.cache import ClipCache\n"
        "cache, rng = ClipCache(sys.argv[1], 100_000), np.random.default_rng(int(sys.argv[2]))\n"
        "for number in rng.integers(0, 20, 300):\n"
        "    sha, video = f'{number:02d}' * 32, np.full((3, 32, 32, 3), number, np.uint8)\n"
        "    found = cache.get(sha, 32, 32)\n"
        "    assert found is None or (found == video).all()\n"
        "    cache.put(sha, video)\n"
        "assert cache.hits > 50 and cache.misses > 20, (cache.hits, cache.misses)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    several = [subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE) for seed in range(3)]
    errors = [one.communicate(timeout=120)[1].decode() for one in several]
    assert errors == ["", "", ""]
    assert [one.returncode for one in several] == [0, 0, 0]
    assert size(tmp_path) <= LIMIT + 3 * 2 * VIDEO.nbytes
    assert not list(tmp_path.rglob("*.part"))


@pytest.fixture
def row(video_row, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    return video_row(tmp_path / "clip.mp4", pictures)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"rubbish" * 1000),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.unlink(),
    ],
    ids=["cut", "cut in its header", "empty", "rubbish", "a folder", "gone"],
)
def test_damaged_cache_file_is_decoded_again(row, tmp_path, damage):
    cache = ClipCache(str(tmp_path / "cache"), 1 << 26)
    decoder = Decoder(ROOT, 32, 32, cache)
    before = decoder.clips(row, ["frames_0"])[0]
    damage(cache._path(row["sha256"], 32, 32))
    assert (decoder.clips(row, ["frames_0"])[0] == before).all()
    assert (cache.hits, cache.misses) == (0, 2)


def test_full_disk_does_not_fail_a_decode(row, small_disk):
    (small_disk / "filler").write_bytes(b"x" * 60_000)
    decoder = Decoder(ROOT, 32, 32, ClipCache(str(small_disk / "cache"), 1 << 26))
    assert decoder.clips(row, ["frames_0"])[0].shape == (4, 32, 32, 3)
    assert not list(small_disk.rglob("*.part"))
    assert not list(small_disk.rglob("*.npy"))


def test_a_folder_that_cannot_be_made_does_not_fail_a_decode(row, tmp_path):
    (tmp_path / "taken").write_text("a file")
    decoder = Decoder(ROOT, 32, 32, ClipCache(str(tmp_path / "taken"), 1 << 26))
    assert decoder.clips(row, ["frames_0"])[0].shape == (4, 32, 32, 3)
    assert decoder.cache.misses == 1


def test_no_cache_touches_no_disk(row, tmp_path):
    decoder = Decoder(ROOT, 32, 32, ClipCache(str(tmp_path / "cache"), 0))
    decoder.clips(row, ["frames_0"])
    assert not (tmp_path / "cache").exists()
    assert (decoder.cache.hits, decoder.cache.misses) == (0, 0)


def plan_of(labelled, others, steps, share=0.5, length=10):
    clips = manifest(labelled + others, num_frames=length)
    extra = classed(labelled, labelled + others, 2) if others else None
    return plan_classify(
        clips, classed(0, labelled, 2), extra, frames=4, augment=Augment(), steps=steps, batch=4, label_share=share,
        blocks_per_step=1, seed=0,
    )  # fmt: skip


def test_what_is_read_often_is_kept_first_and_what_is_read_once_never():
    plan = plan_of(4, 40, 20)  # 40 rows each: 10 of every labelled clip, one of every other
    assert Kept.of(plan, 100, 1 << 20).shares == (1.0, 0.0)
    often = plan_of(4, 40, 80)
    assert Kept.of(often, 100, 1 << 20).shares == (1.0, 1.0)
    assert Kept.of(often, 100, round((4000 + 10_000) / ROOM)).shares == pytest.approx((1.0, 0.25), abs=1e-3)
    assert Kept.of(often, 100, round(2000 / ROOM)).shares == pytest.approx((0.5, 0.0), abs=1e-3)
    assert Kept.of(often, 100, 0).shares == (0.0, 0.0)


def test_a_share_is_the_same_clips_in_every_plan():
    halves = [Kept.of(plan_of(400, 0, steps), 100, round(200_000 / ROOM)) for steps in (500, 900)]
    chosen = [[number for number in range(400) if kept(number, f"v{number:03d}")] for kept in halves]
    assert chosen[0] == chosen[1]
    assert 150 < len(chosen[0]) < 250


@pytest.mark.parametrize(("limit", "steps"), [(1 << 24, 30), (1 << 24, 16), (24_000, 80)])
def test_the_foretold_hit_rate_is_what_an_empty_cache_gives(tmp_path, limit, steps):
    """The pixels are made up; which clips are kept and found again is real."""
    plan = plan_of(4, 16, steps)

    class Made(Child):
        def frames(self, uri, row, index_F, height, width):
            return np.zeros((len(index_F), height, width, 3), np.uint8)

    decoder = AnyDecoder(ROOT, 8, 8, ClipCache(str(tmp_path / "cache"), limit), Made(60))
    reader = BlockReader(plan, decoder)
    found = reader.read(range(plan.blocks))
    slack = 0.0 if 1.0 in reader.kept.shares and reader.kept.shares[1] in (0.0, 1.0) else 0.15
    assert found["cache_hit"].mean() == pytest.approx(reader.kept.hit_rate, abs=slack + 1e-9)
    assert 0 < reader.kept.hit_rate < 1
    on_disk = len(list((tmp_path / "cache").rglob("*.npy")))
    assert on_disk <= 20 * max(reader.kept.shares)


def test_the_views_of_a_clip_are_decoded_together(tmp_path):
    asked = []

    class Made(Child):
        def frames(self, uri, row, index_F, height, width):
            asked.append(row["video_id"])
            return np.full((len(index_F), height, width, 3), index_F[0] % 7, np.uint8)

    plan = plan_score(manifest(3), np.arange(3), align_frames=5, video_frames=4, clips=3, block_videos=2)
    found = BlockReader(plan, AnyDecoder(ROOT, 8, 8, ClipCache("", 0), Made(60))).read([0])
    assert asked == ["v000", "v001"]
    assert found["clip_0"].shape == (6, 5, 8, 8, 3)
    assert found["clip_1"].shape == (6, 4, 8, 8, 3)
