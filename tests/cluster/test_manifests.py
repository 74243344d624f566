"""The manifests as a cluster would get them: every overlay is rendered, and held against schemas and rules."""

import copy
import functools
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import manifest_files as files
import pytest
import yaml
from manifest_rules import RULES, options
from manifest_schema import schema_faults

from finepseudo.costs.resources import workers

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))  # where the commands of the manifests lie


def faults(objects):
    """All that is wrong with an overlay; what its schemas refuse is not looked at further."""
    refused = [fault for one in objects for fault in schema_faults(one)]
    return refused or [f"{rule.__name__}: {fault}" for rule in RULES for fault in rule(objects)]


@functools.cache
def _rendered(overlay):
    return files.objects_of(files.snapshot(overlay))


def rendered(overlay):
    """The objects of a snapshot, which a test may change."""
    return copy.deepcopy(_rendered(overlay))


@pytest.mark.parametrize("overlay", files.OVERLAYS)
def test_an_overlay_is_right(overlay):
    assert faults(rendered(overlay)) == []


@pytest.mark.parametrize("overlay", files.OVERLAYS)
@pytest.mark.skipif(files.kustomize() is None, reason="no kustomize; `make setup-dev` fetches it where it can")
def test_snapshots_are_what_kustomize_renders(overlay):
    now = files.render(files.OVERLAYS[overlay])
    assert now == files.snapshot(overlay), (
        f"cluster/rendered/{overlay}.yaml is old: run `make manifests`, and look at it"
    )


SETTINGS = {
    "namespace: finepseudo": "namespace: ours",
    "registry.example.com/finepseudo": "registry.test:5000/team/finepseudo",
    "example-bucket": "our-bucket",
    "arn:aws:iam::000000000000:role/finepseudo": "arn:aws:iam::111111111111:role/ours",
    "eu-west-1a": "us-east-2b",
    "eu-west-1": "us-east-2",
    "kuberay-system": "ray-operator",
    "=monitoring": "=prometheus",
}


@pytest.mark.skipif(files.kustomize() is None, reason="no kustomize; `make setup-dev` fetches it where it can")
@pytest.mark.parametrize("overlay", files.OVERLAYS)
def test_settings_have_one_place(tmp_path, overlay):
    shutil.copytree(files.CLUSTER, tmp_path / "cluster")
    place = tmp_path / "cluster/base/kustomization.yaml"
    text = place.read_text()
    for theirs, ours in SETTINGS.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    place.write_text(text)
    new = files.render(tmp_path / files.OVERLAYS[overlay].relative_to(ROOT))
    assert faults(files.objects_of(new)) == []
    left = [theirs for theirs in SETTINGS if re.search(rf"[ /]{re.escape(theirs.removeprefix('='))}(?!-name)", new)]
    assert left == []
    assert "from-settings" not in new
    assert "of-the-rayjob" not in new


def test_there_is_no_other_snapshot():
    assert {path.stem for path in files.RENDERED.iterdir()} == files.OVERLAYS.keys()


def test_a_key_that_is_there_twice_is_refused():
    with pytest.raises(yaml.YAMLError, match="twice"):
        files.objects_of("kind: A\nspec: {a: 1, a: 2}\n")


# Tests of the tests: each of these mistakes must be found, and for its own reason.


def job(objects):
    (one,) = files.of_kind(objects, "RayJob")
    return one["spec"]


def group(objects, name):
    (one,) = [g.body for g in files.groups(objects) if g.name == name]
    return one


def pod(objects, name):
    return group(objects, name)["template"]["spec"]


def ray(objects, name):
    return pod(objects, name)["containers"][0]


def one(objects, kind, name):
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


SCHEMA = {
    "typo in a group": (lambda o: group(o, "train").update(minReplica=1), "minReplica"),
    "typo in a pod": (lambda o: pod(o, "train").update(terminationGracePeriod=1), "terminationGracePeriod"),
    "typo in metadata": (lambda o: one(o, "RayJob", "finepseudo")["metadata"].update(label={}), "label"),
    "typo in a policy": (lambda o: one(o, "NetworkPolicy", "finepseudo-among-us")["spec"].update(ingres=[]), "ingres"),
    "a number in rayStartParams": (lambda o: group(o, "head")["rayStartParams"].update({"num-cpus": 0}), "num-cpus"),
    "replicas in quotes": (lambda o: group(o, "train").update(replicas="1"), "replicas"),
    "rayVersion without quotes": (lambda o: job(o)["rayClusterSpec"].update(rayVersion=2.6), "rayVersion"),
    "no such mode": (lambda o: job(o)["rayClusterSpec"]["authOptions"].update(mode="tokens"), "tokens"),
    "no quantity": (lambda o: ray(o, "train")["resources"]["limits"].update(memory="6 GiB"), "memory"),
    "a port twice": (lambda o: ray(o, "head")["ports"].append({"containerPort": 8265, "protocol": "TCP"}), "twice"),
    "contradiction, in CEL": (
        lambda o: job(o).update(deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}}),
        "deletionStrategy",
    ),
    "a number too large": (lambda o: job(o).update(backoffLimit=1 << 40), "backoffLimit"),
}
OPERATOR = {
    "a long name": (lambda o: one(o, "RayJob", "finepseudo")["metadata"].update(name="finepseudo-" * 5 + "x"), "47"),
    "ttl without shutdown": (lambda o: job(o).update(shutdownAfterJobFinishes=False), "ttlSecondsAfterFinished needs"),
    "resources in two places": (
        lambda o: group(o, "train")["rayStartParams"].update({"num-cpus": "3"}),
        "exclude each other",
    ),
    "cpu in small letters": (lambda o: group(o, "head").update(resources={"cpu": "0"}), "spelled so"),
    "a broken resource": (lambda o: group(o, "train").update(resources={"train": "1.5"}), "whole number"),
    "a gate that is off": (
        lambda o: job(o)["rayClusterSpec"].update(networkPolicy={"mode": "DenyAll"}),
        "behind a gate",
    ),
    "no deadline": (lambda o: job(o).pop("activeDeadlineSeconds"), "activeDeadlineSeconds"),
    "a variable in the command": (lambda o: job(o).update(entrypoint=job(o)["entrypoint"] + " --base $BASE"), "shell"),
    "the driver elsewhere": (lambda o: job(o).update(entrypointNumCpus=1), "entrypointNumCpus"),
    "no autoscaler v2": (lambda o: job(o)["rayClusterSpec"]["autoscalerOptions"].pop("version"), "expected v2"),
    "min above max": (lambda o: group(o, "decode").update(minReplicas=9), "minReplicas <="),
    "no token": (lambda o: job(o)["rayClusterSpec"].pop("authOptions"), "expected token"),
}
DESIGN = {
    "root": (lambda o: pod(o, "score")["securityContext"].update(runAsUser=0), "runAsUser above 0"),
    "submitter without a context": (
        lambda o: job(o)["submitterPodTemplate"]["spec"]["containers"][0].pop("securityContext"),
        "submitter/ray-job-submitter: expected allowPrivilegeEscalation false",
    ),
    "autoscaler without a context": (
        lambda o: job(o)["rayClusterSpec"]["autoscalerOptions"].pop("securityContext"),
        "head/autoscaler: expected",
    ),
    "no submitter": (lambda o: job(o).pop("submitterPodTemplate"), "submitterPodTemplate: expected one"),
    "a folder of the host": (
        lambda o: pod(o, "train")["volumes"].append({"name": "data", "hostPath": {"path": "/"}}),
        "hostPath is not of the restricted profile",
    ),
    "no place to write": (lambda o: ray(o, "decode")["volumeMounts"].pop(0), "nothing is mounted at /tmp"),
    "a mount of nothing": (lambda o: pod(o, "decode")["volumes"].pop(1), "which is no volume"),
    "a token where none is needed": (
        lambda o: pod(o, "train").update(automountServiceAccountToken=True),
        "automountServiceAccountToken",
    ),
    "a key in clear": (
        lambda o: ray(o, "head")["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        "secret in clear",
    ),
    "another image": (lambda o: ray(o, "score").update(image="finepseudo:1"), "expected one image"),
    "an image of another Ray": (lambda o: job(o)["rayClusterSpec"].update(rayVersion="2.59.0"), "-ray2.59.0-"),
    "an unknown account": (lambda o: pod(o, "score").update(serviceAccountName="other"), "used, and not there"),
    "another namespace": (
        lambda o: one(o, "RayJob", "finepseudo")["metadata"].update(namespace="x"),
        "not in the namespace",
    ),
    "a large object store": (
        lambda o: group(o, "score")["rayStartParams"].update({"object-store-memory": str(2 << 30)}),
        "more than 30 %",
    ),
    "shared memory without a bound": (lambda o: pod(o, "score")["volumes"][1]["emptyDir"].pop("sizeLimit"), "/dev/shm"),
    "/tmp above the disk": (
        lambda o: pod(o, "score")["volumes"][0]["emptyDir"].update(sizeLimit="9Gi"),
        "/tmp: expected",
    ),
    "no disk": (
        lambda o: ray(o, "score")["resources"]["limits"].pop("ephemeral-storage"),
        "ephemeral-storage: expected",
    ),
    "killed while it drains": (
        lambda o: pod(o, "train").update(terminationGracePeriodSeconds=260),
        "more than the drain",
    ),
    "work on the head": (lambda o: group(o, "head").pop("resources"), "head: expected resources"),
    "trainings that scale": (lambda o: group(o, "train").update(maxReplicas=2), "train: expected minReplicas"),
    "no place for decoding": (lambda o: group(o, "decode").update(resources={"decode": "2"}), "places for 2"),
    "workers larger than a pod": (
        lambda o: job(o).update(entrypoint=job(o)["entrypoint"] + " --scale.score-cpus 3"),
        "score has places for 0",
    ),
    "a group that nobody asks for": (
        lambda o: job(o).update(entrypoint=job(o)["entrypoint"].replace("--scale.train-resource train", "")),
        "training: asks for no resource of a group",
    ),
    "a budget that nobody meets": (
        lambda o: one(o, "PodDisruptionBudget", "finepseudo-train")["spec"].update(minAvailable=2),
        "minAvailable",
    ),
    "a budget in per cent": (
        lambda o: one(o, "PodDisruptionBudget", "finepseudo-head")["spec"].update(minAvailable="50%"),
        "minAvailable",
    ),
    "pods that no policy knows": (
        lambda o: group(o, "score")["template"]["metadata"]["labels"].pop("app.kubernetes.io/name"),
        "no NetworkPolicy covers it",
    ),
}
QUEUE = {
    "a quota too small": (
        lambda o: one(o, "ClusterQueue", "finepseudo")["spec"]["resourceGroups"][0]["flavors"][0]["resources"][
            3
        ].update(nominalQuota=7),
        "nvidia.com/gpu: quota 7, and one run asks for 8",
    ),
    "a resource without a quota": (
        lambda o: one(o, "ClusterQueue", "finepseudo")["spec"]["resourceGroups"][0]["coveredResources"].pop(),
        "ClusterQueue",
    ),
    "no label": (lambda o: one(o, "RayJob", "finepseudo")["metadata"].pop("labels"), "expected the label"),
    "another queue": (lambda o: one(o, "LocalQueue", "finepseudo")["spec"].update(clusterQueue="x"), "no ClusterQueue"),
    "autoscaling in a queue": (
        lambda o: job(o)["rayClusterSpec"].update(enableInTreeAutoscaling=True, autoscalerOptions={"version": "v2"}),
        "before they start",
    ),
    "fewer pods than their largest number": (
        lambda o: group(o, "score").update(replicas=2, minReplicas=2),
        "nothing scales",
    ),
}


def serving(**changes):
    """A change of what Serve is told: of its HTTP options where they have the name, else of our application's."""

    def change(objects):
        (service,) = files.of_kind(objects, "RayService")
        config = yaml.safe_load(service["spec"]["serveConfigV2"])
        for name, value in changes.items():
            http = config["http_options"]
            (http if name in http else config["applications"][0]["args"])[name] = value
        service["spec"]["serveConfigV2"] = yaml.safe_dump(config)

    return change


SERVE = {
    "an option that the application does not have": (serving(batch=8), "args of the application: batch"),
    "a value out of its bounds": (serving(replicas=0), "--replicas: expected at least 1, got 0"),
    "more replicas than places": (serving(replicas=3), "3 replicas of 2 CPU, and the pods have places for 2"),
    "replicas larger than a pod": (serving(cpus=4), "places for 0"),
    "an end before the application's own": (serving(request_timeout_s=30), "expected more than the 60 s"),
    "another port": (serving(port=9000), "expected that of the containers, 8000"),
    "loopback alone": (serving(host="127.0.0.1"), "else no other pod reaches it"),
    "no port at all": (serving(port="http"), "serveConfigV2: 1 validation error"),
    "no policy for clients": (
        lambda o: o.remove(one(o, "NetworkPolicy", "finepseudo-from-clients")),
        "nobody may reach what is served",
    ),
    "no budget for replicas": (
        lambda o: o.remove(one(o, "PodDisruptionBudget", "finepseudo-serve")),
        "expected budgets of ['head', 'serve']",
    ),
}


@pytest.mark.parametrize(
    ("overlay", "mistake", "reason"),
    [
        pytest.param(overlay, *what, id=name)
        for overlay, some in (("base", {**SCHEMA, **OPERATOR, **DESIGN}), ("kueue", QUEUE), ("serve", SERVE))
        for name, what in some.items()
    ],
)
def test_a_mistake_is_found(overlay, mistake, reason):
    objects = rendered(overlay)
    mistake(objects)
    found = faults(objects)
    assert [fault for fault in found if reason in fault], found


# Ray itself, where it says more than our arithmetic.


@pytest.mark.parametrize("overlay", files.OVERLAYS)
def test_rays_autoscaler_reads_the_groups_as_we_do(overlay):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    objects = rendered(overlay)
    ((owner, spec),) = files.clusters(objects)
    body = {"metadata": {"name": owner["metadata"]["name"], "namespace": "n"}, "spec": spec}
    kinds = _derive_autoscaling_config_from_ray_cr(body)["available_node_types"]
    for group in files.groups(objects):
        kind = kinds["headgroup" if group.name == "head" else group.name]
        told = {name: amount for name, amount in kind["resources"].items() if name != "memory" and amount}
        assert told == {name: amount for name, amount in group.amounts.items() if amount}
        if group.name != "head":
            assert (kind["min_workers"], kind["max_workers"]) == (group.low, group.high)


@pytest.mark.parametrize("overlay", files.OVERLAYS)
def test_ray_start_has_the_options(overlay):
    from ray.scripts.scripts import start

    there = {option.removeprefix("--") for param in start.params for option in param.opts}
    for group in files.groups(rendered(overlay)):
        assert group.body["rayStartParams"].keys() <= there, group.name


def launched(overlay, **highest):
    """Pods that the autoscaler makes for what a run asks at its start, all at once; None: it says it never can."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest, ResourceRequest

    objects = rendered(overlay)
    recipe = options(job(objects)["entrypoint"]).recipe
    kinds = {
        group.name: NodeTypeConfig(
            name=group.name,
            min_worker_nodes=group.low,
            max_worker_nodes=highest.get(group.name, group.high),
            resources=dict(group.amounts),
        )
        for group in files.groups(objects)
    }
    bundles = [ResourceRequest(resources_bundle=some.need) for some in workers(recipe) for _ in range(some.count)]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=kinds,
        max_num_nodes=sum(kind.max_worker_nodes for kind in kinds.values()),
        gang_resource_requests=[GangResourceRequest(requests=bundles)],
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    if reply.infeasible_gang_resource_requests:
        return None
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.mark.parametrize(
    ("overlay", "pods"),
    [
        ("base", {"head": 1, "decode": 1, "train": 1, "score": 1}),
        ("gpu", {"head": 1, "decode": 4, "train": 1, "score": 4}),
        ("spot", {"head": 1, "decode": 4, "train": 1, "score": 4}),
        ("kueue", {"head": 1, "decode": 4, "train": 1, "score": 4}),
        ("kinetics400", {"head": 1, "decode": 14, "train": 2, "score": 16}),
    ],
)
def test_rays_autoscaler_finds_a_place_for_every_worker(overlay, pods):
    assert launched(overlay) == pods


@pytest.mark.parametrize("group", ["decode", "score"])
def test_rays_autoscaler_says_that_a_pod_is_missing(group):
    assert launched("gpu", **{group: 3}) is None


@pytest.mark.parametrize("overlay", ["base", "gpu", "kinetics400"])
def test_a_dry_run_takes_the_command(overlay, tmp_path):
    command = job(rendered(overlay))["entrypoint"].replace("s3://", f"{tmp_path}/").split()
    done = subprocess.run(
        [sys.executable, *command[1:], "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    said = done.stdout + done.stderr
    assert "resources: " in said, said
    if overlay == "base":
        assert done.returncode == 0, said
    else:
        assert "NotReadyError" in said, said  # nobody has put the data there
        assert str(tmp_path) in said


# Names and versions, across files.


def test_one_version_of_each():
    lock = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "tests/requirements.lock").read_text(), re.MULTILINE))
    required = re.search(r"^ray\[(.*)\]==(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    docker = (ROOT / "Dockerfile").read_text()
    assert required[2] == lock["ray"]
    assert "default" in required[1].split(","), "the job API and the health checks of KubeRay are in ray[default]"
    for overlay in files.OVERLAYS:
        for _, spec in files.clusters(rendered(overlay)):
            assert spec["rayVersion"] == lock["ray"]
        for _, body in files.containers(rendered(overlay)):
            assert f":{project['version']}-ray{lock['ray']}-" in body.get(
                "image", f":{project['version']}-ray{lock['ray']}-"
            )
    for text in (docker, (files.CLUSTER / "README.md").read_text()):
        assert set(re.findall(r"finepseudo:(\S+)-(?:cpu|cuda)", text)) == {f"{project['version']}-ray{lock['ray']}"}
    (minor,) = re.findall(r"^ARG BASE_IMAGE=python:(\d+\.\d+)-", docker, re.MULTILINE)
    assert f">={minor}" in project["requires-python"]


def test_the_image_has_what_the_manifests_call():
    docker = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER 1000:0$", docker, re.MULTILINE), "runAsNonRoot cannot check a name"
    assert re.search(r"^ENV HOME=/tmp ", docker, re.MULTILINE), "the one folder that pods mount to write to"
    assert re.search(r"^WORKDIR /opt/finepseudo\nCOPY jobs jobs$", docker, re.MULTILINE)
    for overlay in files.OVERLAYS:
        for body in files.of_kind(rendered(overlay), "RayJob"):
            interpreter, program, *_ = body["spec"]["entrypoint"].split()
            assert interpreter == "python"
            assert (ROOT / program).is_file()


@pytest.mark.parametrize(
    ("release", "base", "code"),
    [("", "python:3.11", 0), ("0.1.0", "python:3.11", 1), ("0.1.0", f"python:3.11@sha256:{'0' * 64}", 0)],
)
def test_a_release_names_its_base_by_the_digest(release, base, code):
    (check,) = re.findall(r'^RUN (if \[ -n "\$\{RELEASE\}" \].*?fi)$', (ROOT / "Dockerfile").read_text(), re.M | re.S)
    env = {"RELEASE": release, "BASE_IMAGE": base}
    done = subprocess.run(["sh", "-c", check.replace("\\\n", "")], env=env, capture_output=True, text=True)
    assert done.returncode == code
    said = "release 0.1.0: expected a BASE_IMAGE with its digest, NAME@sha256:..., got python:3.11\n"
    assert done.stderr == (said if code else "")


def test_the_image_is_made_of_files_that_are_there():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists(), f"{name} is not there"
            assert f"!{name}" in ignored, f"{name} is left out of the build by .dockerignore"
