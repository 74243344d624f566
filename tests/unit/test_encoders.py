"""The encoders: shapes, sizes, names, seeds, precision, and that every parameter learns.

Axes: B batch, T frames, C channels, H W pixels, D embedding, F features, K classes.
"""

import importlib
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from finepseudo import models
from finepseudo.models.encoders import FrameEncoder, VideoEncoder, build
from finepseudo.models.resnet import resnet18
from finepseudo.models.resnet3d import factored_width
from finepseudo.models.table import ENCODERS, choose
from finepseudo.models.tiny import TemporalStage
from finepseudo.models.vit import Tokens
from finepseudo.models.vtn import SelfAttention, TemporalTransformer

# What is expected of every encoder of the table. f_A: D and F; f_E: time features of 8 frames, and F.
FRAME = {
    "tiny_vtn": (64, 128),
    "feature_vtn": (128, 256),
    **dict.fromkeys(("vtn_resnet18", "vtn_resnet50", "vtn_vit_s16", "vtn_vit_b16", "vtn_clip_vit_b16"), (128, 256)),
}
VIDEO = {
    "tiny_r2plus1d": (8, 128),
    "r2plus1d_18": (1, 512),
    "r3d_18": (1, 512),
    "feature_transformer": (8, 256),
    # With few and narrow layers here.
    "aim_vit_b16": (8, 48),
    "videomae_b16": (4, 48),
    "timesformer_b16": (8, 48),
    "vjepa2_l16": (4, 48),
}
# Whose logits are not those of the mean of the time features.
OTHERWISE = {"videomae_b16", "timesformer_b16", "vjepa2_l16"}
# The largest ones are the classes of smaller ones; what is said of all takes minutes for them.
LARGE = {"vtn_vit_b16", "vtn_clip_vit_b16"}


def each(names):
    return [pytest.param(name, marks=pytest.mark.long) if name in LARGE else name for name in names]


# Another value of every option, which the default weights and answers must tell apart.
OTHER = {"dim": "16", "positions": "sinusoidal", "dropout": "0.5", "temporal_stride_1": "true", "drop_path": "0.9"}
K = 5


pytestmark = pytest.mark.usefixtures("few_layers")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name, seed=0, size=32, **options):
    chosen = choose(name, {key: str(value) for key, value in options.items()})
    return build(chosen, num_classes=K, size=size, seed=seed)


def clip(B=2, T=8, size=32, seed=0):
    return torch.randn(B, T, 3, size, size, generator=torch.Generator().manual_seed(seed))


def seen(name, B=2, T=8, size=32, seed=0):
    """What an encoder of that name takes: a clip, or as many stored features."""
    if ENCODERS[name].takes == "features":
        return torch.randn(B, T, size, generator=torch.Generator().manual_seed(seed))
    return clip(B, T, size, seed)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_table_is_what_is_tested_here():
    assert set(ENCODERS) == {*FRAME, *VIDEO}


def test_every_encoder_of_the_package_is_in_the_table():
    for file in Path(models.__file__).parent.glob("*.py"):
        importlib.import_module(f"finepseudo.models.{file.stem}")
    kinds, classes = [FrameEncoder, VideoEncoder], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        classes |= set() if kind.__subclasses__() else {kind.__name__}
    assert classes == {entry.made_by.partition(":")[2] for entry in ENCODERS.values()}


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, item.name) for name, entry in ENCODERS.items() if name not in LARGE for item in fields(entry.options)],
)
def test_every_option_changes_something(name, option):
    plain, other = make(name), build(choose(name, {option: OTHER[option]}), num_classes=K, size=32, seed=0)
    answers = []
    for encoder in (plain, other):
        torch.manual_seed(0)
        with torch.no_grad():
            for p in encoder.parameters():
                p.add_(0.1 * torch.randn_like(p) * (not p.any()))  # what starts at 0 is missed by nobody
            answers.append(encoder(seen(name)))
    assert answers[0].shape != answers[1].shape or not torch.allclose(*answers)


@pytest.mark.parametrize("size", [8, 13, 28])
@pytest.mark.parametrize("name", each(sorted(set(ENCODERS) - OTHERWISE)))
def test_frames_of_any_size(name, size):
    assert make(name, size=size).eval()(seen(name, size=size)).isfinite().all()


@pytest.mark.parametrize("name", each(FRAME))
def test_frame_encoders_give_unit_embeddings(name):
    encoder, (dim, feature_dim) = make(name), FRAME[name]
    assert isinstance(encoder, FrameEncoder)
    assert (encoder.dim, encoder.feature_dim) == (dim, feature_dim)
    for mode in (True, False):
        encoder.train(mode)
        emb_BTD = encoder(seen(name))
        assert emb_BTD.shape == (2, 8, dim)
        assert encoder.features(seen(name)).shape == (2, 8, feature_dim)
        torch.testing.assert_close(emb_BTD.norm(dim=-1), torch.ones(2, 8))


@pytest.mark.parametrize("name", each(FRAME))
def test_embeddings_are_centred_over_all_frames(name):
    encoder = make(name, **({"dropout": 0} if ENCODERS[name].takes == "features" else {}))
    feat_BTF = encoder.features(seen(name))
    normed_ND = encoder.embed.norm(encoder.embed.project(feat_BTF).flatten(0, 1))
    torch.testing.assert_close(normed_ND.mean(dim=0), torch.zeros(encoder.dim), atol=1e-5, rtol=0)
    assert not list(encoder.embed.norm.parameters())
    torch.testing.assert_close(encoder(seen(name)).flatten(0, 1), torch.nn.functional.normalize(normed_ND, dim=-1))


@pytest.mark.parametrize("name", each(name for name in FRAME if name != "feature_vtn"))
def test_features_of_a_frame_have_the_width_of_the_table_and_know_no_other_frame(name):
    encoder = make(name).eval()
    feat_BTC = encoder.frame_features(clip(T=3))
    assert feat_BTC.shape == (2, 3, ENCODERS[name].width)
    torch.testing.assert_close(encoder.frame_features(clip(T=3)[:, 1:2]), feat_BTC[:, 1:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.temporal(feat_BTC), encoder.features(clip(T=3)))


@pytest.mark.parametrize("name", VIDEO)
def test_video_encoders_give_logits(name):
    encoder, (T_out, feature_dim) = make(name).eval(), VIDEO[name]
    assert isinstance(encoder, VideoEncoder)
    assert (encoder.num_classes, encoder.feature_dim) == (K, feature_dim)
    feat_BTF, logits_BK = encoder.time_features(seen(name)), encoder(seen(name))
    assert feat_BTF.shape == (2, T_out, feature_dim)
    assert logits_BK.shape == (2, K)
    assert torch.allclose(logits_BK, encoder.fc(feat_BTF.mean(dim=1))) is (name not in OTHERWISE)


@pytest.mark.parametrize("name", each(ENCODERS))
def test_clips_of_a_batch_do_not_mix_in_evaluation(name):
    encoder = make(name).eval()
    both = encoder(seen(name))
    apart = torch.cat([encoder(seen(name)[:1]), encoder(seen(name)[1:])])
    torch.testing.assert_close(both, apart, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", each(ENCODERS))
def test_the_same_input_gives_the_same_output(name):
    encoder = make(name).eval()
    assert torch.equal(encoder(seen(name)), encoder(seen(name)))


@pytest.mark.parametrize("name", each(ENCODERS))
def test_weights_depend_on_the_seed_alone(name):
    first = make(name, seed=3).state_dict()
    torch.rand(7)
    again, other = make(name, seed=3).state_dict(), make(name, seed=4).state_dict()
    assert list(first) == list(again)
    assert all(torch.equal(first[key], again[key]) for key in first)
    random = [key for key in first if key.endswith(("conv1.weight", ".0.weight", "fc.weight"))]
    assert any(not torch.equal(first[key], other[key]) for key in random)


@pytest.mark.parametrize("name", each(ENCODERS))
def test_building_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()
    make(name)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", each(ENCODERS))
def test_gradient_reaches_every_parameter(name):
    encoder = make(name)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.01 * (not p.any()))  # what starts at 0 keeps others' gradients at 0
    out = encoder(seen(name, T=4))
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    trained = [(key, p) for key, p in encoder.named_parameters() if p.requires_grad]
    dead = [key for key, p in trained if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


@pytest.mark.parametrize("name", each(ENCODERS))
def test_bfloat16_autocast_keeps_buffers_and_embeddings_in_float32(name):
    encoder = make(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = encoder(seen(name, T=4))
    out.float().square().sum().backward()
    assert torch.isfinite(out).all()
    assert {b.dtype for b in encoder.buffers() if b.is_floating_point()} <= {torch.float32}
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in encoder.parameters())
    if name in FRAME:
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.norm(dim=-1), torch.ones(2, 4))


@pytest.mark.parametrize("name", each(ENCODERS))
def test_no_parameter_is_read_outside_its_module(name):
    """Parameters are there only while their own module runs, as with an engine that shards them."""
    encoder = make(name).eval()
    with torch.no_grad():
        expected = encoder(seen(name, T=4))
    for module in encoder.modules():
        whole = {key: p.data for key, p in module.named_parameters(recurse=False)}

        def gather(module, _inputs, whole=whole):
            for key, data in whole.items():
                getattr(module, key).data = data

        def scatter(module, _inputs, _output, whole=whole):
            for key in whole:
                getattr(module, key).data = torch.empty(0)

        module.register_forward_pre_hook(gather)
        module.register_forward_hook(scatter)
        scatter(module, None, None)
    assert count(encoder) == 0
    with torch.no_grad():
        assert torch.equal(encoder(seen(name, T=4)), expected)


def test_double_precision_stays_double():
    assert make("tiny_vtn").double()(clip().double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("vtn_resnet50", 25_557_032 - 1000 * 2049),
        ("vtn_vit_s16", 22_050_664 - 1000 * 385),
        ("vtn_vit_b16", 86_567_656 - 1000 * 769),
        ("vtn_clip_vit_b16", 86_192_640 - 768 * 512),
    ],
)
def test_backbones_have_the_published_number_of_parameters_less_the_head(name, total):
    assert count(make(name).backbone) == total


def test_parameter_counts():
    assert count(build(choose("r3d_18"), num_classes=400, size=112, seed=0)) == 33_371_472
    assert count(resnet18()) == 11_176_512
    assert count(build(choose("tiny_vtn"), num_classes=K, size=40, seed=0)) == 578_512
    assert count(build(choose("tiny_r2plus1d"), num_classes=14, size=40, seed=0)) == 330_782


def test_r2plus1d_18_has_the_parameters_that_its_formula_gives():
    def pair(a, b, M):  # 1x3x3 to M, BatchNorm, 3x1x1, BatchNorm
        return 9 * a * M + 2 * M + 3 * M * b + 2 * b

    total = 3 * 45 * 49 + 2 * 45 + 3 * 45 * 64 + 2 * 64
    for a, b in ((64, 64), (64, 128), (128, 256), (256, 512)):
        narrow, wide = (27 * a * b) // (9 * a + 3 * b), (27 * b * b) // (12 * b)
        total += pair(a, b, narrow) + pair(b, b, narrow) + 2 * pair(b, b, wide) + (a != b) * (a * b + 2 * b)
    total += 512 * 400 + 400
    assert total == 31_505_325
    assert count(build(choose("r2plus1d_18"), num_classes=400, size=112, seed=0)) == total


@pytest.mark.parametrize(
    ("widths", "middle"), [((64, 64), 144), ((64, 128), 230), ((128, 128), 288), ((512, 512), 1152)]
)
def test_factored_width(widths, middle):
    assert factored_width(*widths) == middle


KNOWN = {
    "stem.0.weight": (45, 3, 1, 7, 7),
    "stem.1.weight": (45,),
    "stem.1.running_mean": (45,),
    "stem.1.num_batches_tracked": (),
    "stem.3.weight": (64, 45, 3, 1, 1),
    "stem.4.bias": (64,),
    "layer1.0.conv1.0.0.weight": (144, 64, 1, 3, 3),
    "layer1.0.conv1.0.1.weight": (144,),
    "layer1.0.conv1.0.1.running_var": (144,),
    "layer1.0.conv1.0.3.weight": (64, 144, 3, 1, 1),
    "layer1.0.conv1.1.weight": (64,),
    "layer1.0.conv2.0.0.weight": (144, 64, 1, 3, 3),
    "layer1.0.conv2.0.3.weight": (64, 144, 3, 1, 1),
    "layer1.0.conv2.1.bias": (64,),
    "layer1.1.conv1.0.0.weight": (144, 64, 1, 3, 3),
    "layer1.1.conv2.1.running_var": (64,),
    "layer2.0.conv1.0.0.weight": (230, 64, 1, 3, 3),
    "layer2.0.conv1.0.3.weight": (128, 230, 3, 1, 1),
    "layer2.0.conv2.0.0.weight": (230, 128, 1, 3, 3),
    "layer2.0.conv2.0.1.running_mean": (230,),
    "layer2.0.downsample.0.weight": (128, 64, 1, 1, 1),
    "layer2.0.downsample.1.weight": (128,),
    "layer2.0.downsample.1.num_batches_tracked": (),
    "layer2.1.conv1.0.0.weight": (288, 128, 1, 3, 3),
    "layer3.0.conv1.0.0.weight": (460, 128, 1, 3, 3),
    "layer3.0.conv2.0.3.weight": (256, 460, 3, 1, 1),
    "layer3.0.downsample.0.weight": (256, 128, 1, 1, 1),
    "layer3.1.conv2.0.0.weight": (576, 256, 1, 3, 3),
    "layer4.0.conv1.0.0.weight": (921, 256, 1, 3, 3),
    "layer4.0.conv1.0.3.weight": (512, 921, 3, 1, 1),
    "layer4.0.downsample.1.running_mean": (512,),
    "layer4.1.conv1.0.0.weight": (1152, 512, 1, 3, 3),
    "layer4.1.conv2.0.3.weight": (512, 1152, 3, 1, 1),
    "layer4.1.conv2.1.weight": (512,),
    "fc.weight": (400, 512),
    "fc.bias": (400,),
}


def test_r2plus1d_18_has_the_public_names_and_shapes():
    state = build(choose("r2plus1d_18"), num_classes=400, size=112, seed=0).state_dict()
    assert {key: tuple(state[key].shape) for key in KNOWN if key in state} == KNOWN
    # 2 + 32 + 3 convolutions; 2 + 32 + 3 BatchNorms of five tensors each; the classifier
    assert len(state) == 37 + 37 * 5 + 2
    assert next(iter(state)) == "stem.0.weight"
    assert "layer1.0.downsample.0.weight" not in state


def test_resnet18_has_the_public_names_and_shapes():
    state = make("vtn_resnet18").state_dict()
    known = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer1.0.bn2.num_batches_tracked": (),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.bias": (128,),
        "layer3.1.conv2.weight": (256, 256, 3, 3),
        "layer4.1.bn2.weight": (512,),
    }
    assert {key: tuple(state["backbone." + key].shape) for key in known} == known
    assert sum(key.startswith("backbone.") for key in state) == 20 + 20 * 5


@pytest.mark.parametrize("name", ["r2plus1d_18", "r3d_18"])
def test_temporal_stride_1_keeps_the_parameters_and_all_time_features(name):
    strided, dense = make(name), make(name, temporal_stride_1=True)
    a, b = strided.state_dict(), dense.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    x = seen(name, B=1, T=16)
    with torch.no_grad():
        assert strided.eval().time_features(x).shape == (1, 2, 512)
        assert dense.eval().time_features(x).shape == (1, 16, 512)


def test_a_temporal_stage_is_a_convolution_over_time():
    stage = TemporalStage(6).eval()
    B, T, H, W = 2, 5, 3, 4
    x_NCHW = torch.randn(B * T, 6, H, W, generator=torch.Generator().manual_seed(0))
    x_BCTHW = x_NCHW.unflatten(0, (B, T)).transpose(1, 2)
    y_BCTHW = torch.nn.functional.conv3d(x_BCTHW, stage.conv.weight[:, :, :, None], padding=(1, 0, 0)).relu()
    y_NCHW = y_BCTHW.transpose(1, 2).flatten(0, 1) / math.sqrt(1 + stage.norm.eps)
    torch.testing.assert_close(stage(x_NCHW, T), y_NCHW)


@pytest.mark.parametrize(("positions", "equivariant"), [("none", True), ("sinusoidal", False)])
def test_without_positions_only_the_convolution_knows_the_order(positions, equivariant):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        head = TemporalTransformer(16, 16, layers=2, heads=4, mlp_ratio=2, positions=positions).eval()
    with torch.no_grad():
        head.conv.conv.weight[:, :, (0, 2)] = 0  # the convolution looks at its own frame alone
    x_BTF = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(head(x_BTF[:, order]), head(x_BTF)[:, order], atol=1e-5) is equivariant


def test_the_frame_encoder_sees_the_order_of_frames():
    encoder = make("tiny_vtn").eval()
    x = clip(B=1)
    assert not torch.allclose(encoder(x.flip(1)).flip(1), encoder(x), atol=1e-3)


def test_positions_are_interpolated_and_the_class_token_keeps_its_own():
    tokens = Tokens(2).requires_grad_(False)
    tokens.class_F.zero_()
    y_hw, x_hw = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    tokens.position_LF[0] = 100
    tokens.position_LF[1:] = torch.stack([y_hw.flatten(), x_hw.flatten()], 1)
    same_LF = tokens(torch.zeros(1, 2, 14, 14))[0]
    assert torch.equal(same_LF, tokens.position_LF)
    token_LF = tokens(torch.zeros(3, 2, 4, 7))[1]
    assert token_LF[0].tolist() == [100, 100]
    y_hw, x_hw = token_LF[1:].unflatten(0, (4, 7)).unbind(-1)
    # Bicubic keeps a ramp to a twentieth, inside: place i of h is at (i + 1/2) 14/h - 1/2 of the table.
    torch.testing.assert_close(y_hw[1:3, 3], torch.tensor([1.5, 2.5]) * 14 / 4 - 0.5, atol=0.06, rtol=0)
    torch.testing.assert_close(x_hw[2, 1:6], (torch.arange(1.0, 6) + 0.5) * 2 - 0.5, atol=0.06, rtol=0)
    assert (y_hw - y_hw[:, :1]).abs().max() < 1e-5, "rows are rows"


def test_frames_that_patches_do_not_divide_are_padded_with_the_mean_colour():
    backbone = make("vtn_vit_s16").eval().backbone
    frame = torch.randn(1, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    whole = torch.zeros(1, 3, 48, 32)
    whole[:, :, :40, :24] = frame
    torch.testing.assert_close(backbone(frame), backbone(whole))


def test_fused_attention_is_the_same_attention():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        plain = SelfAttention(12, 3)
    fused = SelfAttention(12, 3, fused=True)
    fused.load_state_dict(plain.state_dict())
    x_BTF = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fused(x_BTF), plain(x_BTF))


def test_threads_that_build_at_the_same_time_do_not_mix_their_draws():
    names = ("tiny_vtn", "tiny_r2plus1d") * 4
    alone = {name: make(name, seed=3).state_dict() for name in set(names)}
    with ThreadPoolExecutor(len(names)) as threads:
        for name, module in zip(names, threads.map(lambda name: make(name, seed=3), names), strict=True):
            assert all(torch.equal(value, alone[name][key]) for key, value in module.state_dict().items()), name


def test_a_clip_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"built for frames of 3x32x32, got a clip \(2, 8, 3, 40, 40\)"):
        make("tiny_vtn")(clip(size=40))
    with pytest.raises(ValueError, match=r"expected a clip \(B,T,C,H,W\), got \(8, 3, 32, 32\)"):
        make("r2plus1d_18")(clip()[0])
