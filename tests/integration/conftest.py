"""A whole small run through the real command, shared by the tests that look at it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from finepseudo.results import Results

ROOT = Path(__file__).parents[2]
RUN_LIMIT_S = 600


def run_command(run, *options, recipe="rehearsal_smoke", env=None, job="run"):
    return [sys.executable, str(ROOT / f"jobs/{job}.py"), recipe, "--run", str(run), *map(str, options)], {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        **(env or {}),
    }


def call(run, *options, recipe="rehearsal_smoke", env=None, job="run"):
    command, environment = run_command(run, *options, recipe=recipe, env=env, job=job)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_LIMIT_S, cwd=ROOT)


@dataclass
class Finished:
    folder: Path
    stdout: str
    stderr: str

    @property
    def results(self):
        return Results.from_json((self.folder / "results.json").read_bytes())


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """One undisturbed run of the smoke recipe."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = call(folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return Finished(folder, done.stdout, done.stderr)
