"""Plans are data: pure, stable, in blocks of one shape."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finepseudo.data import sampling
from finepseudo.data.manifest import Video
from finepseudo.data.plan import SCHEMA, Plan, Sample, derive, plan_align, plan_classify, plan_gitdl, plan_score
from finepseudo.errors import ArtefactError, ManifestError
from finepseudo.recipe import Align, Augment, Gitdl
from finepseudo.storage.store import Store

HERE = Path(__file__).parent


def videos(count, start=0):
    return [
        Video(index, f"v{index}", f"/v/{index}.mp4", f"{index:064x}", 30 + index, 48, 64, "scan", 0, 99)
        for index in range(start, start + count)
    ]


def samples(count, classes, start=0, **more):
    return [Sample(video, video.index % classes, **more) for video in videos(count, start)]


def classify(real, pseudo, **more):
    arguments = {"frames": 8, "augment": Augment(), "steps": 6, "batch": 8, "label_share": 0.25}
    return plan_classify(real, pseudo, **{**arguments, "blocks_per_step": 2, "seed": 1, **more})


def align(real, pseudo, classes=4, clips=4, **more):
    arguments = {"frames": 8, "augment": Augment(), "steps": 5, "label_share": 0.5, "blocks_per_step": 1, "seed": 1}
    return plan_align(real, pseudo, Align(classes=classes, clips=clips), **{**arguments, **more})


def gitdl(count, **more):
    arguments = {"steps": 30, "blocks_per_step": 1, "seed": 0}
    return plan_gitdl(videos(count), Gitdl(frames=8, videos=4), **{**arguments, **more})


def draws(plan):
    """What chance decided, by video and use."""
    found, uses = {}, Counter()
    for row in plan.table.to_pylist():
        found[row["video_id"], uses[row["video_id"]]] = (row["frames_0"], row["frames_1"], row["aug_seed"])
        uses[row["video_id"]] += 1
    return found


def blocks(plan):
    assert len(plan) % plan.block_rows == 0
    return [plan.rows(at, at + plan.block_rows) for at in range(0, len(plan), plan.block_rows)]


def some_plans():
    return [
        gitdl(20),
        classify(samples(9, 3), samples(20, 3, 9)),
        align(samples(12, 6), samples(30, 5, 12)),
        plan_score(videos(5), align_frames=6, video_frames=4, clips=3, block_videos=2),
    ]


def test_plans_are_the_same_in_another_process():
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from test_plan import *\n"
        "np.random.seed(7); print([plan.fingerprint for plan in some_plans()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == repr([plan.fingerprint for plan in some_plans()]), done.stderr


def test_seeds_come_from_what_the_row_is():
    assert derive("frames", 0, "v1", 0) == 695170268613338266
    assert derive("a", 1) != derive("a", "1")
    assert derive("ab", "c") != derive("a", "bc")
    assert all(0 <= derive("x", number) < 2**63 for number in range(100))


@pytest.mark.parametrize(
    "make", [gitdl, lambda count: classify(samples(count, 3), []), lambda n: align(samples(n, 5), [])]
)
def test_one_more_video_changes_no_other_videos_draws(make):
    few, more = draws(make(20)), draws(make(21))
    shared = few.keys() & more.keys()
    assert len(shared) > 15
    assert all(more[key] == few[key] for key in shared)


def test_another_seed_is_another_plan_and_no_draw_comes_twice():
    one, two = gitdl(20), gitdl(20, seed=1)
    assert set(one.table.column("aug_seed").to_pylist()).isdisjoint(two.table.column("aug_seed").to_pylist())
    seeds = one.table.column("aug_seed").to_pylist()
    assert len(set(seeds)) == len(seeds)


def test_a_longer_plan_begins_with_the_shorter_one():
    assert gitdl(20, steps=10).table.equals(gitdl(20, steps=30).table.slice(0, 40))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 3), st.integers(1, 6))
def test_pre_training_passes_over_all_videos_again_and_again(count, steps, per_step, per_block):
    plan = plan_gitdl(videos(count), Gitdl(frames=4, videos=per_block), steps=steps, blocks_per_step=per_step, seed=3)
    assert len(plan) == steps * per_step * per_block
    assert plan.table.column("row").to_pylist() == list(range(len(plan)))
    order = plan.table.column("video").to_pylist()
    for epoch in range(0, len(order) - count + 1, count):
        assert sorted(order[epoch : epoch + count]) == list(range(count))
    for row in plan.table.to_pylist():
        assert len(row["frames_0"]) == len(row["frames_1"]) == 4
        assert 0 <= min(row["frames_0"] + row["frames_1"]) <= max(row["frames_0"] + row["frames_1"])
        assert max(row["frames_0"] + row["frames_1"]) < row["num_frames"]
        assert (row["label"], row["target"], row["weight"]) == (None, None, 1.0), "no label leaks into pre-training"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(2, 12), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_label_share_is_exact_in_every_block(real, pseudo, batch, share):
    plan = classify(samples(real, 3), samples(pseudo, 3, 9, weight=0.5), batch=batch, label_share=share)
    assert len(plan) == 6 * 2 * batch
    for rows in blocks(plan):
        assert sum(row["weight"] == 1 for row in rows) == (max(1, round(share * batch)) if share else 0)


def test_without_pseudo_labels_every_row_is_labelled():
    plan = classify(samples(9, 3), [])
    assert {row["weight"] for row in plan.table.to_pylist()} == {1.0}
    assert Counter(plan.table.column("video").to_pylist()).most_common()[-1][1] >= len(plan) // 9, "evenly"
    assert all(row["label"] == row["video"] % 3 for row in plan.table.to_pylist())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 6), st.integers(2, 5), st.integers(2, 6), st.integers(1, 3), st.integers(1, 2), st.integers(0, 99)
)
def test_blocks_are_of_classes_and_clips(there, wanted, clips, each, per_step, seed):
    plan = align(
        samples(there * each, there), [], classes=wanted, clips=clips, blocks_per_step=per_step, seed=seed, steps=9
    )
    count = min(there, wanted)
    assert plan.block_rows == count * clips
    assert len(blocks(plan)) == 9 * per_step
    for rows in blocks(plan):
        labels = [row["label"] for row in rows]
        assert sorted(Counter(labels).values()) == [clips] * count
        for label in set(labels):
            repeats = Counter(row["video_id"] for row in rows if row["label"] == label)
            assert max(repeats.values()) <= -(-clips // each) + 1, "few videos repeat evenly"
    assert set(plan.table.column("label").to_pylist()) == set(range(there)), "every class has its turn"


def test_pseudo_labelled_clips_join_the_classes_that_have_some():
    plan = align(samples(12, 6), samples(30, 5, 12, weight=0.5))
    for rows in blocks(plan):
        for label in {row["label"] for row in rows}:
            real = sum(row["weight"] == 1 for row in rows if row["label"] == label)
            assert real == (4 if label == 5 else 2)  # class 5 has no pseudo-labelled video


def test_pseudo_labels_of_a_class_without_labelled_videos_stay_out():
    plan = align(samples(12, 3), [*samples(6, 3, 12), Sample(videos(1, 40)[0], 7)])
    assert set(plan.table.column("label").to_pylist()) == {0, 1, 2}


@pytest.mark.parametrize("real", [[], samples(4, 1)])
def test_alignment_needs_two_classes(real):
    with pytest.raises(ManifestError, match=f"labelled videos of at least two classes, got {len(real) // 4}"):
        align(real, [])


def test_nothing_to_plan_from_is_an_error():
    with pytest.raises(ManifestError, match="nothing to plan from: no gitdl videos"):
        gitdl(0)
    with pytest.raises(ManifestError, match="nothing to plan from: no labelled videos"):
        classify([], samples(3, 3))


def test_scoring_plan_keeps_the_views_of_a_video_together_and_draws_nothing():
    plan = plan_score(videos(5), align_frames=6, video_frames=4, clips=3, block_videos=2)
    rows = plan.table.to_pylist()
    assert [row["video"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert plan.block_rows == 6
    assert len({tuple(row["frames_0"]) for row in rows[:3]}) == 3
    assert {row["aug_seed"] for row in rows} == {0}
    (one,) = plan_score(videos(1), align_frames=6, video_frames=4, clips=1, block_videos=1).rows(0, 1)
    assert one["frames_0"] == sampling.spread(30, 6).tolist(), "one view is the middle one"
    assert one["frames_1"] == sampling.spread(30, 4).tolist()


def test_plan_survives_the_store(tmp_path):
    store = Store(str(tmp_path))
    targets = np.random.default_rng(0).random((20, 3), np.float32)
    pseudo = [replace(sample, target=index) for index, sample in enumerate(samples(20, 3, 9, weight=0.1))]
    soft = classify(samples(9, 3), pseudo, targets_MK=targets)
    for number, plan in enumerate([soft, *some_plans()]):
        plan.ensure(store, f"p{number}")
        again = Plan.load(store, f"p{number}")
        assert again.fingerprint == plan.fingerprint
        assert again.table.equals(plan.table)
        assert again.block_rows == plan.block_rows
    assert (Plan.load(store, "p0").targets_MK == targets).all()
    rows = [row for row in Plan.load(store, "p0").table.to_pylist() if row["target"] is not None]
    assert all(row["video_id"] == f"v{row['target'] + 9}" for row in rows)
    with pytest.raises(ArtefactError, match="p9: not committed"):
        Plan.load(store, "p9")


def changed_table(plan, column, position, value):
    rows = plan.table.to_pylist()
    rows[position][column] = value
    return Plan(pa.Table.from_pylist(rows, schema=SCHEMA), plan.block_rows, plan.targets_MK)


def test_fingerprint_covers_all_but_the_place():
    plan = classify(samples(9, 3), [], targets_MK=np.zeros((1, 3), np.float32))
    others = [
        changed_table(plan, "label", 0, 7),
        changed_table(plan, "frames_0", 5, [0] * 8),
        changed_table(plan, "aug_seed", 0, 1),
        changed_table(plan, "weight", 0, 0.5),
        changed_table(plan, "sha256", 0, "0"),
        replace(plan, block_rows=4),
        replace(plan, targets_MK=np.ones((1, 3), np.float32)),
        replace(plan, targets_MK=None),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_fingerprint_keeps_neighbours_apart():
    plan = classify(samples(9, 3), [])
    one, two = (changed_table(changed_table(plan, "label", 0, a), "label", 1, b) for a, b in ((1, 12), (11, 2)))
    assert one.fingerprint != two.fingerprint
