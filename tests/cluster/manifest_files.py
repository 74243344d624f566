"""The manifests as files: rendered overlays, read strictly, and the parts of them that every rule looks at."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RENDERED = CLUSTER / "rendered"
OVERLAYS = {"base": CLUSTER / "base", **{p.name: p for p in sorted((CLUSTER / "overlays").iterdir()) if p.is_dir()}}
OURS = ROOT / ".tools/usr/bin/kustomize"


class StrictLoader(yaml.CSafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last in silence."""


def _mapping(loader, node, deep=False):
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise yaml.YAMLError(f"keys that are there twice: {sorted(twice)}{node.start_mark}")
    return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def objects_of(text):
    """All objects of a file of manifests."""
    return [one for one in yaml.load_all(text, StrictLoader) if one is not None]


def snapshot(overlay):
    return (RENDERED / f"{overlay}.yaml").read_text()


def kustomize():
    """The executable that `make setup-dev` fetched, or the machine's; None: there is none."""
    return str(OURS) if OURS.exists() else shutil.which("kustomize")


def render(folder):
    done = subprocess.run([kustomize(), "build", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_kind(objects, *kinds):
    return [one for one in objects if one["kind"] in kinds]


def named(objects, kind):
    return {one["metadata"]["name"] for one in of_kind(objects, kind)}


@dataclass(frozen=True)
class Group:
    """Pods of one kind of a Ray cluster."""

    name: str
    body: dict  # the group, of the custom resource
    low: int
    high: int

    @property
    def template(self):
        return self.body["template"]

    @property
    def pod(self):
        return self.template["spec"]

    @property
    def ray(self):
        """The first container is Ray's."""
        return self.pod["containers"][0]

    @property
    def limits(self):
        return self.ray.get("resources", {}).get("limits", {})

    @property
    def amounts(self):
        """What Ray is told that a pod has."""
        told = {name: quantity(value) for name, value in self.body.get("resources", {}).items()}
        own = {"CPU": quantity(self.limits.get("cpu", 0)), "GPU": quantity(self.limits.get("nvidia.com/gpu", 0))}
        return {**own, **told}


def clusters(objects):
    """Specs of Ray clusters, with the object they belong to."""
    inside = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    for one in of_kind(objects, *inside, "RayCluster"):
        yield one, one["spec"].get(inside.get(one["kind"]), one["spec"])


def groups(objects):
    for _, spec in clusters(objects):
        yield Group("head", spec["headGroupSpec"], 1, 1)
        for body in spec.get("workerGroupSpecs", []):
            yield Group(body["groupName"], body, body.get("minReplicas", 0), body.get("maxReplicas", 1 << 31))


def templates(objects):
    """Name and template of every kind of pod, the submitter's too."""
    for group in groups(objects):
        yield group.name, group.template
    for job in of_kind(objects, "RayJob"):
        if "submitterPodTemplate" in job["spec"]:
            yield "submitter", job["spec"]["submitterPodTemplate"]


def containers(objects):
    """Name and body of every container, the autoscaler's too, whose image is the head's."""
    for name, template in templates(objects):
        for one in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
            yield f"{name}/{one['name']}", one
    for _, spec in clusters(objects):
        if spec.get("enableInTreeAutoscaling"):
            yield "head/autoscaler", spec.get("autoscalerOptions", {})


UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(value):
    """A number of Kubernetes' notation: 500m, 16Gi."""
    text = str(value)
    number = text.rstrip("mkMGTi") if not text[-1:].isdigit() else text
    return float(number) * UNITS[text[len(number) :]]
