"""A whole run with secrets in its environment: what it writes, what its processes show, what listens.

docs/security.md has the promises.
"""

import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
from conftest import ROOT, RUN_LIMIT_S, SHORT, run_command

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIA7QSECRETOFTHETEST",
    "AWS_SECRET_ACCESS_KEY": "aws/secret+of-the-test+0123456789abcdef",
    "AWS_SESSION_TOKEN": "session-secret-of-the-test-0123",
    "RAY_AUTH_TOKEN": "a" * 20 + "ray-secret-of-the-test" + "b" * 22,
    "RAY_AUTH_MODE": "token",
    "WANDB_API_KEY": "0123456789abcdef-wandb-secret-of-the-test",
    "MLFLOW_TRACKING_TOKEN": "mlflow-secret-of-the-test",
}
SECRET = {value for name, value in SECRETS.items() if name != "RAY_AUTH_MODE"}
GRPC = {  # of the head, of a node, and of every process that works; and what each of them tells
    "NodeInfoGcsService": "GetAllNodeInfo",
    "NodeManagerService": "GetNodeStats",
    "CoreWorkerService": "GetCoreWorkerStats",
}


def processes(root):
    """A process and all below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found, more = set(), {root}
    while more:
        found |= more
        more = {child for child, parent in parents.items() if parent in more} - found
    return found


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def sockets(pid):
    """Inodes of the sockets that a process holds."""
    found = set()
    with contextlib.suppress(OSError):  # it has ended
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def listening(pids):
    """Whether on loopback alone, and port and program, of every listening socket of these processes."""
    owner = {}
    for pid in sorted(pids):  # parents first: a child holds its parent's sockets until its exec
        who = command_line(pid)
        for inode in sockets(pid):
            owner.setdefault(inode, who)
    found = set()
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in owner:
                address, _, port = words[1].partition(":")
                local = address in ("0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F")
                found.add((local, int(port, 16), owner[words[9]]))
    return found


def answers_without_a_token(port):
    """HTTP status of the dashboard's list of jobs; None of gRPC, and of the figures for Prometheus, which are open."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=5) as answer:
            return None if answer.read(6) == b"# HELP" else answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):  # not there any more, or gRPC
        return None


def grpc_without_a_token(port):
    """By which of Ray's services a port refuses whom it does not know, and by which it answers."""
    refused, answered = set(), set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for service, method in GRPC.items():
            try:
                channel.unary_unary(f"/ray.rpc.{service}/{method}")(b"", timeout=5)
                answered.add(service)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    refused.add(service)
    return refused, answered


def test_a_run_shows_no_secret_and_listens_on_loopback():
    """Ray's own services bind wider, and have token authentication."""
    with tempfile.TemporaryDirectory(prefix="fs", dir="/tmp") as folder:
        run, ray = Path(folder) / "run", Path(folder) / "ray"
        ray.mkdir()
        command, environment = run_command(run, *SHORT, env={**SECRETS, "RAY_TMPDIR": str(ray)})
        seen, ours, statuses = set(), set(), set()
        asked, refused, answered = set(), set(), set()
        with (Path(folder) / "said").open("wb") as said, contextlib.ExitStack() as stack:
            driver = subprocess.Popen(command, env=environment, stdout=said, stderr=said, cwd=ROOT)
            stack.callback(driver.kill)
            ends = time.monotonic() + RUN_LIMIT_S
            while driver.poll() is None:
                assert time.monotonic() < ends, "the run did not end"
                pids = processes(driver.pid)
                seen |= {command_line(pid) for pid in pids}
                for local, port, who in listening(pids):
                    ours.add((local, port, who))
                    if "dashboard" in who and (status := answers_without_a_token(port)):
                        statuses.add(status)
                    if not local and port not in asked:
                        asked.add(port)
                        refuses, answers = grpc_without_a_token(port)
                        refused, answered = refused | refuses, answered | answers
                time.sleep(1)
        text = (Path(folder) / "said").read_text()
        assert driver.returncode == 0, text[-4000:]
        assert len(seen) > 5, "processes of the run were looked at"
        assert not [line for line in seen if any(secret in line for secret in SECRET)]
        wide = [who for local, _, who in ours if not local and not _rays_own(who)]
        assert len(wide) <= 1, f"of the driver, Ray's core worker alone: {wide}"
        assert all("jobs/run.py" in who for who in wide), f"what is not Ray's listens on loopback: {wide}"
        assert 200 not in statuses
        assert statuses & {401, 403}, f"no unauthenticated request was refused: {statuses}"
        assert (refused, answered) == (set(GRPC), set())
        files = [path for place in (run, ray) for path in place.rglob("*") if path.is_file()]
        assert any("logs" in path.parts and ray in path.parents for path in files), "Ray's session logs"
        bodies = {str(path.relative_to(folder)): path.read_bytes() for path in files} | {"said": text.encode()}
        leaks = [name for name, body in bodies.items() if any(secret.encode() in body for secret in SECRET)]
        assert leaks == []


def _rays_own(command):
    return any(word in command for word in ("gcs_server", "raylet", "/ray/", "ray::"))


def test_the_scanner_itself_finds_what_is_shown_and_what_listens():
    secret = SECRETS["WANDB_API_KEY"]
    code = (
        "import socket, sys, time; a = socket.create_server(('0.0.0.0', 0)); b = socket.create_server(('127.0.0.1', 0))"
    )
    code += "; print('up', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, secret], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        assert secret in command_line(process.pid)
        assert process.pid in processes(os.getpid())
        assert sorted(local for local, _, _ in listening({process.pid})) == [False, True]
        process.kill()
