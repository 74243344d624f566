"""Layers of the Transformers: where each stands, learning rates that fall from one to the one below it, drop path,
and layers that are computed again instead of kept.
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from training_helpers import STEPS, case, largest_difference, launch, losses, plain_loop, recipe, snapshot, train

from finepseudo.errors import RecipeError
from finepseudo.models import aim, hub, vit
from finepseudo.models.encoders import build, recompute
from finepseudo.models.table import ENCODERS, PARTS, choose
from finepseudo.models.vtn import DropPath, drop_rates
from finepseudo.recipe import Models, Optimiser, Recipe, Scale
from finepseudo.train.engine import groups, schedule
from finepseudo.train.stage import build_objective

LAYERED = [name for name, entry in ENCODERS.items() if entry.layers]
UNDROPPED = {"videomae_b16", "timesformer_b16"}  # without the option
DECAY = 0.5
CELLS = ((1, 1), (2, 1), (2, 2), (2, 3))  # workers, stage of ZeRO
KINDS = ("align", "classify")


def narrow(patch):
    """The Transformers with a few narrow layers, in this process."""
    for kind in (vit.VTNViTS16, vit.VTNViTB16):
        patch.setattr(kind, "make_backbone", staticmethod(partial(vit.ViT, 48, 3, layers=2)))
    patch.setattr(vit.VTNCLIPViTB16, "make_backbone", staticmethod(partial(vit.ViT, 48, 3, layers=2, clip=True)))
    patch.setattr(aim.AIMViTB16, "shape", {"width": 48, "heads": 3, "layers": 2})
    for kind in (hub.VideoMAEB16, hub.TimeSformerB16, hub.VJEPA2L16):
        few = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
        patch.setattr(kind, "shape", {name: {**few, "num_pooler_layers": 1}[name] for name in kind.shape})


@pytest.fixture(autouse=True)
def narrowed(monkeypatch):
    narrow(monkeypatch)


def narrow_train(session, cases):
    """`train` in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        return train(session, cases)


def make(name, **options):
    encoder = build(choose(name, {key: str(value) for key, value in options.items()}), num_classes=3, size=32, seed=0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in encoder.parameters():
            if not p.any():  # what starts at 0 hides what others do
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return encoder


def clip(B=2, T=4):
    return torch.randn(B, T, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_table_says_who_has_layers():
    for name, entry in ENCODERS.items():
        kind = type(build(choose(name), num_classes=3, size=32, seed=0))
        assert bool(kind.layers) == bool(kind.foot) == entry.layers


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERED)
def test_a_parameter_of_layer_l_changes_what_comes_out_of_l_and_nothing_below(name):
    encoder = make(name).eval()
    stack = list(encoder.get_submodule(encoder.layers[-1]))
    seen = {}
    for place, layer in enumerate(stack, start=1):
        layer.register_forward_hook(lambda _layer, given, _out, place=place: seen.__setitem__(place, given[0].clone()))

    def outputs():
        """What comes out of l = 0, 1, ... L + 1."""
        out = encoder(clip())
        return [*(seen[place] for place in range(1, len(stack) + 1)), out, out]

    depths = {key: len(stack) + 1 - encoder.from_top(key) for key, _ in encoder.named_parameters()}
    assert set(depths.values()) == set(range(len(stack) + 2))
    before, weights = outputs(), {key: p.clone() for key, p in encoder.named_parameters()}
    for depth in range(len(stack) + 2):
        for key, p in encoder.named_parameters():
            p.copy_(1.5 * weights[key] + 0.01 if depths[key] == depth else weights[key])
        after = outputs()
        changed = [not torch.equal(a, b) for a, b in zip(before[:-1], after[:-1], strict=True)]
        assert changed == [place >= min(depth, len(stack)) for place in range(len(stack) + 1)]


def how_of(**optimiser):
    how = recipe()
    dropped = {"drop_path": "0.4"}
    models = Models(frame="vtn_vit_s16", frame_options=dropped, video="aim_vit_b16", video_options=dropped)
    return replace(how, models=models, optimiser=replace(how.optimiser, **optimiser))


DECAYED = {"frame_layer_decay": DECAY, "video_layer_decay": DECAY}


@pytest.mark.parametrize("kind", KINDS)
def test_groups_have_every_trained_parameter_once_with_its_rate(kind, tmp_path):
    objective = build_objective(case(tmp_path, kind, "x", how=how_of(**DECAYED)).stage)
    names = {id(p): name for name, p in objective.named_parameters()}
    found = {names[id(p)]: group for group in groups(objective, 0.1, DECAY) for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups(objective, 0.1, DECAY))
    assert found.keys() == {name for name, p in objective.named_parameters() if p.requires_grad}
    for name, group in found.items():
        p = objective.get_parameter(name)
        assert group["weight_decay"] == (0.1 if p.ndim > 1 else 0)
        assert group["share"] == share(name)
    assert {group["share"] for group in found.values()} == {1, 1 / 2, 1 / 4, 1 / 8}
    plain = groups(objective, 0.1, 1.0)
    assert [(group["share"], group["weight_decay"]) for group in plain] == [(1, 0.1), (1, 0)]


def share(name):
    """Of the rate, written down a second time: two layers, so 1/8, 1/4, 1/2 and 1."""
    for beginning, value in {
        "encoder.backbone.layers.0.": 1 / 4, "encoder.adapters.0.": 1 / 4,
        "encoder.backbone.layers.1.": 1 / 2, "encoder.adapters.1.": 1 / 2,
        "encoder.backbone.patches.": 1 / 8, "encoder.backbone.tokens.": 1 / 8, "encoder.times.": 1 / 8,
    }.items():  # fmt: skip
        if name.startswith(beginning):
            return value
    return 1.0


def cell(root, kind, world, zero):
    """Two workers recompute, one does not."""
    how = how_of(**DECAYED)
    how = replace(how, scale=replace(how.scale, recompute=PARTS if world == 2 else ()))
    return case(root, kind, f"{kind}-{world}-{zero}", how=how, lr=2e-3).but(zero=zero)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which both encoders were trained, cell by cell."""
    root = tmp_path_factory.mktemp("decay")
    for world in (1, 2):
        cases = [cell(root, kind, *one) for kind in KINDS for one in CELLS if one[0] == world]
        found = launch(world, root, narrow_train, cases)
        assert [[one.text for one in rank] for rank in found] == [[""] * len(cases)] * world
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_rates_by_layer_are_those_of_plain_pytorch_at_every_stage(trained, kind):
    plain = plain_loop(cell(trained, kind, 1, 1), share=share)
    alike = plain_loop(cell(trained, kind, 1, 1))
    assert float((plain.losses - alike.losses).abs().max()) > 1e-3
    for world, zero in CELLS:
        one = cell(trained, kind, world, zero)
        assert float((losses(one) - plain.losses).abs().max()) < 1e-5, (world, zero)
        assert largest_difference(snapshot(one), plain.state) < 2e-3


@pytest.mark.parametrize("zero", [2, 3])
def test_stopped_and_resumed_is_as_in_one_go(zero, tmp_path):
    how = how_of(**DECAYED)
    how = replace(how, scale=replace(how.scale, recompute=("video",)))
    whole, halves = (case(tmp_path, "classify", name, how=how).but(zero=zero) for name in ("whole", "halves"))
    for cases in ([whole, halves.but(stop=STEPS // 2)], [halves]):
        outcomes = launch(2, tmp_path, narrow_train, cases)
        assert [[outcome.text for outcome in rank] for rank in outcomes] == [[""] * len(cases)] * 2
    assert torch.equal(losses(whole), losses(halves))
    assert largest_difference(snapshot(whole), snapshot(halves)) == 0


@torch.no_grad()
def test_a_branch_is_dropped_of_some_samples_and_the_mean_stays():
    torch.manual_seed(0)
    drop, x = DropPath(0.3), torch.ones(4000, 2, 3)
    out = drop(x)
    assert sorted(set(out.flatten().tolist())) == pytest.approx([0, 1 / 0.7])
    assert torch.equal(out, out[:, :1, :1].expand_as(out)), "of a sample all or nothing"
    assert float(out.mean()) == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x
    assert DropPath(0.0)(x) is x
    assert drop_rates(0.2, 3) == pytest.approx([0, 0.1, 0.2])
    assert drop_rates(0.2, 1) == [0]


def test_rates_rise_from_layer_to_layer():
    aim_rates = [adapters.drop.rate for adapters in make("aim_vit_b16", drop_path=0.2).adapters]
    vit_rates = [layer.drop.rate for layer in make("vtn_vit_s16", drop_path=0.2).backbone.layers]
    hub_rates = [layer.drop_path.drop_prob for layer in make("vjepa2_l16", drop_path=0.2).encoder.layer]
    assert aim_rates == vit_rates == hub_rates == [0, 0.2]


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(set(LAYERED) - UNDROPPED))
def test_draws_are_of_training_alone_and_of_the_generator_that_the_loop_seeds(name):
    encoder = make(name, drop_path=0.6)
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append(encoder(clip(B=8)))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    assert torch.equal(make(name, drop_path=0.6).eval()(clip(B=8)), make(name).eval()(clip(B=8)))


@pytest.mark.parametrize("name", LAYERED)
def test_recomputed_layers_give_the_same_loss_and_gradients_and_keep_less(name):
    found = []
    for again in (False, True):
        encoder = make(name, **({} if name in UNDROPPED else {"drop_path": 0.5}))
        if again:
            recompute(encoder)
        torch.manual_seed(3)
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = encoder(clip(B=4)).square().mean() + encoder(clip(B=4))[..., 0].sum()
        loss.backward()
        grads = {key: p.grad for key, p in encoder.named_parameters() if p.grad is not None}
        found.append((loss.detach(), grads, sum(kept)))
    (loss, grads, kept), (loss_2, grads_2, kept_2) = found
    assert torch.equal(loss, loss_2)
    assert grads.keys() == grads_2.keys()
    assert largest_difference(grads, grads_2) < 1e-6
    assert kept_2 < kept


@torch.no_grad()
def test_what_recomputes_answers_without_gradients_too():
    encoder, same = make("aim_vit_b16").eval(), make("aim_vit_b16").eval()
    recompute(same)
    assert torch.equal(encoder(clip()), same(clip()))


def test_a_rate_of_the_first_step_by_hand():
    assert schedule(0, 10, lr=1e-3, warmup=0.1) * DECAY**3 == pytest.approx(1e-3 / 8)
    assert math.isclose(schedule(0, 10, lr=1e-3, warmup=0.1), 1e-3)


@pytest.mark.parametrize(
    ("optimiser", "message"),
    [
        ({"frame_layer_decay": 0.8}, r"optimiser.frame_layer_decay = 0.8: tiny_vtn is no Transformer .* vtn_vit_s16"),
        ({"video_layer_decay": 0.8}, r"optimiser.video_layer_decay = 0.8: tiny_r2plus1d is .* aim_vit_b16, videomae"),
        ({"video_layer_decay": 0}, r"optimiser.video_layer_decay: expected from 0.1 to 1, got 0"),
    ],
)
def test_who_has_no_layers_is_told_so(optimiser, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(name="x", optimiser=Optimiser(**optimiser))


def test_who_has_no_layers_cannot_recompute_them():
    with pytest.raises(
        RecipeError, match=r"scale.recompute with frame: tiny_vtn is no Transformer .* vtn_clip_vit_b16"
    ):
        Recipe(name="x", scale=Scale(recompute=("frame",)))
    with pytest.raises(RecipeError, match=r"scale.recompute: expected frame, video, got 'both'"):
        Recipe(name="x", scale=Scale(recompute=("both",)))
