"""What no schema says: the rules of the KubeRay operator and of Kueue, and those that our design sets itself.

Each rule is a generator of faults, a line each, over all objects of one overlay.
"""

import functools
import importlib
import re
import shlex
from collections import Counter

import yaml
from manifest_files import clusters, containers, groups, named, of_kind, quantity, templates

from finepseudo.cli import parse
from finepseudo.costs.resources import workers
from finepseudo.errors import RecipeError
from finepseudo.serve.options import options_from

GIB = 1 << 30
EXTERNAL = {("Secret", "finepseudo-s3")}
"""What the manifests name and a user may make: keys of a store that knows no identities."""
ALPHA = ("networkPolicy", "tlsOptions", "historyServerOptions")
"""Fields of a RayCluster behind gates of the operator that are off, which then refuses the object."""
CLIENTS = {"matchLabels": {"app.kubernetes.io/part-of": "finepseudo-clients"}}
"""Pods of others, which may reach what is served."""
VOLUMES = {"name", "emptyDir", "configMap", "secret", "projected"}
RAY_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}
SECRET_NAME = re.compile(r"secret|token|password|access_?key|credential", re.IGNORECASE)
SECRET_VALUE = re.compile(r"(?=\S*\d)(?=\S*[a-zA-Z])[A-Za-z0-9+/=_-]{32,}")
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # DNS-1035


# The operator: the API server takes these objects, and it refuses them later.


def names(objects):
    """Pods' names are made from them."""
    for one in of_kind(objects, "RayJob", "RayCluster", "RayService"):
        name, most = one["metadata"]["name"], 53 if one["kind"] == "RayCluster" else 47
        if len(name) > most or not LABEL.fullmatch(name):
            yield f"{one['kind']} {name}: expected a DNS-1035 label of at most {most} characters"


def job(objects):
    """The life of a RayJob."""
    for one in of_kind(objects, "RayJob"):
        spec = one["spec"]
        for field in ("ttlSecondsAfterFinished", "suspend"):
            if spec.get(field) and not spec.get("shutdownAfterJobFinishes"):
                yield f"{field} needs shutdownAfterJobFinishes"
        if not spec.get("shutdownAfterJobFinishes"):
            yield "shutdownAfterJobFinishes: expected true, else the cluster stays and costs"
        if "deletionRules" in spec.get("deletionStrategy", {}) and spec.get("shutdownAfterJobFinishes"):
            yield "deletionRules exclude shutdownAfterJobFinishes"
        for field in ("preRunningDeadlineSeconds", "activeDeadlineSeconds"):
            if spec.get(field, 0) <= 0:
                yield f"{field}: expected seconds above 0, got {spec.get(field)}"


def submission(objects):
    """How the command of a RayJob gets to its driver."""
    for one in of_kind(objects, "RayJob"):
        spec = one["spec"]
        if spec.get("submissionMode") != "K8sJobMode":
            yield f"submissionMode: expected K8sJobMode, got {spec.get('submissionMode')}"
        if "submitterPodTemplate" not in spec:
            yield "submitterPodTemplate: expected one, since the operator's own is refused by a restricted namespace"
        elif spec["submitterPodTemplate"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
            yield "submitterPodTemplate: expected restartPolicy Never or OnFailure, as a Job's pod needs"
        if set(spec["entrypoint"]) & set("$\n`"):
            yield "entrypoint: goes through a shell; expected one line without $ and `"
        if spec.get("entrypointNumCpus"):
            yield "entrypointNumCpus: the head has none for tasks, so the driver would go to a worker"


def cluster(objects):
    """The Ray cluster as a whole."""
    for _, spec in clusters(objects):
        version = tuple(map(int, str(spec.get("rayVersion", "0.0")).split(".")[:2]))
        if spec.get("authOptions", {}).get("mode") != "token":
            yield "authOptions.mode: expected token, else whoever reaches the head runs code"
        if version < (2, 52):
            yield f"rayVersion {spec.get('rayVersion')}: authentication by token needs 2.52"
        yield from (f"{field}: behind a gate of the operator that is off" for field in ALPHA if field in spec)
        v2 = spec.get("autoscalerOptions", {}).get("version") == "v2"
        if spec.get("enableInTreeAutoscaling") and not v2:
            yield "autoscalerOptions.version: expected v2"
        for body in spec["workerGroupSpecs"]:
            name = body["groupName"]
            if not v2 and {"idleTimeoutSeconds", "priority"} & body.keys():
                yield f"{name}: idleTimeoutSeconds and priority need the autoscaler v2"
            if not {"replicas", "minReplicas", "maxReplicas"} <= body.keys():
                yield f"{name}: expected replicas, minReplicas and maxReplicas"
            elif not body["minReplicas"] <= body["replicas"] <= body["maxReplicas"]:
                yield f"{name}: expected minReplicas <= replicas <= maxReplicas"
            elif not spec.get("enableInTreeAutoscaling") and body["replicas"] != body["maxReplicas"]:
                yield f"{name}: nothing scales, so expected replicas == maxReplicas"


def group_fields(objects):
    """What the operator and Ray's autoscaler read of each group."""
    for group in groups(objects):
        told, start = group.body.get("resources", {}), group.body.get("rayStartParams", {})
        if told and (both := sorted(RAY_RESOURCES & start.keys())):
            yield f"{group.name}: resources and rayStartParams {both} exclude each other"
        if "labels" in start:
            yield f"{group.name}: rayStartParams.labels is refused"
        for name, amount in told.items():
            if name.lower() in ("cpu", "gpu", "memory") and name not in ("CPU", "GPU", "memory"):
                yield f"{group.name}: resource {name}: Ray knows it by CPU, GPU or memory, spelled so"
            if not amount.isdigit():
                yield f"{group.name}: resource {name}: expected a whole number, got {amount}"
        if group.pod.get("restartPolicy", "Never") != "Never":
            yield f"{group.name}: restartPolicy: expected Never or none, as the autoscaler v2 needs"
        if any(one["name"] == "RAY_enable_autoscaler_v2" for one in group.ray.get("env", [])):
            yield f"{group.name}: RAY_enable_autoscaler_v2 beside autoscalerOptions.version"


# What Kubernetes itself refuses, or does otherwise than meant, without a word in a schema.


def pods(objects):
    """Volumes, ports, requests."""
    for name, template in templates(objects):
        there = {one["name"] for one in template["spec"].get("volumes", [])}
        for one in template["spec"]["containers"]:
            mounts = one.get("volumeMounts", [])
            yield from (f"{name}: mounts {m['name']}, which is no volume" for m in mounts if m["name"] not in there)
            ports = [port.get("name", "") for port in one.get("ports", [])]
            yield from (f"{name}: port {port}: longer than 15 characters" for port in ports if len(port) > 15)
    for name, one in containers(objects):
        requests, limits = (one.get("resources", {}).get(part, {}) for part in ("requests", "limits"))
        for what in ("cpu", "memory", "ephemeral-storage"):
            if what not in requests or what not in limits:
                yield f"{name}: {what}: expected a request and a limit"
            elif quantity(requests[what]) > quantity(limits[what]):
                yield f"{name}: {what}: request {requests[what]} is above the limit {limits[what]}"
        for what in ("memory", "nvidia.com/gpu"):
            if requests.get(what) != limits.get(what):
                yield f"{name}: {what}: expected request == limit, got {requests.get(what)} and {limits.get(what)}"


def pod_security(objects):
    """The restricted profile, on every pod."""
    for name, template in templates(objects):
        pod = template["spec"]
        context = pod.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{name}: expected runAsNonRoot and a runAsUser above 0"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name}: expected seccompProfile RuntimeDefault"
        host = [field for field in ("hostNetwork", "hostPID", "hostIPC") if pod.get(field)]
        yield from (f"{name}: {field} gives the host away" for field in host)
        for volume in pod.get("volumes", []):
            yield from (f"{name}: volume {kind} is not of the restricted profile" for kind in volume.keys() - VOLUMES)
        if pod.get("automountServiceAccountToken") is not (name == "head"):
            yield f"{name}: automountServiceAccountToken: expected {name == 'head'}"


def container_security(objects):
    """The restricted profile, on every container, and a root that cannot be written."""
    for name, one in containers(objects):
        context = one.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{name}: expected allowPrivilegeEscalation false and not privileged"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: expected capabilities drop ALL and none added"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: expected readOnlyRootFilesystem"
        if "/tmp" not in {mount["mountPath"] for mount in one.get("volumeMounts", [])}:
            yield f"{name}: nothing is mounted at /tmp, the one place that the image writes to"
        if any("hostPort" in port for port in one.get("ports", [])):
            yield f"{name}: hostPort"


def secrets(objects):
    """No secret in the files; only references."""
    for one in of_kind(objects, "Secret"):
        yield f"Secret {one['metadata']['name']}: expected a reference to one, not the secret itself"
    texts = [(name, env["name"], env.get("value", "")) for name, c in containers(objects) for env in c.get("env", [])]
    for config in of_kind(objects, "ConfigMap"):
        texts += [(config["metadata"]["name"], key, value) for key, value in config.get("data", {}).items()]
    for where, key, value in texts:
        if value and (SECRET_NAME.search(key) or SECRET_VALUE.fullmatch(value)):
            yield f"{where}: {key}: looks like a secret in clear"
    for one in of_kind(objects, "RayJob"):
        if SECRET_NAME.search(one["spec"]["entrypoint"]):
            yield "entrypoint: looks like a secret on a command line, where everybody sees it"


# Our design.


def images(objects):
    """One image for all, with a version."""
    found = {one["image"] for _, one in containers(objects) if "image" in one}
    if len(found) != 1:
        yield f"expected one image for all containers, got {sorted(found)}"
        return
    tag = found.pop().rpartition(":")[2]
    kind = "cuda" if any(group.amounts["GPU"] for group in groups(objects)) else "cpu"
    for _, spec in clusters(objects):
        if not re.fullmatch(rf"[0-9.]+-ray{re.escape(str(spec.get('rayVersion')))}-{kind}", tag):
            yield f"image tag {tag}: expected <version>-ray{spec.get('rayVersion')}-{kind}"


def sizes(objects):
    """Memory, disk and time of each group."""
    for group in groups(objects):
        memory, store = quantity(group.limits["memory"]), quantity(group.body["rayStartParams"]["object-store-memory"])
        mounts = {mount["mountPath"]: mount["name"] for mount in group.ray.get("volumeMounts", [])}
        volumes = {one["name"]: one.get("emptyDir", {}) for one in group.pod.get("volumes", [])}
        shm, tmp = (volumes.get(mounts.get(path, ""), {}) for path in ("/dev/shm", "/tmp"))
        if store > 0.3 * memory:
            yield f"{group.name}: object store of {store / GIB:g} GiB is more than 30 % of {memory / GIB:g} GiB"
        if shm.get("medium") != "Memory" or not store < quantity(shm.get("sizeLimit", 0)) <= memory / 2:
            yield f"{group.name}: /dev/shm: expected memory, more than the object store and at most half of all"
        if tmp.get("medium") or quantity(tmp.get("sizeLimit", 0)) >= quantity(group.limits.get("ephemeral-storage", 0)):
            yield f"{group.name}: /tmp: expected disk, with a sizeLimit below the limit of ephemeral-storage"
        env = {one["name"]: one.get("value", "") for one in group.ray.get("env", [])}
        drain = float(env.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30))
        if group.pod.get("terminationGracePeriodSeconds", 30) <= drain + 30:
            yield f"{group.name}: terminationGracePeriodSeconds: expected more than the drain of {drain:g} s and 30 s"
        if group.ray["resources"]["requests"]["cpu"] != group.limits["cpu"] and group.name in ("head", "train"):
            yield f"{group.name}: cpu: expected request == limit"
        gpus = group.amounts["GPU"]
        if gpus and group.name != "head" and group.amounts.get(group.name) != gpus:
            yield f"{group.name}: expected as much of the resource {group.name} as GPUs, {gpus:g}"


def roles(objects):
    """The head does no work; trainings are never scaled."""
    there = {group.name: group for group in groups(objects)}
    if there["head"].body.get("resources") != {"CPU": "0"}:
        yield "head: expected resources {CPU: '0'}, so that no task takes its memory"
    if "train" in there and there["train"].low != there["train"].high:
        yield "train: expected minReplicas == maxReplicas"
    for name, template in templates(objects):
        labels = template["metadata"]["labels"]
        if labels.get("app.kubernetes.io/component") != name:
            yield f"{name}: label app.kubernetes.io/component: expected {name}"


def room(objects):
    """At their largest, the groups have a place for every worker that the command asks for."""
    there = {group.name: group for group in groups(objects)}
    for one in of_kind(objects, "RayJob"):
        recipe = options(one["spec"]["entrypoint"]).recipe
        for some in workers(recipe):
            (own,) = [name for name in some.need if name not in ("CPU", "GPU")] or [""]
            if own not in there or own == "head":
                yield f"{some.kind}: asks for no resource of a group ({own or 'none'}), so Ray may put it anywhere"
                continue
            group = there[own]
            fit = min(int(group.amounts.get(name, 0) // amount) for name, amount in some.need.items())
            if fit * group.high < some.count:
                yield f"{some.kind}: {some.count} workers of {some.need}, and {own} has places for {fit * group.high}"
        cache = quantity(there["decode"].pod["volumes"][0]["emptyDir"]["sizeLimit"])
        if cache < (recipe.scale.cache_gib + 4) * GIB:
            yield f"decode: /tmp: less than the cache of {recipe.scale.cache_gib:g} GiB and 4 GiB to spill to"
        if recipe.scale.resources_deadline_s < 600:
            yield "entrypoint: scale.resources-deadline-s: a new node takes minutes; expected at least 600"


def served(objects):
    """The configuration of a RayService is one that Serve and our application take, and its replicas have a place."""
    from ray.serve.schema import ServeDeploySchema  # not above: Ray must not be imported before its token is set

    there = {group.name: group for group in groups(objects)}
    for one in of_kind(objects, "RayService"):
        config = yaml.safe_load(one["spec"]["serveConfigV2"])
        try:
            ServeDeploySchema(**config)
            (app,) = config["applications"]
            args = options_from(app["args"])
        except (ValueError, RecipeError) as error:
            yield f"serveConfigV2: {error}"
            continue
        module, _, name = app["import_path"].partition(":")
        if not hasattr(importlib.import_module(module), name):
            yield f"serveConfigV2: import_path: there is no {app['import_path']}"
        room = sum(group.high * int(group.amounts["CPU"] // args.cpus) for group in there.values())
        if room < args.replicas:
            yield f"serveConfigV2: {args.replicas} replicas of {args.cpus:g} CPU, and the pods have places for {room}"
        http = config["http_options"]
        ends = http.get("request_timeout_s", 0)
        if ends <= args.seconds:
            yield f"serveConfigV2: request_timeout_s {ends}: expected more than the {args.seconds:g} s of a request"
        ports = {port["name"]: port["containerPort"] for port in there["serve"].ray["ports"]}
        if http["port"] != ports.get("serve"):
            yield f"serveConfigV2: port: expected that of the containers, {ports.get('serve')}"
        if http["host"] != "0.0.0.0":
            yield "serveConfigV2: host: expected 0.0.0.0, else no other pod reaches it"
        rules = [rule for policy in of_kind(objects, "NetworkPolicy") for rule in policy["spec"]["ingress"]]
        if http["port"] not in [port["port"] for rule in rules for port in rule.get("ports", [])]:
            yield "NetworkPolicy: nobody may reach what is served"


def references(objects):
    """Everything that is named is there, and in the one namespace."""
    names_of = {kind: named(objects, kind) for kind in ("ConfigMap", "Secret", "ServiceAccount")}
    used = [
        ("ServiceAccount", template["spec"].get("serviceAccountName", "default")) for _, template in templates(objects)
    ]
    for _, one in containers(objects):
        sources = [*one.get("envFrom", []), *(env["valueFrom"] for env in one.get("env", []) if "valueFrom" in env)]
        for source in sources:
            used += [("ConfigMap", source[k]["name"]) for k in ("configMapRef", "configMapKeyRef") if k in source]
            used += [("Secret", source[k]["name"]) for k in ("secretRef", "secretKeyRef") if k in source]
    for kind, name in sorted(set(used)):
        if name not in names_of[kind] and (kind, name) not in EXTERNAL:
            yield f"{kind} {name}: used, and not there"
    (space,) = named(objects, "Namespace")
    for one in objects:
        if (
            one["kind"] not in ("Namespace", "ResourceFlavor", "ClusterQueue")
            and one["metadata"].get("namespace") != space
        ):
            yield f"{one['kind']} {one['metadata']['name']}: not in the namespace {space}"


def selectors(objects):
    """Budgets and policies select the pods that they are meant for."""
    labels = {name: template["metadata"]["labels"] for name, template in templates(objects)}
    low = {group.name: group.low for group in groups(objects)}

    def chosen(selector):
        return {name for name, there in labels.items() if selector.get("matchLabels", {}).items() <= there.items()}

    for one in of_kind(objects, "PodDisruptionBudget"):
        name, spec = one["metadata"]["name"], one["spec"]
        least = sum(low.get(pod, 0) for pod in chosen(spec["selector"]))
        if not isinstance(spec.get("minAvailable"), int) or not 0 < spec["minAvailable"] <= least:
            got = spec.get("minAvailable")
            yield f"{name}: minAvailable: expected a whole number from 1 to the {least} pods, got {got}"
    policies = of_kind(objects, "NetworkPolicy")
    for one in policies:
        peers = [
            peer["podSelector"] for rule in one["spec"]["ingress"] for peer in rule["from"] if "podSelector" in peer
        ]
        for selector in [one["spec"]["podSelector"], *peers]:
            if not chosen(selector) and selector != CLIENTS:
                yield f"NetworkPolicy {one['metadata']['name']}: {selector} selects no pod of ours"
    covered = set().union(*(chosen(one["spec"]["podSelector"]) for one in policies)) if policies else set()
    yield from (f"{name}: no NetworkPolicy covers it" for name in sorted(labels.keys() - covered))
    budgets = {pod for one in of_kind(objects, "PodDisruptionBudget") for pod in chosen(one["spec"]["selector"])}
    if budgets != (expected := {"head", "train", "serve"} & labels.keys()):
        yield f"expected budgets of {sorted(expected)}, got {sorted(budgets)}"


def queue(objects):
    """A RayJob in a queue of Kueue has room in it, all at once."""
    label = "kueue.x-k8s.io/queue-name"
    for one in of_kind(objects, "RayJob") if of_kind(objects, "LocalQueue") else []:
        waits = one["metadata"].get("labels", {}).get(label)
        if waits not in named(objects, "LocalQueue"):
            yield f"RayJob: expected the label {label} with the name of a LocalQueue, got {waits}"
        if one["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield "Kueue counts pods before they start: expected enableInTreeAutoscaling false"
        quotas = _quotas(objects)
        for what, amount in _asked(objects).items():
            if quotas[what] < amount:
                yield f"ClusterQueue: {what}: quota {quotas[what]:g}, and one run asks for {amount:g}"


def queues(objects):
    """The queues themselves are whole."""
    for one in of_kind(objects, "LocalQueue"):
        if one["spec"]["clusterQueue"] not in named(objects, "ClusterQueue"):
            yield f"LocalQueue: {one['spec']['clusterQueue']} is no ClusterQueue"
    for one in of_kind(objects, "ClusterQueue"):
        flavors = {flavor["name"] for part in one["spec"]["resourceGroups"] for flavor in part["flavors"]}
        for name in sorted(flavors - named(objects, "ResourceFlavor")):
            yield f"ClusterQueue: {name} is no ResourceFlavor"
        spaces = one["spec"].get("namespaceSelector", {}).get("matchLabels", {}).values()
        if set(spaces) != named(objects, "Namespace"):
            yield f"ClusterQueue: namespaceSelector: expected our namespace, got {sorted(spaces)}"


def _asked(objects):
    """What all pods of a run ask Kubernetes for, the submitter's too."""
    times, asked = {group.name: group.high for group in groups(objects)}, Counter()
    for name, template in templates(objects):
        for container in template["spec"]["containers"]:
            for what, amount in container["resources"]["requests"].items():
                asked[what] += times.get(name, 1) * quantity(amount)
    return asked


def _quotas(objects):
    quotas = Counter()
    for one in of_kind(objects, "ClusterQueue"):
        for part in one["spec"]["resourceGroups"]:
            for entry in (entry for flavor in part["flavors"] for entry in flavor["resources"]):
                quotas[entry["name"]] += quantity(entry["nominalQuota"])
    return quotas


@functools.cache
def options(entrypoint):
    """What `jobs/run.py` makes of a command."""
    from run import RunOptions  # jobs/ is put on the path by the tests

    _, program, *argv = shlex.split(entrypoint)
    return parse(RunOptions, argv, program=program, description="")


RULES = (
    names, job, submission, cluster, group_fields, pods, pod_security, container_security, secrets, images, sizes,
    roles, room, served, references, selectors, queue, queues,
)  # fmt: skip
