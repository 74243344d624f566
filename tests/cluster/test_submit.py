"""Jobs that are submitted to a cluster that runs already and asks for a token: by cluster/submit.py, by `ray job`."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from servers import free_port

from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.recipe import changed
from finepseudo.recipes import find
from finepseudo.storage.store import Store

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LIMIT_S = 1500  # of a run beside others, on two busy cores


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


SUBMIT = [sys.executable, str(ROOT / "cluster/submit.py")]


def submit(head, *command):
    """A job of this repository, as the README says it."""
    address, env, _ = head
    job = [*SUBMIT, "--address", address, "--", sys.executable, *command]
    return subprocess.run(job, env=env, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT)


@pytest.fixture
def small(head, tmp_path):
    """Starts a small job: a script in a folder of its own, which is all that is uploaded."""
    address, env, _ = head
    started = []

    def start(script, *options, address=address, env=env):
        folder = tmp_path / "job"
        folder.mkdir(exist_ok=True)
        (folder / "job.py").write_text(script)
        job = [*SUBMIT, "--address", address, "--working-dir", str(folder), *options, "--", sys.executable, "job.py"]
        # A process group of its own: Ctrl-C is sent to it alone.
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # These tests may run in the background of a shell, where Ctrl-C is ignored, and so it would be by the helper.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        started.append(subprocess.Popen(job, env=env, cwd=tmp_path, start_new_session=True, **pipes))
        signal.signal(signal.SIGINT, before)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


@pytest.mark.long
def test_a_run_as_a_submitted_job(head, tmp_path):
    """What it trains itself is the round: the rest is there."""
    run, base = tmp_path / "run", Store(str(tmp_path / "base"))
    recipe = changed(find("rehearsal_smoke"), {"gitdl.frame_steps": 0, "gitdl.video_steps": 0})
    recipe = replace(recipe, methods=("finepseudo",))
    run_rounds(recipe, base, InProcess(recipe))
    random_start = ("--gitdl.frame-steps", "0", "--gitdl.video-steps", "0")
    options = ("--base", base.root, "--methods", "finepseudo", *random_start, "--rounds.video-steps", "6")
    done = submit(head, "jobs/run.py", "rehearsal_smoke", "--run", str(run), *options)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert (run / "results.json").exists()
    assert (run / "train/finepseudo/round-1/video/snapshot").exists()
    assert "joining the Ray cluster" in done.stdout
    assert "starting Ray on this machine" not in done.stdout
    assert "slower: " not in done.stdout, "the upload has no compiled kernel, but the installed package has"


def test_failed_job_fails_with_its_reason_last(head, tmp_path):
    done = submit(head, "jobs/run.py", "rehearsal_smok", "--run", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "no recipe 'rehearsal_smok' (did you mean 'rehearsal_smoke'" in done.stdout + done.stderr


def test_without_the_token_nobody_gets_in(head):
    address, env, _ = head
    bare = {key: value for key, value in env.items() if not key.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"}
    refused = subprocess.run(
        [BIN / "ray", "job", "list", "--address", address], env=bare, capture_output=True, text=True, timeout=120
    )
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "auth" in (refused.stdout + refused.stderr).lower()


def test_what_is_to_be_started_again_is_submitted_again_so_many_times(small, tmp_path):
    tries = tmp_path / "tries"
    script = f"import sys; open({str(tries)!r}, 'a').write('x'); print('tried'); sys.exit(EXIT)"
    code, out, err = ended(small(script.replace("EXIT", "75"), "--resubmit", "1"))
    assert code == 75
    assert tries.read_text() == "xx"
    assert out.count("tried\n") == 2
    assert "failed with exit code 75: the same command continues; it is submitted again in 5 s, up to 1 more" in err
    code, _, err = ended(small(script.replace("EXIT", "3"), "--resubmit", "1"))
    assert (code, tries.read_text()) == (3, "xxx")
    assert "submitted again" not in err


SLOW = """
import time
for line in range(30):
    print(f"line {line}")
    time.sleep(0.5)
"""


@pytest.mark.long
def test_ctrl_c_leaves_the_job_running_and_it_can_be_followed_and_stopped(head, small):
    address, env, _ = head
    process = small(SLOW.replace("30", "3000"))
    while "line 1\n" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130
    name = re.search(r"submit: (finepseudo-\S+) is left running; follow it: python cluster/submit.py", err)[1]
    assert "Traceback" not in err
    where = ["--address", address]
    follow = subprocess.Popen(
        [*SUBMIT, *where, "--follow", name],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "line 3\n" not in follow.stdout.readline():
        assert follow.poll() is None
    stopped = subprocess.run([BIN / "ray", "job", "stop", *where, name], env=env, capture_output=True, timeout=120)
    assert stopped.returncode == 0
    code, _, err = ended(follow)
    assert code == 143
    assert f"{name} was stopped" in err


class Proxy:
    """Between a client and a port of this machine; can be cut, and mended."""

    def __init__(self, target):
        self.target, self.open, self.pairs = target, True, []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            near, _ = self.server.accept()
            if not self.open:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.target))
            self.pairs += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self.carry, args=(one, other), daemon=True).start()

    def carry(self, one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        self.open = False
        for end in self.pairs:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.long
def test_a_lost_connection_is_made_anew_and_no_line_is_lost_or_doubled(head, small):
    proxy = Proxy(int(head[0].rpartition(":")[2]))
    process = small(SLOW, address=f"http://127.0.0.1:{proxy.port}")
    lines = []
    while "line 3" not in lines:
        lines.append(process.stdout.readline().strip())
        assert process.poll() is None
    proxy.cut()
    time.sleep(3)
    proxy.open = True
    out = process.stdout.read()  # communicate() knows nothing of what `readline` has read ahead
    code, _, err = ended(process)
    assert code == 0
    assert [line for line in lines + out.split("\n") if line.startswith("line")] == [f"line {i}" for i in range(30)]
    assert "does not answer" in err


def test_who_does_not_answer_or_refuses_is_said_in_one_line(head, small):
    code, _, err = ended(small("", "--deadline-s", "1", address=f"http://127.0.0.1:{free_port()}"))
    assert code == 69
    assert "has not answered for 1 s" in err
    wrong = {**head[1], "RAY_AUTH_TOKEN": "0" * 64}
    del wrong["RAY_AUTH_TOKEN_PATH"]
    code, _, err = ended(small("", env=wrong))
    assert code == 69
    assert "refuses the token" in err
    assert "0" * 64 not in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "expected either a command behind `--`, or --follow ID"),
        (["--follow", "a", "--", "b"], "expected either a command behind `--`, or --follow ID"),
        (["--address", "127.0.0.1:6379", "--", "b"], "expected http://HOST:PORT"),
        (["--token-file", "/nowhere", "--", "b"], "--token-file /nowhere: no such file"),
    ],
)
def test_wrong_options_are_told_before_anything_is_asked(options, said):
    done = subprocess.run([*SUBMIT, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
