"""The custom resources of the manifests, before Kubernetes' own code: an API server that has their definitions.

It knows no other kinds, runs no operator and schedules nothing. .ci/apiserver builds it.
"""

import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

import manifest_files as files
import pytest
import yaml
from manifest_schema import custom
from servers import free_port
from test_manifests import SCHEMA, rendered

TOOLS = files.ROOT / ".tools/apiserver"
CRDS = files.ROOT.parent / "shared/crds"
WITHIN_S = 180  # for the server to answer, on a machine that is busy
# The client trusts the server on this machine without its certificate, which the server makes for itself.
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{url}", insecure-skip-tls-verify: true}}}}]
users: [{{name: u, user: {{client-certificate: {folder}/client.crt, client-key: {folder}/client.key}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"""
# Admission and fairness ask for kinds that this server does not have.
WITHOUT = """--disable-admission-plugins=NamespaceLifecycle,MutatingAdmissionWebhook,ValidatingAdmissionWebhook,\
MutatingAdmissionPolicy,ValidatingAdmissionPolicy --enable-priority-and-fairness=false --authentication-skip-lookup"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (TOOLS / "crd-apiserver").exists() or not (TOOLS / "etcd").exists(),
        reason="no API server in .tools/apiserver; `make test-slow` builds it, as root on Debian",
    ),
    pytest.mark.skipif(not CRDS.is_dir(), reason="no custom resource definitions in ../shared/crds"),
]


def definitions():
    """Every custom resource definition that is there."""
    return [yaml.load(path.read_text(), yaml.CSafeLoader) for path in sorted(CRDS.glob("*/*.yaml"))]


@dataclass
class Server:
    """An API server, as an administrator reaches it."""

    url: str
    context: ssl.SSLContext
    places: dict[tuple[str, str], str] = field(default_factory=dict)  # of a group and a kind: where it is created

    def ask(self, method, path, body=None):
        """Status and answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def define(self, definition):
        """Have a kind; returns once the server serves it."""
        path, spec = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition["spec"]
        status, answer = self.ask("POST", path, definition)
        assert status == 201, answer
        name, ends = definition["metadata"]["name"], time.monotonic() + WITHIN_S
        while not any(
            one["type"] == "Established" and one["status"] == "True" for one in answer["status"].get("conditions") or []
        ):
            assert time.monotonic() < ends, f"{name} is not served after {WITHIN_S} s: {answer['status']}"
            time.sleep(0.2)
            _, answer = self.ask("GET", f"{path}/{name}")
        where = "namespaces/finepseudo/" if spec["scope"] == "Namespaced" else ""
        self.places[spec["group"], spec["names"]["kind"]] = where + spec["names"]["plural"]

    def try_out(self, one):
        """What the server says of an object, which it does not keep."""
        place = self.places[one["apiVersion"].partition("/")[0], one["kind"]]
        return self.ask("POST", f"/apis/{one['apiVersion']}/{place}?dryRun=All&fieldValidation=Strict", one)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apiserver")
    store, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    port = free_port()
    # One certificate is the client's and its own authority; its organisation is the group that may do everything.
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/O=system:masters/CN=us",
         "-keyout", folder / "client.key", "-out", folder / "client.crt"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    context = ssl._create_unverified_context()
    context.load_cert_chain(folder / "client.crt", folder / "client.key")
    one = Server(f"https://127.0.0.1:{port}", context)
    config = folder / "kubeconfig"
    config.write_text(KUBECONFIG.format(url=one.url, folder=folder))
    etcd = f"""--data-dir={folder}/etcd --listen-client-urls={store} --advertise-client-urls={store}
        --listen-peer-urls={peers} --initial-advertise-peer-urls={peers} --initial-cluster=default={peers}"""
    api = f"""--etcd-servers={store} --bind-address=127.0.0.1 --secure-port={port} --cert-dir={folder}
        --client-ca-file={folder}/client.crt --kubeconfig={config} --authentication-kubeconfig={config}
        --authorization-kubeconfig={config} {WITHOUT}"""
    commands = [TOOLS / "etcd", *etcd.split()], [TOOLS / "crd-apiserver", *api.split()]
    log = (folder / "log").open("w")
    started = [subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) for command in commands]
    try:
        ends, last = time.monotonic() + WITHIN_S, ""
        while last != "ok":
            said = (folder / "log").read_text()[-3000:]
            assert all(process.poll() is None for process in started), said
            assert time.monotonic() < ends, f"no answer after {WITHIN_S} s ({last}): {said}"
            time.sleep(0.5)
            try:
                status, answer = one.ask("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
                last = "ok" if status == 200 else str(answer)
            except OSError as error:
                last = str(error)
        for definition in definitions():
            one.define(definition)
        yield one
    finally:
        for process in reversed(started):
            process.kill()
            process.wait(30)
        log.close()


def custom_resources(objects):
    return [one for one in objects if (one["apiVersion"], one["kind"]) in custom()]


@pytest.mark.parametrize("overlay", files.OVERLAYS)
def test_the_server_takes_the_custom_resources_of_an_overlay(server, overlay):
    found = custom_resources(rendered(overlay))
    assert found
    for one in found:
        status, answer = server.try_out(one)
        assert status == 201, answer.get("message", answer)


@pytest.mark.parametrize("name", [name for name in SCHEMA if name != "typo in a policy"])
def test_the_server_refuses_what_our_schemas_refuse(server, name):
    mistake, reason = SCHEMA[name]
    objects = rendered("base")
    mistake(objects)
    ((status, answer),) = [server.try_out(one) for one in custom_resources(objects)]
    assert status in (400, 422), answer
    assert (reason if reason != "twice" else "Duplicate value") in answer["message"], answer["message"]
