"""A whole small run through the real command, shared by the tests that look at it."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.recipes import find
from finepseudo.results import Results
from finepseudo.storage.store import Store

ROOT = Path(__file__).parents[2]
RUN_LIMIT_S = 1500  # of a run beside others, on two busy cores


def run_command(run, *options, recipe="rehearsal_smoke", env=None, job="run"):
    return [sys.executable, str(ROOT / f"jobs/{job}.py"), recipe, "--run", str(run), *map(str, options)], {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        **(env or {}),
    }


def call(run, *options, recipe="rehearsal_smoke", env=None, job="run"):
    command, environment = run_command(run, *options, recipe=recipe, env=env, job=job)
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_LIMIT_S, cwd=ROOT)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"{late}; it said last: {(late.stderr or b'')[-4000:].decode(errors='replace')}", pytrace=False)


@dataclass
class Finished:
    folder: Path
    stdout: str
    stderr: str

    @property
    def results(self):
        return Results.from_json((self.folder / "results.json").read_bytes())


# The smoke recipe without what takes long to launch: one pair of trainings, and the last one.
SHORT = ("--gitdl.frame-steps", "0", "--gitdl.video-steps", "0", "--methods", "finepseudo")


def short_recipe():
    recipe = find("rehearsal_smoke")
    return replace(recipe, gitdl=replace(recipe.gitdl, frame_steps=0, video_steps=0), methods=("finepseudo",))


def wide_recipe():
    """More videos than a part of a pass holds, and hardly any training."""
    recipe, few = short_recipe(), {"steps": 2}
    return replace(
        recipe,
        data=replace(recipe.data, rehearsal=replace(recipe.data.rehearsal, train_per_class=24)),
        align=replace(recipe.align, **few),
        supervise=replace(recipe.supervise, **few),
        rounds=replace(recipe.rounds, video_steps=2),
    )


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """The short run by one plain process, which nothing disturbs."""
    folder, recipe = tmp_path_factory.mktemp("short") / "run", short_recipe()
    ensure_results(run_rounds(recipe, Store(str(folder)), InProcess(recipe)))
    return Finished(folder, "", "")


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """One undisturbed run of the smoke recipe."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = call(folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return Finished(folder, done.stdout, done.stderr)
