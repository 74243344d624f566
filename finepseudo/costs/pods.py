"""Pods on Kubernetes for a run: how many of each group, and what is in one; as `sizes.yaml` of an overlay in cluster/.

    slots of a pod = min over {CPU, GPU} of what the pod has / what a worker asks for
    pods           = ceil(workers / slots)
    object store   = 1/4 of the memory (train 3/16); /dev/shm 1/32 more (train 1/8, for NCCL), at least 1 GiB more
    /tmp           = 4/5 of the disk, which holds the cache of clips and what the object store spills      [C]

What kubectl gives to pods is read from the recipe and from one file, the `infra.toml` of an overlay; nothing is chosen
by hand in two places.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from finepseudo.costs.predict import Predicted
from finepseudo.costs.resources import Workers, workers
from finepseudo.errors import RecipeError
from finepseudo.fields import Count, CountOrZero, NotNegative, check_fields, nearest
from finepseudo.recipe import Recipe

T = TypeVar("T", bound="Pod | Infra")

GROUPS = {"decode": "decoding", "train": "training", "score": "scoring"}
"""Worker groups of cluster/base/rayjob.yaml, in its order, and the kind of workers of each."""


@dataclass(frozen=True, kw_only=True)
class Pod:
    """What one pod of a group has."""

    cores: Count
    memory_gib: Count
    disk_gib: Count
    gpus: CountOrZero = 0
    price: NotNegative = 0.0  # money an hour


@dataclass(frozen=True, kw_only=True)
class Infra:
    """What a cluster offers to each group."""

    data: str  # folder of the data in the bucket of the settings, below data/
    deadline_hours: Count  # after which a run is ended, whatever it does
    head: Pod
    decode: Pod
    train: Pod
    score: Pod


def read_infra(path: Path) -> Infra:
    """Raises RecipeError: no such file, no TOML, a key that is unknown or missing, a value that it may not have."""
    try:
        body = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"--infra {path}: {error}") from error
    pods = {name: _made(path, f"{name}.", body.pop(name, {}), Pod) for name in ("head", *GROUPS)}
    infra = _made(path, "", {**body, **pods}, Infra)
    if not infra.data:
        raise RecipeError(f"{path}: data: expected a name, got {infra.data!r}")
    return infra


def _made(path: Path, where: str, body: Any, kind: type[T]) -> T:
    if not isinstance(body, dict):
        raise RecipeError(f"{path}: {where.rstrip('.')}: expected a section, got {body!r}")
    names = [item.name for item in fields(kind)]
    if unknown := sorted(set(body) - set(names)):
        raise RecipeError(f"{path}: {where}{unknown[0]} is not known{nearest(unknown[0], names)}")
    if missing := [item.name for item in fields(kind) if item.default is MISSING and item.name not in body]:
        raise RecipeError(f"{path}: {where}{missing[0]} is missing")
    made = kind(**body)
    check_fields(made, f"{path}: {where}")
    return made


def pods(recipe: Recipe, infra: Infra) -> dict[str, tuple[int, int]]:
    """Of each group, the number of pods, and of workers that one has room for.

    Raises RecipeError: a worker fits into no pod, or a pod's disk holds less than the cache of clips and the spill.
    """
    found: dict[str, tuple[int, int]] = {}
    for group, some in _by_group(recipe).items():
        pod = getattr(infra, group)
        has = {"CPU": pod.cores, "GPU": pod.gpus}
        asked = {name: amount for name, amount in some.need.items() if name in has}
        slots = min((int(has[name] / amount) for name, amount in asked.items()), default=some.count)
        if not slots:
            raise RecipeError(f"{recipe.name}: a {some.kind} worker asks for {asked}, a pod of {group} has {has}")
        found[group] = math.ceil(some.count / slots), slots
    spilled = recipe.scale.cache_gib + _store_gib("decode", infra.decode)
    if _tmp_gib(infra.decode) < spilled:
        raise RecipeError(
            f"{recipe.name}: /tmp of a decode pod holds {_tmp_gib(infra.decode)} of its {infra.decode.disk_gib} GiB; "
            f"the cache of clips (scale.cache_gib) and as much as its object store may spill want {spilled:g} GiB"
        )
    return found


def _by_group(recipe: Recipe) -> dict[str, Workers]:
    kinds = {some.kind: some for some in workers(recipe)}
    return {group: kinds[kind] for group, kind in GROUPS.items()}


def sizes_yaml(recipe: Recipe, infra: Infra, predicted: Predicted, said: str) -> str:
    """JSON patches of the RayJob of cluster/base, in YAML.

    Args:
        said: how the file was made, for its first line.
    """
    counts = pods(recipe, infra)
    hourly = infra.head.price + sum(count * getattr(infra, group).price for group, (count, _) in counts.items())
    hours = predicted.hours + predicted.probing_hours
    notes = {
        "finepseudo/predicted-hours": f"{hours:.1f}",
        "finepseudo/predicted-money-at-most": f"{hours * hourly:.0f}",
        "finepseudo/waits-for": predicted.slowest,
        "finepseudo/unit-costs-of": predicted.costs.machine,
    }
    lines = [
        f"# {said}",
        "# JSON patches, since a strategic one replaces lists whole: groups are named by their place, and `test` ends",
        "# the build where another group has it.",
        "- op: replace",
        "  path: /spec/entrypoint",
        "  value: >-",
        f"    python jobs/run.py {recipe.name}",
        f"    --run s3://example-bucket/runs/{recipe.name}",
        f"    --data.root s3://example-bucket/data/{infra.data}",
        *(f"    --scale.{group}-resource {group}" for group in ("train", "decode", "score")),
        "    --scale.resources-deadline-s 3600",
        "- op: add",
        "  path: /metadata/annotations",
        "  value:",
        *(f'    {name}: "{value}"' for name, value in notes.items()),
        _put("/spec/activeDeadlineSeconds", infra.deadline_hours * 3600),
        "# The driver holds galleries and tables of the data set.",
        *_pod("headGroupSpec", "head", infra.head),
    ]
    for place, (group, some) in enumerate(_by_group(recipe).items()):
        where, pod, (count, slots) = f"workerGroupSpecs/{place}", getattr(infra, group), counts[group]
        lines += [
            f"# {some.count} {some.kind} workers, {slots} a pod.",
            f"- {{op: test, path: /spec/rayClusterSpec/{where}/groupName, value: {group}}}",
            _put(f"/spec/rayClusterSpec/{where}/maxReplicas", count),
        ]
        if group == "train":  # fixed: half of the workers of a training can do nothing
            lines += [_put(f"/spec/rayClusterSpec/{where}/{name}", count) for name in ("minReplicas", "replicas")]
        lines += [_put(f"/spec/rayClusterSpec/{where}/resources/{group}", f'"{slots}"'), *_pod(where, group, pod)]
    return "\n".join(lines) + "\n"


def _pod(where: str, group: str, pod: Pod) -> Iterator[str]:
    path, store = f"/spec/rayClusterSpec/{where}", _store_gib(group, pod)
    gpus = f", nvidia.com/gpu: {pod.gpus}" if pod.gpus else ""
    asked = f'{{cpu: "{pod.cores}", memory: {pod.memory_gib}Gi, ephemeral-storage: {pod.disk_gib}Gi{gpus}}}'
    shm = store + max(1, math.ceil(pod.memory_gib / (8 if group == "train" else 32)))
    volumes = f"{path}/template/spec/volumes"
    yield _put(f"{path}/rayStartParams/object-store-memory", f'"{store << 30}"')
    yield "- op: replace"
    yield f"  path: {path}/template/spec/containers/0/resources"
    yield "  value:"
    yield f"    requests: {asked}"
    yield f"    limits: {asked}"
    yield _put(f"{volumes}/0/emptyDir/sizeLimit", f"{_tmp_gib(pod)}Gi")
    yield _put(f"{volumes}/1/emptyDir/sizeLimit", f"{shm}Gi")


def _put(path: str, value: object) -> str:
    return f"- {{op: replace, path: {path}, value: {value}}}"


def _store_gib(group: str, pod: Pod) -> int:
    return max(1, pod.memory_gib * (3 if group == "train" else 4) // 16)


def _tmp_gib(pod: Pod) -> int:
    return pod.disk_gib * 4 // 5
