"""A training goes on with fewer workers when a node is lost: real Ray, several raylets on this machine, one killed."""

import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import RUN_LIMIT_S

from finepseudo.data.plan import Plan, plan_classify, samples
from finepseudo.driver.executor import InProcess
from finepseudo.driver.prepare import ensure_manifest
from finepseudo.driver.steps import ensure_trained
from finepseudo.recipe import CrossEntropy
from finepseudo.recipes import find
from finepseudo.run import LAUNCHES, data_store
from finepseudo.runtime.executor import RayExecutor, listening, ray  # which sets the token before Ray is imported
from finepseudo.runtime.preemption import heeded
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.checkpoint import committed_step, read_history
from finepseudo.train.stage import stage_of

STEPS = 40
MANY = 300


@pytest.fixture
def nodes():
    """A head for decoding, and two nodes of one training worker each."""
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 128 << 20}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"decode": 2}, **store})
    trained = [found.add_node(num_cpus=1, resources={"train": 1}, **store) for _ in range(2)]
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False)
    yield found, trained
    ray.shutdown()
    found.shutdown()


def elastic_recipe(checkpoint_every):
    recipe = find("rehearsal_smoke")
    scale = replace(
        recipe.scale, train_workers=2, train_workers_min=1, train_resource="train", decode_resource="decode",
        checkpoint_every=checkpoint_every, steps_per_block=2, collective_timeout_s=30,
    )  # fmt: skip
    return replace(recipe, optimiser=replace(recipe.optimiser, blocks_per_step=2), scale=scale)


def train(folder, recipe, executor, steps=STEPS):
    """The history of a training of f_E whose step is two blocks."""
    run = Store(str(folder))
    manifest = ensure_manifest(recipe, run, InProcess(recipe))
    row_N = manifest.rows("train")
    plan = plan_classify(
        manifest, samples(row_N, manifest.truth(row_N)), frames=8, augment=recipe.augment, steps=steps, batch=4,
        label_share=1.0, blocks_per_step=2, seed=5,
    )  # fmt: skip
    plan.ensure(run, "plans/train/one")
    stage = stage_of(
        recipe, "video", CrossEntropy(), folder="train/one", plan="plans/train/one",
        plan_fingerprint=plan.fingerprint, steps=steps, lr=1e-4, num_classes=manifest.num_classes,
    )  # fmt: skip
    ensure_trained(stage, recipe, run, data_store(recipe, run), executor)
    history = read_history(run, stage.folder)
    taken = sorted(block for _, *of in history.blocks for block in range(*of))
    assert taken == list(range(Plan.load(run, stage.plan).blocks))
    return history


@pytest.mark.long
@pytest.mark.timeout(RUN_LIMIT_S)
def test_a_training_that_loses_a_node_ends_with_the_workers_that_are_left(nodes, tmp_path, monkeypatch):
    found, trained = nodes
    # Train may ask for as many workers as before until it has heard of the loss.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "8")
    recipe = elastic_recipe(checkpoint_every=4)
    whole = train(tmp_path / "whole", recipe, InProcess(recipe))

    def kill():
        while committed_step(Store(str(tmp_path / "run")), "train/one") < 8:
            time.sleep(0.05)
        found.remove_node(trained[1], allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    with listening() as board:
        history = train(tmp_path / "run", recipe, RayExecutor(recipe, board))
    strides = [stride for rank, *_, stride in history.blocks if rank == 0]
    assert strides == sorted(strides, reverse=True)
    assert set(strides) == {2, 1}, "two workers, then one"
    losses, expected = ([point["loss"] for point in one.curve] for one in (history, whole))
    assert losses == pytest.approx(expected, abs=1e-5)


@pytest.mark.long
@pytest.mark.timeout(RUN_LIMIT_S)
def test_a_training_commits_when_a_node_is_to_be_taken_away(nodes, tmp_path, monkeypatch, caplog):
    """As a cloud that takes a spot node back says so: nothing but the notice makes this training commit."""
    found, trained = nodes
    caplog.set_level(logging.INFO, "finepseudo")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "8")
    recipe, run = elastic_recipe(checkpoint_every=10 * MANY), Store(str(tmp_path / "run"))
    at_notice = []

    def take_away():
        while not run.list(f"train/one/{LAUNCHES}"):
            time.sleep(0.05)
        time.sleep(5)  # some steps
        subprocess.run(
            [Path(sys.executable).parent / "ray", "drain-node", f"--address={found.address}",
             f"--node-id={trained[1].node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
             "--deadline-remaining-seconds=60"], check=True,
        )  # fmt: skip
        while not (step := committed_step(run, "train/one")):
            time.sleep(0.05)
        at_notice.append(step)
        found.remove_node(trained[1], allow_graceful=False)

    threading.Thread(target=take_away, daemon=True).start()
    with listening() as board:
        executor = RayExecutor(recipe, board)
        with heeded(executor.commit):
            train(run.root, recipe, executor, steps=MANY)
    assert 0 < at_notice[0] < MANY
    starts = [marker["from_step"] for marker in launches(run)]
    assert starts == [0, at_notice[0]]
    assert any("will be gone in" in record.message for record in caplog.records)
    assert any(f"committed at step {at_notice[0]}" in record.message for record in caplog.records)


def launches(run):
    folder = f"train/one/{LAUNCHES}"
    return [artefacts.required(run, f"{folder}/{name}")["lineage"] for name in sorted(run.list(folder))]
