"""The doctor on clusters that are ill: nodes of one machine, each with a fault of its own, planted for real."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT
from servers import free_port

from finepseudo import rehearsal
from finepseudo.doctor.judge import faults
from finepseudo.errors import ClusterError, NotReadyError
from finepseudo.recipe import Data
from finepseudo.recipes import find
from finepseudo.runtime import cluster, doctor
from finepseudo.storage.store import Store

ray = cluster.ray
BIN = Path(sys.executable).parent
SMOKE = find("rehearsal_smoke")
START_S = 600  # for all nodes to come up: this machine is all of them, and may be busy
AHEAD_S = 3600
API = "http://127.0.0.1:8265"
LATE = """
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <time.h>
// Workers get another time of day; the raylet keeps its own.
extern "C" int clock_gettime(clockid_t id, struct timespec* now) {
  static auto real = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(id, now);
  if (!failed && id == CLOCK_REALTIME && !strstr(program_invocation_short_name, "raylet")) now->tv_sec += AHEAD;
  return failed;
}
"""


@pytest.fixture(scope="module", autouse=True)
def patient():
    """This machine is all of the nodes at once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in (
            ("CLOCK_S", 120.0),
            ("LOOK_S", 240.0),
            ("STORE_S", 60.0),
            ("GROUP_S", 90.0),
            ("START_S", 60.0),
        ):
            patch.setattr(doctor, name, seconds)
        yield


class Nodes:
    """Raylets of this machine, each with an environment and a name of its own."""

    def __init__(self, folder):
        self.session = f"/tmp/fpd-{os.getpid()}"  # short: sockets lie below it
        self.address, self.folder = f"127.0.0.1:{free_port()}", folder
        self.commands, self.started = [], []

    def start(self, name, *options, before=(), **env):
        here = {**os.environ, "RAY_TMPDIR": self.session, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **env}
        command = [*before, BIN / "ray", "start", "--block", f"--node-name={name}", "--num-cpus=8", *options]
        size = "--object-store-memory=80000000"
        self.commands.append((name, [*command, size], here))
        self.started.append(self.call(*self.commands[-1]))

    def call(self, name, command, env):
        with open(self.folder / f"{name}.log", "w") as log:
            return subprocess.Popen(command, env=env, cwd=self.folder, stdout=log, stderr=log)

    def head(self, **env):
        port = self.address.rpartition(":")[2]
        ports = [f"--port={port}", f"--temp-dir={self.session}", "--include-dashboard=false"]
        self.start("head", "--head", "--node-ip-address=127.0.0.1", *ports, **env)

    def join(self, name, before=(), **env):
        self.start(name, f"--address={self.address}", "--node-ip-address=127.0.0.1", before=before, **env)

    def wait(self, count):
        """Until so many nodes are alive."""
        host, port = self.address.split(":")
        ends, alive = time.monotonic() + START_S, 0
        while alive < count:
            assert time.monotonic() < ends, [path.read_text()[-2000:] for path in self.folder.glob("*.log")]
            for number, process in enumerate(self.started):
                if process.poll() is not None:  # a node gives up when it is not up after 30 s, on a busy machine too
                    self.started[number] = self.call(*self.commands[number])
            time.sleep(1)
            with contextlib.suppress(OSError, RuntimeError):
                socket.create_connection((host, int(port)), timeout=5).close()  # Ray would try for long
                ray.init(address=self.address, log_to_driver=False, ignore_reinit_error=True, logging_level="ERROR")
                alive = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()

    def end(self):
        for process in self.started:
            process.kill()
        for process in psutil.process_iter(["cmdline"]):
            if any(self.session in part for part in process.info["cmdline"] or []):
                process.kill()
        for process in self.started:
            process.wait()
        shutil.rmtree(self.session, ignore_errors=True)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder, and a data set with one video in it."""
    folder = tmp_path_factory.mktemp("doctor")
    data = folder / "data"
    (data / "videos").mkdir(parents=True)
    (data / "videos/a.mp4").write_bytes(rehearsal.encode_mp4(np.zeros((20, 48, 48, 3), np.uint8), 25))
    (data / "labels.csv").write_text("file,label\nvideos/a.mp4,twist\nvideos/b.mp4,turn\n")
    return folder


@pytest.fixture(scope="module")
def recipe(ground):
    """Two training workers, which need a group; one video."""
    data = Data(root=str(ground / "data"), train="labels.csv", test="", vocab="")
    scale = replace(SMOKE.scale, train_workers=2, resources_deadline_s=1.0)
    return replace(SMOKE, data=data, scale=scale, optimiser=replace(SMOKE.optimiser, blocks_per_step=2))


@pytest.fixture(scope="module")
def nodes(ground):
    found = Nodes(ground)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ground)  # where there is no finepseudo that workers would find beside their own
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_ADDRESS", found.address)
        found.head()
        yield found
    found.end()


def said(findings, check):
    return [one.said for one in findings if one.check == check and one.level != "ok"]


@pytest.fixture(scope="module")
def healthy(nodes, recipe, ground):
    nodes.wait(1)
    before = signal.getsignal(signal.SIGTERM)
    roomy = replace(recipe, scale=replace(recipe.scale, train_cpus=0.1))
    findings = doctor.examine(roomy, Store(str(ground / "runs/a")), Store(str(ground / "runs/a")))
    assert signal.getsignal(signal.SIGTERM) == before, "Ray's answer to SIGTERM took the place of the job's"
    return findings


@pytest.fixture(scope="module")
def ill(healthy, nodes, recipe, ground):
    """What is found where every other node has faults of its own."""
    stale = ground / "stale"
    shutil.copytree(ROOT / "finepseudo", stale / "finepseudo", ignore=shutil.ignore_patterns("__pycache__"))
    with open(stale / "finepseudo/sizes.py", "a") as file:
        file.write("# an older release\n")
    (library,) = (stale / "finepseudo/align/kernels").glob("_cpu*.so")
    library.write_bytes(bytes(64) + library.read_bytes()[64:])  # of these sources, as it says, and no library
    nodes.join("stale", PYTHONPATH=str(stale))

    small = Path(nodes.session) / "small"
    small.mkdir()
    hidden = f"mount -t tmpfs none {ground}/data && mount -t tmpfs none {ground}/runs"
    script = f'{hidden} && mount -t tmpfs -o size=64m none {small} && exec "$@"'
    nodes.join("blind", ["unshare", "--mount", "sh", "-c", script, "sh"], TMPDIR=str(small))

    (ground / "late.cpp").write_text(LATE.replace("AHEAD", str(AHEAD_S)))
    library = ground / "late.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, ground / "late.cpp", "-ldl"], check=True)
    nodes.join("late", LD_PRELOAD=str(library), GLOO_SOCKET_IFNAME="nowhere0")
    nodes.wait(4)
    doctor.GROUP_S = 20.0  # two of three wait for the third as long as this
    asking = replace(recipe, scale=replace(recipe.scale, score_resource="score"))
    return doctor.examine(asking, Store(str(ground / "runs/a")), Store(str(ground / "runs/a")))


hidden = pytest.mark.skipif(os.geteuid() != 0, reason="may not hide folders from a node here")


@pytest.mark.long
def test_nothing_is_said_against_a_healthy_cluster(healthy, ground):
    assert not faults(healthy), healthy
    fine = {one.check: one.said for one in healthy}
    assert fine["data"] == f"{ground}/data is seen from every node"
    assert fine["group"] == "gloo between head"
    assert fine["kernel"] == "compiled, of these sources, loads"
    assert os.listdir(ground / "runs/a") == []


@hidden
@pytest.mark.long
def test_a_node_with_another_version(ill):
    (line,) = said(ill, "versions")
    assert re.match(r"stale: finepseudo in .*/stale/finepseudo has other sources \(\w+, the driver's are \w+\)", line)


@hidden
@pytest.mark.long
def test_a_node_whose_kernel_is_broken(ill):
    (line,) = said(ill, "kernel")
    assert line.startswith("stale: ")


@hidden
@pytest.mark.long
def test_a_node_that_does_not_see_the_data(ill, ground):
    line = f"blind: {ground}/data: not there: labels.csv, videos/a.mp4; mount it there, or put the data on s3://"
    assert said(ill, "data") == [line]
    assert any(text.startswith("blind: ") for text in said(ill, "decoding"))


@hidden
@pytest.mark.long
def test_a_node_with_a_run_directory_of_its_own(ill, ground):
    (line,) = said(ill, "run")
    assert line.startswith(f"blind: {ground}/runs/a is another folder there than for the driver")


@hidden
@pytest.mark.long
def test_a_node_with_a_small_disk(ill, nodes):
    full, cache = said(ill, "disk")
    assert full.startswith(f"blind: {nodes.session}/small: 0.1 GiB free")
    assert cache.startswith(f"blind: {nodes.session}/small/finepseudo-cache-")


@hidden
@pytest.mark.long
def test_a_node_whose_clock_is_wrong(ill):
    (line,) = said(ill, "clock")
    ahead = float(re.match(r"late: its clock is ([\d.]+) s ahead of the driver's", line)[1])
    assert ahead == pytest.approx(AHEAD_S, abs=60)


@hidden
@pytest.mark.long
def test_a_node_whose_training_worker_reaches_nobody(ill):
    lines = said(ill, "group")
    assert any(line.startswith("late: no gloo group with the other training nodes") for line in lines), lines


@hidden
@pytest.mark.long
def test_a_worker_that_fits_no_node(ill):
    (line,) = said(ill, "room")
    assert "no node has 1 CPU, 1 score for a scoring worker, of which there are 1" in line


def call(*options, **env):
    """The job itself; no cluster is started where it cannot be."""
    return subprocess.run(
        [sys.executable, ROOT / "jobs/doctor.py", "rehearsal_smoke", *options],
        env={**os.environ, **env}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_address_of_ray_job_is_a_line_and_exit_code_1(tmp_path):
    done = call("--run", str(tmp_path / "run"), RAY_ADDRESS=API)
    assert done.returncode == 1, done.stderr
    assert f"FAULT  cluster   RAY_ADDRESS={API} is where `ray job` finds a cluster" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 fault, ")
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_store_that_does_not_answer_is_a_line_within_the_deadlines():
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "a-secret-key"}
    done = call("--run", "s3://bucket/run", RAY_ADDRESS=API, AWS_ENDPOINT_URL="http://127.0.0.1:9", **keys)
    assert done.returncode == 1, done.stderr
    (line,) = [
        line for line in done.stdout.splitlines() if line.startswith("FAULT  run       driver: s3://bucket/run/")
    ]
    assert "cannot be written, tried again for " in line
    assert "Could not connect" in line
    assert "a-secret-key" not in done.stdout + done.stderr


def test_a_temporary_folder_whose_sockets_would_be_too_long(tmp_path, monkeypatch):
    folder = tmp_path / ("x" * (60 - len(str(tmp_path)))) if len(str(tmp_path)) < 58 else tmp_path
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(NotReadyError, match="too long by .*; set RAY_TMPDIR to a shorter one"),
        cluster.connected(SMOKE),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder of another user wants root to make one")
def test_a_folder_of_rays_that_belongs_to_another_user():
    code = "import os; from finepseudo.runtime import cluster; os.setuid(65534); cluster._check_folder()"
    with tempfile.TemporaryDirectory(prefix="fp", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        os.mkdir(f"{folder}/ray", 0o755)
        env = {**os.environ, "RAY_TMPDIR": folder}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"finepseudo.errors.NotReadyError: {folder}/ray, where Ray keeps its sessions, belongs to")
    assert said.endswith("set RAY_TMPDIR to a folder of your own")


def test_an_address_where_nobody_listens_is_told_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(ClusterError, match="no Ray cluster answers at RAY_ADDRESS=127"), cluster.connected(SMOKE):
        pass
    assert time.monotonic() - began < 10
