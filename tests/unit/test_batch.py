"""Decoded columns meet their rows of the plan, and what could not be decoded keeps its place with weight 0."""

import dataclasses

import numpy as np
import pytest
import torch
from clips import manifest

from finepseudo.data.batch import ClipBatch, make_batch
from finepseudo.data.manifest import UNKNOWN
from finepseudo.data.plan import plan_classify, plan_pretrain, samples
from finepseudo.errors import StreamError
from finepseudo.recipe import Augment, Gitdl

CLIPS = manifest(4, num_frames=30)
TOP = [[1, 0], [1, 0]]
TOP_P = [[0.7, 0.3], [0.9, 0.1]]


def columns(plan, start=0, errors=(), two=False):
    rows = plan.rows(start, start + plan.block_rows)
    found = {
        "row": np.array([row["row"] for row in rows]),
        "clip_0": np.stack([np.full((4, 8, 8, 3), row["row"], np.uint8) for row in rows]),
        "error": np.array(["lost" if row["row"] in errors else "" for row in rows], dtype=object),
        "decode_s": np.ones(len(rows)),
        "cache_hit": np.array([True] + [False] * (len(rows) - 1)),
    }
    return {**found, "clip_1": found["clip_0"] + 100} if two else found


def plan(top=TOP, top_p=TOP_P, steps=2):
    pseudo = samples([2, 3], [1, 1], [0.5, 0.5], top, top_p)
    return plan_classify(
        CLIPS, samples([0, 1], [0, 1]), pseudo, frames=4, augment=Augment(), steps=steps, batch=4, label_share=0.5,
        blocks_per_step=1, seed=0,
    )  # fmt: skip


def test_batch_joins_clips_with_their_rows():
    made = plan()
    batch = make_batch(made, 2, columns(made, 4))
    rows = made.rows(4, 8)
    assert batch.row_B == [4, 5, 6, 7]
    assert batch.video_ids == [row["video_id"] for row in rows]
    assert batch.seed_B == [row["aug_seed"] for row in rows]
    assert batch.time_BT.tolist() == [row["frames_0"].tolist() for row in rows]
    assert batch.video_B.tolist() == [row["video"] for row in rows]
    assert batch.label_B.tolist() == [row["label"] for row in rows]
    assert batch.weight_B.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert batch.clip_BTHWC[:, 0, 0, 0, 0].tolist() == [4, 5, 6, 7]
    assert batch.clip_BTHWC.dtype == torch.uint8
    assert batch.other_BTHWC is None
    assert batch.other_time_BT is None
    assert (batch.errors, batch.decode_s, batch.cache_hits) == ({}, 4.0, 1)


def test_soft_targets_where_there_are_some_and_labels_elsewhere():
    made = plan()
    batch = make_batch(made, 2, columns(made))
    rows = made.rows(0, 4)
    assert batch.target_BK[:2].tolist() == [[1 - row["label"], row["label"]] for row in rows[:2]]
    wanted = [TOP_P[row["video"] - 2][::-1] for row in rows[2:]]
    np.testing.assert_allclose(batch.target_BK[2:], wanted, atol=1e-6)
    assert make_batch(plan(None, None), 2, columns(made)).target_BK is None


def test_rows_without_a_label_beside_labelled_ones():
    args = {"frames": 4, "augment": Augment(), "steps": 1, "batch": 4, "label_share": 0.5, "blocks_per_step": 1}
    made = plan_classify(CLIPS, samples([0, 1], [0, 1]), samples([2, 3]), **args, seed=0)
    batch = make_batch(made, 2, columns(made))
    assert sorted(batch.label_B.tolist()) == [UNKNOWN, UNKNOWN, 0, 1]
    assert {row["video"] for row in made.rows(0, 4) if row["label"] is None} == {2, 3}
    assert batch.weight_B.tolist() == [1.0] * 4


def test_what_no_kept_class_has_is_even_over_the_others():
    made = plan([[1], [2, 0]], [[0.6], [0.5, 0.25]])
    target_BK = make_batch(made, 4, columns(made)).target_BK
    by_video = {row["video"]: target_K for row, target_K in zip(made.rows(0, 4), target_BK.tolist(), strict=True)}
    assert by_video[2] == pytest.approx([0.4 / 3, 0.6, 0.4 / 3, 0.4 / 3])
    assert by_video[3] == pytest.approx([0.25, 0.125, 0.5, 0.125])


def test_two_clips_and_their_times_in_pre_training():
    made = plan_pretrain(CLIPS, np.arange(4), Gitdl(frames=4, videos=4), steps=1, blocks_per_step=1, seed=0)
    batch = make_batch(made, 2, columns(made, two=True))
    rows = made.rows(0, 4)
    assert batch.other_BTHWC[:, 0, 0, 0, 0].tolist() == [100, 101, 102, 103]
    assert batch.other_time_BT.tolist() == [row["frames_1"].tolist() for row in rows]
    assert set(batch.label_B.tolist()) == {UNKNOWN}


def test_lost_rows_keep_their_place_with_weight_0_and_their_reason():
    made = plan()
    batch = make_batch(made, 2, columns(made, errors=(1, 3)))
    assert batch.errors == {1: "lost", 3: "lost"}
    assert batch.weight_B.tolist() == [1.0, 0.0, 0.5, 0.0]
    assert len(batch.row_B) == 4


def test_lost_rows_do_not_reach_the_model():
    made = plan()
    whole = make_batch(made, 2, columns(made))
    assert whole.decoded() is whole
    kept = make_batch(made, 2, columns(made, errors=(1,))).decoded()
    assert kept.row_B == [0, 2, 3]
    for field in dataclasses.fields(ClipBatch):
        before, after = getattr(whole, field.name), getattr(kept, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(after, before[[0, 2, 3]]), field.name
        elif isinstance(before, list):
            assert after == [before[index] for index in (0, 2, 3)], field.name
    none = make_batch(made, 2, columns(made, errors=(0, 1, 2, 3)))
    assert none.decoded() is none
    assert none.weight_B.tolist() == [0.0] * 4


def test_a_moved_batch_is_the_same_batch():
    batch = make_batch(plan(), 2, columns(plan(), errors=(1,)))
    moved = batch.to(torch.device("meta"))
    assert moved.row_B == batch.row_B
    for field in dataclasses.fields(ClipBatch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            assert getattr(moved, field.name).device.type == "meta"
            assert getattr(moved, field.name).shape == value.shape


@pytest.mark.parametrize("rows", [[3, 2, 1, 0], [0, 1, 2, 4], [0, 0, 1, 2], [6, 7, 8, 9], [-1, 0, 1, 2]])
def test_rows_out_of_order_are_refused(rows):
    made = plan()
    wrong = {**columns(made), "row": np.array(rows)}
    with pytest.raises(StreamError, match=r"rows out of order: expected consecutive ones of 8, got \["):
        make_batch(made, 2, wrong)
