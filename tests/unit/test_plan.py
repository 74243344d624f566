"""Plans are data: pure, stable, in blocks of one shape."""

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from clips import classed, commit, manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from finepseudo.data import sampling
from finepseudo.data.plan import Plan, derive, plan_align, plan_classify, plan_pretrain, plan_score, samples
from finepseudo.errors import ArtefactError, ManifestError
from finepseudo.recipe import Align, Augment, Gitdl
from finepseudo.storage.store import Store

HERE = Path(__file__).parent
CLIPS = manifest(70)


def classify(real, pseudo=None, **more):
    """Samples are ranges of rows with their classes: (first, stop, classes)."""
    arguments = {"frames": 8, "augment": Augment(), "steps": 6, "batch": 8, "label_share": 0.25}
    return plan_classify(CLIPS, real, pseudo, **{**arguments, "blocks_per_step": 2, "seed": 1, **more})


def align(real, pseudo=None, classes=4, clips=4, **more):
    arguments = {"frames": 8, "augment": Augment(), "steps": 5, "label_share": 0.5, "blocks_per_step": 1, "seed": 1}
    return plan_align(CLIPS, real, pseudo, Align(classes=classes, clips=clips), **{**arguments, **more})


def gitdl(count, **more):
    arguments = {"steps": 30, "blocks_per_step": 1, "seed": 0}
    return plan_pretrain(CLIPS, np.arange(count), Gitdl(frames=8, videos=4), **{**arguments, **more})


def every(plan):
    return plan.rows(0, len(plan))


def draws(plan):
    """What chance decided, by video and use."""
    found, uses = {}, Counter()
    for row in every(plan):
        found[row["video_id"], uses[row["video_id"]]] = (
            listed(row["frames_0"]),
            listed(row["frames_1"]),
            row["aug_seed"],
        )
        uses[row["video_id"]] += 1
    return found


def listed(frames):
    return frames if frames is None else frames.tolist()


def blocks(plan):
    assert len(plan) % plan.block_rows == 0
    return [plan.rows(at, at + plan.block_rows) for at in range(0, len(plan), plan.block_rows)]


def some_plans():
    return [
        gitdl(20),
        classify(classed(0, 9, 3), classed(9, 29, 3)),
        align(classed(0, 12, 6), classed(12, 42, 5)),
        plan_score(CLIPS, np.arange(5), align_frames=6, video_frames=4, clips=3, block_videos=2),
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
    "make", [gitdl, lambda count: classify(classed(0, count, 3)), lambda n: align(classed(0, n, 5))]
)
def test_one_more_video_changes_no_other_videos_draws(make):
    few, more = draws(make(20)), draws(make(21))
    shared = few.keys() & more.keys()
    assert len(shared) > 15
    assert all(more[key] == few[key] for key in shared)


def test_another_seed_is_another_plan_and_no_draw_comes_twice():
    one, two = gitdl(20), gitdl(20, seed=1)
    seeds = [row["aug_seed"] for row in every(one)]
    assert set(seeds).isdisjoint(row["aug_seed"] for row in every(two))
    assert len(set(seeds)) == len(seeds)


def test_a_longer_plan_begins_with_the_shorter_one():
    assert repr(every(gitdl(20, steps=10))) == repr(gitdl(20, steps=30).rows(0, 40))


@pytest.mark.parametrize("number", range(4))
def test_a_row_needs_none_of_the_rows_before_it(number):
    """Whatever is asked for first, and in whatever pieces."""
    whole, again = every(some_plans()[number]), some_plans()[number]
    for start in (len(whole) - 3, 7, 0):
        assert repr(again.rows(start, start + 5)) == repr(whole[start : start + 5])


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 3), st.integers(1, 6))
def test_pre_training_passes_over_all_videos_again_and_again(count, steps, per_step, per_block):
    how = Gitdl(frames=4, videos=per_block)
    plan = plan_pretrain(CLIPS, np.arange(count), how, steps=steps, blocks_per_step=per_step, seed=3)
    assert len(plan) == steps * per_step * per_block
    assert [row["row"] for row in every(plan)] == list(range(len(plan)))
    order = [row["video"] for row in every(plan)]
    for epoch in range(0, len(order) - count + 1, count):
        assert sorted(order[epoch : epoch + count]) == list(range(count))
    for row in every(plan):
        both = [*row["frames_0"], *row["frames_1"]]
        assert len(row["frames_0"]) == len(row["frames_1"]) == 4
        assert 0 <= min(both) <= max(both) < row["num_frames"]
        assert (row["label"], row["top"], row["weight"]) == (None, None, 1.0), "no label leaks into pre-training"


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(2, 12), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_label_share_is_exact_in_every_block(real, pseudo, batch, share):
    extra = classed(9, 9 + pseudo, 3, weight_N=0.5)
    plan = classify(classed(0, real, 3), extra, batch=batch, label_share=share)
    assert len(plan) == 6 * 2 * batch
    for rows in blocks(plan):
        assert sum(row["weight"] == 1 for row in rows) == (max(1, round(share * batch)) if share else 0)


def test_without_pseudo_labels_every_row_is_labelled():
    plan = classify(classed(0, 9, 3))
    assert {row["weight"] for row in every(plan)} == {1.0}
    assert Counter(row["video"] for row in every(plan)).most_common()[-1][1] >= len(plan) // 9, "evenly"
    assert all(row["label"] == row["video"] % 3 for row in every(plan))


@settings(max_examples=25)
@given(
    st.integers(2, 6), st.integers(2, 5), st.integers(2, 6), st.integers(1, 3), st.integers(1, 2), st.integers(0, 99)
)
def test_blocks_are_of_classes_and_clips(there, wanted, clips, each, per_step, seed):
    real = classed(0, there * each, there)
    plan = align(real, classes=wanted, clips=clips, blocks_per_step=per_step, seed=seed, steps=9)
    count = min(there, wanted)
    assert plan.block_rows == count * clips
    assert len(blocks(plan)) == 9 * per_step
    for rows in blocks(plan):
        labels = [row["label"] for row in rows]
        assert sorted(Counter(labels).values()) == [clips] * count
        for label in set(labels):
            repeats = Counter(row["video_id"] for row in rows if row["label"] == label)
            assert max(repeats.values()) <= -(-clips // each) + 1, "few videos repeat evenly"
    turns = Counter(row["label"] for row in every(plan))
    assert turns.keys() == set(range(there)), "every class has its turn"
    assert max(turns.values()) - min(turns.values()) <= 2 * clips, "and as many as any other"


def test_pseudo_labelled_clips_join_the_classes_that_have_some():
    plan = align(classed(0, 12, 6), classed(12, 42, 5, weight_N=0.5))
    for rows in blocks(plan):
        for label in {row["label"] for row in rows}:
            real = sum(row["weight"] == 1 for row in rows if row["label"] == label)
            assert real == (4 if label == 5 else 2)  # class 5 has no pseudo-labelled video


def test_pseudo_labels_of_a_class_without_labelled_videos_stay_out():
    plan = align(classed(0, 12, 3), pa.concat_tables([classed(12, 18, 3), samples([40], [7])]))
    assert {row["label"] for row in every(plan)} == {0, 1, 2}


@pytest.mark.parametrize("count", [0, 4])
def test_alignment_needs_two_classes(count):
    with pytest.raises(ManifestError, match=f"labelled videos of at least two classes, got {count // 4}"):
        align(classed(0, count, 1))


def test_nothing_to_plan_from_is_an_error():
    with pytest.raises(ManifestError, match="nothing to plan from: no training videos"):
        gitdl(0)
    with pytest.raises(ManifestError, match="nothing to plan from: no labelled videos"):
        classify(classed(0, 0, 3), classed(0, 3, 3))


def test_scoring_plan_keeps_the_views_of_a_video_together_and_draws_nothing():
    plan = plan_score(CLIPS, np.arange(5), align_frames=6, video_frames=4, clips=3, block_videos=2)
    rows = every(plan)
    assert [row["video"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert plan.block_rows == 6
    assert len({tuple(row["frames_0"]) for row in rows[:3]}) == 3
    assert {row["aug_seed"] for row in rows} == {0}
    (one,) = every(plan_score(CLIPS, np.arange(1), align_frames=6, video_frames=4, clips=1, block_videos=1))
    assert listed(one["frames_0"]) == sampling.spread(30, 6).tolist(), "one view is the middle one"
    assert listed(one["frames_1"]) == sampling.spread(30, 4).tolist()


def soft(share=0.9, **more):
    row_M = np.arange(9, 29)
    top = {"top": [[row % 3, (row + 1) % 3] for row in row_M], "top_p": [[share, 0.05]] * 20}
    return classify(classed(0, 9, 3), samples(row_M, row_M % 3, np.full(20, 0.1), **top), **more)


def test_plan_survives_the_store(tmp_path):
    store = Store(str(tmp_path))
    commit(store, CLIPS)
    for number, plan in enumerate([soft(), *some_plans()]):
        plan.ensure(store, f"p{number}")
        again = Plan.load(store, f"p{number}")
        assert (again.fingerprint, again.spec) == (plan.fingerprint, plan.spec)
        assert repr(every(again)) == repr(every(plan))
        assert sum(path.stat().st_size for path in (tmp_path / f"p{number}").iterdir()) < 6000, "not a row a step"
    assert {tuple(row["top"]) for row in every(Plan.load(store, "p0")) if row["top"]} == {(0, 1), (1, 2), (2, 0)}
    with pytest.raises(ArtefactError, match="p9: not committed"):
        Plan.load(store, "p9")


def test_fingerprint_is_of_all_that_decides_a_row():
    others = [
        soft(0.8),
        classify(classed(0, 9, 3), classed(9, 29, 3, weight_N=0.1)),
        soft(seed=2),
        soft(steps=7),
        soft(batch=16),
        soft(label_share=0.5),
        soft(frames=9),
        soft(augment=Augment(ends=0.2)),
        plan_pretrain(
            manifest(70, sha256="0"), np.arange(20), Gitdl(frames=8, videos=4), steps=3, blocks_per_step=1, seed=0
        ),
        gitdl(20, steps=3),
    ]
    assert len({soft().fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)
    assert soft().fingerprint == soft().fingerprint


@pytest.mark.parametrize("number", range(4))
def test_reads_are_how_often_samples_are_drawn(number):
    plan = some_plans()[number]
    drawn = np.bincount([row["sample"] for row in every(plan)], minlength=len(plan.samples))
    for part, reads in plan.reads():
        if plan.spec.kind != "align":  # there classes share the turns, whatever the number of their clips
            assert drawn[part].mean() == pytest.approx(reads)
    assert sum(reads * (part.stop - part.start) for part, reads in plan.reads()) == pytest.approx(len(plan))


def in_epochs(drawn, count):
    """Whether draws pass over so many members again and again."""
    return all(len(set(drawn[at : at + count])) == len(drawn[at : at + count]) for at in range(0, len(drawn), count))


@pytest.mark.parametrize(("batch", "share"), [(8, 0.25), (7, 0.5), (6, 0.0)])
def test_labelled_and_pseudo_labelled_clips_each_pass_in_epochs(batch, share):
    plan = classify(classed(0, 9, 3), classed(9, 29, 3), batch=batch, label_share=share, steps=40)
    for part, count in ((slice(0, 9), 9), (slice(9, 29), 20)):
        drawn = [row["sample"] for row in every(plan) if part.start <= row["sample"] < part.stop]
        assert in_epochs(drawn, count)


@settings(max_examples=25)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(2, 5), st.integers(0, 9))
def test_classes_and_the_clips_of_each_pass_in_epochs(there, wanted, clips, seed):
    """Also where the classes of a block do not divide those that there are."""
    plan = align(classed(0, 3 * there, there), classes=wanted, clips=clips, steps=3 * there, seed=seed)
    rows, cycle = every(plan), there // math.gcd(there, min(there, wanted))
    for label in range(there):
        assert in_epochs([row["sample"] for row in rows if row["label"] == label], 3)
    for block in range(0, plan.blocks - cycle + 1, cycle):
        turns = Counter(row["label"] for row in rows[block * plan.block_rows : (block + cycle) * plan.block_rows])
        assert set(turns.values()) == {cycle * plan.block_rows // there}, "each class as often in a cycle"
