"""Ray Train: run one stage with its workers, from wherever its last commit left it."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray
import ray.train
import torch
from ray.data import ExecutionOptions
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from finepseudo.data.plan import Plan
from finepseudo.errors import FinePseudoError, TrainingError
from finepseudo.recipe import Recipe
from finepseudo.runtime.ingest import Layout, training_stream
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train import checkpoint
from finepseudo.train.loop import Stage, run_stage
from finepseudo.train.session import Session

log = logging.getLogger("finepseudo")

TIMING = "timing"
"""Folder, below a stage, of the seconds that each launch took."""
FAULT = "fault.txt"
"""Why a stage stopped for good; the driver raises it."""


def ensure_trained(stage: Stage, recipe: Recipe, run: Store, board: Any) -> str:
    """Digest of the stage's committed snapshot, which is trained if it is not there yet.

    Raises:
        TrainingError: the workers failed more often than `scale.max_failures`; their first error is shown.
    """
    lineage, folder = stage.lineage(recipe), f"{stage.folder}/snapshot"
    while (marker := artefacts.committed(run, folder)) is None:
        done = checkpoint.committed_step(run, stage.folder)
        if done < stage.steps:
            _fit(stage, recipe, run, board, stop=min(stage.steps, done + recipe.scale.segment_steps))
        else:  # the last worker died between its checkpoint and the snapshot
            checkpoint.export_snapshot(run, stage.folder, lineage=lineage)
    artefacts.check_lineage(run, folder, marker, lineage)
    return artefacts.marker_digest(marker)


def _fit(stage: Stage, recipe: Recipe, run: Store, board: Any, *, stop: int) -> None:
    scale, name = recipe.scale, stage.folder.partition("/")[2]
    start = checkpoint.committed_step(run, stage.folder)
    log.info("%s: training steps %d to %d of %d", name, start, stop, stage.steps)
    resources = {"CPU": scale.train_cpus, "GPU": scale.train_gpus}
    if scale.train_resource:
        resources[scale.train_resource] = 1.0

    def layout() -> Layout:
        done = checkpoint.committed_step(run, stage.folder)
        k = recipe.optimiser.blocks_per_step
        return Layout.of(done, stop, scale.train_workers, k, scale.steps_per_block)

    run.delete(f"{stage.folder}/{FAULT}")
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "stage": stage,
            "recipe": recipe,
            "run": run,
            "stop": stop,
            "board": board,
            "launched": time.time(),
        },
        scaling_config=ScalingConfig(
            num_workers=scale.train_workers,
            use_gpu=scale.train_gpus > 0,
            resources_per_worker={key: value for key, value in resources.items() if value},
        ),
        torch_config=TorchConfig(
            backend="nccl" if scale.train_gpus else "gloo", timeout_s=int(scale.collective_timeout_s)
        ),
        datasets={"train": training_stream(run.root, stage.plan, recipe, layout)},
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
        run_config=RunConfig(
            name=f"{name.replace('/', '-')}-{os.getpid()}-{time.monotonic_ns()}",
            storage_path=os.path.join(tempfile.gettempdir(), f"finepseudo-train-{os.getuid()}"),
            failure_config=FailureConfig(max_failures=scale.max_failures),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise _own_error(error, name) from error
    if run.exists(f"{stage.folder}/{FAULT}"):
        raise TrainingError(run.read(f"{stage.folder}/{FAULT}").decode())


def _work(config: Mapping[str, Any]) -> None:
    """The loop of one worker."""
    began = time.time()
    stage, recipe, run, board = config["stage"], config["recipe"], config["run"], config["board"]
    torch.set_num_threads(max(1, int(recipe.scale.train_cpus)))
    rows = Plan.load(run, stage.plan).block_rows
    device = get_device()
    session = Session(torch.device(device), report=lambda message: board.tell.remote(message))

    def stream(start: int, stop: int) -> Iterable[Any]:
        shard = ray.train.get_dataset_shard("train")
        assert shard is not None
        return shard.iter_batches(batch_size=rows, batch_format="numpy", prefetch_batches=2)

    if session.rank == 0:
        record = {"launch_s": began - config["launched"], "from_step": checkpoint.committed_step(run, stage.folder)}
        artefacts.commit(run, f"{stage.folder}/{TIMING}/{time.time_ns()}", {}, record)
    try:
        run_stage(stage, recipe, run, session, stream, stop=config["stop"])
    except TrainingError as error:
        # Every rank is here. To try again would end the same way, so the workers end well and the driver raises.
        if session.rank == 0:
            run.write(f"{stage.folder}/{FAULT}", str(error).encode())


def launch_seconds(run: Store, folder: str) -> float:
    """Seconds between asking for workers and their first own step, summed over a stage's launches."""
    base = f"{folder}/{TIMING}"
    markers = [artefacts.committed(run, f"{base}/{name}") for name in run.list(base)]
    return sum(marker["lineage"]["launch_s"] for marker in markers if marker)


def _own_error(error: BaseException, name: str) -> FinePseudoError:
    """The error that a worker raised, out of what Ray wraps around it."""
    seen: list[BaseException] = [error]
    for link in seen:
        nested = [link.__cause__, getattr(link, "cause", None), *getattr(link, "worker_failures", {}).values()]
        seen += [item for item in nested if isinstance(item, BaseException) and item not in seen]
    own = next((item for item in seen if isinstance(item, FinePseudoError)), None)
    if own is not None:
        return type(own)(str(own))
    first = str(seen[-1]).strip().splitlines() or [repr(seen[-1])]
    return TrainingError(
        f"{name}: training failed: {first[-1]}; start the same command again to resume from its last commit"
    )
