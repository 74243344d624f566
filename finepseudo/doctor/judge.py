"""What follows from what was found: a line for each check, pure, so that every fault can be shown to be found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from finepseudo.recipe import Recipe

Level = Literal["ok", "warn", "FAULT"]
Problem = tuple[Level, str]

GIB = 1 << 30
SHOWN = 4  # nodes that a line names
VERSIONS = ("python", "torch", "ray", "deepspeed", "finepseudo")
SKEW_WARN_S, SKEW_FAULT_S = 2.0, 300.0  # S3 refuses what is signed 15 minutes off
FREE_BYTES = 1 * GIB  # of a temporary folder, beside the cache
FULLEST = 0.95  # share of a disk from which Ray refuses to create objects
BETWEEN = ("room", "clock", "gpu", "group")  # checks of nothing that the driver has by itself
MEMORY_BYTES = 2 * GIB  # that a node should have free: each worker has torch in it


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    check: str
    level: Level
    said: str


@dataclass(frozen=True)
class Place:
    """What was found on a node, or by the driver: by look (probe.py) what it answered, or why it did not."""

    name: str
    found: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    faults: dict[str, str] = field(default_factory=dict[str, str])
    resources: dict[str, float] = field(default_factory=dict[str, float])
    skew: tuple[float, float] | None = None  # seconds that its clock is ahead of the driver's, give or take so many


@dataclass(frozen=True)
class Facts:
    """All that was looked at."""

    driver: Place
    nodes: Sequence[Place] = ()
    address: str = ""  # why there is no cluster to look at
    room: str = ""  # what has no room on it
    sample: str = ""  # why no file of the data could be named
    backend: str = ""  # of the process group that was tried; empty: none is needed

    @property
    def places(self) -> list[Place]:
        return [self.driver, *self.nodes]


def judge(recipe: Recipe, facts: Facts) -> list[Finding]:
    """Every check in its order; a check without a problem says what it found."""
    checks = {
        "cluster": (_cluster(facts), _size(facts)),
        "room": (_room(facts), "every worker of the run has a place"),
        "versions": (_versions(facts), _own_versions(facts.driver)),
        "kernel": (_kernel(facts), "compiled, of these sources, loads"),
        "run": (_run(facts), "written, read, listed, created once, deleted; the same from every node"),
        "data": (_data(facts), _data_seen(facts)),
        "decoding": (_failed(facts, "clip"), "a clip was decoded on every node"),
        "disk": (_disk(recipe, facts), _least_disk(facts)),
        "memory": (_memory(facts), _least_memory(facts)),
        "clock": (_clock(facts), _worst_clock(facts)),
        "gpu": (_gpu(facts), "torch sees the GPUs that Ray gives" if _any(facts, "gpu") else "none asked for"),
        "group": (_group(facts), _group_seen(facts)),
    }
    findings = list[Finding]()
    for name, (problems, fine) in checks.items():
        found = [Finding(name, level, said) for level, said in problems]
        looked = facts.nodes or name not in BETWEEN
        findings += found or ([Finding(name, "ok", fine)] if looked else [])
    return findings


def lines(findings: Sequence[Finding]) -> list[str]:
    """For people: aligned, the level first."""
    return [f"{one.level:<6} {one.check:<9} {one.said}" for one in findings]


def faults(findings: Sequence[Finding]) -> int:
    return sum(one.level == "FAULT" for one in findings)


def summary(findings: Sequence[Finding], seconds: float) -> str:
    """The last line."""
    count, warned = faults(findings), sum(one.level == "warn" for one in findings)
    if not count:
        also = f", {_many(warned, 'warning')}" if warned else ""
        return f"nothing stands against a start{also} ({seconds:.0f} s)"
    return f"{_many(count, 'fault')}, {_many(warned, 'warning')}: mend the faults before a start ({seconds:.0f} s)"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _together(level: Level, pairs: Iterable[tuple[str, str]]) -> Iterator[Problem]:
    """What several places say in the same words is one line."""
    for text, names in _gathered(pairs).items():
        yield level, f"{_named(names)}: {text}"


def _gathered(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    said = dict[str, list[str]]()
    for name, text in pairs:
        said.setdefault(text, []).append(name)
    return said


def _failed(facts: Facts, look: str) -> Iterator[Problem]:
    """Places where a look had no answer."""
    failed = ((place.name, place.faults[look]) for place in facts.places if look in place.faults)
    yield from _together("FAULT", failed)


def _any(facts: Facts, look: str) -> bool:
    return any(look in place.found or look in place.faults for place in facts.places)


def _cluster(facts: Facts) -> Iterator[Problem]:
    if facts.address:
        yield "FAULT", facts.address
    # A node that says nothing of itself is one that nothing can be started on.
    yield from _failed(facts, "machine")


def _size(facts: Facts) -> str:
    total = {key: sum(node.resources.get(key, 0.0) for node in facts.nodes) for key in ("CPU", "GPU")}
    return f"{_many(len(facts.nodes), 'node')}, {total['CPU']:g} CPU, {total['GPU']:g} GPU"


def _room(facts: Facts) -> Iterator[Problem]:
    if facts.room:
        yield "FAULT", facts.room


def _own_versions(driver: Place) -> str:
    machine = driver.found.get("machine", {})
    told = ", ".join(f"{name} {machine.get(name, 'absent')}" for name in VERSIONS)
    return f"{told} (sources {machine.get('sources', 'unknown')})"


def _versions(facts: Facts) -> Iterator[Problem]:
    """The driver's are what is expected: it sends its objects to the nodes."""
    expected = facts.driver.found.get("machine", {})

    def differing() -> Iterator[tuple[str, str]]:
        for node in facts.nodes:
            there = node.found.get("machine")
            if there is None:
                continue
            for name in VERSIONS:
                if there.get(name) != expected.get(name):
                    got = there.get(name, "none")
                    yield node.name, f"{name} {got}, the driver has {expected.get(name, 'none')}; install the same"
            if there["sources"] != expected.get("sources"):
                where = there["folder"] or "no folder"
                yield (
                    node.name,
                    f"finepseudo in {where} has other sources ({there['sources'] or 'none'}, the driver's are "
                    f"{expected.get('sources')}); install the same, or submit with --working-dir",
                )

    yield from _together("FAULT", differing())


def _kernel(facts: Facts) -> Iterator[Problem]:
    yield from _failed(facts, "kernel")
    ours = facts.driver.found.get("kernel", {}).get("missing", "")
    lacking = [
        (place.name, place.found["kernel"]["missing"])
        for place in facts.places
        if place.found.get("kernel", {}).get("missing")
    ]
    # Missing everywhere it costs time; on some nodes alone it is an installation that went wrong.
    yield from _together("warn" if ours else "FAULT", lacking)


def _run(facts: Facts) -> Iterator[Problem]:
    yield from _failed(facts, "run")
    apart = [(node.name, node.found["run"]["root"]) for node in facts.nodes if not _same(node)]
    for root, names in _gathered(apart).items():
        yield (
            "FAULT",
            f"{_named(names)}: {root} is another folder there than for the driver; a run directory must be on a file "
            "system that all nodes share, or s3://",
        )
    if any(place.found.get("run", {}).get("exclusive") is False for place in facts.places):
        yield "warn", "the store overwrites what should be created only once; never start two runs in one run directory"


def _same(place: Place) -> bool:
    return place.found.get("run", {}).get("same", True)


def _data(facts: Facts) -> Iterator[Problem]:
    if facts.sample:
        yield "FAULT", facts.sample
    yield from _failed(facts, "data")

    def absent() -> Iterator[tuple[str, str]]:
        for place in facts.places:
            found = place.found.get("data", {})
            if found.get("absent"):
                yield place.name, f"{found['root']}: not there: {_named(found['absent'])}"

    for text, names in _gathered(absent()).items():
        everyone = len(names) == len(facts.places)
        todo = "set --data.root" if everyone else "mount it there, or put the data on s3://"
        yield "FAULT", f"{_named(names)}: {text}; {todo}"


def _data_seen(facts: Facts) -> str:
    found = facts.driver.found.get("data")
    return f"{found['root']} is seen from every node" if found else "not generated yet: the run makes it"


def _disk(recipe: Recipe, facts: Facts) -> Iterator[Problem]:
    def short() -> Iterator[tuple[str, str]]:
        for place in facts.places:
            if (machine := place.found.get("machine")) is None:
                continue
            free = machine["disks"]["temporary"]
            if free["free"] < FREE_BYTES:
                yield (
                    place.name,
                    f"{free['folder']}: {_gib(free['free'])} free; free some, or set TMPDIR to a larger disk",
                )
            session = machine["disks"].get("session")
            if session and session["free"] < (1 - FULLEST) * session["total"]:
                yield (
                    place.name,
                    f"{session['folder']}: more than {FULLEST:.0%} full, from where Ray refuses to work; free some, or "
                    "start Ray with --temp-dir on a larger disk",
                )

    def small_cache() -> Iterator[tuple[str, str]]:
        for place in facts.nodes:
            if (machine := place.found.get("machine")) is None:
                continue
            cache = machine["disks"]["cache"]
            room = cache["free"] + machine["cached_bytes"]
            if room < recipe.scale.cache_gib * GIB:
                yield (
                    place.name,
                    f"{cache['folder']}: {_gib(room)} for the cache of decoded clips, scale.cache-gib is "
                    f"{recipe.scale.cache_gib:g}; lower it, or set scale.cache-dir to a larger disk",
                )

    yield from _together("FAULT", short())
    yield from _together("warn", small_cache())


def _least_disk(facts: Facts) -> str:
    free = [disk["free"] for place in facts.places for disk in place.found.get("machine", {}).get("disks", {}).values()]
    return f"at least {_gib(min(free))} free in temporary folder, cache and Ray's session" if free else "unknown"


def _memory(facts: Facts) -> Iterator[Problem]:
    def short() -> Iterator[tuple[str, str]]:
        for place in facts.nodes:
            if (machine := place.found.get("machine")) is None:
                continue
            memory, store = machine["memory"], place.resources.get("object_store_memory", 0.0)
            if memory["free"] < MEMORY_BYTES:
                yield (
                    place.name,
                    f"{_gib(memory['free'])} of {_gib(memory['total'])} memory free (limit of the container included); "
                    "workers of a run have torch in them: give the node more, or fewer workers",
                )
            if machine["shm_bytes"] < store:
                yield (
                    place.name,
                    f"the object store of {_gib(store)} is larger than shared memory, {_gib(machine['shm_bytes'])}, so "
                    "it lies on disk; give /dev/shm more, or lower --object-store-memory",
                )

    yield from _together("warn", short())


def _least_memory(facts: Facts) -> str:
    free = [place.found["machine"]["memory"]["free"] for place in facts.places if "machine" in place.found]
    store = [node.resources.get("object_store_memory", 0.0) for node in facts.nodes]
    stores = f", object stores of {_gib(min(store))} in shared memory" if store else ""
    return f"at least {_gib(min(free))} free{stores}" if free else "unknown"


def _clock(facts: Facts) -> Iterator[Problem]:
    for node in facts.nodes:
        if node.skew is None:
            continue
        ahead, bound = node.skew
        sure = abs(ahead) - bound
        if sure > SKEW_WARN_S:
            yield (
                "FAULT" if sure > SKEW_FAULT_S else "warn",
                f"{node.name}: its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the driver's "
                f"(±{bound:.1f}); set both by NTP: S3 refuses what is signed 15 minutes off",
            )


def _worst_clock(facts: Facts) -> str:
    known = [abs(node.skew[0]) + node.skew[1] for node in facts.nodes if node.skew]
    return f"no clock is more than {max(known):.2f} s off the driver's" if known else "unknown"


def _gpu(facts: Facts) -> Iterator[Problem]:
    yield from _failed(facts, "gpu")

    def blind() -> Iterator[tuple[str, str]]:
        for node in facts.nodes:
            found = node.found.get("gpu")
            if found is not None and not found["count"]:
                built = f"is built for CUDA {found['cuda']}" if found["cuda"] else "is built without CUDA"
                yield (
                    node.name,
                    f"Ray gives a GPU, torch sees none, and {built}; look at the driver of the device (nvidia-smi) and "
                    "install a torch that fits it",
                )

    yield from _together("FAULT", blind())


def _group(facts: Facts) -> Iterator[Problem]:
    failed = [(node.name, node.faults["group"]) for node in facts.nodes if "group" in node.faults]
    for text, names in _gathered(failed).items():
        yield (
            "FAULT",
            f"{_named(names)}: no {facts.backend} group with the other training nodes: {text}; workers talk on any "
            f"port: open them between the nodes, or name the interface in {facts.backend.upper()}_SOCKET_IFNAME",
        )
    met = [node for node in facts.nodes if "group" in node.found]
    wrong = [node.name for node in met if node.found["group"]["sum"] != node.found["group"]["world"]]
    if wrong:
        yield "FAULT", f"{_named(wrong)}: the sum over the {facts.backend} group is wrong; look at the network's log"


def _group_seen(facts: Facts) -> str:
    met = [node.name for node in facts.nodes if "group" in node.found]
    return f"{facts.backend} between {_named(met)}" if met else "one training worker: none is made"


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"
