"""Whole runs on S3 that are disturbed all the time, and must end as the one that nothing disturbs.

    python benchmarks/chaos.py --faults 100 --to chaos.jsonl        # an hour on two cores
    python benchmarks/chaos.py --to chaos.jsonl --table             # the table of what is there

Faults come at random moments (`--seed`) while a run is at work: processes are killed or stopped, the S3 server (moto,
of tests/requirements.lock) is behind a proxy that misbehaves, a second driver is started. As root on Linux, which can
give each driver a temporary folder and a /dev/shm of its own, these fill up, and packets to the store are dropped;
where gcc is there, clocks jump. A driver that ends as it should (code 75; code 1 where the store refused) is started
again by the same command. After each run: its results are those of the undisturbed one, and what its trainings took is
their plan, no row left out and none twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from faulty_s3 import Cut, Fault, FaultyS3, Reset, Slow, Status, moto

from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.recipe import Recipe
from finepseudo.recipes import find
from finepseudo.results import Results
from finepseudo.run import Run
from finepseudo.storage.store import Store, _filesystem
from finepseudo.train.checkpoint import read_history

ROOT = Path(__file__).parents[1]
STEPS = 60
OPTIONS = {
    "gitdl.frame_steps": 0, "gitdl.video_steps": 0, "align.steps": STEPS, "supervise.steps": STEPS,
    "rounds.video_steps": STEPS, "scale.checkpoint_every": 4, "scale.cache_gib": 0.0, "scale.max_failures": 8,
}  # fmt: skip
AGAIN, REFUSED = 75, 1
STARTS = 5  # one after another, after which a run is given up
TAIL = 80  # lines of a driver that ended as it should not
ENDS_S = 90.0  # for a driver to end that has to
LIMIT_S = 240.0  # for a run to be at work again
TMP_MIB, SHM_MIB = 2048, 1024  # of a driver's own
SHM = Path("/dev/shm")
WRONG_CLOCK = Path(__file__).with_name("wrong_clock.c")
AT_WORK = re.compile(r"^[\d:]+ \S+: \d+/\d+,|steps \d+ to|probing|generating")


def recipe_of_runs() -> Recipe:
    """The smoke recipe, shortened to what a driver does between two launches."""
    recipe = replace(find("rehearsal_smoke"), methods=("finepseudo",))
    for name, value in OPTIONS.items():
        section, _, item = name.partition(".")
        recipe = replace(recipe, **{section: replace(getattr(recipe, section), **{item: value})})
    return recipe


def below(pid: int, *titles: str) -> list[psutil.Process]:
    """What a process has started, and these in turn, by what they call themselves."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(title in " ".join(process.cmdline()) for title in titles):
                    found.append(process)
    return found


@dataclass
class Driver:
    """A run's driver, and when it said that it is at work."""

    command: list[str]
    environment: dict[str, str]
    lines: list[str] = field(default_factory=list[str])
    worked: float = 0.0
    process: Any = None

    def start(self) -> None:
        self.worked = 0.0
        self.process = subprocess.Popen(
            self.command, env=self.environment, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        threading.Thread(target=self._hear, args=(self.process,), daemon=True).start()

    def _hear(self, process: Any) -> None:
        for line in process.stderr:
            self.lines.append(line.rstrip())
            if AT_WORK.search(line):
                self.worked = time.monotonic()

    def works_since(self, moment: float, limit_s: float = LIMIT_S) -> bool:
        """Wait until it has said after a moment that it is at work; False where it has ended."""
        ends = time.monotonic() + limit_s
        while self.worked <= moment:
            if self.process.poll() is not None:
                return False
            if time.monotonic() > ends:
                raise TimeoutError(f"not at work for {limit_s:g} s; its last lines: {self.lines[-5:]}")
            time.sleep(0.05)
        return True

    def victims(self, *titles: str) -> list[psutil.Process]:
        """Its processes by what they call themselves."""
        return below(self.process.pid, *titles)


@dataclass(frozen=True)
class Ground:
    """What a fault may strike."""

    driver: Driver
    s3: FaultyS3
    server: Any
    clock: Path  # says by how many seconds the driver's is wrong
    disk: Path  # where the driver's temporary folder is, seen from inside


Strike = Callable[[Any], bool]  # what it strikes; False where there is none now


def killed(*titles: str, ends: bool = False) -> Strike:
    """One of the processes of these titles, without which the driver may have to end."""

    def strike(ground: Ground) -> bool:
        victims = ground.driver.victims(*titles)
        if victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victims[-1].kill()
        if victims and ends:
            ground.driver.process.wait(ENDS_S)
        return bool(victims)

    return strike


def stopped(*titles: str, seconds: float) -> Strike:
    """One of the processes is not scheduled for a while."""

    def strike(ground: Ground) -> bool:
        victims = ground.driver.victims(*titles)
        if victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victims[-1].suspend()
                time.sleep(seconds)
                victims[-1].resume()
        return bool(victims)

    return strike


def of_driver(number: signal.Signals) -> Strike:
    """A signal to the driver."""

    def strike(ground: Ground) -> bool:
        ground.driver.process.send_signal(number)
        ground.driver.process.wait(ENDS_S)
        return True

    return strike


def of_store(fault: Fault, seconds: float) -> Strike:
    """The store misbehaves for a while."""

    def strike(ground: Ground) -> bool:
        ground.s3.fault = fault
        time.sleep(seconds)
        ground.s3.fault = None
        return True

    return strike


def server_stopped(ground: Ground) -> bool:
    """Connections are taken and nobody answers."""
    ground.server.send_signal(signal.SIGSTOP)
    time.sleep(30)
    ground.server.send_signal(signal.SIGCONT)
    return True


def packets_dropped(ground: Ground) -> bool:
    """On their way to the store, without a word to anyone."""
    rule = ["INPUT", "-i", "lo", "-p", "tcp", "--dport", str(ground.s3.server.server_port), "-j", "DROP"]
    subprocess.run(["iptables", "-I", *rule], check=True)
    try:
        time.sleep(30)
    finally:
        subprocess.run(["iptables", "-D", *rule], check=True)
    return True


def full(of: Callable[[Ground], Path], seconds: float) -> Strike:
    """No byte is left on a disk of the driver's for a while."""

    def strike(ground: Ground) -> bool:
        there = Path(f"/proc/{ground.driver.process.pid}/root{of(ground)}")
        with tempfile.TemporaryFile(dir=there) as filling:
            with contextlib.suppress(OSError):
                while filling.write(bytes(1 << 20)):
                    filling.flush()
            time.sleep(seconds)
            with contextlib.suppress(OSError):
                filling.truncate(0)
        return True

    return strike


def clock_jumps(seconds: int) -> Strike:
    """That of all processes of the driver, for good: forwards, and backwards the next time."""

    def strike(ground: Ground) -> bool:
        ground.clock.write_text(f"{seconds:+d}" if ground.clock.read_text() == "+0" else "+0")
        return True

    return strike


def second_driver(ground: Ground) -> bool:
    """The same command while the first works: refused in one line."""
    done = subprocess.run(
        ground.driver.command, env=ground.driver.environment, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )
    last = done.stderr.strip().splitlines()[-1]
    if (
        done.returncode != 1
        or not last.startswith("LeaseError: ")
        or f"process {ground.driver.process.pid} " not in last
    ):
        raise AssertionError(f"a second driver ended with {done.returncode}: {last}")
    return True


FAULTS: dict[str, Strike] = {
    "training worker killed": killed("ray::RayTrainWorker"),
    "training worker stopped for 8 s": stopped("ray::RayTrainWorker", seconds=8),
    "decoding worker killed": killed("DecodeBlocks", "ray::MapWorker"),
    "decoder's child killed": killed("finepseudo.data.child"),
    "scoring worker killed": killed("_Scorer"),
    "driver killed": of_driver(signal.SIGKILL),
    "driver asked to end (SIGTERM)": of_driver(signal.SIGTERM),
    "raylet killed": killed("raylet/raylet", ends=True),
    "GCS killed": killed("gcs/gcs_server", ends=True),
    "second driver": second_driver,
    "S3: half of the requests 500, 10 s": of_store(Status(500, 0.5), 10),
    "S3: half of the requests 503, 10 s": of_store(Status(503, 0.5), 10),
    "S3: half of the connections reset, 10 s": of_store(Reset(0.5), 10),
    "S3: a third reset after the work, 10 s": of_store(Reset(0.33, after=True), 10),
    "S3: half of the bodies cut, 10 s": of_store(Cut(0.5), 10),
    "S3: a second slower, 10 s": of_store(Slow(1.0), 10),
    "S3: nobody answers for 30 s": server_stopped,
    "S3: every connection reset for 20 s": of_store(Reset(), 20),
    "S3: 403 for 3 s": of_store(Status(403), 3),
}
OF_ROOT: dict[str, Strike] = {
    "S3: packets dropped for 30 s": packets_dropped,
    "temporary folder full for 10 s": full(lambda ground: ground.disk, 10),
    "/dev/shm full for 10 s": full(lambda _: SHM, 10),
}
OF_CLOCK: dict[str, Strike] = {"clock jumps by an hour": clock_jumps(3600)}
MAY_END = {"S3: 403 for 3 s": REFUSED}  # beside AGAIN
KILLED = -signal.SIGKILL


def possible() -> dict[str, Strike]:
    """The faults that this machine allows."""
    root = os.geteuid() == 0 and shutil.which("iptables") and shutil.which("unshare")
    return FAULTS | (OF_ROOT if root else {}) | (OF_CLOCK if shutil.which("gcc") else {})


def with_own_disks(command: list[str], disk: Path) -> list[str]:
    """The same command, whose temporary folder and /dev/shm are small and no other's."""
    mounts = " && ".join(
        f"mount -t tmpfs -o size={size}m tmpfs {folder}" for folder, size in ((disk, TMP_MIB), (SHM, SHM_MIB))
    )
    return ["unshare", "-m", "--propagation", "private", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]


def disturbed(ground: Any, faults: dict[str, Strike], chance: random.Random, budget: int) -> Iterator[dict[str, Any]]:
    """A row a fault, until the run has come to its end or so many faults have struck; then nothing disturbs it."""
    driver: Driver = ground.driver
    driver.start()
    while budget and at_work(driver, time.monotonic(), "")["code"] != 0:
        time.sleep(chance.uniform(0.5, 6.0))
        kinds = [*faults]
        chance.shuffle(kinds)
        began = time.monotonic()
        name = next((kind for kind in kinds if driver.process.poll() is None and faults[kind](ground)), "")
        if name:
            budget -= 1
            yield {"fault": name, **at_work(driver, began, name)}
    code = 0
    for number in range(STARTS):
        if number:
            driver.start()
        if (code := driver.process.wait(timeout=900)) == 0:
            return
    raise AssertionError(f"ended {STARTS} times, the last time with {code}: {driver.lines[-TAIL:]}")


def at_work(driver: Driver, since: float, name: str) -> dict[str, Any]:
    """Wait until a run is at work after a moment, started again where the driver has ended; with what it ended."""
    again, wrong, tail = 0, 0, list[str]()
    while not driver.works_since(since) and (code := driver.process.poll()) != 0:
        if code not in (AGAIN, KILLED, MAY_END.get(name, AGAIN)):
            wrong, tail = code, driver.lines[-TAIL:]
        again += 1
        if again == STARTS:
            raise AssertionError(f"ended {again} times, the last time with {code}: {driver.lines[-TAIL:]}")
        driver.start()
    seconds = round(time.monotonic() - since, 1)
    said = {"wrong": wrong, "lines": tail} if wrong else {}
    return {"seconds": seconds, "started_again": again, "code": driver.process.poll(), **said}


def compared(run: Store, whole: Store) -> dict[str, int]:
    """Rows of the trainings that were left out or taken twice; whether all figures are the undisturbed run's."""
    lost = repeated = 0
    for name, plan in Run.at(run).plans():
        taken = [block for _, *of in read_history(run, f"train/{name}").blocks for block in range(*of)]
        lost += len(set(range(plan.blocks)) - set(taken)) * plan.block_rows
        repeated += (len(taken) - len(set(taken))) * plan.block_rows
        same = read_history(run, f"train/{name}").curve == read_history(whole, f"train/{name}").curve
        if not same:
            raise AssertionError(f"{name}: another curve of losses than the undisturbed run's")
    found, wanted = (replace(Results.from_json(where.read("results.json")), timing={}) for where in (run, whole))
    if found != wanted:
        raise AssertionError("other figures than the undisturbed run's")
    return {"lost": lost, "repeated": repeated}


def table(rows: list[dict[str, Any]]) -> str:
    """Of the faults of all runs."""
    lines = [
        "| fault | times | went on by itself | same command continued | neither | seconds until at work: median, most |"
    ]
    lines.append("|---|---|---|---|---|---|")
    struck = [row for row in rows if "fault" in row]
    for name in dict.fromkeys([*FAULTS, *(row["fault"] for row in struck)]):
        mine = [row for row in struck if row["fault"] == name]
        if mine:
            seconds = [row["seconds"] for row in mine]
            alone = sum(not row["started_again"] for row in mine)
            middle = f"{statistics.median(seconds):.0f}, {max(seconds):.0f}"
            wrong = sum("wrong" in row for row in mine)
            lines.append(f"| {name} | {len(mine)} | {alone} | {len(mine) - alone - wrong} | {wrong} | {middle} |")
    ends = [row for row in rows if "lost" in row]
    lost, repeated = (sum(row[kind] for row in ends) for kind in ("lost", "repeated"))
    lines.append(f"\n{len(struck)} faults in {len(ends)} whole runs: {lost} rows lost, {repeated} repeated, all equal")
    return "\n".join(lines)


def asked(doc: str) -> argparse.Namespace:
    """What the command line says; where it asks for the table alone, that is printed, and all ends."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--each", type=int, default=10, help="faults of one run at most")
    parser.add_argument("--only", default="", help="faults whose name has this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and stop")
    options = parser.parse_args()
    if options.table:
        print(table(noted(options.to)))
        raise SystemExit(0)
    return options


def noted(to: Path) -> list[dict[str, Any]]:
    """Faults and ends of runs so far."""
    return [json.loads(line) for line in to.read_text().splitlines()] if to.exists() else []


def repeatedly(
    options: argparse.Namespace, faults: dict[str, Strike], begun: Callable[[str], Any], whole: Store
) -> None:
    """Run after run until so many faults have struck; a line of the file is a fault, or a run's end.

    Args:
        begun: the ground with the driver of a run in a directory.
    """
    rows = noted(options.to)
    faults = {name: strike for name, strike in faults.items() if options.only in name}
    chance = random.Random(options.seed + len(rows))

    def note(row: dict[str, Any]) -> None:
        rows.append(row)
        print(row, flush=True)
        options.to.write_text("".join(json.dumps(one) + "\n" for one in rows))

    while left := max(0, options.faults - sum("fault" in row for row in rows)):
        run = Store(f"s3://chaos/run-{time.time_ns()}")
        for row in disturbed(begun(run.root), faults, chance, min(options.each, left)):
            note(row)
        note(compared(run, whole))
    print(table(rows))


def of_s3(url: str) -> dict[str, str]:
    """Environment that reaches the server, for this process too; with a bucket there."""
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}
    environment |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": url}
    os.environ.update(environment)
    _filesystem("s3", os.getpid()).mkdir("chaos")
    return environment


def command_of(run: str, *more: str) -> list[str]:
    """Of the job, as its user gives it."""
    told = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    job = [sys.executable, str(ROOT / "jobs/run.py"), "rehearsal_smoke"]
    return [*job, "--run", run, *told, "--methods", "finepseudo", *more]


def main() -> None:
    """On one machine."""
    options, recipe = asked(__doc__ or ""), recipe_of_runs()
    with tempfile.TemporaryDirectory() as folder, moto() as (server, url), FaultyS3(url) as s3:
        whole, clock, disk = Store(f"{folder}/whole"), Path(folder, "clock"), Path(folder, "t")
        ensure_results(run_rounds(recipe, whole, InProcess(recipe)))
        environment = of_s3(s3.url)
        faults, of_driver = possible(), dict[str, str]()
        if OF_ROOT.keys() <= faults.keys():
            disk.mkdir()
            of_driver |= {"TMPDIR": str(disk), "RAY_TMPDIR": str(disk)}
        if OF_CLOCK.keys() <= faults.keys():
            built = f"{folder}/wrong_clock.so"
            subprocess.run(["gcc", "-shared", "-fPIC", "-O2", WRONG_CLOCK, "-o", built], check=True)
            of_driver |= {"LD_PRELOAD": built, "WRONG_CLOCK": str(clock)}

        def begun(run: str) -> Ground:
            clock.write_text("+0")
            command = with_own_disks(command_of(run), disk) if disk.exists() else command_of(run)
            return Ground(Driver(command, environment | of_driver), s3, server, clock, disk)

        repeatedly(options, faults, begun, whole)


if __name__ == "__main__":
    main()
