"""DeepSpeed behind few verbs: forward, step, and the pieces of a checkpoint. The only module that imports it.

A global step averages the gradients of `blocks_per_step` blocks, whatever the number of workers that share them.
BatchNorm sees one block at a time; its running statistics are averaged over the blocks of a step before they are
kept, since DeepSpeed synchronises parameters and not buffers.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finepseudo.data.batch import ClipBatch
from finepseudo.errors import TrainingError
from finepseudo.recipe import AdamW
from finepseudo.train.objectives import Objective, Output
from finepseudo.train.session import Session

MOMENTS = ("exp_avg", "exp_avg_sq")
BUILD_S = 600.0  # for another process to build


@contextmanager
def one_at_a_time(folder: Path, within_s: float = BUILD_S) -> Iterator[None]:
    """Held by one process of a machine; where that is killed, by the next.

    Raises TrainingError: others had it for so many seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "one_at_a_time", "w") as file:
        ends = time.monotonic() + within_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise TrainingError(
                        f"{folder}: another process has been building DeepSpeed's CPU collective for {within_s:g} s; "
                        "end it if it stands still (`fuser` names it), and start the same command again"
                    ) from None
                time.sleep(0.1)
        yield


def import_deepspeed() -> Any:
    """DeepSpeed, with its CPU collective loaded from a compiler cache of our own, where the first one builds it.

    torch guards this by a file, for which others wait without end if who made it is killed. Here one process at a time
    comes so far, and so knows that a file that is there is a dead one's; DeepSpeed finds the collective loaded.

    Raises:
        TrainingError: see `one_at_a_time`.
        RuntimeError, OSError, ImportError: the collective cannot be built.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # One for each environment: a build is tied to the headers that it was made with.
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    default = Path.home() / ".cache/finepseudo" / f"torch-{torch.__version__}-{environment}"
    cache = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(default)))
    # The build calls the executable `ninja`, which pip puts beside the interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    accelerator: Any = deepspeed.accelerator.get_accelerator()
    builder = accelerator.create_op_builder("ShareMemCommBuilder")
    if builder is not None and deepspeed.ops.__compatible_ops__.get(builder.NAME, False):  # else DeepSpeed has none
        with one_at_a_time(cache):
            (cache / builder.name / "lock").unlink(missing_ok=True)
            builder.load(verbose=False)
    return deepspeed


@dataclass(frozen=True)
class Piece:
    """What this rank holds of one parameter: views into the fp32 master copy and the moments."""

    name: str
    param: nn.Parameter
    start: int  # first element, in the flattened parameter
    master: Tensor
    moments: dict[str, Tensor]


class Engine:
    def __init__(
        self,
        objective: Objective,
        session: Session,
        optimiser: AdamW,
        *,
        steps: int,
        lr: float,
        layer_decay: float = 1.0,
        block_rows: int,
        zero_stage: int,
    ) -> None:
        deepspeed = import_deepspeed()
        self.session = session
        self.total_steps, self.lr, self.warmup = steps, lr, optimiser.warmup
        self.blocks = optimiser.blocks_per_step // session.world
        objective.to(session.device)
        # Never trained, so copied while they are whole: ZeRO-3 shards them as well.
        fixed = [(name, param) for name, param in objective.named_parameters() if not param.requires_grad]
        self.frozen = {name: param.detach().cpu().clone() for name, param in fixed}
        adamw = torch.optim.AdamW(groups(objective, optimiser.weight_decay, layer_decay), lr=lr, betas=(0.9, 0.99))
        config = {
            "train_micro_batch_size_per_gpu": block_rows,
            "gradient_accumulation_steps": self.blocks,
            "gradient_clipping": optimiser.clip,
            "zero_optimization": {"stage": zero_stage, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 30,
        }
        if optimiser.precision == "bf16":
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        self.engine, *_ = deepspeed.initialize(
            model=objective, optimizer=adamw, config=config, dist_init_required=False
        )
        self.steps = 0
        self._norms = [m for m in objective.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._statistics = [b for m in self._norms for b in (m.running_mean, m.running_var) if b is not None]
        self._before = [b.clone() for b in self._statistics]
        self._sums = [torch.zeros_like(b) for b in self._statistics]

    @property
    def module(self) -> Objective:
        return self.engine.module

    def forward(self, batch: ClipBatch) -> Output:
        """Loss of one block. BatchNorm starts from the statistics of the last step in every block of a step."""
        if self.blocks * self.session.world > 1:
            for buffer, before in zip(self._statistics, self._before, strict=True):
                buffer.copy_(before)
        return self.engine(batch)

    def step(self, loss: Tensor) -> bool:
        """Backward, and the update once all blocks of the step are in; True if this was an update."""
        boundary = self.engine.is_gradient_accumulation_boundary()
        if boundary:
            rate = schedule(self.steps, self.total_steps, lr=self.lr, warmup=self.warmup)
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate * group["share"]
        self.engine.backward(loss)
        self.engine.step()
        self._average_statistics(boundary=boundary)
        self.steps += boundary
        if boundary:
            self._check_norm()
        return boundary

    def pieces(self) -> Iterator[Piece]:
        """What this rank must write so that all ranks together hold every trained parameter and moment once."""
        optimizer, rank = self.engine.optimizer, dist.get_rank()
        base = getattr(optimizer, "optimizer", optimizer)
        for name, param in self._parameters():
            if not param.requires_grad:
                continue
            if hasattr(param, "ds_id"):  # ZeRO-3
                group, offset, size = optimizer.grad_position[optimizer.get_param_id(param)]
                flat = optimizer.fp32_partitioned_groups_flat[group]
                start = rank * size
                size = max(0, min(size, param.ds_numel - start))  # the last rank holds padding
            elif hasattr(param, "_hp_mapping"):  # ZeRO-1 and 2
                mapping = param._hp_mapping
                if mapping is None:  # nothing of it lives on this rank
                    continue
                offset, size = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
                start = mapping.lp_fragment_address.start
                flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            else:  # ZeRO-0: every rank holds all of it, rank 0 writes
                flat, offset, size, start = param, 0, param.numel(), 0
            if not size:
                continue
            state = base.state[flat]
            for key in MOMENTS:
                if key not in state:
                    state[key] = torch.zeros_like(flat.data)
            state.setdefault("step", torch.tensor(0.0))

            def window(tensor: Tensor, offset: int = offset, size: int = size) -> Tensor:
                return tensor.detach().view(-1).narrow(0, offset, size)

            yield Piece(name, param, start, window(flat), {key: window(state[key]) for key in MOMENTS})

    def writes(self, piece: Piece) -> bool:
        """Whether this rank writes the piece: always, unless ZeRO-0 holds it whole everywhere."""
        return hasattr(piece.param, "ds_id") or hasattr(piece.param, "_hp_mapping") or self.session.rank == 0

    def shape(self, param: nn.Parameter) -> list[int]:
        """Shape of the whole parameter, sharded or not."""
        return list(getattr(param, "ds_shape", param.shape))

    def restore(self, tensors: dict[str, dict[str, Tensor]], buffers: dict[str, Tensor], steps: int) -> None:
        """Put whole parameters and moments back into this rank's pieces, whatever the number of ranks now.

        Args:
            tensors: by parameter name, `param` and the moments, flattened and whole.
            buffers: by name.
            steps: optimiser steps that they have behind them.
        """
        for piece in self.pieces():
            whole = tensors[piece.name]
            stop = piece.start + piece.master.numel()
            piece.master.copy_(whole["param"][piece.start : stop])
            for key, view in piece.moments.items():
                view.copy_(whole[key][piece.start : stop])
        for name, param in self._parameters():
            if name not in tensors:
                continue
            whole = tensors[name]["param"]
            if hasattr(param, "ds_id"):
                size = param.ds_tensor.numel()
                part = whole[dist.get_rank() * size :][:size]
                param.ds_tensor.view(-1)[: len(part)].copy_(part)
            else:
                param.data.copy_(whole.view_as(param))
        for state in getattr(self.engine.optimizer, "optimizer", self.engine.optimizer).state.values():
            state["step"] = torch.tensor(float(steps))
        for name, buffer in self.module.named_buffers():
            buffer.copy_(buffers[name])
        for before, buffer in zip(self._before, self._statistics, strict=True):
            before.copy_(buffer)
        self.engine.global_steps = self.steps = steps

    def sharded_bytes(self) -> dict[str, int]:
        """Bytes that this rank keeps: of parameters, and of fp32 masters and moments together."""
        parameters = sum(getattr(param, "ds_tensor", param).numel() for _, param in self._parameters())
        state = sum(piece.master.numel() * (1 + len(piece.moments)) for piece in self.pieces())
        return {"parameters": 4 * parameters, "optimiser": 4 * state}

    def _parameters(self) -> Iterator[tuple[str, Any]]:
        """Named parameters; untyped, since DeepSpeed hangs attributes of its own on them."""
        yield from self.module.named_parameters()

    def _average_statistics(self, *, boundary: bool) -> None:
        if self.blocks * self.session.world == 1:
            return
        for total, buffer in zip(self._sums, self._statistics, strict=True):
            total += buffer
        if not boundary:
            return
        if self._sums:
            whole = torch.cat([total.flatten() for total in self._sums]) / self.blocks
            parts = self.session.mean(whole).split([total.numel() for total in self._sums])
            for buffer, before, total, part in zip(self._statistics, self._before, self._sums, parts, strict=True):
                before.copy_(part.view_as(before))
                buffer.copy_(before)
                total.zero_()
        for norm in self._norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(self.steps + 1)

    def _check_norm(self) -> None:
        norm = self.engine.get_global_grad_norm()
        if norm is None:  # ZeRO-0 keeps no norm, and has updated whatever the gradient was
            finite = all(bool(param.isfinite().all()) for param in self.module.parameters())
        else:
            finite = math.isfinite(float(norm))
        if not finite:
            raise TrainingError(
                f"gradient not finite at step {self.steps}; nothing of this step is committed. "
                "Lower the learning rate, or use optimiser.precision fp32"
            )


def schedule(step: int, steps: int, *, lr: float, warmup: float) -> float:
    """One-cycle learning rate: cosine from lr / 25 up to lr in the first `warmup` share, then down to lr / 1e4."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return lr / 25 + (lr - lr / 25) * (1 - math.cos(math.pi * (step + 1) / rise)) / 2
    done = (step + 1 - rise) / max(1, steps - rise)
    return lr / 1e4 + (lr - lr / 1e4) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def groups(objective: Objective, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Trained parameters by their weight decay and their share of the learning rate.

        lr_l = lr layer_decay^(L + 1 - l),   l = 0 before the encoder's layers, 1 .. L in them, L + 1 behind them    [A]

    A head beside the encoder has the whole rate. No weight decay on biases, norms and other vectors.
    """
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, param in objective.named_parameters():
        if param.requires_grad:
            inside = name.startswith("encoder.") and layer_decay != 1
            share = layer_decay ** objective.encoder.from_top(name.removeprefix("encoder.")) if inside else 1.0
            found.setdefault((share, weight_decay if param.ndim > 1 else 0.0), []).append(param)
    return [{"params": found[key], "share": key[0], "weight_decay": key[1]} for key in sorted(found, reverse=True)]


def compile_ahead() -> float:
    """Build what DeepSpeed compiles at first use, so that no run waits for a compiler; seconds that it took.

    Raises TrainingError where the build fails (a C++ compiler and Python's headers are needed).
    """
    began = time.monotonic()
    try:
        import_deepspeed()
    except (RuntimeError, OSError, ImportError) as error:
        raise TrainingError(
            f"DeepSpeed's CPU collective does not compile: {error}. Install g++ and Python's headers "
            "(Debian: apt-get install g++ python3-dev), then try again"
        ) from error
    return time.monotonic() - began


if __name__ == "__main__":
    sys.stdout.write(f"DeepSpeed's CPU collective is built ({compile_ahead():.0f} s)\n")
