"""The image of the Dockerfile, built and used as a pod uses it. Debian's tools do both, without engine or registry.

The base is Debian's own Python in the place of the official image; pip finds packages where it does on this machine.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What python:3.11-slim-bookworm has: the interpreter as `python`, its headers, and a pip that may install for all.
BASE = "python3,python3-pip,python3-dev,python-is-python3,ca-certificates"
TOOLS = ("buildah", "debootstrap", "chroot")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason=f"wants {', '.join(TOOLS)}, as root; `make test-slow` installs them"
    ),
]


def done(*command, timeout=1800):
    """Output of a command that must end well."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert ended.returncode == 0, f"{command}: {ended.stdout[-6000:]}{ended.stderr[-6000:]}"
    return ended.stdout


def pip_here():
    """Settings of this machine's pip, the environment's last, since it has the last word."""
    lines = done(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = [line.partition("=")[::2] for line in sorted(lines, key=lambda line: line.startswith(":env:"))]
    return {name.rpartition(".")[2]: ast.literal_eval(value).replace("\n", " ") for name, value in pairs}


def pip_mounts(settings, folder):
    """Options of a build in which pip has these settings and the files that they name; the image keeps neither."""
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    there = {word.removeprefix("file://") for value in settings.values() for word in value.split()}
    files = {Path(word) for word in there if word.startswith("/") and Path(word).exists()}
    seen = sorted({file.parent if file.name == "simple" else file for file in files})  # an index names files beside it
    return [f"--volume={one}:{one}:ro" for one in seen] + [f"--volume={config}:/etc/pip.conf:ro"]


class Image:
    """A container of the built image."""

    def __init__(self, buildah, name):
        self.buildah = buildah
        self.container = done(*buildah, "from", "--pull-never", name).strip()

    def run(self, *command, timeout=600):
        """A command in it, as the image's user, in its folder, with its environment."""
        run = [*self.buildah, "run", "--isolation", "chroot"]
        with tempfile.TemporaryDirectory() as folder:
            # Debian 12's buildah loses, now and then, what a command says last; so it is written to files.
            Path(folder).chmod(0o777)
            into = ("sh", "-c", 'exec "$@" >/said/out 2>/said/err', "sh")
            run += [f"--volume={folder}:/said", self.container, "--", *into, *command]
            ended = subprocess.run(run, capture_output=True, text=True, timeout=timeout)
            out, err = (Path(folder) / name for name in ("out", "err"))
            assert out.exists(), f"{command} was not started: {ended.stderr}"
            return subprocess.CompletedProcess(command, ended.returncode, out.read_text(), err.read_text())

    def says(self, *command, timeout=600):
        ended = self.run(*command, timeout=timeout)
        assert ended.returncode == 0, f"{command}: {ended.stdout[-6000:]}{ended.stderr[-6000:]}"
        return ended.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    base = folder / "base"
    buildah = ["buildah", "--storage-driver", "vfs", "--root", str(folder / "root"), "--runroot", str(folder / "run")]
    try:
        done("debootstrap", "--variant=minbase", f"--include={BASE}", "bookworm", str(base))
        next((base / "usr/lib").glob("python3.*/EXTERNALLY-MANAGED")).unlink()
        started = done(*buildah, "from", "scratch").strip()
        done(*buildah, "copy", started, str(base), "/")
        done(*buildah, "commit", "--rm", started, "localhost/base")
        shutil.rmtree(base)
        settings = pip_here()
        # Debian 12's buildah finds the stage `runtime-${EXTRA}` if EXTRA is given, and not by its default.
        options = ["--build-arg=BASE_IMAGE=localhost/base", "--build-arg=EXTRA=cpu", *pip_mounts(settings, folder)]
        if own := settings.get("extra-index-url"):  # a machine with indexes of its own need not reach PyTorch's
            options.append(f"--build-arg=TORCH_INDEX={own}")
        build = [*buildah, "bud", "--isolation", "chroot", "--pull-never", *options, "--tag", "localhost/finepseudo"]
        release = [*build, "--build-arg=RELEASE=0.1.0", str(ROOT)]
        refused = subprocess.run(release, capture_output=True, text=True, timeout=600)
        assert refused.returncode != 0
        assert "release 0.1.0: expected a BASE_IMAGE with its digest" in refused.stdout + refused.stderr
        done(*build, str(ROOT), timeout=3600)
        yield Image(buildah, "localhost/finepseudo")
    finally:
        subprocess.run([*buildah, "rm", "--all"], capture_output=True)
        shutil.rmtree(folder)  # gigabytes, of which pytest would keep three


def required():
    """Versions by name."""
    text = (ROOT / "requirements.txt").read_text()
    return dict(re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)$", text, re.MULTILINE))


def test_versions_are_those_of_the_requirements(image):
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    there = json.loads(image.says("python", "-c", code, *required()))
    assert {name: version.partition("+")[0] for name, version in there.items()} == required()
    assert there["torch"].endswith("+cpu"), "PyPI's torch brings CUDA with it"
    assert image.says("ray", "--version").strip() == f"ray, version {required()['ray']}"


def test_nothing_is_compiled_in_a_pod(image):
    assert not image.says("sh", "-c", "which cc gcc c++ g++ clang || true")
    code = "import torch; from finepseudo.align import kernels; print(kernels.choose(torch.zeros(1)).__name__)"
    assert image.says("python", "-c", code).split()[-1] == "finepseudo.align.kernels.cpu"
    op = "from deepspeed.comm.torch import build_shm_op; print(build_shm_op().__file__)"
    assert image.says("python", "-c", op).split()[-1].startswith("/usr/local/lib/")


def test_a_pod_is_no_root_and_changes_no_code(image):
    assert image.says("id", "-u").strip() == "1000"
    package = image.says("python", "-c", "import finepseudo; print(finepseudo.__path__[0])").strip()
    assert package.startswith("/usr/local/lib/")
    for place in ("/opt", "/opt/finepseudo", "/opt/finepseudo/jobs", package, "/usr/local/bin", "/etc"):
        refused = image.run("touch", f"{place}/written")
        assert refused.returncode != 0
        assert "Permission denied" in refused.stderr
    image.says("touch", "/tmp/written")


def test_the_image_keeps_nothing_of_this_machines_pip(image):
    assert image.says("sh", "-c", "cat /etc/pip.conf 2>/dev/null || true") == ""
    assert image.says("python", "-m", "pip", "config", "list") == ""


def test_a_whole_run_in_the_image(image):
    short = ("--methods", "finepseudo", "--gitdl.frame-steps", "0", "--gitdl.video-steps", "0")
    command = ("python", "jobs/run.py", "rehearsal_smoke", "--run", "/tmp/run", *short)
    assert "resources: " in image.says(*command, "--dry-run")
    said = image.says(*command, timeout=1800)
    assert "results: /tmp/run/results.json" in said
    assert json.loads(image.says("cat", "/tmp/run/results.json"))
