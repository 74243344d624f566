"""Small trainings for tests: synthetic clips, plain processes over gloo, and a loop in plain PyTorch to compare with.

Processes come from a fork server that has imported DeepSpeed once; each has a time limit.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import clips as clips_of
import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn

from finepseudo.data import plan as plans
from finepseudo.data.batch import ClipBatch, make_batch
from finepseudo.data.manifest import Manifest
from finepseudo.data.plan import Plan, derive, plan_align, plan_classify, plan_pretrain
from finepseudo.models import weights
from finepseudo.models.table import Part
from finepseudo.recipe import (
    Align,
    CrossEntropy,
    FixMatch,
    Frames,
    Gitdl,
    InstanceLoss,
    Optimiser,
    Recipe,
    Scale,
    Supervise,
    part_of,
)
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.checkpoint import read_history
from finepseudo.train.loop import run_stage
from finepseudo.train.objectives import Loss
from finepseudo.train.session import Session
from finepseudo.train.stage import Stage, build_objective, stage_of

SIDE, CLASSES, K = 20, 3, 5
"""Decoded frames; classes that have videos; classes of f_E, so that its last layer does not divide by two ranks."""
STEPS = 6
KINDS = ("gitdl_frame", "gitdl_video", "tclr", "instance", "align", "classify", "fixmatch")
LR = {"instance": 2e-4}  # of three videos its gradient is so steep that larger steps make much of the last bit
PROCESS_LIMIT_S = 480
CPU = torch.device("cpu")


def recipe(**scale: Any) -> Recipe:
    """Tiny clips; two blocks a step; a commit every three steps."""
    return Recipe(
        name="tiny",
        seed=3,
        frames=Frames(height=SIDE, width=SIDE, crop=16, align=6, video=6),
        gitdl=Gitdl(videos=3, frames=6, skip_global=3, skip_local=2, hidden=33, out=17),
        align=Align(classes=3, clips=2),
        supervise=Supervise(batch=6),
        fixmatch=FixMatch(threshold=0.22),
        optimiser=Optimiser(blocks_per_step=2),
        scale=Scale(**{"checkpoint_every": 3, "zero_stage": 1, **scale}),
    )


def clips(count: int = 12, frames: int = 34) -> Manifest:
    """Videos that exist in `picture` only."""
    ids, lengths = [f"v{index:02d}" for index in range(count)], [frames + index % 3 for index in range(count)]
    return clips_of.manifest(count, video_id=ids, num_frames=lengths)


def samples(count: int = 12, first: int = 0) -> pa.Table:
    """All videos with their class."""
    return clips_of.classed(first, count, CLASSES)


def picture(video: int, frame: int) -> np.ndarray:
    """A bright bar that moves by the class's speed over the video's own background."""
    rng = np.random.default_rng(video)
    image_HWC = np.broadcast_to(rng.integers(20, 120, (SIDE, 1, 3)), (SIDE, SIDE, 3)).astype(np.float64).copy()
    at = (rng.uniform(0, SIDE) + (0.35, 0.6, 1.1)[video % CLASSES] * frame) % SIDE
    near_W = np.exp(-(((np.arange(SIDE) - at + SIDE / 2) % SIDE - SIDE / 2) ** 2) / 4)
    image_HWC += near_W[None, :, None] * rng.uniform(80, 130, 3)
    return image_HWC.astype(np.uint8)


def still(video: int, frame: int) -> np.ndarray:
    """The same video, frozen at its first frame."""
    del frame
    return picture(video, 0)


def columns(plan: Plan, block: int, draw: Callable[[int, int], np.ndarray] = picture, bad: Iterable[int] = ()) -> Any:
    """What decoding gives for one block of the plan."""
    rows = plan.rows(block * plan.block_rows, (block + 1) * plan.block_rows)
    bad = set(bad)
    found: dict[str, Any] = {"row": np.array([row["row"] for row in rows])}
    for index in range(2 if rows[0]["frames_1"] is not None else 1):
        clips = [np.stack([draw(row["video"], frame) for frame in row[f"frames_{index}"]]) for row in rows]
        found[f"clip_{index}"] = np.stack(
            [clip * (row["row"] not in bad) for clip, row in zip(clips, rows, strict=True)]
        )
    errors = [f"{row['video_id']}: cut short" if row["row"] in bad else "" for row in rows]
    found["error"] = np.array(errors, dtype=object)
    found["decode_s"], found["cache_hit"] = np.full(len(rows), 0.25), np.zeros(len(rows), bool)
    return found


def batch_of(plan: Plan, block: int, **options: Any) -> ClipBatch:
    """One block as the models see it."""
    return make_batch(plan, K, columns(plan, block, **options))


def make_plan(kind: str, how: Recipe, steps: int, made: Manifest | None = None) -> Plan:
    """The plan of a training of this kind, over `clips` or as many others."""
    made = made or clips()
    common: dict[str, Any] = {"steps": steps, "blocks_per_step": how.optimiser.blocks_per_step, "seed": 11}
    if kind in ("gitdl_frame", "gitdl_video", "tclr", "instance"):
        drawn = "tclr" if kind == "tclr" else "gitdl"
        return plan_pretrain(made, np.arange(12), gitdl_of(how, kind), drawn, **common)
    common |= {"frames": how.frames.align, "augment": how.augment, "label_share": 0.5}
    if kind == "align":
        return plan_align(made, samples(), None, how.align, **common)
    target_MK = np.random.default_rng(5).dirichlet(np.ones(K), 8).astype(np.float32)
    kept = {"top": [list(range(K))] * 8, "top_p": target_MK.tolist()}
    row_M = np.arange(8)
    if kind == "fixmatch":
        return plan_classify(made, samples(12, 8), plans.samples(row_M), batch=how.supervise.batch, **common)
    pseudo = plans.samples(row_M, row_M % CLASSES, 0.3 + 0.05 * row_M, **kept)
    return plan_classify(made, samples(12, 8), pseudo, batch=how.supervise.batch, **common)


@dataclass(frozen=True)
class Case:
    """One call of `run_stage`, and what goes wrong in it."""

    stage: Stage
    recipe: Recipe
    store: Store
    stop: int = STEPS
    die_at_step: int = -1
    """The process kills itself when it asks for the first block of this step."""
    bad: tuple[int, ...] = ()
    """Plan rows that cannot be decoded."""
    disorder: str = ""

    @property
    def plan(self) -> Plan:
        return Plan.load(self.store, self.stage.plan)

    def but(self, **changes: Any) -> Case:
        """The same case with another recipe.scale, recipe.optimiser or other fields."""
        how, stage = self.recipe, self.stage
        if "zero" in changes:
            how = replace(how, scale=replace(how.scale, zero_stage=changes.pop("zero")))
        if "precision" in changes:
            how = replace(how, optimiser=replace(how.optimiser, precision=changes.pop("precision")))
            stage = replace(stage, optimiser=how.optimiser)
        return replace(self, **{"recipe": how, "stage": stage, **changes})

    def again(self, name: str) -> Case:
        """The same training, in a folder of its own."""
        return replace(self, stage=replace(self.stage, folder=f"train/{name}"))


def case(root: Path | str, kind: str, name: str, *, how: Recipe | None = None, steps: int = STEPS,
         made: Manifest | None = None, **more: Any) -> Case:  # fmt: skip
    """A training whose plan is committed."""
    how = how or recipe()
    store = Store(str(root))
    plan = make_plan(kind, how, steps, made)
    where = f"plans/{kind}-{plan.fingerprint}"
    clips_of.commit(store, clips())
    plan.ensure(store, where)
    stage = stage_of(
        how,
        *what(kind, how),
        folder=f"train/{name}",
        plan=where,
        plan_fingerprint=plan.fingerprint,
        steps=steps,
        num_classes=K,
        **{"lr": LR.get(kind, 2e-3), **({"score_mean": 0.4, "score_std": 0.1} if kind == "align" else {}), **more},
    )
    return Case(stage, how, store, stop=steps)


def gitdl_of(how: Recipe, kind: str) -> Gitdl:
    """That of the recipe; for TCLR, three local clips."""
    return replace(how.gitdl, video_loss="tclr", skip_local=1) if kind == "tclr" else how.gitdl


def what(kind: str, how: Recipe) -> tuple[Part, Loss]:
    """Which encoder a kind trains, and by which loss."""
    return {
        "gitdl_frame": ("frame", how.gitdl.chosen("frame")),
        "gitdl_video": ("video", how.gitdl.chosen("video")),
        "tclr": ("video", gitdl_of(how, kind).chosen("video")),
        "instance": ("video", part_of(InstanceLoss, how.gitdl)),
        "align": ("frame", how.align.chosen()),
        "classify": ("video", CrossEntropy()),
        "fixmatch": ("video", how.fixmatch),
    }[kind]


@dataclass
class Outcome:
    """What one rank saw of one case."""

    error: str = ""
    """Name of the exception."""
    text: str = ""
    reports: list[Mapping[str, Any]] = field(default_factory=list)


def stream_of(case: Case, session: Session) -> Callable[[int, int], Iterator[Any]]:
    """Blocks of this rank, in the order in which a stream gives them."""
    plan, k = case.plan, case.recipe.optimiser.blocks_per_step

    def blocks(start: int, stop: int) -> Iterator[Any]:
        for step in range(start, stop):
            for block in range(session.rank, k, session.world):
                if step == case.die_at_step:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield columns(plan, step * k + block, bad=case.bad)

    def disordered(start: int, stop: int) -> Iterator[Any]:
        found = list(blocks(start, stop))
        if case.disorder == "blocks":
            found[1], found[2] = found[2], found[1]
        elif case.disorder == "short":
            found[1] = {name: values[:-1] for name, values in found[1].items()}
        elif case.disorder == "ended":
            del found[-1]
        else:
            order = {"rows": slice(None, None, -1), "twice": [0, 0, *range(2, plan.block_rows)]}[case.disorder]
            found[1] = {name: values[order] for name, values in found[1].items()}
        yield from found

    return disordered if case.disorder else blocks


def train(session: Session, cases: Sequence[Case]) -> list[Outcome]:
    """Run the cases one after the other in this process."""
    outcomes = []
    for one in cases:
        outcome = Outcome()
        here = replace(session, report=outcome.reports.append)
        try:
            run_stage(one.stage, one.recipe.scale, one.store, here, stream_of(one, here), stop=one.stop)
        except Exception as error:  # noqa: BLE001  what it is, the test says
            outcome.error, outcome.text = type(error).__name__, str(error)
        outcomes.append(outcome)
    return outcomes


def launch(
    world: int, folder: Path, job: Callable[..., Any], *args: Any, limit_s: float = PROCESS_LIMIT_S
) -> list[Any]:
    """`job(session, *args)` in `world` processes: their results by rank, or the exit code of one that gave none."""
    context = _context()
    meeting = folder / f"meeting-{time.monotonic_ns()}"
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_child, args=(rank, world, str(meeting), pipes[rank][1], job, args))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for _, writer in pipes:
        writer.close()
    ends, found = time.monotonic() + limit_s, []
    try:
        for process, (reader, _) in zip(processes, pipes, strict=True):
            if not reader.poll(max(0.1, ends - time.monotonic())):
                raise TimeoutError(f"no answer from a process in {limit_s} s")
            try:
                found.append(reader.recv())
            except EOFError:
                process.join(20)
                found.append(process.exitcode)
        for process in processes:
            process.join(20)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
        for reader, _ in pipes:
            reader.close()
    return found


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_server"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def _child(rank: int, world: int, meeting: str, pipe: Any, job: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)})
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    pipe.send(job(Session(CPU, report=lambda message: None), *args))
    dist.destroy_process_group()


@dataclass(frozen=True)
class DyingStore(Store):
    """A store whose process is killed when it writes, or deletes, a path with this in it."""

    at_write: str = ""
    at_delete: str = ""

    def write(self, path: str, data: bytes) -> None:
        if self.at_write and self.at_write in path:
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(path, data)

    def delete(self, path: str) -> None:
        if self.at_delete and self.at_delete in path and self.exists(path):
            os.kill(os.getpid(), signal.SIGKILL)
        super().delete(path)


def losses(case: Case) -> Tensor:
    """The committed curve."""
    curve = read_history(case.store, case.stage.folder).curve
    assert [point["step"] for point in curve] == list(range(1, len(curve) + 1))
    return torch.tensor([point["loss"] for point in curve], dtype=torch.float64)


def snapshot(case: Case) -> dict[str, Tensor]:
    """The committed weights."""
    return weights.read_state(artefacts.read_part(case.store, f"{case.stage.folder}/snapshot", "weights.safetensors"))


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Between two states of the same names."""
    assert a.keys() == b.keys()
    assert {name: value.shape for name, value in a.items()} == {name: value.shape for name, value in b.items()}
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def one_cycle(step: int, steps: int, lr: float, warmup: float) -> float:
    """The learning rate, written down a second time."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        low, high, share = lr / 25, lr, (step + 1) / rise
    else:
        low, high, share = lr, lr / 1e4, (step + 1 - rise) / (steps - rise)
    return low + (high - low) * (1 - np.cos(np.pi * share)) / 2


@dataclass
class Plain:
    """A training by PyTorch alone."""

    losses: Tensor
    norms: Tensor
    """Of the gradient, before clipping."""
    state: dict[str, Tensor]
    objective: nn.Module


def plain_loop(
    case: Case,
    *,
    draw: Callable[[int, int], np.ndarray] = picture,
    objective: nn.Module | None = None,
    share: Callable[[str], float] = lambda name: 1.0,
) -> Plain:
    """AdamW, one-cycle rate, clipping, mean over a step's blocks: one process, no DeepSpeed, no loop of ours.

    `share`: of the learning rate, by the name of a parameter.
    """
    torch.set_num_threads(1)  # as the processes do: sums in another order differ, and Adam makes much of little
    how, plan, k = case.recipe, case.plan, case.recipe.optimiser.blocks_per_step
    objective = (objective or build_objective(case.stage)).train()
    params = [p for p in objective.parameters() if p.requires_grad]
    groups = [
        {"params": [p], "weight_decay": how.optimiser.weight_decay if p.ndim >= 2 else 0.0, "share": share(name)}
        for name, p in objective.named_parameters()
        if p.requires_grad
    ]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99))
    running = {n: b for n, b in objective.named_buffers() if n.endswith(("running_mean", "running_var"))}
    curve, norms = [], []
    for step in range(case.stage.steps):
        before = {name: buffer.clone() for name, buffer in running.items()}
        total = {name: torch.zeros_like(buffer) for name, buffer in running.items()}
        here = []
        for block in range(k):
            for name, buffer in running.items():
                buffer.copy_(before[name])
            batch = batch_of(plan, step * k + block, draw=draw, bad=case.bad)
            torch.manual_seed(derive("dropout", how.seed, batch.row_B[0]))
            loss, _ = objective(batch)
            (loss / k).backward()
            here.append(float(loss.detach()))
            for name, buffer in running.items():
                total[name] += buffer
        for name, buffer in running.items():
            buffer.copy_(total[name] / k)
        for name, buffer in objective.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.fill_(step + 1)
        norms.append(float(torch.nn.utils.clip_grad_norm_(params, how.optimiser.clip)))
        for group in adamw.param_groups:
            group["lr"] = group["share"] * one_cycle(step, case.stage.steps, case.stage.lr, how.optimiser.warmup)
        adamw.step()
        adamw.zero_grad()
        curve.append(sum(here) / k)
    state = {n: v.clone() for n, v in objective.state_dict().items() if not n.startswith("projection.")}
    return Plain(*(torch.tensor(x, dtype=torch.float64) for x in (curve, norms)), state, objective)
