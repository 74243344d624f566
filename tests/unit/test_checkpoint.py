"""Resume from committed checkpoints: same and other numbers of workers, same and other ZeRO stages, and refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_helpers import DyingStore, case, largest_difference, launch, losses, snapshot, train

from finepseudo.errors import ArtefactError
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import plain
from finepseudo.train import checkpoint
from finepseudo.train.stage import build_objective

ZERO = (0, 1, 2, 3)
HALF, WHOLE = 3, 6
# (workers and ZeRO stage of the first half, of the second half)
MOVES = [((a, zero), (b, zero)) for zero in ZERO for a, b in ((1, 1), (2, 2), (2, 1), (1, 2))]
MOVES += [((2, 1), (2, 3)), ((2, 3), (1, 0)), ((1, 0), (2, 2)), ((1, 2), (1, 3))]
KIND = "classify"  # BatchNorm, dropout, weights, soft targets, and a last layer of five classes


def name_of(move):
    (a, zero_a), (b, zero_b) = move
    return f"{a}-zero{zero_a}-to-{b}-zero{zero_b}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Whole trainings, and halves that were continued, each half in a process that ended."""
    root = tmp_path_factory.mktemp("resume")

    def run(world, cases):
        found = launch(world, root, train, cases)
        assert [[one.text for one in rank] for rank in found] == [[""] * len(cases)] * world

    for world in (1, 2):
        whole = [case(root, KIND, f"whole-{world}-zero{zero}").but(zero=zero) for zero in ZERO]
        halves = [case(root, KIND, name_of(m)).but(zero=m[0][1], stop=HALF) for m in MOVES if m[0][0] == world]
        run(world, whole + halves)
    frozen = [case(root, "gitdl_video", f"frozen-zero{zero}").but(zero=zero) for zero in ZERO]
    for world in (1, 2):
        run(world, [case(root, KIND, name_of(m)).but(zero=m[1][1]) for m in MOVES if m[1][0] == world])
        run(world, [replace(one, stop=HALF * world) for one in frozen])
    return root


@pytest.mark.parametrize("move", MOVES, ids=name_of)
def test_three_and_three_are_six(trained, move):
    (world, zero), second = move
    whole, halves = case(trained, KIND, f"whole-{world}-zero{zero}"), case(trained, KIND, name_of(move))
    ours, theirs = losses(halves), losses(whole)
    assert len(ours) == len(theirs) == WHOLE
    if move[0] == second:
        assert torch.equal(ours, theirs)
        assert largest_difference(snapshot(halves), snapshot(whole)) == 0
    else:
        assert float((ours - theirs).abs().max()) < 1e-6
        # Adam's step where a gradient is nothing but rounding is as large as any other.
        assert largest_difference(snapshot(halves), snapshot(whole)) < 2e-4


@pytest.mark.parametrize("kind", ["tclr", "fixmatch"])
def test_so_are_they_of_views_that_are_made_in_the_step(kind, tmp_path):
    """The same number of workers exactly, two and one as far as sums in another order agree."""
    whole, same, moved = (case(tmp_path, kind, name).but(zero=1) for name in ("whole", "same", "moved"))

    def run(world, *cases):
        found = launch(world, tmp_path, train, list(cases))
        assert [[one.text for one in rank] for rank in found] == [[""] * len(cases)] * world

    run(1, whole, replace(same, stop=HALF))
    run(2, replace(moved, stop=HALF))
    run(1, same, moved)
    assert torch.equal(losses(same), losses(whole))
    assert largest_difference(snapshot(same), snapshot(whole)) == 0
    assert float((losses(moved) - losses(whole)).abs().max()) < 1e-5
    assert largest_difference(snapshot(moved), snapshot(whole)) < 2e-3


@pytest.mark.parametrize("zero", ZERO)
def test_frozen_parameters_come_through(trained, zero):
    """The classifier of f_E takes no part in GITDL, and is in the snapshot all the same, as it was."""
    one = case(trained, "gitdl_video", f"frozen-zero{zero}")
    start, end = build_objective(one.stage).state_dict(), snapshot(one)
    for name in ("encoder.fc.weight", "encoder.fc.bias"):
        assert torch.equal(start[name], end[name])
    assert not any(name.startswith("projection.") for name in end)
    assert not torch.equal(start["encoder.backbone.fc.weight"], end["encoder.backbone.fc.weight"])


def test_snapshot_names_its_lineage_and_checkpoints_are_gone(trained):
    one = case(trained, KIND, "whole-1-zero0")
    marker = artefacts.committed(one.store, f"{one.stage.folder}/snapshot")
    assert marker["lineage"] == plain(one.stage.lineage())
    assert one.store.list(f"{one.stage.folder}/checkpoints") == []


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A training of two workers at ZeRO-3 that stopped at its first commit."""
    root = tmp_path_factory.mktemp("halfway")
    one = case(root, KIND, "halfway").but(zero=3, stop=HALF)
    assert [rank[0].text for rank in launch(2, root, train, [one])] == ["", ""]
    return one


@pytest.fixture
def copy_of(halfway, tmp_path):
    def make(name):
        source = halfway.store.uri(halfway.stage.folder)
        shutil.copytree(source, halfway.store.uri(f"train/{name}"))
        return halfway.again(name)

    return make


def test_each_rank_wrote_its_part(halfway):
    marker = artefacts.committed(halfway.store, f"{halfway.stage.folder}/checkpoints/{HALF:08d}")
    assert set(marker["parts"]) == {"rank-0.safetensors", "rank-1.safetensors", "whole.safetensors"}
    a, b = (marker["parts"][f"rank-{rank}.safetensors"]["bytes"] for rank in (0, 1))
    assert a == pytest.approx(b, rel=0.1)


def damage_part(folder):
    (folder / "rank-1.safetensors").unlink()


def damage_bytes(folder):
    data = bytearray((folder / "rank-1.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "rank-1.safetensors").write_bytes(data)


def damage_marker(folder):
    marker = json.loads((folder / artefacts.MARKER).read_text())
    del marker["parts"]["rank-1.safetensors"]
    (folder / artefacts.MARKER).write_text(json.dumps(marker))


DAMAGES = {damage_part: "is gone", damage_bytes: "is damaged", damage_marker: "pieces are missing of"}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_incomplete_checkpoint_is_refused(copy_of, damage, tmp_path):
    one = copy_of(damage.__name__)
    folder = f"{one.stage.folder}/checkpoints/{HALF:08d}"
    damage(Path(one.store.uri(folder)))
    with pytest.raises(ArtefactError, match=DAMAGES[damage]):
        checkpoint._assemble(one.store, folder)
    with pytest.raises(ArtefactError, match=DAMAGES[damage]):
        checkpoint.export_snapshot(one.store, one.stage.folder, lineage={})
    assert one.store.list(f"{one.stage.folder}/snapshot") == []


def test_other_lineage_and_torn_checkpoints(copy_of, tmp_path):
    """What another recipe made is refused; parts without a marker are not there; the end may be asked for twice."""
    other = copy_of("other")
    other = replace(other, stage=replace(other.stage, seed=4), stop=WHOLE)
    torn = copy_of("torn").but(stop=WHOLE)
    half, later = (f"{torn.stage.folder}/checkpoints/{step:08d}" for step in (HALF, 5))
    for part in ("rank-0.safetensors", "rank-1.safetensors", "whole.safetensors"):
        torn.store.write(f"{later}/{part}", torn.store.read(f"{half}/{part}"))
    assert checkpoint.committed_step(torn.store, torn.stage.folder) == HALF
    refused, went_on, again = launch(1, tmp_path, train, [other, torn, torn])[0]
    assert refused.error == "ArtefactError"
    assert "seed: 3 -> 4" in refused.text
    assert checkpoint.committed_step(other.store, other.stage.folder) == HALF
    assert (went_on.error, again.error) == ("", "")
    assert len(losses(torn)) == WHOLE
    blocks = checkpoint.read_history(torn.store, torn.stage.folder).blocks
    assert sorted(block for _, *of in blocks for block in range(*of)) == list(range(torn.plan.blocks))


def test_old_checkpoint_goes_after_the_next_commit_only(copy_of, tmp_path):
    """Killed at the marker of the next one, the old one is there; killed when pruning, both are."""
    for name, death, there in (
        ("marker", {"at_write": f"checkpoints/{WHOLE:08d}/{artefacts.MARKER}"}, [HALF]),
        ("prune", {"at_delete": f"checkpoints/{HALF:08d}"}, [HALF, WHOLE]),
    ):
        one = copy_of(name)
        dying = replace(one, store=DyingStore(one.store.root, **death), stop=WHOLE)
        assert launch(1, tmp_path, train, [dying]) == [-9]
        assert checkpoint._committed(one.store, f"{one.stage.folder}/checkpoints") == there
        assert launch(1, tmp_path, train, [one.but(stop=WHOLE)])[0][0].text == ""
        assert len(losses(one)) == WHOLE
