"""VideoMAE, TimeSformer, V-JEPA 2: the library's own answers, by way of a converted file, from every layout of names.

With two narrow layers; tests/golden has the full size. Original names are checked against the original computation,
written down here from those names.

Axes: B batch, T frames, C channels, F features, L tokens, h heads, d width of a head.
"""

import importlib.util
import json
import math
import re

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.errors import RecipeError, WeightsError
from finepseudo.models import hub, pickled, public, weights
from finepseudo.models.encoders import build
from finepseudo.models.table import ENCODERS, choose
from finepseudo.preview.inventory import take_stock
from finepseudo.recipe import Frames, Gitdl, Models, Recipe
from finepseudo.storage.store import Store

pytestmark = pytest.mark.usefixtures("few_layers", "one_thread")
NAMES = [name for name, entry in ENCODERS.items() if entry.library]
K = 3


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name, size=224, seed=0, K=K):
    return build(choose(name), num_classes=K, size=size, seed=seed)


def clip(B=2, T=4, size=224, seed=0):
    return torch.randn(B, T, 3, size, size, generator=torch.Generator().manual_seed(seed))


def library(name, *, size=224, T=4, pretraining=False, **config):
    """A model of the library's with random weights, vectors too; and what stands before the names of its encoder."""
    family = {"videomae_b16": "VideoMAE", "timesformer_b16": "Timesformer", "vjepa2_l16": "VJEPA2"}[name]
    length = {"crop_size": size, "frames_per_clip": T} if family == "VJEPA2" else {"image_size": size, "num_frames": T}
    made = getattr(transformers, f"{family}Config")(
        **getattr(hub, ENCODERS[name].made_by.partition(":")[2]).shape, **length, num_labels=K, **config
    )
    kind = {True: {"VJEPA2": "Model", "VideoMAE": "ForPreTraining"}, False: {}}[pretraining]
    model = getattr(transformers, family + kind.get(family, "ForVideoClassification"))(made).eval()
    return random(model)


def random(model, seed=0):
    """Other weights everywhere, so that no tensor may be taken for another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / (math.sqrt(p[0].numel()) if p.ndim > 1 else 5))
            if p.ndim == 1:
                p.add_(0.5)
    return model


def started(name, found, size=224, K=K):
    """An encoder that started from a file of these tensors; and what was converted."""
    module = make(name, size=224, K=public.classes_of(found))
    converted = public.convert(found, name, module)
    data = weights.to_bytes(converted.state, {public.KEY: json.dumps({"encoder": name})})
    module = make(name, size, seed=9, K=K)
    said = public.load(module, name, data, sha256=None)
    return module.eval(), converted, said


@torch.no_grad()
@pytest.mark.parametrize("before", ["", "module."])
@pytest.mark.parametrize("name", NAMES)
def test_same_clip_same_logits_as_the_library(name, before):
    T = 8 if name == "timesformer_b16" else 4
    model = library(name, T=T)
    found = {before + key: value for key, value in model.state_dict().items()}
    module, converted, said = started(name, found)
    logits_BK = model(clip(T=T)).logits
    assert logits_BK.std() > 0.1
    torch.testing.assert_close(module(clip(T=T)), logits_BK, atol=1e-5, rtol=1e-5)
    assert said.endswith("initialised: nothing")
    assert converted.initialised == converted.resampled == ()
    assert all("predictor." in key for key in converted.aside)
    assert module.preprocessing == ENCODERS[name].preprocessing
    assert {key: value.shape for key, value in make(name).state_dict().items()} == {
        key: value.shape for key, value in converted.state.items()
    }


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_time_features_are_the_means_over_space(name):
    module, stride = random(make(name, size=32)).eval(), choose(name).options.time_stride
    x = clip(T=6, size=32)
    feat_BTF = module.time_features(x)
    assert feat_BTF.shape == (2, 6 // stride, module.feature_dim)
    if name == "videomae_b16":
        torch.testing.assert_close(module(x), module.fc(module.fc_norm(feat_BTF.mean(1))))
        return
    tokens_BLF = module._tokens(x)
    if name == "timesformer_b16":  # class token, then place by place, each through time
        expected = torch.stack([tokens_BLF[:, 1 + t :: 6].mean(1) for t in range(6)], 1)
    else:  # time by time, each through all places
        expected = torch.stack([tokens_BLF[:, 4 * t : 4 * t + 4].mean(1) for t in range(3)], 1)
    torch.testing.assert_close(feat_BTF, expected)


def test_a_file_of_pretraining_starts_all_but_the_classifier():
    model = library("videomae_b16", pretraining=True, use_mean_pooling=False)
    found = dict(model.state_dict())
    module, converted, said = started("videomae_b16", found)
    assert said == "32 tensors loaded; initialised: fc, fc_norm"
    assert torch.equal(module.encoder.layer[1].output.dense.weight, model.videomae.encoder.layer[1].output.dense.weight)
    assert {key.partition(".")[0] for key in converted.aside} == {
        "decoder", "encoder_to_decoder", "mask_token", "videomae"
    }  # fmt: skip
    assert {key for key in converted.aside if key.startswith("videomae.")} == {
        "videomae.layernorm.weight", "videomae.layernorm.bias"
    }  # fmt: skip
    model = library("vjepa2_l16", pretraining=True)
    module, converted, said = started("vjepa2_l16", dict(model.state_dict()))
    assert said == "36 tensors loaded; initialised: fc, pooler"
    assert all(key.startswith("predictor.") for key in converted.aside)
    with torch.no_grad():
        expected = model(clip(), skip_predictor=True).last_hidden_state
        torch.testing.assert_close(module._tokens(clip()), expected)


def test_the_published_names_of_videomae_keep_their_biases_apart():
    model = library("videomae_b16")
    found = {
        key.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value
        for key, value in model.state_dict().items()
    }
    assert sum(key.endswith(("q_bias", "v_bias")) for key in found) == 4
    module, converted, _ = started("videomae_b16", found)
    with torch.no_grad():
        torch.testing.assert_close(module(clip()), model(clip()).logits)
    renamed = {key for key in converted.renamed if key.endswith("_bias")}
    assert len(renamed) == 4


def attention(state, at, x_BLF, qkv_bias, heads=3):
    """By original names."""
    qkv = F.linear(x_BLF, state[f"{at}.qkv.weight"], qkv_bias)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    out = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return F.linear(out.transpose(1, 2).flatten(2), state[f"{at}.proj.weight"], state[f"{at}.proj.bias"])


def norm(state, at, x, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{at}.weight"], state[f"{at}.bias"], eps)


def mlp(state, at, x):
    x = F.gelu(F.linear(x, state[f"{at}.fc1.weight"], state[f"{at}.fc1.bias"]))
    return F.linear(x, state[f"{at}.fc2.weight"], state[f"{at}.fc2.bias"])


def original(name, *, places=14, times=8):
    """Random weights by original names, as the original files have them."""
    F, shapes = 48, {}
    for i in (0, 1):
        at = f"blocks.{i}"
        shapes |= {f"{at}.{n}.{e}": (F,) for n in ("norm1", "norm2") for e in ("weight", "bias")}
        shapes |= {f"{at}.mlp.fc1.weight": (2 * F, F), f"{at}.mlp.fc1.bias": (2 * F,)}
        shapes |= {f"{at}.mlp.fc2.weight": (F, 2 * F), f"{at}.mlp.fc2.bias": (F,)}
        shapes |= {f"{at}.attn.qkv.weight": (3 * F, F), f"{at}.attn.proj.weight": (F, F), f"{at}.attn.proj.bias": (F,)}
        if name == "videomae_b16":
            shapes |= {f"{at}.attn.q_bias": (F,), f"{at}.attn.v_bias": (F,)}
            continue
        shapes |= {f"{at}.attn.qkv.bias": (3 * F,), f"{at}.temporal_attn.qkv.weight": (3 * F, F)}
        shapes |= {f"{at}.temporal_attn.qkv.bias": (3 * F,), f"{at}.temporal_attn.proj.weight": (F, F)}
        shapes |= {f"{at}.temporal_attn.proj.bias": (F,), f"{at}.temporal_fc.weight": (F, F)}
        shapes |= {f"{at}.temporal_fc.bias": (F,), f"{at}.temporal_norm1.weight": (F,)}
        shapes |= {f"{at}.temporal_norm1.bias": (F,)}
    if name == "videomae_b16":
        shapes |= {"patch_embed.proj.weight": (F, 3, 2, 16, 16), "fc_norm.weight": (F,), "fc_norm.bias": (F,)}
    else:
        shapes |= {"patch_embed.proj.weight": (F, 3, 16, 16), "norm.weight": (F,), "norm.bias": (F,)}
        shapes |= {"cls_token": (1, 1, F), "pos_embed": (1, 1 + places**2, F), "time_embed": (1, times, F)}
    shapes |= {"patch_embed.proj.bias": (F,), "head.weight": (K, F), "head.bias": (K,)}
    tensors = torch.nn.ParameterDict({key.replace(".", "/"): torch.empty(shape) for key, shape in shapes.items()})
    return {key.replace("/", "."): value.detach() for key, value in random(tensors).items()}


def videomae(state, x_BTCHW):
    """The original computation, by the original names."""
    patches = F.conv3d(
        x_BTCHW.transpose(1, 2), state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], (2, 16, 16)
    )
    x = patches.flatten(2).mT
    L, width = x.shape[1:]
    angle = np.array([[n / 10000 ** (2 * (j // 2) / width) for j in range(width)] for n in range(L)])
    angle[:, 0::2], angle[:, 1::2] = np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])
    x = x + torch.from_numpy(angle).float()
    for i in (0, 1):
        at = f"blocks.{i}"
        bias = torch.cat([state[f"{at}.attn.q_bias"], torch.zeros(width), state[f"{at}.attn.v_bias"]])
        x = x + attention(state, f"{at}.attn", norm(state, f"{at}.norm1", x, 1e-6), bias)
        x = x + mlp(state, f"{at}.mlp", norm(state, f"{at}.norm2", x, 1e-6))
    return F.linear(norm(state, "fc_norm", x.mean(1), 1e-6), state["head.weight"], state["head.bias"])


def timesformer(state, x_BTCHW):
    """As `videomae`: divided attention, tokens by place and then by time."""
    B, T = x_BTCHW.shape[:2]
    patches = F.conv2d(x_BTCHW.flatten(0, 1), state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 16)
    x = patches.flatten(2).mT.unflatten(0, (B, T)) + state["pos_embed"][:, None, 1:] + state["time_embed"][:, :, None]
    x = x.transpose(1, 2)  # B L T F
    one = (state["cls_token"] + state["pos_embed"][:, :1]).expand(B, 1, -1)
    for i in (0, 1):
        at = f"blocks.{i}"
        y = norm(state, f"{at}.temporal_norm1", x, 1e-6).flatten(0, 1)
        y = attention(state, f"{at}.temporal_attn", y, state[f"{at}.temporal_attn.qkv.bias"])
        y = F.linear(y, state[f"{at}.temporal_fc.weight"], state[f"{at}.temporal_fc.bias"])
        x = x + y.unflatten(0, (B, -1))
        frames = torch.cat([one[:, None].expand(B, T, 1, -1), x.transpose(1, 2)], 2).flatten(0, 1)
        y = attention(state, f"{at}.attn", norm(state, f"{at}.norm1", frames, 1e-6), state[f"{at}.attn.qkv.bias"])
        y = y.unflatten(0, (B, T))
        one, x = one + y[:, :, 0].mean(1, keepdim=True), x + y[:, :, 1:].transpose(1, 2)
        one = one + mlp(state, f"{at}.mlp", norm(state, f"{at}.norm2", one, 1e-6))
        x = x + mlp(state, f"{at}.mlp", norm(state, f"{at}.norm2", x, 1e-6))
    return F.linear(norm(state, "norm", one[:, 0], 1e-6), state["head.weight"], state["head.bias"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "before", "compute", "T"),
    [("videomae_b16", "", videomae, 4), ("timesformer_b16", "model.", timesformer, 8)],
    ids=["videomae_b16", "timesformer_b16"],
)
def test_original_names_give_the_original_computation(name, before, compute, T):
    state = original(name)
    module, converted, _ = started(name, {before + key: value for key, value in state.items()})
    assert converted.layout.name.endswith("(original)")
    assert converted.aside == converted.initialised == converted.resampled == ()
    expected = compute(state, clip(T=T))
    assert expected.std() > 0.1
    torch.testing.assert_close(module(clip(T=T)), expected, atol=1e-4, rtol=1e-4)


def test_original_pretraining_of_videomae():
    state = {key: value for key, value in original("videomae_b16").items() if not key.startswith(("fc_norm", "head"))}
    found = {f"encoder.{key}": value for key, value in state.items()}
    found |= {"encoder.norm.weight": torch.ones(48), "encoder.norm.bias": torch.ones(48), "mask_token": torch.ones(1)}
    found |= {"decoder.blocks.0.attn.qkv.weight": torch.ones(2, 2), "encoder_to_decoder.weight": torch.ones(2, 2)}
    module, converted, said = started("videomae_b16", found)
    assert said == "32 tensors loaded; initialised: fc, fc_norm"
    assert len(converted.aside) == 5
    value = state["blocks.1.attn.qkv.weight"][96:]
    assert torch.equal(module.encoder.layer[1].attention.attention.value.weight, value)


def test_original_names_of_vjepa2():
    model = library("vjepa2_l16")
    found = {}
    for key, value in model.vjepa2.encoder.state_dict().items():
        key = key.replace("embeddings.patch_embeddings", "patch_embed").replace("layernorm", "norm")
        key = key.replace("layer.", "blocks.").replace("attention", "attn")
        found[f"module.backbone.{key}"] = value
    for key in [key for key in found if ".query." in key]:
        thirds = [found.pop(key.replace("query", third)) for third in ("query", "key", "value")]
        found[key.replace("query", "qkv")] = torch.cat(thirds)
    found["module.backbone.pos_embed"] = torch.ones(1, 2048, 48)
    file = {"epoch": 3, "encoder": {"module.backbone.norm.bias": torch.ones(48)}, "target_encoder": found}
    module, converted, said = started("vjepa2_l16", pickled._table(file))
    assert converted.layout.name == "V-JEPA 2 (original)"
    assert converted.aside == ("module.backbone.pos_embed",)
    assert said == "36 tensors loaded; initialised: fc, pooler"
    with torch.no_grad():
        torch.testing.assert_close(module._tokens(clip()), model.vjepa2.encoder(clip()).last_hidden_state)


def test_tables_of_another_size_are_resampled_and_said():
    state = original("timesformer_b16", places=28, times=16)
    ramp = torch.arange(28.0)
    state["pos_embed"][0, 1:, 0] = ramp.repeat_interleave(28)
    state["pos_embed"][0, 1:, 1] = ramp.repeat(28)
    state["time_embed"][0, :, 0] = torch.arange(16.0)
    module, converted, _ = started("timesformer_b16", state)
    assert converted.resampled == (
        "embeddings.position_embeddings: 28 x 28 places as 14 x 14",
        "embeddings.time_embeddings: 16 times as 8",
    )
    places = module.embeddings.position_embeddings[0]
    assert torch.equal(places[0], state["pos_embed"][0, 0])
    rows, columns = places[1:, :2].unflatten(0, (14, 14)).unbind(-1)
    centres = 2 * torch.arange(14.0) + 0.5
    torch.testing.assert_close(rows[2:-2, 5], centres[2:-2], atol=0.06, rtol=0)
    torch.testing.assert_close(columns[5, 2:-2], centres[2:-2], atol=0.06, rtol=0)
    torch.testing.assert_close(module.embeddings.time_embeddings[0, :, 0], 2 * torch.arange(8.0) + 0.5)
    state["pos_embed"] = torch.ones(1, 1 + 15 * 14, 48)
    with pytest.raises(
        WeightsError, match=r"position_embeddings \(file float32 \(1, 211, 48\), model float32 \(1, 197"
    ):
        started("timesformer_b16", state)


@torch.no_grad()
def test_timesformer_takes_other_sizes_and_lengths():
    module = random(make("timesformer_b16", size=32)).eval()
    make("timesformer_b16", size=224).load_state_dict(module.state_dict())  # of any size: the same tables
    for T in (2, 5, 8, 3):
        assert module(clip(T=T, size=32)).shape == (2, K)
        assert module.time_features(clip(T=T, size=32)).shape == (2, T, 48)
    tokens = module.embeddings
    patch, *_ = tokens.patch_embeddings(clip(T=16, size=32)[:1])
    token_TF = tokens(clip(T=16, size=32)[:1])[0, 1:17]  # the first place, through time
    added = token_TF - patch[:, 0]
    time_TF = tokens.time_embeddings[0]
    between = added[2::2] - added[1::2][:-1]  # a quarter and three quarters of the way from one time to the next
    torch.testing.assert_close(between, (time_TF[1:] - time_TF[:-1]) * 0.5, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_videomae_positions_of_another_grid_keep_their_places():
    whole = hub.sine_positions(3, 14, 48).unflatten(0, (3, 14, 14))
    half = hub.sine_positions(3, 7, 48).unflatten(0, (3, 7, 7))
    assert torch.equal(whole[:2].flatten(0, 2), hub.sine_positions(2, 14, 48)), "time goes on as the formula does"
    slow = slice(40, 48)  # features whose wave is longer than the grid
    between = (whole[:, ::2, ::2] + whole[:, 1::2, ::2] + whole[:, ::2, 1::2] + whole[:, 1::2, 1::2]) / 4
    torch.testing.assert_close(half[:, 1:-1, 1:-1, slow], between[:, 1:-1, 1:-1, slow], atol=0.01, rtol=0)
    assert not torch.allclose(half[0, 1, 0, slow], hub.sine_positions(1, 14, 48)[7, slow], atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_lengths_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match="size: expected a multiple of 16, the side of a patch, got 40"):
        make(name, size=40)
    module, stride = make(name, size=32), choose(name).options.time_stride
    for bad in (clip(size=48), clip(T=4, size=32)[0], *([clip(T=5, size=32)] if stride == 2 else [])):
        with pytest.raises(ValueError, match=rf"expected a clip \(B,T,3,32,32\) with T a multiple of {stride}, got \("):
            module(bad)


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("videomae_b16", Frames(height=48, width=48, crop=40, video=16), "frames.crop = 40: .* of 16; use 32 or 48"),
        ("timesformer_b16", Frames(height=48, width=48, crop=8), "frames.crop = 8: timesformer_b16 .* 16; use 16"),
        ("vjepa2_l16", Frames(height=48, width=48, crop=48, video=7), "frames.video = 7: vjepa2_l16 .* 2; use 6 or 8"),
    ],
)
def test_a_recipe_whose_clips_do_not_fit_is_refused(name, frames, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(name="x", models=Models(video=name), frames=frames, gitdl=Gitdl(video_steps=0))


def test_tubelets_are_not_pretrained_by_moments():
    fits = Frames(height=48, width=48, crop=48)
    for name in ("videomae_b16", "vjepa2_l16"):
        with pytest.raises(RecipeError, match="one time feature for 2 frames.*; set gitdl.video_steps to 0"):
            Recipe(name="x", models=Models(video=name), frames=fits)
    Recipe(name="x", models=Models(video="timesformer_b16"), frames=fits)


def test_without_the_library_one_line_says_what_to_install(monkeypatch, tmp_path):
    found, store = importlib.util.find_spec, Store(str(tmp_path / "run"))
    fits = Frames(height=32, width=32, crop=32)
    recipe = Recipe(name="x", models=Models(video="videomae_b16"), frames=fits, gitdl=Gitdl(video_steps=0))
    assert "transformers" not in " ".join(take_stock(recipe, store).missing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    wanted = r"'videomae_b16' needs the library transformers.*'finepseudo\[transformers\]'"
    with pytest.raises(RecipeError, match=wanted):
        make("videomae_b16")
    with pytest.raises(RecipeError, match=wanted):
        run_rounds(recipe, store, InProcess(recipe))
    assert store.list() == [], "told before anything is done"
    assert any(re.search(f"encoder {wanted}", line) for line in take_stock(recipe, store).missing)
    build(choose("tiny_r2plus1d"), num_classes=2, size=16, seed=0)
