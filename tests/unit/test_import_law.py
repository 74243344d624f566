"""Who may import what, read from the sources; every rule is also shown a source that breaks it."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "finepseudo"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
LEAVES = {"errors", "fields", "progress", "metrics", "recipe", "storage", "measures", "recipes", "sizes", "stop"}
# library -> where alone it may be imported
ONLY_IN = {
    "ray": ("runtime/",),
    "fsspec": ("storage/store.py",),
    "s3fs": ("storage/store.py",),
    "decord": ("data/video.py",),
    "deepspeed": ("train/engine.py",),
    "av": ("data/video.py", "data/pack.py", "rehearsal/files.py"),
    "triton": ("align/kernels/cuda.py",),
    "setuptools": ("align/kernels/build.py",),
    "tyro": ("cli.py",),
    "transformers": ("models/hub.py",),
    "tensorboardX": ("tracking/event_files.py",),
    "mlflow": ("tracking/mlflow_runs.py",),
    "wandb": ("tracking/wandb_runs.py",),
    "starlette": ("runtime/serving.py",),
}
# room -> libraries that it may import; rooms that are not here may import any
LIBRARIES = {
    "align": {"torch", "numpy", "safetensors", "triton", "setuptools"},
    "models": {"torch", "numpy", "safetensors", "annotated_types", "transformers"},
    "models/table": {"annotated_types"},
    "fields": {"annotated_types"},
    "progress": set(),
    "stop": set(),
    "metrics": set(),
    "recipe": {"annotated_types"},
    "errors": set(),
    "recipes": set(),
    "sizes": set(),
    "costs": {"numpy", "pyarrow"},
    "preview": {"numpy", "pyarrow"},
    "storage": {"fsspec", "s3fs", "pyarrow", "numpy"},
    "doctor": {"numpy", "torch"},
    "cli": {"tyro"},
    "labels": {"numpy", "pyarrow"},
}
# Reads the table of encoders; it and what it imports are light.
TABLE = "models/table"
# room -> rooms of ours that it may import. jobs -> {driver, runtime} -> train -> {align, models, data}
MAY = {
    "align": {"align", "errors"},
    "models": {"models", "errors", TABLE},
    TABLE: {"errors", "fields"},
    "data": {"data", TABLE} | LEAVES,
    "train": {"train", "data", "align", "models", TABLE} | LEAVES,
    "classifier": {"results", "run", "train", "data", "align", TABLE} | LEAVES,
    "driver": {"driver", "classifier", "results", "run", "train", "data", "align", "models", TABLE, "rehearsal"}
    | LEAVES,
    "runtime": {"runtime", "doctor", "run", "train", "data", "costs"} | LEAVES,
    "doctor": {"doctor", "align", "data", "rehearsal"} | LEAVES,
    "serve": {"serve", "runtime", "driver", "classifier", "train", "data", "rehearsal"} | LEAVES,
    "costs": {"costs", "data", TABLE} | LEAVES,
    "preview": {"preview", "costs", "data", TABLE} | LEAVES,
    "fields": {"errors"},
    "progress": set(),
    "stop": set(),
    "metrics": set(),
    "recipe": {"errors", "fields", "storage", TABLE},
    "errors": set(),
    "sizes": set(),
    "storage": {"storage", "errors"},
    "measures": {"errors"},
    "results": {"align", "measures", "errors"},
    "recipes": {"recipe", "recipes", "errors", "fields"},
    "rehearsal": {"rehearsal", "recipe", "errors"},
    "cli": {"errors", "stop", "recipe", "recipes", "storage", "costs", "preview"},
    "run": {"results", "train", "data", "align", TABLE} | LEAVES,
    "tracking": {"tracking", "run", "train", "data"} | LEAVES,
    "labels": {"labels", "run", "data"} | LEAVES,
    "review": {"review", "labels", "report", "run", "data"} | LEAVES,
    "report": {"report", "results", "run", "train", "data", "align"} | LEAVES,
    "__init__": {"classifier", "driver", "storage"},
}
# Imports what a table names; test_table.py looks at the names.
BY_NAME = ("models/encoders.py",)
UNTRUSTED = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Reads pickles by an unpickler of its own, which admits no name that runs anything; may use these names alone.
UNPICKLER = ("data/formats/finediving.py", {"pickle.Unpickler", "pickle.UnpicklingError"})
# Reads public weights, tensors and plain containers alone, in a process of its own.
CHECKPOINTS = "models/pickled.py"
CALLS = {"torch.load", "os.system", "os.popen", "torch.hub.load", "subprocess.getoutput"}


def imports(source):
    """Full dotted names of all that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or "")
            elif node.module == "finepseudo":
                yield from (f"finepseudo.{alias.name}" for alias in node.names)
            else:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield f"?{ast.unparse(node)}"


def room_of(path):
    return TABLE if path.startswith(TABLE) else path.split("/")[0]


def breaches(path, source):
    """What a module at `path` (below the package) does against the law."""
    room = room_of(path.removesuffix(".py"))
    for name in imports(source):
        top, _, rest = name.partition(".")
        if name.startswith("?") and path in BY_NAME:
            continue
        if name.startswith((".", "?")):
            yield f"{name} hides what it imports"
        if untrusted(path, name):
            yield f"{name} runs what it reads"
        if top in ONLY_IN and not path.startswith(ONLY_IN[top]):
            yield f"{name} belongs in {ONLY_IN[top]}"
        if top == "finepseudo" and room_of(rest.replace(".", "/")) not in MAY[room]:
            yield f"{room} must not import {name}"
        allowed = LIBRARIES.get(room)
        if allowed is not None and top not in allowed | {"finepseudo"} | sys.stdlib_module_names:
            yield f"{room} must not import {name}"
    yield from unsafe_calls(path, source)


def untrusted(path, name):
    return name in CALLS or (name.partition(".")[0] in UNTRUSTED and (path, name) != (UNPICKLER[0], "pickle"))


def unsafe_calls(path, source):
    """Calls that could run what they read."""
    tree = ast.parse(source)
    tensors_only = [
        node.func
        for node in ast.walk(tree)
        if path == CHECKPOINTS
        and isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.load"
        and any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
    ]
    for node in ast.walk(tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) and node not in tensors_only else ""
        if name in CALLS or (name.startswith("pickle.") and name not in UNPICKLER[1]):
            yield f"{ast.unparse(node)} runs what it reads"
        if (
            isinstance(node, ast.keyword)
            and node.arg in ("allow_pickle", "shell")
            and ast.unparse(node.value) != "False"
        ):
            yield f"{node.arg} is not False"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec"):
            yield "eval runs what it reads"


@pytest.mark.parametrize("path", MODULES)
def test_modules_keep_the_law(path):
    assert list(breaches(path, (PACKAGE / path).read_text())) == []


def test_every_room_is_under_the_law():
    assert {room_of(path.removesuffix(".py")) for path in MODULES} == set(MAY)
    assert all((PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file() for room in MAY)


def test_the_direction_has_no_circle():
    def reach(room, seen=frozenset()):
        assert room not in seen, f"{room} imports itself by way of {seen}"
        for other in MAY[room] - {room}:
            reach(other, seen | {room})

    for room in MAY:
        reach(room)


@pytest.mark.parametrize("path", sorted(path.name for path in (PACKAGE.parent / "jobs").glob("*.py")))
def test_jobs_are_thin(path):
    """Jobs parse before they import what is heavy, and import no library of their own but ray's start."""
    source = (PACKAGE.parent / "jobs" / path).read_text()
    top = {name.split(".")[0] for name in imports(ast.unparse(ast.Module(at_the_top(source), [])))}
    assert top <= {"finepseudo"} | sys.stdlib_module_names
    assert {name.split(".")[0] for name in imports(source)} <= {"finepseudo"} | sys.stdlib_module_names


def at_the_top(source):
    return [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        # one owner for each library
        ("train/loop.py", "import ray"),
        ("report/page.py", "from ray import data"),
        ("data/cache.py", "import fsspec"),
        ("driver/prepare.py", "import s3fs"),
        ("data/child.py", "import decord"),
        ("data/child.py", "def late():\n    from decord import VideoReader"),
        ("train/loop.py", "import deepspeed.comm"),
        ("data/decode.py", "import av"),
        ("tracking/figures.py", "from tensorboardX import SummaryWriter"),
        ("tracking/watch.py", "import mlflow"),
        ("tracking/watch.py", "import wandb"),
        ("tracking/watch.py", "import ray"),
        ("metrics.py", "from finepseudo.run import Run"),
        ("labels/tools.py", "import fiftyone"),
        ("labels/tools.py", "import cleanlab"),
        ("labels/why.py", "from finepseudo.driver import rounds"),
        # the maths
        ("align/score.py", "from finepseudo.data import plan"),
        ("align/score.py", "from finepseudo.models import vtn"),
        ("align/score.py", "from finepseudo.recipe import Align"),
        ("align/score.py", "import pandas"),
        ("models/vtn.py", "from finepseudo.align.head import ScoreHead"),
        ("models/vtn.py", "from finepseudo.data.plan import Plan"),
        ("models/vtn.py", "import torchvision"),
        ("models/vit.py", "from transformers import ViTModel"),
        # the direction
        ("data/plan.py", "from finepseudo.train.loop import Stage"),
        ("data/plan.py", "from finepseudo.align import gallery"),
        ("train/loop.py", "from finepseudo.driver import rounds"),
        ("driver/rounds.py", "import ray"),
        ("driver/rounds.py", "from finepseudo.runtime.executor import on_ray"),
        ("runtime/executor.py", "from finepseudo.driver.steps import Steps"),
        ("runtime/serving.py", "from finepseudo.serve.desk import Desk"),
        ("serve/desk.py", "import ray"),
        ("serve/desk.py", "import starlette"),
        ("driver/rounds.py", "import finepseudo.report"),
        ("driver/rounds.py", "from finepseudo import report"),
        ("driver/rounds.py", "from finepseudo.cli import main"),
        ("run.py", "from finepseudo.report.summary import summary"),
        ("report/page.py", "from finepseudo.review.queue import Queue"),
        ("review/queue.py", "from finepseudo.driver.rounds import run_rounds"),
        ("review/page.py", "from finepseudo.align.softdtw import dtw_path"),
        ("storage/store.py", "from finepseudo.data.plan import Plan"),
        ("measures.py", "from finepseudo.data.plan import Plan"),
        # light leaves
        ("recipe.py", "import torch"),
        ("recipe.py", "import numpy"),
        ("recipe.py", "from finepseudo.models.encoders import build"),
        ("models/table.py", "import torch"),
        ("models/table.py", "from finepseudo.models.encoders import build"),
        ("recipe.py", "from finepseudo.data.plan import Plan"),
        ("errors.py", "import tyro"),
        ("errors.py", "from finepseudo.recipe import Recipe"),
        ("recipes/rehearsal.py", "import torch"),
        ("cli.py", "import torch"),
        ("storage/store.py", "import torch"),
        ("storage/artefacts.py", "import torch"),
        # nothing that runs what it reads
        ("storage/store.py", "import pickle"),
        ("models/weights.py", "from pickle import loads"),
        ("data/formats/finediving.py", "from pickle import Unpickler"),
        ("data/formats/finediving.py", "import pickle\npickle.load(file)"),
        ("data/formats/own.py", "import pickle"),
        ("models/weights.py", "torch.load('x')"),
        ("models/weights.py", "from torch import load"),
        ("models/weights.py", "torch.load('x', weights_only=True)"),
        ("models/pickled.py", "torch.load('x')"),
        ("models/pickled.py", "torch.load('x', weights_only=False)"),
        ("models/pickled.py", "torch.load('x', weights_only=not safe)"),
        ("models/pickled.py", "import pickle"),
        ("report/page.py", "import os\nos.system('ls')"),
        ("report/page.py", "from os import system"),
        ("data/cache.py", "np.load('x', allow_pickle=True)"),
        ("data/child.py", "subprocess.run('x', shell=True)"),
        ("recipe.py", "eval('1')"),
        # nothing hidden
        ("align/score.py", "from . import softdtw"),
        ("align/score.py", "importlib.import_module('ray')"),
    ],
)
def test_the_law_can_be_broken(path, line):
    assert (PACKAGE / path).is_file()
    assert list(breaches(path, line))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("runtime/ingest.py", "import ray.data"),
        ("train/loop.py", "from finepseudo.align.head import ScoreHead"),
        ("align/score.py", "import math, torch"),
        ("models/pickled.py", "torch.load('x', weights_only=True)"),
        ("data/cache.py", "np.load('x', allow_pickle=False)"),
    ],
)
def test_the_law_lets_the_rest_be(path, line):
    assert list(breaches(path, line)) == []
