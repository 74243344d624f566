"""Ray Train: run one stage with its workers, from wherever its last commit left it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from finepseudo.data.layout import Layout
from finepseudo.data.plan import Plan
from finepseudo.errors import ClusterError, FinePseudoError, TrainingError
from finepseudo.recipe import Recipe
from finepseudo.run import LAUNCHES
from finepseudo.runtime import faults
from finepseudo.runtime.board import Asked
from finepseudo.runtime.ingest import Deal
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train import checkpoint
from finepseudo.train.loop import run_stage
from finepseudo.train.session import Session
from finepseudo.train.stage import Stage

FAULT = "fault.txt"  # why a stage stopped for good; the driver raises it


def fit(stage: Stage, recipe: Recipe, run: Store, data: Store, board: Any, *, stop: int) -> None:
    """Train from the last committed step to step `stop`.

    Raises, when the workers failed more often than `scale.max_failures`:
        ClusterError: workers were lost.
        TrainingError: of any other reason; their first error is shown.
    """
    scale, name = recipe.scale, stage.name
    resources = {"CPU": scale.train_cpus, "GPU": scale.train_gpus}
    if scale.train_resource:
        resources[scale.train_resource] = 1.0

    def layout(workers: int) -> Layout:
        done = checkpoint.committed_step(run, stage.folder)
        return Layout.of(done, stop, workers, stage.optimiser.blocks_per_step, scale.steps_per_block)

    least, most = scale.least_train_workers, scale.train_workers

    run.delete(f"{stage.folder}/{FAULT}")
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "stage": stage,
            "scale": scale,
            "run": run,
            "stop": stop,
            "board": board,
            "launched": time.time(),
        },
        scaling_config=ScalingConfig(
            num_workers=(least, most) if least < most else most,
            use_gpu=scale.train_gpus > 0,
            resources_per_worker={key: value for key, value in resources.items() if value},
        ),
        torch_config=TorchConfig(
            backend="nccl" if scale.train_gpus else "gloo", timeout_s=int(scale.collective_timeout_s)
        ),
        datasets={"train": Deal.stand_in},
        dataset_config=Deal(run, data, stage.plan, recipe, layout),
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
    stage, scale, run, board = config["stage"], config["scale"], config["run"], config["board"]
    torch.set_num_threads(max(1, int(scale.train_cpus)))
    rows = Plan.load(run, stage.plan).block_rows
    device = get_device()
    rank = ray.train.get_context().get_world_rank()
    session = Session(
        torch.device(device),
        report=lambda message: board.tell.remote(message),
        asked=Asked(board, stage.name) if rank == 0 else lambda: 0,
    )

    def stream(start: int, stop: int) -> Iterable[Any]:
        shard = ray.train.get_dataset_shard("train")
        assert shard is not None
        return shard.iter_batches(batch_size=rows, batch_format="numpy", prefetch_batches=2)

    if session.rank == 0:
        record = {"launch_s": began - config["launched"], "from_step": checkpoint.committed_step(run, stage.folder)}
        artefacts.commit(run, f"{stage.folder}/{LAUNCHES}/{time.time_ns()}", {}, record)
    try:
        run_stage(stage, scale, run, session, stream, stop=config["stop"])
    except TrainingError as error:
        # Every rank is here. To try again would end the same way, so the workers end well and the driver raises.
        if session.rank == 0:
            run.write(f"{stage.folder}/{FAULT}", str(error).encode())


def _own_error(error: BaseException, name: str) -> FinePseudoError:
    """The error that a worker raised; of another's, its last line."""
    if (ours := faults.own(error)) is not None:
        return ours
    last = faults.links(error)[-1]
    first = str(last).strip().splitlines() or [repr(last)]
    kind = ClusterError if faults.lost(error) else TrainingError
    return kind(f"{name}: training failed: {first[-1]}; start the same command again to resume from its last commit")
