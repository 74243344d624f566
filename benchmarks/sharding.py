"""What sharding saves: any encoder of the table takes two steps in two processes, at each stage of ZeRO.

    python benchmarks/sharding.py vtn_resnet18 aim_vit_b16             # bytes per rank, peak memory, stages 2 and 3
    python benchmarks/sharding.py aim_vit_b16 --recompute              # layers are computed again instead of kept

A step is of one block a process: four clips of two classes, through L_AV (f_A) or cross-entropy (f_E); the loss is that
of the second. Peak memory is the largest resident memory of a process, torch and DeepSpeed (some 500 MiB) included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from faulty_s3 import free_port

from finepseudo.data.batch import ClipBatch
from finepseudo.models.encoders import build, recompute
from finepseudo.models.table import ENCODERS, Encoder, choose
from finepseudo.recipe import AvLoss, CrossEntropy, Optimiser, PixelAugment
from finepseudo.train.engine import Engine
from finepseudo.train.objectives import AlignObjective, ClassifyObjective
from finepseudo.train.session import Session

WORLD, STEPS, CLIPS = 2, 2, 4


@dataclass(frozen=True)
class Cell:
    """One encoder at one stage."""

    encoder: Encoder
    stage: int
    size: int
    frames: int
    recompute: bool
    port: int


def batch_of(cell: Cell, rank: int) -> ClipBatch:
    """Noise of two classes, another one on each rank."""
    generator = torch.Generator().manual_seed(rank)
    shape = (CLIPS, cell.frames, cell.size, cell.size, 3)
    return ClipBatch(
        row_B=list(range(CLIPS)),
        video_ids=[""] * CLIPS,
        clip_BTHWC=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        other_BTHWC=None,
        time_BT=torch.arange(cell.frames, dtype=torch.float32).expand(CLIPS, -1),
        other_time_BT=None,
        seed_B=list(range(CLIPS)),
        video_B=torch.arange(CLIPS),
        label_B=torch.arange(CLIPS) % 2,
        weight_B=torch.ones(CLIPS),
        target_BK=None,
        errors={},
        decode_s=0.0,
        cache_hits=0,
    )


def trained(rank: int, cell: Cell, pipe: Any) -> None:
    """One process: build, train, say what it took."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed asks
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{cell.port}", rank=rank, world_size=WORLD)
    session = Session(torch.device("cpu"), report=print)
    encoder = build(cell.encoder, num_classes=48, size=cell.size, seed=0)
    if cell.recompute:
        recompute(encoder)
    if cell.encoder.part == "frame":
        objective = AlignObjective(encoder, AvLoss(), PixelAugment(), cell.size)
        objective.standardise(0.5, 0.1)
    else:
        objective = ClassifyObjective(encoder, CrossEntropy(), PixelAugment(), cell.size)
    optimiser = Optimiser(blocks_per_step=WORLD)
    engine = Engine(objective, session, optimiser, steps=STEPS, lr=1e-4, block_rows=CLIPS, zero_stage=cell.stage)
    began, batch, losses = time.monotonic(), batch_of(cell, rank), list[float]()
    for number in range(STEPS):
        torch.manual_seed(rank + WORLD * number)
        loss, _ = engine.forward(batch)
        engine.step(loss)
        losses.append(loss.item())
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # before pieces are looked at
    pipe.send({**engine.sharded_bytes(), "peak": peak, "seconds": time.monotonic() - began, "loss": losses[-1]})
    dist.destroy_process_group()


def measured(cell: Cell) -> list[dict[str, float]]:
    """What each rank says."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(WORLD)]
    ranks = [context.Process(target=trained, args=(rank, cell, pipes[rank][1])) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for _, writer in pipes:
        writer.close()
    found = [reader.recv() for reader, _ in pipes]
    for process in ranks:
        process.join()
    return found


def main() -> None:
    """A line of a table for each encoder and stage, as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", choices=[n for n, e in ENCODERS.items() if e.takes == "pixels"])
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 3], choices=(0, 1, 2, 3))
    parser.add_argument("--size", type=int, default=112, help="height and width of a frame, pixels")
    parser.add_argument("--frames", type=int, default=8, help="of a clip")
    parser.add_argument("--recompute", action="store_true", help="as scale.recompute")
    options = parser.parse_args()
    print("| encoder | stage | parameters, MiB per rank | masters and moments | peak memory | seconds | loss |")
    print("|---|---|---|---|---|---|---|")
    for name in options.encoders:
        for stage in options.stages:
            where = {"size": options.size, "frames": options.frames, "port": free_port()}
            found = measured(Cell(choose(name), stage, recompute=options.recompute, **where))
            mib = (" / ".join(f"{rank[k] / 2**20:.0f}" for rank in found) for k in ("parameters", "optimiser", "peak"))
            seconds, losses = (
                max(rank["seconds"] for rank in found),
                " / ".join(f"{rank['loss']:.4f}" for rank in found),
            )
            print(f"| {name} | {stage} | {' | '.join(mib)} | {seconds:.0f} | {losses} |", flush=True)


if __name__ == "__main__":
    main()
