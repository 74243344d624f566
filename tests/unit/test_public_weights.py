"""Public weights: recognised by their names, converted whole or not at all; every refusal is one line that says why."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from finepseudo.driver.public_weights import import_weights
from finepseudo.errors import ArtefactError, RecipeError, WeightsError
from finepseudo.models import pickled, public, weights
from finepseudo.models.encoders import build
from finepseudo.models.layouts import LAYOUTS, recognise
from finepseudo.models.table import CLIP, ENCODERS, IMAGENET, KINETICS, Preprocessing, choose

JOB = Path(__file__).parents[2] / "jobs" / "import_weights.py"


def make(name="vtn_resnet18", seed=0, K=3):
    return build(choose(name), num_classes=K, size=32, seed=seed)


@pytest.fixture(scope="module")
def resnet():
    """A file of ResNet-18 as its library names it, with the classifier of 1000 classes."""
    state = {key: value.clone() for key, value in make(seed=5).backbone.state_dict().items()}
    return {**state, "fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}


def vit_of_the_hub(width=384, places=14):
    """A file of ViT-S/16 as the hub names it; vectors are of ones, q, k, v of another number each."""
    shapes = {"embeddings.cls_token": (1, 1, width), "embeddings.position_embeddings": (1, 1 + places**2, width)}
    shapes |= {"embeddings.patch_embeddings.projection.weight": (width, 3, 16, 16)}
    ends = [("embeddings.patch_embeddings.projection", None), ("layernorm", (width,))]
    for i in range(12):
        at = f"encoder.layer.{i}"
        ends += [(f"{at}.layernorm_{place}", (width,)) for place in ("before", "after")]
        ends += [(f"{at}.attention.attention.{third}", (width, width)) for third in ("query", "key", "value")]
        ends += [(f"{at}.attention.output.dense", (width, width))]
        ends += [(f"{at}.intermediate.dense", (4 * width, width)), (f"{at}.output.dense", (width, 4 * width))]
    for at, shape in ends:
        shapes |= {f"{at}.weight": shape} if shape else {}
        shapes |= {f"{at}.bias": (shape or (width,))[:1]}
    numbers = {"query": 2.0, "key": 3.0, "value": 4.0, "before": 5.0, "after": 6.0, "intermediate": 7.0}
    return {
        f"vit.{name}": torch.full(shape, next((n for word, n in numbers.items() if word in name), 1.0))
        for name, shape in shapes.items()
    } | {"classifier.weight": torch.ones(7, width), "classifier.bias": torch.ones(7)}


def put(path, state, metadata=None):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(weights.to_bytes(state, metadata or {}))
    return str(path)


def refused(source, encoder="vtn_resnet18", **options):
    """The message, one line with the source in it; and nothing was written."""
    out = Path(str(source) + "-out.safetensors")
    with pytest.raises(WeightsError) as caught:
        import_weights(str(source), encoder, str(out), **options)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    return str(caught.value)


def started(path, name="vtn_resnet18", K=3):
    """An encoder that started from a converted file, and what was said."""
    module = make(name, seed=9, K=K)
    said = public.load(module, name, Path(path).read_bytes(), sha256=None)
    return module, said


def about(path):
    return public.read_about(Path(path).read_bytes())


@pytest.mark.parametrize("before", ["", "module.", "model.", "backbone.", "module.model.", "model.backbone."])
def test_a_frame_backbone_alone_starts_f_a(resnet, tmp_path, before):
    source = put(tmp_path / "in.safetensors", {before + key: value for key, value in resnet.items()})
    found = import_weights(source, "vtn_resnet18", str(tmp_path / "out.safetensors"))
    assert set(found.converted.aside) == {f"{before}fc.weight", f"{before}fc.bias"}
    module, said = started(found.uri)
    fresh = make(seed=9)
    for key, value in module.state_dict().items():
        inner = key.removeprefix("backbone.")
        expected = resnet[inner] if key.startswith("backbone.") else fresh.state_dict()[key]
        assert torch.equal(value, expected), key
    assert said == "120 tensors loaded; initialised: temporal, embed"


def test_what_became_of_every_name_is_said(resnet, tmp_path):
    counters = [key for key in resnet if key.endswith("num_batches_tracked")]
    bare = {key: value for key, value in resnet.items() if key not in counters}
    found = import_weights(put(tmp_path / "in.pth", bare), "vtn_resnet18", str(tmp_path / "out"))
    lines = found.summary().splitlines()
    assert lines[:5] == [
        "layout: torchvision ResNet; 100 tensors loaded",
        "renamed: 100 (bn1.bias -> backbone.bn1.bias, bn1.running_mean -> backbone.bn1.running_mean, "
        "bn1.running_var -> backbone.bn1.running_var and 97 more)",
        "left aside: 2 (fc.bias, fc.weight)",
        "initialised when a run starts: 2 (embed.*, temporal.*)",
        "counters of BatchNorm set to 0: 20 (backbone.bn1.num_batches_tracked, "
        "backbone.layer1.0.bn1.num_batches_tracked, backbone.layer1.0.bn2.num_batches_tracked and 17 more)",
    ]
    digest = hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest()
    assert lines[-1].endswith(
        f"--models.frame vtn_resnet18 --models.frame-weights {found.uri} --models.frame-sha256 {digest}"
    )
    module, _ = started(found.uri)
    assert module.backbone.bn1.num_batches_tracked == 0


def test_another_number_of_classes_never_prevents_a_start(tmp_path):
    public_file = make("r3d_18", seed=5, K=7)
    source = put(tmp_path / "in.safetensors", public_file.state_dict())
    found = import_weights(source, "r3d_18", str(tmp_path / "out"))
    assert "classifier of 7 classes; a run with another number of them initialises its own" in found.summary()
    same, said = started(found.uri, "r3d_18", K=7)
    assert said == "122 tensors loaded; initialised: nothing"
    assert torch.equal(same.fc.weight, public_file.fc.weight)
    other, said = started(found.uri, "r3d_18", K=4)
    assert said == "120 tensors loaded; its classifier of 7 classes is left aside, one of 4 is initialised"
    assert torch.equal(other.layer4[1].conv2[0].weight, public_file.layer4[1].conv2[0].weight)
    assert torch.equal(other.fc.weight, make("r3d_18", seed=9, K=4).fc.weight)
    without = put(tmp_path / "bare", {k: v for k, v in public_file.state_dict().items() if not k.startswith("fc.")})
    found = import_weights(without, "r3d_18", str(tmp_path / "out-2"))
    assert started(found.uri, "r3d_18", K=4)[1] == "120 tensors loaded; initialised: fc"


def test_the_file_says_what_it_is(resnet, tmp_path):
    source = put(tmp_path / "in.safetensors", resnet)
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    found = import_weights(source, "vtn_resnet18", str(tmp_path / "a"), licence="BSD-3-Clause", sha256=digest.upper())
    assert about(found.uri) == {
        "encoder": "vtn_resnet18",
        "licence": "BSD-3-Clause",
        "preprocessing": {
            "mean": list(IMAGENET.mean), "std": list(IMAGENET.std), "size": 224, "frames": 1, "fps": 0
        },
        "source": {"name": "in.safetensors", "sha256": digest, "layout": "torchvision ResNet"},
    }  # fmt: skip
    assert started(found.uri)[0].preprocessing == IMAGENET
    half = import_weights(source, "vtn_resnet18", str(tmp_path / "b"), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.25))
    assert about(half.uri)["licence"] == "not stated"
    assert started(half.uri)[0].preprocessing == Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.25))
    again = import_weights(source, "vtn_resnet18", str(tmp_path / "a"), licence="BSD-3-Clause")
    assert again.sha256 == found.sha256, "equal input gives equal bytes, which may be written again"
    with pytest.raises(WeightsError, match="is there already and is another file"):
        import_weights(source, "vtn_resnet18", str(tmp_path / "a"), licence="another")
    assert hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest() == found.sha256


@pytest.mark.parametrize(
    ("file", "body"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.1]}),
        ("config.json", {"pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]}}),
    ],
)
def test_a_folder_says_its_preprocessing(resnet, tmp_path, file, body):
    put(tmp_path / "in" / "model.safetensors", resnet)
    (tmp_path / "in" / file).write_text(json.dumps(body))
    found = import_weights(str(tmp_path / "in"), "vtn_resnet18", str(tmp_path / "out"))
    assert found.preprocessing == Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))
    given = import_weights(str(tmp_path / "in"), "vtn_resnet18", str(tmp_path / "out-2"), mean=(0.1, 0.2, 0.3))
    assert given.preprocessing == Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
    assert about(given.uri)["source"]["name"] == "in"


def test_means_and_deviations_are_three_numbers(resnet, tmp_path):
    source = put(tmp_path / "in.safetensors", resnet)
    for options, message in (
        ({"mean": (0.5, 0.5)}, r"mean: expected three numbers, got \(0.5, 0.5\)"),
        ({"std": (0.5, 0.5, 0.0)}, "std: expected three numbers above 0"),
        ({"std": (0.5, float("nan"), 0.5)}, "std: expected three finite numbers"),
    ):
        with pytest.raises(RecipeError, match=message):
            import_weights(source, "vtn_resnet18", str(tmp_path / "out"), **options)


def test_shards_are_one_file(resnet, tmp_path):
    folder, names = tmp_path / "in", sorted(resnet)
    shards = {"a.safetensors": names[:50], "b.safetensors": names[50:]}
    for file, own in shards.items():
        put(folder / file, {name: resnet[name] for name in own})
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = import_weights(str(folder), "vtn_resnet18", str(tmp_path / "out"))
    whole = import_weights(put(tmp_path / "whole", resnet), "vtn_resnet18", str(tmp_path / "out-2"))
    for key, value in whole.converted.state.items():
        assert torch.equal(found.converted.state[key], value)
    assert "sha256 " in refused(folder, sha256="0" * 64)
    put(folder / "b.safetensors", {name: resnet[name] for name in names[51:]})
    assert f"b.safetensors: expected {names[50]} in it" in refused(folder)
    (folder / "b.safetensors").unlink()
    assert "names the shard b.safetensors, which is not there" in refused(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    assert "expected shards beside it, got '../a.safetensors'" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    assert "is not JSON" in refused(folder)


def test_a_folder_of_several_or_of_none_is_refused(resnet, tmp_path):
    folder = tmp_path / "in"
    put(folder / "a.pth", {"a": torch.ones(1)})
    put(folder / "b.pth", {"a": torch.ones(1)})
    assert "expected one file of weights" in refused(folder)
    assert "a.pth, b.pth" in refused(folder)
    assert "no such file" in refused(tmp_path / "nothing")


@pytest.mark.parametrize("wrapped", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"model": s}])
def test_a_pickled_file_is_read_by_another_process(resnet, tmp_path, wrapped):
    torch.save(wrapped(resnet), tmp_path / "in.pth")
    found = import_weights(str(tmp_path / "in.pth"), "vtn_resnet18", str(tmp_path / "out"))
    assert torch.equal(started(found.uri)[0].backbone.conv1.weight, resnet["conv1.weight"])


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_wants_more_than_tensors_is_refused_before_it_runs(tmp_path):
    torch.save({"a": torch.ones(1), "b": Evil(tmp_path / "ran")}, tmp_path / "in.pth")
    assert "the pickled file wants posix.system; expected tensors and plain containers alone" in refused(
        tmp_path / "in.pth"
    )
    assert not (tmp_path / "ran").exists()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    assert "the pickled file wants torch.nn.modules.linear.Linear; expected tensors" in refused(tmp_path / "module.pth")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "script.pt")
    assert "is a TorchScript program; expected weights" in refused(tmp_path / "script.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    assert "holds no table of tensors; expected one, got epoch" in refused(tmp_path / "none.pth")


def test_a_cut_file_is_refused(resnet, tmp_path):
    torch.save(resnet, tmp_path / "in.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "in.pth").read_bytes()[:-2000])
    assert "is damaged" in refused(tmp_path / "cut.pth")
    data = weights.to_bytes(resnet, {})
    (tmp_path / "cut.safetensors").write_bytes(data[:-4])
    assert "damaged safetensors file" in refused(tmp_path / "cut.safetensors")
    (tmp_path / "text").write_bytes(b"<!DOCTYPE html>")
    assert "expected a safetensors file or a pickled one of PyTorch, got 15 bytes" in refused(tmp_path / "text")


def die(path, target, sender):
    os._exit(11)


def sleep(path, target, sender):
    __import__("time").sleep(60)


@pytest.mark.parametrize(("what", "message"), [(die, r"ended by itself \(exit code 11\)"), (sleep, "within 8 s")])
def test_a_reader_that_dies_or_hangs_is_told(tmp_path, monkeypatch, what, message):
    monkeypatch.setattr(pickled, "_convert", what)
    with pytest.raises(WeightsError, match=message):
        pickled.read_pickled(str(tmp_path / "x"), limit_s=8)


def test_another_digest_is_refused(resnet, tmp_path):
    source = put(tmp_path / "in.safetensors", resnet)
    assert f"expected {'0' * 64}" in refused(source, sha256="0" * 64)


def test_an_unknown_layout_names_the_nearest(tmp_path):
    source = put(tmp_path / "in", {"cls_token": torch.ones(1), "pos_embed": torch.ones(1), "what": torch.ones(1)})
    message = refused(source)
    assert (
        "names of no known layout, such as cls_token, pos_embed, what; nearest: timm ViT (50% of its marks)" in message
    )
    assert all(layout.name in message for layout in LAYOUTS)
    assert "nearest: none" in refused(put(tmp_path / "other", {"what": torch.ones(1)}))


def test_weights_of_another_encoder_are_refused(resnet, tmp_path):
    source = put(tmp_path / "in", resnet)
    taken = "the file is of layout torchvision ResNet, for vtn_resnet18 or vtn_resnet50"
    assert f"{taken}; expected for r3d_18: torchvision R3D" in refused(source, "r3d_18")
    assert "expected for tiny_vtn: none, it has no public weights" in refused(source, "tiny_vtn")
    message = refused(source, "vtn_resnet50")
    assert "torchvision ResNet do not fit vtn_resnet50: " in message
    assert " missing from the file: backbone.layer1.0.conv3.weight, backbone.layer1.0.bn3.weight" in message
    assert "of another shape" in message
    more = refused(put(tmp_path / "more", {**resnet, "layer5.0.weight": torch.ones(1)}))
    assert "1 unknown to the model: backbone.layer5.0.weight" in more
    wrong = refused(put(tmp_path / "wrong", {**resnet, "conv1.weight": torch.ones(64, 4, 7, 7)}))
    assert "backbone.conv1.weight (file float32 (64, 4, 7, 7), model float32 (64, 3, 7, 7))" in wrong
    less = {key: value for key, value in resnet.items() if key != "layer3.0.bn2.weight"}
    assert "1 missing from the file: backbone.layer3.0.bn2.weight" in refused(put(tmp_path / "less", less))


def load_refused(data, name="vtn_resnet18", **options):
    module = make(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ArtefactError) as caught:
        public.load(module, name, data, **{"sha256": None, **options})
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert module.preprocessing == ENCODERS[name].preprocessing
    return str(caught.value)


def test_a_run_starts_from_all_or_nothing():
    state = make(seed=4).state_dict()
    grey = {"mean": [0.5] * 3, "std": [0.5] * 3}

    def data(state, **said):
        return weights.to_bytes(
            state, {public.KEY: json.dumps({"encoder": "vtn_resnet18", "preprocessing": grey, **said})}
        )

    assert "made for encoder vtn_resnet50, expected vtn_resnet18" in load_refused(data(state, encoder="vtn_resnet50"))
    part = {key: value for key, value in state.items() if key != "embed.project.weight"}
    assert "1 missing from the file: embed.project.weight" in load_refused(data(part))
    assert "preprocessing in the metadata: mean: expected three numbers" in load_refused(data(state, preprocessing={}))
    assert "expected a JSON object" in load_refused(weights.to_bytes(state, {public.KEY: "[1]"}))
    assert "expected 0000" in load_refused(data(state), sha256="0" * 64)
    video = make("r3d_18").state_dict()
    wide = {**video, "fc.weight": torch.ones(9, 8), "fc.bias": torch.ones(9)}
    assert "fc.weight (file float32 (9, 8), model float32 (3, 512))" in load_refused(
        weights.to_bytes(wide, {}), "r3d_18"
    )


def test_vit_of_the_hub_starts_f_a_and_its_places_are_resampled(tmp_path):
    state = vit_of_the_hub(places=24)
    ramp = torch.arange(24.0)
    state["vit.embeddings.position_embeddings"][0, 1:, 0] = ramp.repeat_interleave(24)
    found = import_weights(put(tmp_path / "in", state), "vtn_vit_s16", str(tmp_path / "out"))
    assert found.converted.resampled == ("backbone.tokens.position_LF: 24 x 24 places as 14 x 14",)
    assert "resampled: 1 (backbone.tokens.position_LF: 24 x 24 places as 14 x 14)" in found.summary()
    assert set(found.converted.aside) == {"classifier.weight", "classifier.bias"}
    state = {name.removeprefix("backbone."): value for name, value in found.converted.state.items()}
    assert len(state) == 150
    layer = {name.removeprefix("layers.11."): value for name, value in state.items() if name.startswith("layers.11.")}
    assert layer["attention.qkv.weight"].mean(1).reshape(3, -1).mean(1).tolist() == [2, 3, 4]
    assert [layer[name].mean() for name in ("norm1.weight", "norm2.weight", "mlp.0.bias")] == [5, 6, 7]
    assert state["tokens.position_LF"][0].tolist() == [1] * 384
    rows = state["tokens.position_LF"][1:, 0].unflatten(0, (14, 14))
    expected = (torch.arange(14.0) + 0.5) * 24 / 14 - 0.5
    torch.testing.assert_close(rows[2:-2, 5], expected[2:-2], atol=0.06, rtol=0)


@pytest.mark.usefixtures("few_layers")
def test_clip_starts_aim_and_its_adapters_are_initialised(tmp_path):
    given = make("aim_vit_b16", seed=5).backbone
    names = {"tokens.class_F": "class_embedding", "tokens.position_LF": "positional_embedding"}
    state = {}
    for name, value in given.state_dict().items():
        name = names.get(name, name).replace("patches.project", "conv1").replace("norm_in", "ln_pre")
        name = name.replace("layers.", "transformer.resblocks.").replace("attention.qkv.", "attn.in_proj_")
        name = (
            name.replace("attention.out", "attn.out_proj").replace("mlp.0", "mlp.c_fc").replace("mlp.2", "mlp.c_proj")
        )
        name = name.replace(".norm1", ".ln_1").replace(".norm2", ".ln_2").replace("norm.", "ln_post.")
        state[f"visual.{name}"] = value
    state |= {"visual.proj": torch.ones(48, 16), "transformer.resblocks.0.ln_1.weight": torch.ones(16)}
    found = import_weights(put(tmp_path / "in", state), "aim_vit_b16", str(tmp_path / "out"))
    assert set(found.converted.aside) == {"visual.proj", "transformer.resblocks.0.ln_1.weight"}
    module, said = started(found.uri, "aim_vit_b16")
    assert said.endswith("initialised: fc, adapters, times")
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in module.backbone.state_dict().items())
    assert not module.backbone.layers[0].attention.qkv.weight.requires_grad


def test_layouts_do_not_take_each_others_files():
    for layout in LAYOUTS:
        for root in layout.roots:
            found = recognise({root + mark for mark in layout.marks})
            assert [way.layout.name for way in found if way.share == 1] == [layout.name]
            assert found[0].before == root
    assert {name for layout in LAYOUTS for name in layout.encoders} == {
        name for name in ENCODERS if not name.startswith(("tiny_", "feature_"))
    }


def test_families_have_their_preprocessing():
    kinds = {name: entry.preprocessing for name, entry in ENCODERS.items()}
    assert kinds["tiny_vtn"] == kinds["tiny_r2plus1d"] == Preprocessing(mean=(0.45,) * 3, std=(0.225,) * 3)
    assert kinds["r2plus1d_18"] == kinds["r3d_18"] == KINETICS
    assert kinds["vtn_resnet50"] == kinds["vtn_vit_s16"] == kinds["vtn_vit_b16"] == IMAGENET
    assert kinds["vtn_clip_vit_b16"] == kinds["aim_vit_b16"] == CLIP
    assert kinds["videomae_b16"] == kinds["vjepa2_l16"] == IMAGENET
    assert kinds["timesformer_b16"] == kinds["tiny_vtn"]
    assert make("r3d_18").preprocessing == KINETICS


def test_the_job_says_what_it_did_or_one_line(resnet, tmp_path):
    source, out = put(tmp_path / "in.safetensors", resnet), str(tmp_path / "out.safetensors")

    def run(*argv):
        command = [sys.executable, str(JOB), *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    done = run(source, "--encoder", "vtn_resnet18", "--out", out, "--licence", "BSD", "--mean", "0.5", "0.5", "0.5")
    assert done.returncode == 0, done.stderr
    assert "preprocessing: mean 0.5 0.5 0.5, std 0.229 0.224 0.225" in done.stdout
    assert "fc.weight" in safetensors.torch.load(Path(source).read_bytes())
    assert about(out)["licence"] == "BSD"
    failed = run(source, "--encoder", "r3d_18", "--out", out)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith(f"WeightsError: {source}: the file is of layout torchvision ResNet")
    assert failed.stderr.count("\n") == 1
