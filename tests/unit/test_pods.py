"""Sizes of Kubernetes overlays: from a recipe and what pods have, and nothing by hand."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from finepseudo.costs.pods import Infra, Pod, pods, read_infra
from finepseudo.errors import RecipeError
from finepseudo.recipes import find

ROOT = Path(__file__).parents[2]
OVERLAYS = ROOT / "cluster/overlays"
POD = Pod(cores=8, memory_gib=64, disk_gib=200, gpus=4)
INFRA = Infra(data="x", deadline_hours=1, head=POD, decode=POD, train=POD, score=POD)


def asking(**scale):
    recipe = find("rehearsal")
    return replace(recipe, scale=replace(recipe.scale, **scale))


def plan(*words):
    return subprocess.run([sys.executable, "jobs/plan.py", *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("overlay", "recipe"), [("gpu", "diving48_10pct"), ("kinetics400", "k400_10pct")])
def test_the_overlays_have_the_sizes_that_are_planned_for_them(overlay, recipe, tmp_path):
    infra = OVERLAYS / overlay / "infra.toml"
    done = plan(recipe, "--infra", str(infra), "--to", str(tmp_path / "sizes.yaml"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sizes.yaml").read_text() == (OVERLAYS / overlay / "sizes.yaml").read_text(), done.stdout
    assert f"{recipe} --infra cluster/overlays/{overlay}/infra.toml" in infra.read_text()


def test_pods_hold_as_many_workers_as_their_processors_and_gpus_allow():
    recipe = asking(train_workers=1, decode_workers=3, score_workers=5, score_cpus=3, score_gpus=0.5)
    assert pods(recipe, INFRA) == {"decode": (2, 8), "train": (1, 8), "score": (3, 2)}
    assert pods(replace(recipe, scale=replace(recipe.scale, train_gpus=4)), INFRA)["train"] == (2, 1)


def test_what_one_pod_has(tmp_path):
    infra = (OVERLAYS / "gpu/infra.toml").read_text().replace('data = "diving48"', 'data = "mine"')
    (tmp_path / "mine.toml").write_text(infra.replace("memory_gib = 64", "memory_gib = 160"))
    sizes = ("--sizes.videos", "1000", "--sizes.classes", "10")
    done = plan("diving48_10pct", "--infra", str(tmp_path / "mine.toml"), "--scale.train-workers", "4", *sizes)
    assert done.returncode == 0, done.stderr
    ops = {op["path"].removeprefix("/spec/"): op["value"] for op in yaml.safe_load(done.stdout)}
    train = "rayClusterSpec/workerGroupSpecs/1"
    assert [ops[f"{train}/{name}"] for name in ("minReplicas", "maxReplicas", "replicas")] == [2, 2, 2]
    assert ops[f"{train}/rayStartParams/object-store-memory"] == str(30 << 30)
    assert ops[f"{train}/template/spec/volumes/1/emptyDir/sizeLimit"] == "50Gi"
    assert ops[f"{train}/template/spec/volumes/0/emptyDir/sizeLimit"] == "40Gi"
    box = ops[f"{train}/template/spec/containers/0/resources"]
    assert box["requests"] == box["limits"]
    assert box["limits"] == {"cpu": "8", "memory": "160Gi", "ephemeral-storage": "50Gi", "nvidia.com/gpu": 4}
    assert "s3://example-bucket/data/mine" in ops["entrypoint"]
    notes = ops["/metadata/annotations"]
    assert notes["finepseudo/waits-for"] in {"decode", "train", "score"}
    hours, money = (float(notes[f"finepseudo/predicted-{name}"]) for name in ("hours", "money-at-most"))
    assert money == pytest.approx(hours * (0.2 + 4 * 0.7 + 2 * 12.4 + 4 * 3.3), rel=0.2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cores = 14", "core = 14", r"infra.toml: decode.core is not known \(did you mean 'cores'"),
        ("cores = 14", "", r"infra.toml: decode.cores is missing"),
        ("cores = 14", "cores = 1.5", r"decode.cores: expected int, got 1.5"),
        ("cores = 14", "cores = 0", r"decode.cores: expected at least 1, got 0"),
        ("price = 12.4", "price = -1", r"train.price: expected at least 0, got -1"),
        ("gpus = 4", "gpus = true", r"train.gpus: expected int, got True"),
        ('data = "diving48"', "data = 48", r"infra.toml: data: expected str, got 48"),
        ('data = "diving48"', 'data = ""', r"infra.toml: data: expected a name, got ''"),
        ("[score]", "[[score]]", r"infra.toml: score: expected a section, got \[{"),
        ("[score]", "[scores]", r"score.cores is missing"),
        ("[head]", "[head", r"--infra .*infra.toml: "),
    ],
)
def test_a_file_with_a_mistake_is_refused(tmp_path, old, new, message):
    text = (OVERLAYS / "gpu/infra.toml").read_text()
    assert old in text
    (tmp_path / "infra.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(RecipeError, match=message):
        read_infra(tmp_path / "infra.toml")


def test_what_fits_into_no_pod_is_named():
    with pytest.raises(RecipeError, match=r"a training worker asks for {.*'GPU': 8.*}, a pod of train has .*'GPU': 4"):
        pods(asking(train_gpus=8), INFRA)
    with pytest.raises(RecipeError, match=r"/tmp of a decode pod holds 160 of its 200 GiB; .* want 176 GiB"):
        pods(asking(cache_gib=160), INFRA)
    assert pods(asking(cache_gib=144), INFRA)
