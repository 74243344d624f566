"""A whole run with secrets in its environment: what it writes, what its processes show, what listens.

docs/security.md has the promises.
"""

import contextlib
import http.client
import ipaddress
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import grpc
import psutil
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
GRPC = {  # of the head, of a node (its two ports, and its agent), of every process that works; a question to each
    "NodeInfoGcsService": "GetAllNodeInfo",
    "NodeManagerService": "GetNodeStats",
    "ObjectManagerService": "Pull",
    "ReporterService": "GetTraceback",
    "CoreWorkerService": "GetCoreWorkerStats",
}
# Of a training, whose process says what it is at; torch knows no tokens.
PROCESS_GROUP = ("ray::RayTrainWorker", "ray::execute._propagate_data_context")
LOOKS = 3  # at which a socket neither refused nor answered, before it counts as one that does not know tokens
HTTP, FIGURES = "refused over HTTP", "figures for Prometheus"


def processes(root):
    """A process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return {root, *(child.pid for child in psutil.Process(root).children(recursive=True))}
    return set()


def command_line(pid):
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def listening(pids):
    """Address, port and program of every listening socket of these processes."""
    found = {}
    for pid in sorted(pids):  # parents first: a child holds its parent's sockets until its exec
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            who = " ".join(process.cmdline())
            for link in process.net_connections("tcp"):
                if link.status == psutil.CONN_LISTEN:
                    address = ipaddress.ip_address(link.laddr.ip)
                    found.setdefault((getattr(address, "ipv4_mapped", None) or address, link.laddr.port), who)
    return {(*place, who) for place, who in found.items()}


def without_a_token(address, port):
    """What a listening socket says to whom it does not know: services that refuse him, and those that answer.

    Raises ConnectionError: nobody listens there any more.
    """
    host = "127.0.0.1" if address.is_unspecified else str(address)
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/api/jobs/", timeout=5) as answer:
            figures = answer.read(6) == b"# HELP"
            return ({FIGURES}, set()) if figures else (set(), {f"HTTP {answer.status}"})
    except urllib.error.HTTPError as error:
        return ({HTTP}, set()) if error.code in (401, 403) else (set(), {f"HTTP {error.code}"})
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError):
            raise ConnectionError from error
    except (OSError, http.client.HTTPException):
        pass  # something else listens
    refused, answered = set(), set()
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for service, method in GRPC.items():
            try:
                channel.unary_unary(f"/ray.rpc.{service}/{method}")(b"", timeout=5)
                answered.add(service)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    refused.add(service)
                elif error.code() is grpc.StatusCode.UNAVAILABLE:
                    break  # no gRPC
    return refused, answered


def test_a_run_shows_no_secret_and_listens_on_loopback():
    """Ray's own services bind wider, and refuse who has no token."""
    with tempfile.TemporaryDirectory(prefix="fs", dir="/tmp") as folder:
        run, ray = Path(folder) / "run", Path(folder) / "ray"
        ray.mkdir()
        command, environment = run_command(run, *SHORT, env={**SECRETS, "RAY_TMPDIR": str(ray)})
        seen, wide, asked, strangers = set(), set(), set(), set()
        refused, answered, silent = set(), set(), Counter()
        with (Path(folder) / "said").open("wb") as said, contextlib.ExitStack() as stack:
            driver = subprocess.Popen(command, env=environment, stdout=said, stderr=said, cwd=ROOT)
            stack.callback(driver.kill)
            ends = time.monotonic() + RUN_LIMIT_S
            while driver.poll() is None:
                assert time.monotonic() < ends, "the run did not end"
                pids = processes(driver.pid)
                seen |= {command_line(pid) for pid in pids}
                for address, port, who in listening(pids):
                    if address.is_loopback and "dashboard" not in who:
                        continue
                    if not address.is_loopback and not _rays_own(who):
                        wide.add(who)
                    if (address, port) in asked:
                        continue
                    with contextlib.suppress(ConnectionError):
                        refuses, answers = without_a_token(address, port)
                        refused, answered = refused | refuses, answered | answers
                        # A process that is at its end, or busy, says neither: it is asked again while it listens.
                        silent[address, port] += 1
                        if refuses | answers or silent[address, port] == LOOKS:
                            asked.add((address, port))
                            strangers |= set() if refuses | answers else {who}
                time.sleep(1)
        text = (Path(folder) / "said").read_text()
        assert driver.returncode == 0, text[-4000:]
        assert len(seen) > 5, "processes of the run were looked at"
        assert not [line for line in seen if any(secret in line for secret in SECRET)]
        assert len(wide) <= 1, f"of the driver, Ray's core worker alone: {wide}"
        assert all("jobs/run.py" in who for who in wide), f"what is not Ray's listens on loopback: {wide}"
        assert (refused, answered) == ({*GRPC, HTTP, FIGURES}, set())
        assert not [who for who in strangers if not who.startswith(PROCESS_GROUP)], strangers
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
        assert sorted(address.is_loopback for address, _, _ in listening({process.pid})) == [False, True]
        process.kill()
