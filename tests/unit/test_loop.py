"""The loop: what is committed after crashes, what stops a stage, and what it writes down."""

from dataclasses import replace

import pytest
import torch
from training_helpers import (
    STEPS,
    DyingStore,
    case,
    largest_difference,
    launch,
    losses,
    recipe,
    snapshot,
    stream_of,
    train,
)

from finepseudo.models import weights
from finepseudo.recipe import Data
from finepseudo.storage import artefacts
from finepseudo.train import checkpoint
from finepseudo.train.checkpoint import read_history
from finepseudo.train.stage import build_objective

KIND = "classify"


def ranks(history):
    """The rank that took each block of the plan, by block; each exactly once."""
    found = {block: rank for rank, *of in history.blocks for block in range(*of)}
    assert len(found) == sum(len(range(*of)) for _, *of in history.blocks), "a block twice"
    return [found[block] for block in range(len(found))]


def check_history(one):
    history = read_history(one.store, one.stage.folder)
    assert len(ranks(history)) == one.plan.blocks
    assert [point["step"] for point in history.curve] == list(range(1, one.stage.steps + 1))
    assert history.seconds["rows"] == len(one.plan) / len(set(ranks(history)))
    return history


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    one = case(root, KIND, "whole")
    assert launch(1, root, train, [one])[0][0].text == ""
    return one


# What is committed when the process is killed: steps of the checkpoint, and histories that lie there.
DEATHS = {
    "before-the-first-commit": ({"die_at_step": 2}, {}, 0, []),
    "between-commits": ({"die_at_step": 4}, {}, 3, ["00000000-00000003"]),
    "before-the-checkpoint": ({}, {"at_write": "checkpoints/00000006/"}, 3, ["00000000-00000003", "00000003-00000006"]),
    "before-the-history": ({}, {"at_write": "00000003-00000006/committed"}, 3, None),
    "before-the-snapshot": ({}, {"at_write": "/snapshot/"}, 6, ["00000000-00000003", "00000003-00000006"]),
    "after-the-snapshot": ({}, {"at_delete": "/checkpoints"}, 6, ["00000000-00000003", "00000003-00000006"]),
}


@pytest.mark.parametrize("death", DEATHS)
def test_killed_and_started_again(whole, death, tmp_path):
    fields, store, step, history = DEATHS[death]
    one = whole.again(death)
    dying = replace(one, store=DyingStore(one.store.root, **store), **fields)
    if death == "after-the-snapshot":  # the pruning of the first checkpoint is not meant
        dying = replace(dying, recipe=replace(one.recipe, scale=replace(one.recipe.scale, checkpoint_every=STEPS)))
        history = ["00000000-00000006"]
    assert launch(1, tmp_path, train, [dying]) == [-9]
    assert checkpoint.committed_step(one.store, one.stage.folder) == step
    if history is not None:
        assert one.store.list(f"{one.stage.folder}/history") == history
    # Commits fall on other steps than before, and the second call must change nothing.
    other = replace(one, recipe=replace(one.recipe, scale=replace(one.recipe.scale, checkpoint_every=2)))
    for outcome in launch(1, tmp_path, train, [other, other])[0]:
        assert outcome.text == ""
    check_history(one)
    assert torch.equal(losses(one), losses(whole))
    assert largest_difference(snapshot(one), snapshot(whole)) == 0


def test_one_worker_dies_and_another_number_goes_on(whole, tmp_path):
    """Rank 1 of two is killed; one worker alone continues to the same weights."""
    one = whole.again("rank-1-dies")
    found = launch(2, tmp_path, train_and_die, one)
    assert found[1] == -9
    assert found[0][0].error
    assert checkpoint.committed_step(one.store, one.stage.folder) == 3
    assert launch(1, tmp_path, train, [one])[0][0].text == ""
    history = read_history(one.store, one.stage.folder)
    assert ranks(history) == [0, 1, 0, 1, 0, 1, *[0] * 6]
    torch.testing.assert_close(losses(one), losses(whole), rtol=0, atol=1e-6)


def train_and_die(session, one):
    return train(session, [replace(one, die_at_step=4 if session.rank == 1 else -1)])


def poisoned(root):
    """A stage whose initial snapshot holds one number that is none."""
    one = case(root, KIND, "clean")
    state = build_objective(one.stage).state_dict()
    state["encoder.fc.bias"][2] = torch.nan
    artefacts.commit(one.store, "poison/snapshot", {"weights.safetensors": weights.to_bytes(state, {})}, {})
    return case(root, KIND, "poisoned", init=one.store.uri("poison/snapshot"))


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """Stages that must stop, each with two workers and with one."""
    root = tmp_path_factory.mktemp("faults")
    strict = replace(recipe(), data=Data(max_rejected=0.0))
    cases = {
        "poison": poisoned(root),
        "wild": case(root, "gitdl_frame", "wild", lr=1e30),
        "rejected": replace(case(root, KIND, "rejected"), bad=(1, 7, 25, 31)),
        "one": replace(case(root, KIND, "one", how=strict), bad=(8,)),
    }
    cases |= {
        name: replace(case(root, KIND, name), disorder=name) for name in ("blocks", "rows", "twice", "short", "ended")
    }
    alone = launch(1, root, train, list(cases.values()))[0]
    pair = {name: one.again(f"{name}-pair") for name, one in cases.items() if not one.disorder}
    both = launch(2, root, train, list(pair.values()))
    outcomes = {1: {name: [outcome] for name, outcome in zip(cases, alone, strict=True)}}
    outcomes[2] = {name: [rank[index] for rank in both] for index, name in enumerate(pair)}
    return cases, pair, outcomes


@pytest.mark.parametrize("world", [1, 2])
def test_loss_that_is_not_finite(faults, world):
    cases, pair, outcomes = faults
    one = (cases, pair)[world - 1]["poison"]
    videos = {row["video_id"] for row in one.plan.rows(0, 2 * one.plan.block_rows)}
    for outcome in outcomes[world]["poison"]:
        assert outcome.error == "TrainingError"
        assert "at step 1" in outcome.text
        assert "last committed step: 0" in outcome.text
        assert any(video in outcome.text for video in videos)
    assert checkpoint.committed_step(one.store, one.stage.folder) == 0
    assert read_history(one.store, one.stage.folder) == checkpoint.History([], [], [], {})


@pytest.mark.parametrize("world", [1, 2])
def test_divergence_leaves_the_last_commit(faults, world):
    cases, pair, outcomes = faults
    one = (cases, pair)[world - 1]["wild"]
    for outcome in outcomes[world]["wild"]:
        assert outcome.error == "TrainingError"
        assert "not finite" in outcome.text
    step = checkpoint.committed_step(one.store, one.stage.folder)
    assert step in (0, 3)
    if step:
        tensors, _ = checkpoint._assemble(one.store, f"{one.stage.folder}/checkpoints/{step:08d}")
        assert all(bool(parts["param"].isfinite().all()) for parts in tensors.values())
    assert not one.store.exists(f"{one.stage.folder}/snapshot/{artefacts.MARKER}")


@pytest.mark.parametrize("world", [1, 2])
def test_too_many_undecodable_rows(faults, world):
    _, _, outcomes = faults
    for outcome in outcomes[world]["one"]:
        assert outcome.error == "TrainingError"
        assert "row 8: " in outcome.text
        assert "cut short" in outcome.text
        assert "max_rejected = 0" in outcome.text
    # 72 rows, so 0.02 admits one: the second ends the stage, whichever ranks the two came to.
    for outcome in outcomes[world]["rejected"]:
        assert outcome.error == "TrainingError"
        assert "2 of the plan's 72 rows" in outcome.text
        assert "data.max_rejected = 0.02" in outcome.text


def test_rejected_rows_are_counted_across_restarts(whole, tmp_path):
    """One row before the restart and one after it are two."""
    one = replace(whole.again("restarted"), bad=(1, 40))
    before, after = launch(1, tmp_path, train, [replace(one, stop=3), one])[0]
    assert before.text == ""
    assert after.error == "TrainingError"
    assert "2 of the plan's 72 rows" in after.text
    assert checkpoint.committed_step(one.store, one.stage.folder) == 3


@pytest.mark.parametrize("disorder", ["blocks", "rows", "twice", "short", "ended"])
def test_rows_out_of_order(faults, disorder):
    cases, _, outcomes = faults
    (outcome,) = outcomes[1][disorder]
    assert outcome.error == "StreamError", outcome.text
    one = cases[disorder]
    assert checkpoint.committed_step(one.store, one.stage.folder) in (0, 3)


def test_undecodable_row_is_recorded(tmp_path):
    """It keeps its place, weighs nothing, and its reason is in the history; one and two workers agree."""
    bad = replace(case(tmp_path, KIND, "bad"), bad=(7,))
    pair = bad.again("pair")
    (outcome,) = launch(1, tmp_path, train, [bad])[0]
    assert outcome.text == ""
    for rank in launch(2, tmp_path, train, [pair]):
        assert rank[0].text == ""
    for one in (bad, pair):
        history = check_history(one)
        (row,) = one.plan.rows(7, 8)
        (lost,) = history.rejected
        assert (lost["row"], lost["video_id"], lost["error"]) == (7, row["video_id"], f"{row['video_id']}: cut short")
        assert (lost["step"], lost["rank"]) == (1, 0 if one is bad else 1)
        assert checkpoint.taken(one.store, one.stage.folder).rejected == 1
        assert {"setup", "wait", "transfer", "compute", "decode"} <= history.seconds.keys()
    torch.testing.assert_close(losses(bad), losses(pair), rtol=0, atol=1e-6)


def test_reports(whole, tmp_path):
    """Progress reaches the caller: the stage, the last step and a loss."""
    outcome = launch(1, tmp_path, train, [whole.again("reports")])[0][0]
    assert outcome.reports[-1]["name"] == "reports"
    assert outcome.reports[-1]["done"] == outcome.reports[-1]["total"] == STEPS
    assert outcome.reports[-1]["loss"] > 0


def test_dropout_draws_belong_to_the_plan_position(whole, tmp_path):
    """Another state of the global generator, and another worker, change no loss; another recipe seed does."""
    one = whole.again("other-generator")
    found = launch(1, tmp_path, train_after_draws, one)
    assert found[0][0].text == ""
    assert torch.equal(losses(one), losses(whole))


def train_after_draws(session, one):
    torch.manual_seed(99)
    torch.rand(1000)
    return train(session, [one])


@pytest.mark.parametrize("workers", [1, 2])
def test_test_streams_have_the_order_of_real_ones(whole, workers):
    """The streams of these tests give each worker what the layout of a decoding stream gives it."""
    from finepseudo.data.layout import Layout

    class Rank:
        world = workers
        rank = 0

    for steps_per_block in (1, 2, 4):
        layout = Layout.of(2, STEPS, workers, 2, steps_per_block)
        for rank in range(workers):
            Rank.rank = rank
            ours = [int(block["row"][0]) // whole.plan.block_rows for block in stream_of(whole, Rank)(2, STEPS)]
            assert ours == [b for number in range(rank, len(layout), workers) for b in layout.blocks(number)]
