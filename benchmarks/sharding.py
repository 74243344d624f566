"""Bytes per rank at every ZeRO stage: what sharding really saves, for any encoder of the table.

torchrun --standalone --nproc-per-node 2 benchmarks/sharding.py --encoder vtn_resnet18
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist

from finepseudo.models.encoders import build
from finepseudo.models.table import choose
from finepseudo.recipe import Align, Augment, Optimiser
from finepseudo.train.engine import Engine
from finepseudo.train.objectives import AlignObjective
from finepseudo.train.session import Session


def main() -> None:
    """Build the objective once per stage and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="vtn_resnet18", help="an f_A of models/table.py")
    parser.add_argument("--size", type=int, default=112, help="height and width of its input, pixels")
    options = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", os.environ.get("RANK", "0"))
    dist.init_process_group("gloo")
    session = Session(torch.device("cpu"), report=print)
    rows = []
    for stage in (0, 1, 2, 3):
        encoder = build(choose(options.encoder, part="frame"), num_classes=2, size=options.size, seed=0)
        objective = AlignObjective(encoder, Align(), Augment(), options.size)
        optimiser = Optimiser(blocks_per_step=session.world)
        engine = Engine(objective, session, optimiser, steps=1, lr=1e-3, block_rows=1, zero_stage=stage)
        rows.append((stage, session.gather(engine.sharded_bytes())))
    if session.rank == 0:
        whole = rows[0][1][0]
        print(f"{options.encoder}, {session.world} ranks: MiB per rank (share of the whole)")
        print("ZeRO  parameters                optimiser state")
        for stage, ranks in rows:
            cells = [
                " / ".join(f"{rank[kind] / 2**20:.1f} ({rank[kind] / whole[kind]:.2f})" for rank in ranks)
                for kind in ("parameters", "optimiser")
            ]
            print(f"{stage}     {cells[0]:24}  {cells[1]}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
