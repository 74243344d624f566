"""What a process finds out about the machine that it runs on: a line of JSON on standard output for each look.

It travels as text and is run by each node's own Python, so that a node with another finepseudo, or without one, answers
as well; nothing of finepseudo is imported before the look that needs it. Looks run side by side, each with the same
deadline; one that hangs or kills the process takes no answer of another with it.

    {"deadline_s": 20, "looks": {"machine": {...}, "kernel": {}}}  ->  {"look": "kernel", "found": {...}} or "fault"
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "deepspeed", "finepseudo")
SECRET = re.compile("SECRET|TOKEN|PASSWORD|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
CGROUPS = (  # of either version: folder, limit, what is used, and which part of that is of files and given back
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def clean(text: str) -> str:
    """One line without the credentials that this process knows of, or that stand in an address."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8 and not os.path.exists(value):
            text = text.replace(value, "***")
    return re.sub(r"://[^/@\s]+@", "://***@", " ".join(text.split()))[:300]


def machine(asked: dict[str, Any]) -> dict[str, Any]:
    """Versions, sources, memory, disks. The folder of `cache` may be one below the temporary folder of this machine."""
    found: dict[str, Any] = {"python": platform.python_version(), "folder": "", "sources": ""}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    spec = importlib.util.find_spec("finepseudo")
    if spec is not None and spec.submodule_search_locations:
        found["folder"] = next(iter(spec.submodule_search_locations))
        found["sources"] = sources(Path(found["folder"]))
    temporary = tempfile.gettempdir()
    cache = os.path.join(temporary, asked["cache"])
    folders = {"temporary": temporary, "session": asked["session"], "cache": cache}
    found["disks"] = {name: _disk(folder) for name, folder in folders.items() if folder}
    found["cached_bytes"] = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    found["shm_bytes"] = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0  # noqa: S108
    found["memory"] = _memory()
    return found


def sources(folder: Path) -> str:
    """Digest of the package's sources: nodes whose version is the same may still have other code."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".cpp", ".h", ".json", ".jinja", ".css", ".js"):
            digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _disk(folder: str) -> dict[str, Any]:
    """Of the file system where a folder is, or would be made."""
    here = Path(folder)
    while not here.exists():
        here = here.parent
    usage = shutil.disk_usage(here)
    return {"folder": folder, "free": usage.free, "total": usage.total}


def _memory() -> dict[str, int]:
    """What this container or machine may have in all, and what of it is not in use."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total, free = kib["MemTotal"] << 10, kib["MemAvailable"] << 10
    for folder, limit, used, cached in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such version of cgroups, or `max`: no limit
            most, taken = (int(Path(folder, name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
            total, free = min(total, most), min(free, most - taken + int(stat.get(cached, 0)))
    return {"total": total, "free": max(0, free)}


def kernel(asked: dict[str, Any]) -> dict[str, Any]:
    """Whether the compiled kernel of alignment is there, is that of these sources, and loads."""
    from finepseudo.align.kernels import cpu

    missing = cpu.missing()
    return {"missing": missing, "runs": "" if missing else cpu.describe()}


def clip(asked: dict[str, Any]) -> dict[str, Any]:
    """Open one video, in a process of its own as a run does, and decode its first frame."""
    from finepseudo.data.child import Child

    child = Child(asked["deadline_s"])
    try:
        found = child.probe(asked["uri"], quick=True)
        if "error" in found:
            raise RuntimeError(f"{asked['uri']}: {found['error']}")
        child.frames(asked["uri"], {**found, "file_frames": found["num_frames"]}, [0], 48, 48)
    finally:
        child.close()
    return {"frames": found["num_frames"]}


def run(asked: dict[str, Any]) -> dict[str, Any]:
    """Whether the run directory that the driver sees is seen here, and does what is asked of it."""
    from finepseudo.storage.check import check_store
    from finepseudo.storage.store import Store

    store, folder = Store(asked["root"]), asked["folder"]
    exclusive = check_store(store, f"{folder}/of-{asked['node']}")
    name = f"{folder}/said"
    said = store.read(name).decode() if store.exists(name) else ""
    return {"root": asked["root"], "exclusive": exclusive, "same": said == asked["said"]}


def data(asked: dict[str, Any]) -> dict[str, Any]:
    """Which of some files of the data are not there."""
    from finepseudo.storage.store import Store

    store = Store(asked["root"])
    return {"root": asked["root"], "absent": [name for name in asked["names"] if not store.exists(name)]}


def gpu(asked: dict[str, Any]) -> dict[str, Any]:
    """What torch sees of the GPU that Ray gave to this process."""
    import torch

    return {"count": torch.cuda.device_count(), "cuda": torch.version.cuda or ""}


def group(asked: dict[str, Any]) -> dict[str, Any]:
    """A process group with other nodes, as training workers make one: each gives 1, and all must get their number."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        asked["backend"],
        init_method=f"tcp://{asked['address']}:{asked['port']}",
        rank=asked["rank"],
        world_size=asked["world"],
        timeout=timedelta(seconds=asked["timeout_s"]),
    )
    total = torch.ones(1, device="cuda" if asked["backend"] == "nccl" else "cpu")
    dist.all_reduce(total)
    return {"sum": float(total.item()), "world": asked["world"]}


LOOKS = {"machine": machine, "kernel": kernel, "clip": clip, "run": run, "data": data, "gpu": gpu, "group": group}


def main() -> None:
    """Do what standard input asks for."""
    request, said = json.loads(sys.stdin.read()), threading.Lock()

    def look(name: str, asked: dict[str, Any]) -> None:
        try:
            answer = {"look": name, "found": LOOKS[name](asked)}
        except BaseException as error:  # noqa: BLE001  whatever it is, it is the answer
            answer = {"look": name, "fault": clean(str(error) or type(error).__name__)}
        with said:
            os.write(answers, json.dumps(answer).encode() + b"\n")

    # What libraries print is no answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    ends = time.monotonic() + request["deadline_s"]
    # Daemons: one that hangs must not keep the process.
    threads = [threading.Thread(target=look, args=item, daemon=True) for item in request["looks"].items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    with said:
        os._exit(0)


if __name__ == "__main__":
    main()
