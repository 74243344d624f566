"""Who may import what, read from the sources."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "finepseudo"
LEAVES = {"errors", "recipe", "storage", "artefacts", "measures", "recipes"}
ONLY_IN = {
    "ray": ("runtime/",),
    "fsspec": ("storage.py",),
    "s3fs": ("storage.py",),
    "decord": ("data/decode.py",),
    "deepspeed": ("train/engine.py",),
    "av": ("rehearsal.py",),
    "tyro": ("cli.py",),
}
# room -> rooms of ours that it may import
MAY = {
    "align": {"align", "errors"},
    "models": {"models", "errors"},
    "data": {"data"} | LEAVES,
    "train": {"train", "data", "align", "models"} | LEAVES,
    "runtime": {"runtime", "train", "data", "align", "models", "rehearsal"} | LEAVES,
    "recipe": {"errors"},
    "errors": set(),
    "storage": {"errors"},
    "artefacts": {"errors", "recipe", "storage"},
    "measures": {"errors"},
    "recipes": {"recipe", "recipes", "errors"},
    "rehearsal": {"recipe", "errors"},
    "comparison": set(),
    "cli": {"errors", "recipe", "recipes", "storage"},
    "examples": {"train", "data", "align"} | LEAVES,
    "report": {"examples", "train"} | LEAVES,
}
FORBIDDEN = {"pickle", "dill", "cloudpickle", "joblib"}


def imports(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            if node.module == "finepseudo":
                yield from (f"finepseudo.{alias.name}" for alias in node.names)
            else:
                yield node.module


def breaches(path, source):
    """What a module at `path` (below the package) imports against the law."""
    room = path.split("/")[0].removesuffix(".py")
    for name in imports(source):
        top, _, rest = name.partition(".")
        if top in FORBIDDEN:
            yield f"{path}: {name}"
        if top in ONLY_IN and not path.startswith(ONLY_IN[top]):
            yield f"{path}: {name} belongs in {ONLY_IN[top]}"
        if top == "finepseudo" and room != "__init__" and rest.split(".")[0] not in MAY[room]:
            yield f"{path}: {name}"
        if top in ("torch", "transformers") and room in ("recipe", "recipes", "errors", "storage", "artefacts", "cli"):
            yield f"{path}: {name}"
        if room in ("align", "models") and top not in ("torch", "numpy", "safetensors", "finepseudo", *STANDARD):
            yield f"{path}: {name}"


STANDARD = {
    *("__future__", "collections", "dataclasses", "typing", "math", "json", "hashlib", "difflib", "itertools"),
    *("functools", "inspect", "enum"),
}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES)
def test_imports_keep_the_law(path):
    assert list(breaches(path, (PACKAGE / path).read_text())) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("train/loop.py", "import ray"),
        ("align/score.py", "from finepseudo.data import plan"),
        ("align/score.py", "import pandas"),
        ("models/vtn.py", "from finepseudo.align.score import ScoreHead"),
        ("data/plan.py", "from finepseudo.train.loop import Stage"),
        ("train/loop.py", "from finepseudo.runtime import rounds"),
        ("data/cache.py", "import fsspec"),
        ("data/probe.py", "import decord"),
        ("train/loop.py", "import deepspeed.comm"),
        ("recipe.py", "import torch"),
        ("storage.py", "import pickle"),
        ("runtime/rounds.py", "from finepseudo.report import summary"),
    ],
)
def test_the_law_can_be_broken(path, line):
    assert list(breaches(path, line))


def test_no_untrusted_loading_anywhere():
    for path in MODULES:
        for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("os", "system")}, path
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
