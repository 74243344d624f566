"""kill -9 of the driver in any stage, then the same command: it continues and ends with the same artefacts."""

import json
import signal
import subprocess
import time

from conftest import RUN_LIMIT_S, call, run_command

from finepseudo.data.plan import Plan
from finepseudo.storage.store import Store
from finepseudo.train.checkpoint import read_history

# Each kill comes when this appears for the first time.
MOMENTS = (
    "train/pretrain/frame/checkpoints/00000004/committed.json",
    "train/supervise/video/checkpoints/00000004/committed.json",
    "train/finepseudo/round-1/video/checkpoints/00000004/committed.json",
)


def kill_when(folder, moment):
    """Start the run, kill its driver without warning once `moment` exists; False if it was too quick."""
    command, env = run_command(folder)
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        ends = time.monotonic() + RUN_LIMIT_S
        while driver.poll() is None and time.monotonic() < ends:
            if (folder / moment).exists():
                driver.send_signal(signal.SIGKILL)
                return True
            time.sleep(0.02)
        driver.kill()
    return False


def test_killed_driver_continues_to_the_same_end(smoke, tmp_path):
    folder = tmp_path / "run"
    assert [kill_when(folder, moment) for moment in MOMENTS] == [True] * len(MOMENTS)
    done = call(folder)
    assert done.returncode == 0, done.stderr[-4000:]

    run, whole = Store(str(folder)), Store(str(smoke.folder))
    for stage in ("pretrain/frame", "pretrain/video", "align/frame", "supervise/video", "finepseudo/round-1/video"):
        plan = Plan.load(run, f"plans/train/{stage}")
        rows, curve, _ = read_history(run, f"train/{stage}")
        assert [row["row"] for row in rows] == list(range(len(plan)))
        assert curve == read_history(whole, f"train/{stage}")[1]
    found = json.loads((folder / "results.json").read_text())
    for part in ("digests", "finepseudo", "supervised", "stage_2", "rounds", "pairs"):
        assert found[part] == smoke.results[part], part
