"""What the objectives answer: rows without weight, short cuts, dropout, and curves that must not move.

`python tests/unit/test_objectives.py` writes the golden curves anew; do so only where a change is meant to move a loss.
"""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from training_helpers import KINDS, K, batch_of, case, columns, picture, plain_loop, recipe, still

from finepseudo.align.contrast import TclrOutput
from finepseudo.data.batch import make_batch
from finepseudo.data.manifest import UNKNOWN
from finepseudo.data.plan import derive
from finepseudo.data.transforms import centre
from finepseudo.errors import StreamError
from finepseudo.models.encoders import build
from finepseudo.models.table import choose
from finepseudo.recipe import ALIGN_LOSSES, VIDEO_LOSSES, Align, FixMatch, Gitdl, Optimiser
from finepseudo.train.objectives import OBJECTIVES, GitdlObjective
from finepseudo.train.stage import build_objective

NONE = (torch.zeros(()),) * 4
GOLDEN = Path(__file__).parent / "golden"
GOLDEN_STEPS = 10
# Small enough that rounding, which Adam turns into steps of this size, stays far below the tolerance.
GOLDEN_LR = {
    "gitdl_frame": 2e-5,
    "gitdl_video": 2e-5,
    "tclr": 2e-5,
    "instance": 2e-5,
    "align": 1e-3,
    "classify": 1e-3,
    "fixmatch": 1e-3,
}


def golden_run(root, kind):
    return plain_loop(case(root, kind, kind, steps=GOLDEN_STEPS, lr=GOLDEN_LR[kind]))


def test_every_loss_that_a_recipe_may_name_has_its_objective():
    assert set(get_args(get_type_hints(Gitdl)["video_loss"])) == set(VIDEO_LOSSES)
    assert set(VIDEO_LOSSES.values()) <= set(OBJECTIVES)
    assert all(issubclass(Gitdl, options) for options in VIDEO_LOSSES.values())
    assert set(get_args(get_type_hints(Align)["loss"])) == set(ALIGN_LOSSES)
    assert set(ALIGN_LOSSES.values()) <= set(OBJECTIVES)
    assert all(issubclass(Align, options) for options in ALIGN_LOSSES.values())


@pytest.mark.parametrize("kind", KINDS)
def test_golden_curves(kind, tmp_path):
    found = golden_run(tmp_path, kind)
    expected = json.loads((GOLDEN / f"{kind}.json").read_text())
    assert len(expected["loss"]) == GOLDEN_STEPS
    assert found.losses.tolist() == pytest.approx(expected["loss"], rel=1e-3)
    # The gradient sees what hardly moves a loss at the start.
    assert float(found.norms[0]) == pytest.approx(expected["gradient"][0], rel=1e-3)
    assert found.norms.tolist() == pytest.approx(expected["gradient"], rel=2e-2)


def step_on(one, batch):
    """Loss, gradients and buffers after one block in training mode."""
    objective = build_objective(one.stage).train()
    torch.manual_seed(1)
    loss, logged = objective(batch)
    loss.backward()
    grads = {name: param.grad for name, param in objective.named_parameters() if param.grad is not None}
    return float(loss.detach()), {**grads, **dict(objective.named_buffers()), **logged}


@pytest.mark.parametrize("kind", KINDS)
def test_undecodable_rows_change_nothing(kind, tmp_path):
    """Neither loss, gradients nor BatchNorm statistics see what an undecodable row holds."""
    one = case(tmp_path, kind, kind)
    size = one.plan.block_rows
    bad = (1, size - 1) if kind != "align" else (1,)
    black = columns(one.plan, 0, bad=bad)
    loud = {name: values.copy() for name, values in black.items()}
    for name in ("clip_0", "clip_1"):
        if name in loud:
            loud[name][list(bad)] = 255
    a, b = (step_on(one, make_batch(one.plan, K, found)) for found in (black, loud))
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    for name, value in a[1].items():
        assert torch.equal(value, b[1][name]), name
    batch = make_batch(one.plan, K, black)
    assert batch.weight_B[list(bad)].tolist() == [0.0] * len(bad)
    assert set(batch.errors) == set(bad)
    # It is the same as a batch that never held them, but for the divisor of the cross-entropy.
    kept = batch.decoded()
    assert kept.row_B == [row for row in range(size) if row not in bad]
    assert len(kept.clip_BTHWC) == len(kept.seed_B) == len(kept.video_ids) == size - len(bad)
    # Of the six rows of fixmatch's block three are labelled, and it takes no other one so early.
    share = {"classify": len(kept.row_B) / size, "fixmatch": 2 / 3}.get(kind, 1.0)
    assert step_on(one, kept)[0] * share == pytest.approx(a[0], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_block_without_any_decodable_row_is_a_zero(kind, tmp_path):
    one = case(tmp_path, kind, kind)
    loss, state = step_on(one, batch_of(one.plan, 0, bad=range(one.plan.block_rows)))
    assert loss == 0
    assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("kind", ["align", "classify"])
def test_rows_of_weight_zero_take_no_part_in_the_loss(kind, tmp_path):
    """With frozen statistics the loss does not depend on what such a row holds; its weight matters."""
    one = case(tmp_path, kind, kind)
    objective = build_objective(one.stage).eval()
    batch = batch_of(one.plan, 0)
    weight_B = batch.weight_B.clone()
    weight_B[2] = 0
    clip = batch.clip_BTHWC.clone()
    clip[2] = 200
    with torch.inference_mode():
        here, there = (
            float(objective(replace(batch, weight_B=weight_B, clip_BTHWC=c))[0]) for c in (batch.clip_BTHWC, clip)
        )
        whole = float(objective(batch)[0])
    assert here == pytest.approx(there, rel=1e-6)
    assert here != pytest.approx(whole, rel=1e-6)


def test_av_loss_weighs_its_terms_as_the_recipe_says(tmp_path):
    one = case(tmp_path, "align", "weights")

    def loss_of(triplet_weight, score_weight):
        loss = replace(one.stage.loss, triplet_weight=triplet_weight, score_weight=score_weight)
        objective = build_objective(replace(one.stage, loss=loss)).eval()
        with torch.inference_mode():
            loss, logged = objective(batch_of(one.plan, 0))
        return float(loss), float(logged["L_AT"]), float(logged["L_Score"])

    _, triplet, score = loss_of(1.0, 1.0)
    assert triplet > 0.01
    assert score > 0.01
    for weights in ((1.0, 1.0), (3.0, 0.0), (0.0, 2.0), (0.5, 4.0)):
        assert loss_of(*weights)[0] == pytest.approx(weights[0] * triplet + weights[1] * score, rel=1e-5)


def test_soft_targets_and_weights_are_those_of_the_plan(tmp_path):
    """Mean over the block's rows of weight x cross-entropy with the target, or the label where there is none."""
    one = case(tmp_path, "classify", "soft")
    batch = batch_of(one.plan, 0)
    rows = one.plan.rows(0, one.plan.block_rows)
    assert {row["top"] is not None for row in rows} == {True, False}
    objective = build_objective(one.stage).eval()
    with torch.inference_mode():
        loss, _ = objective(batch)
        logp_BK = objective.encoder(objective.clips(batch)).log_softmax(1)
    by_hand = 0.0
    for index, row in enumerate(rows):
        top = row["top"] or [row["label"]]
        target_K = torch.zeros(K)
        target_K[top] = torch.tensor(row["top_p"] or [1.0])
        by_hand -= row["weight"] * float((target_K * logp_BK[index]).sum())
    assert float(loss) == pytest.approx(by_hand / len(rows), rel=1e-5)


@pytest.fixture
def certain(tmp_path):
    """FixMatch of an f_E that is surer of some rows than of others, and the threshold between them."""
    one = case(tmp_path, "fixmatch", "certain")
    objective = build_objective(one.stage)
    with torch.no_grad():
        for _ in range(30):  # BatchNorm's statistics become those of the clips
            objective.train().encoder(objective.clips(batch_of(one.plan, 0)))
        objective.encoder.fc.weight *= 300
    batch = batch_of(one.plan, 0)
    q_BK = objective.eval()._weak(batch)
    unlabelled = (batch.label_B == UNKNOWN).nonzero().flatten().tolist()
    _, middle, _ = sorted(float(q_BK[row].max()) for row in unlabelled)
    objective.loss = FixMatch(threshold=middle)
    return objective, batch, q_BK, unlabelled


def test_fixmatch_learns_from_its_own_sure_labels_of_the_weak_view(certain):
    objective, batch, q_BK, unlabelled = certain
    assert (unlabelled, batch.label_B[unlabelled].tolist()) == ([3, 4, 5], [UNKNOWN] * 3)
    with torch.inference_mode():
        loss, logged = objective(batch)
        logp_BK = objective.encoder(objective.clips(batch)).log_softmax(1)
    real = [-float(logp_BK[row, batch.label_B[row]]) for row in range(3)]
    sure = [row for row in unlabelled if float(q_BK[row].max()) >= objective.loss.threshold]
    made = [-float(logp_BK[row, q_BK[row].argmax()]) for row in sure]
    assert len(made) == 2
    assert float(loss) == pytest.approx(sum(real) / 3 + sum(made) / 3, rel=1e-5)
    assert float(logged["accepted"]) == pytest.approx(2 / 3)


def test_the_weak_view_is_that_of_inference_and_leaves_no_trace(certain):
    """Neither gradients nor BatchNorm see it; no dropout, no augmentation."""
    objective, batch, q_BK, _ = certain
    other = objective._weak(replace(batch, seed_B=[seed + 1 for seed in batch.seed_B]))
    assert torch.equal(other, q_BK)
    centred = centre(batch.clip_BTHWC, objective.augmentation, objective.crop, objective.encoder.preprocessing)
    with torch.inference_mode():
        assert torch.equal(objective.encoder(centred).softmax(1), q_BK)
    before = {name: buffer.clone() for name, buffer in objective.train().named_buffers()}
    assert not objective._weak(batch).requires_grad
    assert objective.encoder.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in objective.named_buffers())


def test_dropout_depends_on_the_plan_position_only(tmp_path):
    one = case(tmp_path, "classify", "dropout")
    objective = build_objective(one.stage).train()
    norms = [m for m in objective.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.eval()
    batch = batch_of(one.plan, 1)

    def loss_at(position, before):
        torch.manual_seed(before)
        torch.rand(before)
        torch.manual_seed(derive("dropout", one.recipe.seed, position))
        with torch.inference_mode():
            return float(objective(batch)[0])

    assert loss_at(6, 1) == loss_at(6, 77)
    assert loss_at(6, 1) != loss_at(12, 1)


@pytest.mark.parametrize("rows", [[1, 0, 2], [0, 0, 1], [0, 2, 4], [10**6, 10**6 + 1], [-1, 0]])
def test_batches_are_consecutive_rows_of_the_plan(rows, tmp_path):
    one = case(tmp_path, "classify", "order")
    found = {name: values[: len(rows)] for name, values in columns(one.plan, 0).items()}
    with pytest.raises(StreamError, match="rows out of order"):
        make_batch(one.plan, K, {**found, "row": rows})


@pytest.fixture(scope="module")
def long_gitdl(tmp_path_factory):
    gitdl = Gitdl(videos=12, frames=8, skip_global=4, skip_local=2)
    how = replace(recipe(), gitdl=gitdl, optimiser=Optimiser(blocks_per_step=1))
    one = case(tmp_path_factory.mktemp("gitdl"), "gitdl_frame", "long", how=how, steps=50)
    rows = one.plan.rows(0, len(one.plan))
    times = [torch.tensor(np.stack([row[f"frames_{clip}"] for row in rows])) for clip in (0, 1)]
    return one, gitdl_bounds(*times, gitdl.sigma2)


def gitdl_bounds(s_Bn, t_Bm, sigma2):
    """The loss at chance, and the least one of a p that depends on frame indices alone: by concavity the entropy of
    the target averaged over the videos."""
    logits_Bnm = -(s_Bn.double()[:, :, None] - t_Bm.double()[:, None, :]).square() / (2 * sigma2)
    each = [torch.special.entr(logits_Bnm.softmax(dim).mean(0)).sum(dim - 1).mean() for dim in (1, 2)]
    uniform = (math.log(s_Bn.shape[1]) + math.log(t_Bm.shape[1])) / 2
    return {"uniform": uniform, "position_only": float(sum(each)) / 2}


@pytest.mark.parametrize("positions", ["none", "sinusoidal"])
def test_frozen_videos_cannot_beat_the_position_only_bound(long_gitdl, positions):
    """Without motion an encoder has the index of a frame alone, even where it is told it."""
    one, bounds = long_gitdl
    how = one.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        encoder = build(choose("tiny_vtn", {"positions": positions}), num_classes=K, size=how.frames.crop, seed=4)
        objective = GitdlObjective(encoder, how.gitdl, how.augment, how.frames.crop)
    found = plain_loop(one, draw=still, objective=objective)
    last = float(found.losses[-12:].mean())
    assert last > bounds["position_only"] - 0.03
    assert last < bounds["uniform"]


def test_moving_videos_go_below_the_uniform_bound(long_gitdl):
    one, bounds = long_gitdl
    found = plain_loop(one, draw=picture)
    assert float(found.losses[0]) > bounds["uniform"] - 0.1
    assert float(found.losses[-12:].mean()) < bounds["uniform"] - 0.35


def test_views_differ_in_more_than_time(long_gitdl):
    """The two clips of a video are augmented by draws of their own, the same at every call."""
    one, _ = long_gitdl
    batch = batch_of(one.plan, 0)
    same = replace(batch, other_BTHWC=batch.clip_BTHWC, other_time_BT=batch.time_BT)
    seen = []
    objective = build_objective(one.stage).eval()
    objective.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    with torch.inference_mode():
        objective(same)
        objective(same)
    first, second = seen[0].chunk(2)
    assert not torch.equal(first, second)
    assert torch.equal(seen[0], seen[1])


def test_tclr_sees_the_parts_of_the_global_clip_and_two_views_of_each_local_one(tmp_path, monkeypatch):
    """Which features go where, told by what an encoder says of its clips: their number and the time."""
    one = case(tmp_path, "tclr", "parts")
    objective = build_objective(one.stage)
    seen, given = [], []

    def features(clip_BTCHW):
        seen.append(clip_BTCHW)
        number_BT1 = torch.arange(len(clip_BTCHW)).float()[:, None, None].expand(-1, clip_BTCHW.shape[1], 1)
        return torch.cat([number_BT1, torch.arange(6.0)[None, :, None].expand(len(clip_BTCHW), -1, -1)], -1)

    monkeypatch.setattr(objective.encoder, "time_features", features)
    monkeypatch.setattr(objective, "projected", lambda feat: feat)
    monkeypatch.setattr("finepseudo.train.objectives.tclr_loss", lambda *x, **_: given.append(x) or TclrOutput(*NONE))
    objective(batch_of(one.plan, 0))
    (clips,), ((whole_BD, time_BLD, first_BLD, second_BLD),) = seen, given
    assert clips.shape[:2] == (3 + 2 * 3 * 3, 6)
    assert whole_BD.tolist() == [[video, 2.5] for video in range(3)]
    assert time_BLD.tolist() == [[[video, time] for time in (0.5, 2.5, 4.5)] for video in range(3)]
    assert first_BLD[..., 0].tolist() == [[3, 4, 5], [9, 10, 11], [15, 16, 17]]
    assert second_BLD[..., 0].tolist() == [[6, 7, 8], [12, 13, 14], [18, 19, 20]]
    batch = batch_of(one.plan, 0)
    assert torch.equal(clips[12:15], objective.local(batch, 2)[1].unflatten(0, (3, 6)))
    assert not torch.equal(clips[9:12], clips[12:15])


def rewrite():
    """Write the golden curves anew."""
    with tempfile.TemporaryDirectory() as root:
        for kind in KINDS:
            found = golden_run(root, kind)
            curves = {"loss": found.losses, "gradient": found.norms}
            text = json.dumps({name: [round(x, 6) for x in curve.tolist()] for name, curve in curves.items()}, indent=1)
            (GOLDEN / f"{kind}.json").write_text(f"{text}\n")


if __name__ == "__main__":
    rewrite()
