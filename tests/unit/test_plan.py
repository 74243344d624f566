"""Plans are data: pure, stable, in blocks of one shape, and dealt to workers without loss."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finepseudo import artefacts
from finepseudo.data import sampling
from finepseudo.data.manifest import Video
from finepseudo.data.plan import Plan, Sample, plan_align, plan_classify, plan_gitdl, plan_score
from finepseudo.errors import ManifestError
from finepseudo.recipe import Align, Augment, Gitdl
from finepseudo.runtime.ingest import Layout
from finepseudo.storage import Store


def videos(count, start=0):
    return [
        Video(index, f"v{index}", f"/v/{index}.mp4", f"{index:064x}", 30 + index, 48, 48)
        for index in range(start, start + count)
    ]


def samples(count, classes, start=0, **more):
    return [Sample(video, video.index % classes, **more) for video in videos(count, start)]


def classify(real, pseudo, **more):
    arguments = {
        "frames": 8,
        "augment": Augment(),
        "steps": 6,
        "batch": 8,
        "label_share": 0.25,
        "blocks_per_step": 2,
        "seed": 1,
    }
    return plan_classify(real, pseudo, **{**arguments, **more})


def align(real, pseudo, **more):
    arguments = {"frames": 8, "augment": Augment(), "steps": 5, "label_share": 0.5, "blocks_per_step": 1, "seed": 1}
    return plan_align(real, pseudo, Align(classes=4, clips=4), **{**arguments, **more})


@given(st.integers(1, 200), st.integers(2, 32), st.floats(0, 0.99))
def test_spread_covers_the_action_in_order(num_frames, frames, phase):
    index_T = sampling.spread(num_frames, frames, phase=phase)
    assert len(index_T) == frames
    assert (np.diff(index_T) >= 0).all()
    assert index_T.min() >= 0
    assert index_T.max() < num_frames
    if num_frames < frames:
        assert set(index_T) == set(range(num_frames))


@given(st.integers(1, 200), st.integers(2, 32), st.integers(0, 1000))
def test_local_clip_lies_within_the_global_one(num_frames, frames, seed):
    s_n, t_n = sampling.global_local(num_frames, frames, np.random.default_rng(seed), skip_global=4, skip_local=2)
    assert len(s_n) == len(t_n) == frames
    assert min(s_n.min(), t_n.min()) >= 0
    assert max(s_n.max(), t_n.max()) < num_frames
    # Jitter is at most half a skip.
    assert t_n.min() >= s_n.min() - 3
    assert t_n.max() <= s_n.max() + 3


def test_plans_are_the_same_in_another_process(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests/unit')\n"
        "from test_plan import *\n"
        "print(classify(samples(9, 3), samples(20, 3, 9)).fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == classify(samples(9, 3), samples(20, 3, 9)).fingerprint
    assert classify(samples(9, 3), samples(20, 3, 9), seed=2).fingerprint != done.stdout.strip()


def test_one_more_video_changes_no_other_videos_draws():
    def first_uses(plan):
        found = {}
        for row in plan.table.to_pylist():
            found.setdefault(row["video_id"], (row["frames_0"], row["frames_1"], row["aug_seed"]))
        return found

    gitdl = Gitdl(frames=8, videos=4)
    few, more = (
        first_uses(plan_gitdl(videos(count), gitdl, steps=30, blocks_per_step=1, seed=0)) for count in (20, 21)
    )
    assert len(more) == 21
    assert all(more[name] == draws for name, draws in few.items())


def test_label_share_is_exact_in_every_block():
    plan = classify(samples(9, 3), samples(20, 3, 9, weight=0.5))
    assert len(plan) == 6 * 2 * 8
    for block in range(12):
        rows = plan.rows(block * 8, block * 8 + 8)
        assert [row["row"] for row in rows] == list(range(block * 8, block * 8 + 8))
        assert sum(row["weight"] == 1 for row in rows) == 2
    assert {row["weight"] for row in classify(samples(9, 3), []).table.to_pylist()} == {1.0}


def test_blocks_of_classes_and_clips():
    plan = align(samples(12, 6), samples(30, 5, 12, weight=0.5))
    for block in range(5):
        rows = plan.rows(block * 16, block * 16 + 16)
        counts = Counter(row["label"] for row in rows)
        assert set(counts.values()) == {4}
        assert len(counts) == 4
        for label in counts:
            real = sum(row["weight"] == 1 for row in rows if row["label"] == label)
            assert real == (4 if label == 5 else 2)  # class 5 has no pseudo-labelled video
    with pytest.raises(ManifestError, match="at least two classes, got 1"):
        align(samples(4, 1), [])


def test_scoring_plan_keeps_the_views_of_a_video_together():
    plan = plan_score(videos(5), align_frames=6, video_frames=4, clips=3, block_videos=2)
    rows = plan.table.to_pylist()
    assert [row["video"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert plan.block_rows == 6
    assert len({tuple(row["frames_0"]) for row in rows[:3]}) == 3


def test_plan_survives_the_store(tmp_path):
    targets = np.random.default_rng(0).random((20, 3), np.float32)
    plan = classify(samples(9, 3), samples(20, 3, 9, target=4), targets_MK=targets)
    store = Store(str(tmp_path))
    artefacts.ensure(store, "p", {"plan": plan.fingerprint, "block_rows": plan.block_rows}, plan.parts)
    again = Plan.load(store, "p")
    assert again.fingerprint == plan.fingerprint
    assert (again.targets_MK == targets).all()


@settings(max_examples=200)
@given(st.data())
def test_layout_deals_every_block_once_in_the_order_of_the_loop(data):
    workers = data.draw(st.integers(1, 4))
    per_step = workers * data.draw(st.integers(1, 3))
    start = data.draw(st.integers(0, 20))
    stop = start + data.draw(st.integers(1, 40))
    layout = Layout.of(start, stop, workers, per_step, data.draw(st.integers(1, 9)))
    dealt = [list(layout.blocks(number)) for number in range(len(layout))]
    assert len({len(blocks) for blocks in dealt}) == 1
    assert sorted(block for blocks in dealt for block in blocks) == list(range(start * per_step, stop * per_step))
    for rank in range(workers):
        taken = [block for number in range(rank, len(layout), workers) for block in dealt[number]]
        assert taken == list(range(start * per_step + rank, stop * per_step, workers))
