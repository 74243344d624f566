"""The same jobs under `ray job submit`, against a cluster that runs already and asks for a token."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LIMIT_S = 600


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Address and environment of a running head."""
    # Ray's socket names must stay short, so its session does not live below pytest's folder.
    folder, token = tmp_path_factory.mktemp("head"), tmp_path_factory.mktemp("secret") / "token"
    session = f"/tmp/fp-{os.getpid()}"
    dashboard, port = free_port(), free_port()
    env = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": session,
    }
    env.pop("RAY_AUTH_TOKEN", None)
    options = ["--num-cpus=8", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={session}",
               "--object-store-memory=300000000", "--dashboard-agent-listen-port=0"]  # fmt: skip
    started = subprocess.run(
        [ROOT / "cluster/head.sh", token, *options], env=env, capture_output=True, text=True, timeout=120, cwd=folder
    )
    assert started.returncode == 0, started.stderr
    assert token.stat().st_mode & 0o077 == 0
    yield f"http://127.0.0.1:{dashboard}", env, f"127.0.0.1:{port}"
    # Not `ray stop`: it would take down every other cluster of this user too.
    for process in psutil.process_iter(["cmdline"]):
        if any(session in part for part in process.info["cmdline"] or []):
            process.kill()
    shutil.rmtree(session, ignore_errors=True)


def submit(head, *command):
    address, env, _ = head
    job = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--", sys.executable]
    return subprocess.run([*job, *command], env=env, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT)


@pytest.mark.long
def test_whole_run_as_a_submitted_job(head, tmp_path):
    run = tmp_path / "run"
    random_start = ("--gitdl.frame-steps", "0", "--gitdl.video-steps", "0")
    done = submit(head, "jobs/run.py", "rehearsal_smoke", "--run", str(run), "--methods", "finepseudo", *random_start)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert (run / "results.json").exists()
    assert "joining the Ray cluster" in done.stdout
    assert "starting Ray on this machine" not in done.stdout
    assert "slower: " not in done.stdout, "the upload has no compiled kernel, but the installed package has"


def test_failed_job_fails_with_its_reason_last(head, tmp_path):
    done = submit(head, "jobs/run.py", "rehearsal_smok", "--run", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "no recipe 'rehearsal_smok' (did you mean 'rehearsal_smoke'" in done.stdout + done.stderr


def test_without_the_token_nobody_gets_in(head):
    address, env, _ = head
    bare = {key: value for key, value in env.items() if not key.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"}
    refused = subprocess.run(
        [BIN / "ray", "job", "list", "--address", address], env=bare, capture_output=True, text=True, timeout=120
    )
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "auth" in (refused.stdout + refused.stderr).lower()
