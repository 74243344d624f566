"""kill -9 of the driver in any stage, then the same command: it continues and ends with the same artefacts."""

import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from chaos import below
from conftest import ROOT, RUN_LIMIT_S, SHORT, call, run_command, wide_recipe

from finepseudo.data.plan import Plan
from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.results import Results
from finepseudo.storage.store import Store
from finepseudo.train.checkpoint import committed_step, read_history

STAGES = ("align/frame", "supervise/video", "finepseudo/round-1/video")
# Each kill comes when this appears for the first time.
ON_RAY = ("train/supervise/video/checkpoints/00000004/committed.json",)
IN_ONE_PROCESS = (
    "manifest/clips.parquet",
    "train/supervise/video/checkpoints/00000004/committed.json",
    "train/align/frame/snapshot/weights.safetensors",
    "labels/finepseudo/round-1/labels.parquet",
)


def plain_command(folder, recipe="short"):
    return [sys.executable, str(Path(__file__).parent / "plain_run.py"), str(folder), recipe], None


def kill_when(command, env, path):
    """Start a run, kill its driver without warning once the file exists; False if it was too quick."""
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as driver:
        ends = time.monotonic() + RUN_LIMIT_S
        while driver.poll() is None and time.monotonic() < ends:
            if path.exists():
                driver.send_signal(signal.SIGKILL)
                return True
            time.sleep(0.005)
        driver.kill()
    return False


def check(folder, short):
    """What was killed has ended as the run that nothing disturbed."""
    run, whole = Store(str(folder)), Store(str(short.folder))
    for stage in STAGES:
        history = read_history(run, f"train/{stage}")
        taken = [block for _, *of in history.blocks for block in range(*of)]
        assert taken == list(range(Plan.load(run, f"plans/train/{stage}").blocks))
        assert history.curve == read_history(whole, f"train/{stage}").curve
    found = Results.from_json((folder / "results.json").read_bytes())
    assert replace(found, timing={}) == replace(short.results, timing={})


@pytest.mark.long
@pytest.mark.timeout(2 * RUN_LIMIT_S)
def test_killed_driver_continues_to_the_same_end(short, tmp_path):
    folder = tmp_path / "run"
    for moment in ON_RAY:
        assert kill_when(*run_command(folder, *SHORT), folder / moment), moment
    done = call(folder, *SHORT)
    assert done.returncode == 0, done.stderr[-4000:]
    check(folder, short)


@pytest.mark.long
@pytest.mark.timeout(2 * RUN_LIMIT_S)
def test_sigterm_in_a_training_commits_its_step_and_ends_the_driver_and_all_that_it_started(tmp_path):
    """Ray has an answer to SIGTERM of its own, and threads of the driver wait for the trainings."""
    never = ("--scale.checkpoint-every", "1000000", "--supervise.steps", "100000")
    command, env = run_command(tmp_path / "run", *SHORT, *never)
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as driver:
        for line in driver.stderr:
            if b" supervise/video: " in line and b"/100000, loss" in line:
                break
        started = psutil.Process(driver.pid).children(recursive=True)
        driver.terminate()
        said = driver.communicate(timeout=60)[1].decode().splitlines()
    assert driver.returncode == 75
    assert "SIGTERM: stopping within 25 s; the same command continues" in said
    assert said[-1] == "stopped by SIGTERM; the same command continues from the last commit"
    step = committed_step(Store(str(tmp_path / "run")), "train/supervise/video")
    assert step > 0, "nothing was due to be committed"
    assert [line for line in said if line.endswith(f"supervise/video: committed at step {step}")]
    assert psutil.wait_procs(started, timeout=120)[1] == []


@pytest.mark.long
def test_ray_itself_killed_is_an_end_in_words_that_the_same_command_continues(tmp_path):
    """Where the raylet is killed, Ray's core may end the driver first, with code 1 and no word."""
    program = "gcs_server"
    command, env = run_command(tmp_path / "run", *SHORT, "--supervise.steps", "100000")
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as driver:
        for line in driver.stderr:
            if b"training steps" in line:
                break
        (victim,) = (one for one in psutil.Process(driver.pid).children() if one.name() == program)
        victim.kill()
        said = driver.communicate(timeout=60)[1].decode().splitlines()
    assert driver.returncode == 75
    assert said[-1].startswith(f"ClusterError: Ray's {program} on this machine is gone: killed, or out of memory; the ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "begun", "frozen", "what"),
    [
        (("--supervise.steps", "100000"), ": training steps ", "RayTrainWorker", "(training)"),
        ((), " label/round-1: ", "_Scorer", "(pass)"),
    ],
)
def test_what_stands_still_ends_in_words(tmp_path, options, begun, frozen, what):
    """Processes that are stopped are not dead: nobody starts them again, and what they owe never comes."""
    limit = ("--scale.stall-deadline-s", "120", "--scale.resources-deadline-s", "120")
    command, env = run_command(tmp_path / "run", *SHORT, *options, *limit)
    log, stopped = tmp_path / "log", set()
    with open(log, "wb") as sink, subprocess.Popen(command, env=env, stderr=sink, cwd=ROOT) as driver:
        try:
            while driver.poll() is None:
                if begun in log.read_text():
                    for process in below(driver.pid, frozen):
                        stopped.add(process)
                        with suppress(psutil.NoSuchProcess):
                            process.suspend()
                time.sleep(0.1)
        finally:
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    last = log.read_text().splitlines()[-1]
    assert driver.returncode == 75, last
    assert what in last
    assert last.endswith(
        "has stood still for 120 s (scale.stall-deadline-s); the same command continues from the last commit"
    )


@pytest.mark.timeout(2 * RUN_LIMIT_S)
def test_killed_process_continues_to_the_same_end(short, tmp_path):
    folder = tmp_path / "run"
    command, env = plain_command(folder)
    killed = [moment for moment in IN_ONE_PROCESS if kill_when(command, env, folder / moment)]
    # A moment that an earlier kill had already brought ends the process at its start, which is a kill like another.
    assert killed == list(IN_ONE_PROCESS)
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT_S, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    check(folder, short)


def kill_behind(command, folder, parts, seen):
    """Start a run and kill it a moment after it has committed another part of a pass; the parts with their times."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as run:
        ends = time.monotonic() + RUN_LIMIT_S
        while run.poll() is None and len(list(folder.glob(parts))) <= len(seen) and time.monotonic() < ends:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        run.send_signal(signal.SIGKILL)
    return {path: path.stat().st_mtime_ns for path in folder.glob(parts)}


@pytest.mark.long
@pytest.mark.timeout(2 * RUN_LIMIT_S)
def test_killed_passes_do_nothing_twice_and_end_the_same(tmp_path):
    """Probing and labelling, each killed three times at random: a part that is there is not made again."""
    folder, recipe = tmp_path / "run", wide_recipe()
    whole = ensure_results(run_rounds(recipe, Store(str(tmp_path / "whole")), InProcess(recipe)))
    command, _ = plain_command(folder, "wide")
    for parts, most in (("probes/*/committed.json", 5), ("scores/label/round-1-*/*.safetensors", 4)):
        seen = {}
        for kill in range(3):
            now = kill_behind(command, folder, parts, seen)
            assert kill < len(now) <= most, f"the kill was too late: {now}"
            assert {path: now.get(path) for path in seen} == seen
            seen = now
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT_S, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    found = Results.from_json((folder / "results.json").read_bytes())
    assert replace(found, timing={}) == replace(whole, timing={})
    assert not (folder / "probes").exists()
    assert not (folder / "scores").exists()
