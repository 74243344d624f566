"""Two drivers in one run directory: the real command, started twice at once."""

import signal
import subprocess
import time
from dataclasses import replace

import pytest
from conftest import ROOT, RUN_LIMIT_S, SHORT, call, run_command

from finepseudo.results import Results


@pytest.mark.long
@pytest.mark.timeout(2 * RUN_LIMIT_S)
@pytest.mark.parametrize("starts", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_two_drivers_started_at_once(short, tmp_path, starts):
    """One works, the other names it and ends; who works is killed, and followed at once by one of the next two."""
    folder = tmp_path / "run"
    command, environment = run_command(folder, *SHORT)
    for number in range(starts):
        pair = [
            subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=pipe)
            for pipe in (subprocess.PIPE, subprocess.PIPE)
        ]
        ends = time.monotonic() + 240
        while all(one.poll() is None for one in pair):
            assert time.monotonic() < ends, "both work"
            time.sleep(0.05)
        lost, won = sorted(pair, key=lambda one: one.poll() is None)
        assert lost.returncode == 1, lost.stderr.read()
        said = lost.stderr.read().splitlines()[-1]
        assert said.startswith(f"LeaseError: {folder}: process {won.pid} on "), said
        won.send_signal(signal.SIGTERM if number % 2 else signal.SIGKILL)
        won.communicate(timeout=120)
    done = call(folder, *SHORT)
    assert done.returncode == 0, done.stderr[-4000:]
    found = Results.from_json((folder / "results.json").read_bytes())
    assert replace(found, timing={}) == replace(short.results, timing={})
    assert max(path.name for path in (folder / "lease").iterdir()) == f"{starts + 1:08d}.json"
