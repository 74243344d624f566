"""A whole run over several hosts, as a job that is submitted to them: trainings on two, scoring on another; two die.
And one pass of the pool over two, of which every byte is accounted for.

The hosts are network namespaces of this machine, so the network is real, and their clock, disk and processors are one.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hosts import Network, environment, why_not
from servers import s3_server

from finepseudo.data.plan import Plan
from finepseudo.results import Results
from finepseudo.run import Run
from finepseudo.storage.store import Store
from finepseudo.train.checkpoint import read_history

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LIMIT_S = 1200
PLACES = ("--scale.train-resource", "train", "--scale.score-resource", "score", "--scale.decode-resource", "decode")
WORK = ("--scale.train-workers", "2", "--optimiser.blocks-per-step", "2", "--methods", "finepseudo")
RANDOM = ("--gitdl.frame-steps", "0", "--gitdl.video-steps", "0")
MORE = ("data.rehearsal:rehearsal", "--data.rehearsal.train-per-class", "40")  # clips than one part of a pass
MANAGEMENT = 8e6  # bytes that Ray's processes may send to a host beside the data, in some minutes
BACK = 6e6  # bytes that Ray's processes may send to the head in a pass

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    with Network(tmp_path_factory.mktemp("hosts"), rate="1gbit") as found:
        yield found


@pytest.fixture(scope="module")
def s3(network):
    """Environment that reaches an S3 server on the network's bridge."""
    with s3_server(network.address) as environment:
        yield environment


def until(true, limit_s, what, every_s=0.2):
    ends = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < ends, f"not within {limit_s} s: {what}"
        time.sleep(every_s)
    return found


@pytest.fixture
def run(s3, monkeypatch, request):
    import s3fs

    for key, value in s3.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem(skip_instance_cache=True).makedirs("hosts", exist_ok=True)
    return Store(f"s3://hosts/{request.node.name}")


@pytest.fixture
def start(network, s3):
    """Starts Ray on one more host, as the head if it is the first; `start.env` is that of all its processes."""
    env = environment(**s3)

    def start(cpus, **resources):
        options = [f"--num-cpus={cpus}", f"--resources={json.dumps(resources)}", "--object-store-memory=300000000"]
        return network.start(BIN / "ray", options, env)

    start.env = env
    yield start
    network.clear()


def command(run, *options):
    return [sys.executable, "jobs/run.py", "rehearsal_smoke", "--run", run, *options, *WORK, *RANDOM, *MORE]


def check_ended_alike(here, there):
    """A run has taken every block of its plans once, and has the curves and results of another."""
    for training in ("supervise/video", "align/frame", "finepseudo/round-1/video"):
        ours, theirs = (read_history(store, f"train/{training}") for store in (here, there))
        taken = sorted(block for _, *of in ours.blocks for block in range(*of))
        assert taken == list(range(Plan.load(here, f"plans/train/{training}").blocks)), "each block once"
        assert ours.curve == theirs.curve
    found, expected = (Results.from_json(store.read("results.json")) for store in (here, there))
    assert replace(found, timing={}, snapshots={}) == replace(expected, timing={}, snapshots={})


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT_S)
def test_two_hosts_die_and_the_run_ends_as_one_that_nothing_disturbed(start, run, tmp_path):
    head, _, trainer, pool = start(0), start(4, train=2), start(4, train=2), start(1, score=1)
    start(4, decode=4)
    log, submit = tmp_path / "job.log", [BIN / "ray", "job", "submit", "--address", f"http://{head.address}:8265"]
    with log.open("w") as sink:
        job = subprocess.Popen(
            [*submit, "--working-dir", ".", "--", *command(run.root, *PLACES)],
            env=start.env, stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT,
        )  # fmt: skip

    def wait_for(what, true):
        until(lambda: job.poll() is not None or true(), LIMIT_S, what)
        assert job.poll() is None, log.read_text()

    def labelling():
        return any(run.list(f"scores/label/{folder}") for folder in run.list("scores/label"))

    wait_for("a commit of a training", lambda: run.exists("train/supervise/video/checkpoints/00000004/committed.json"))
    trainer.die()
    start(4, train=2)
    wait_for("a part of the labelling pass", labelling)
    pool.die()
    pool = start(1, score=1)
    wait_for("the last training", lambda: run.exists("train/finepseudo/round-1/video/snapshot/committed.json"))
    before = {host.name: host.received() for host in (head, pool)}
    until(lambda: job.poll() is not None, LIMIT_S, "the end of the job")
    assert job.returncode == 0, log.read_text()
    came = {host.name: host.received() - before[host.name] for host in (head, pool)}

    alone = subprocess.run(
        command(str(tmp_path / "plain")),
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    check_ended_alike(run, Store(str(tmp_path / "plain")))

    # After the last training comes one pass, over the test clips and those of D_u: pixels go to the pool and nowhere
    # else; with them go weights, the gallery and what Ray has to say.
    frames = Run.at(run).recipe().frames
    pixels = (20 + 150) * (frames.align + frames.video) * frames.height * frames.width * 3
    assert pixels < came[pool.name] < 1.5 * pixels + MANAGEMENT, (pixels, came)
    assert came[head.name] < MANAGEMENT, (pixels, came)


@pytest.mark.timeout(LIMIT_S)
def test_a_gallery_goes_to_a_host_once_for_all_its_scorers_and_results_go_to_the_store(start, run):
    head, two, one = start(0), start(2, score=2), start(1, score=1)
    start(3, decode=3)  # as many as three streams may have
    before = {host.name: host.received() for host in (head, two, one)}
    driver = head.command(sys.executable, str(ROOT / "tests/cluster/labelling_pass.py"), run.root)
    env = {**start.env, "RAY_ADDRESS": f"{head.address}:6379", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(driver, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    moved = json.loads(done.stdout)
    came = {host.name: host.received() - before[host.name] for host in (head, two, one)}

    for host, scorers in ((two, 2), (one, 1)):
        beside = moved["pixels"] + scorers * moved["weights"] + MANAGEMENT
        assert moved["gallery"] < came[host.name] < 1.5 * moved["gallery"] + beside, (scorers, moved, came)
    assert moved["parts"] > 200 * moved["videos"] + 2 * BACK, "parts that came back would be seen"
    assert came[head.name] < 200 * moved["videos"] + BACK, (moved, came)
