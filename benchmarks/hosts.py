"""Several hosts on one machine: each has an address, processes, /tmp and /dev/shm of its own, on a link that counts."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
WITHIN_S = 90  # for Ray to start on a host


def why_not() -> str:
    """What this machine lacks for it, or nothing."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("nsenter"):
        return "network namespaces want root, ip (iproute2) and nsenter (util-linux)"
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def _do(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, text=True, timeout=30)


def environment(**more: str) -> dict[str, str]:
    """Of all processes of a Ray cluster of hosts: nothing of another cluster's, and a fresh token."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",
        **more,
    }


@dataclass
class Host:
    """A machine of the network."""

    name: str  # of its network namespace
    address: str
    link: str  # the bridge's end of its cable
    holder: subprocess.Popen[bytes]  # keeps its mounts

    def command(self, *words: str) -> list[str]:
        """What runs `words` on this host."""
        return ["nsenter", "-t", str(self.holder.pid), "-n", "-m", "--", *words]

    def received(self) -> int:
        """Bytes that came to this host over its link so far."""
        return int(Path(f"/sys/class/net/{self.link}/statistics/tx_bytes").read_text())

    def processes(self) -> list[psutil.Process]:
        """All that run on this host."""
        found = list[psutil.Process]()
        for pid in subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def plug(self, *, into: bool) -> None:
        """Its cable goes into the network, or out of it."""
        _do(f"ip link set {self.link} {'up' if into else 'down'}")

    def die(self) -> None:
        """As if its power were cut: no process ends well, and nobody is told."""
        self.plug(into=False)
        for process in self.processes():
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        self.holder.wait(30)


@dataclass
class Network:
    """Hosts on a bridge, which this process reaches at `address`."""

    folder: Path  # of their temporary files
    rate: str  # of each link, as tc takes it
    number: int = field(default_factory=lambda: os.getpid() % 200 + 20)
    hosts: list[Host] = field(default_factory=list)  # the first is the head
    added: int = 0

    @property
    def bridge(self) -> str:
        return f"fp{self.number}"

    @property
    def address(self) -> str:
        return f"10.77.{self.number}.254"

    def __enter__(self) -> Network:
        _do(f"ip link add {self.bridge} type bridge")
        _do(f"ip addr add {self.address}/24 dev {self.bridge}")
        _do(f"ip link set {self.bridge} up")
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        _do(f"ip link del {self.bridge}")

    def clear(self) -> None:
        """All hosts die."""
        for host in self.hosts:
            if host.holder.poll() is None:
                host.die()
            # The link first: with its namespace it would go some time later, and keep its name until then.
            for what in (f"link del {host.link}", f"netns del {host.name}"):
                with suppress(subprocess.CalledProcessError):
                    _do(f"ip {what}")
        self.hosts.clear()

    def add(self) -> Host:
        """One more host, without a process."""
        self.added += 1
        number = self.added
        name, link, address = f"{self.bridge}h{number}", f"{self.bridge}v{number}", f"10.77.{self.number}.{number}"
        own = self.folder / name
        own.mkdir()
        _do(f"ip netns add {name}")
        _do(f"ip link add {link} type veth peer name eth0 netns {name}")
        _do(f"ip link set {link} master {self.bridge} up")
        _do(f"ip -n {name} addr add {address}/24 dev eth0")
        _do(f"ip -n {name} link set eth0 up")
        _do(f"ip -n {name} link set lo up")
        for end in (f"tc qdisc add dev {link}", f"ip netns exec {name} tc qdisc add dev eth0"):
            _do(f"{end} root tbf rate {self.rate} burst 1mb latency 200ms")
        ready = own / "ready"
        mounts = ["mount -t tmpfs tmpfs /dev/shm"]
        for kept in {str(ROOT), sys.prefix}:
            if kept.startswith("/tmp/"):  # a checkout there is seen by every host, as one elsewhere is
                there = f"{own}/{kept.removeprefix('/tmp/')}"
                mounts.append(f"mkdir -p {there} && mount --bind {kept} {there}")
        mounts += [f"mount --rbind {own} /tmp", "touch /tmp/ready", "exec sleep infinity"]
        inside = [
            "ip",
            "netns",
            "exec",
            name,
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            " && ".join(mounts),
        ]
        holder = subprocess.Popen(inside)
        ends = time.monotonic() + 20
        while not ready.exists():
            assert holder.poll() is None, f"{name} has no mounts of its own"
            assert time.monotonic() < ends, f"{name} has no mounts of its own within 20 s"
            time.sleep(0.05)
        host = Host(name, address, link, holder)
        self.hosts.append(host)
        return host

    def start(self, ray: Path, options: Sequence[str], env: Mapping[str, str]) -> Host:
        """One more host, on which Ray runs: the head, if it is the first."""
        host = self.add()
        where = ["--head", "--port=6379", f"--dashboard-host={host.address}", "--include-dashboard=true"]
        if len(self.hosts) > 1:
            where = [f"--address={self.hosts[0].address}:6379"]
        command = host.command(
            str(ray), "start", *where, f"--node-ip-address={host.address}", "--disable-usage-stats", *options
        )
        done = subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=WITHIN_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return host
