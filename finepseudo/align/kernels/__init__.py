"""The implementations behind softdtw.py and score.py, and which of them runs.

    cpu        C++ for every x86-64 and ARM, built when the package is installed      CPU tensors
    cuda       Triton                                                                 fp32 tensors on an NVIDIA GPU
    plain      torch alone, exponential domain                                        everything else
    reference  torch alone, log domain                                                what the others are held to

Every one gives the distances of `reference` in double within 1e-6 + 1e-5 |D|, and its gradients within 1e-3. cpu and
plain work in the exponential domain and prove for each pair that its range suffices (docs/alignment.md); where that
fails they compute the pair in the log domain. cuda works in the log domain throughout.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from finepseudo.align.head import Mean, ScoreHead
from finepseudo.align.kernels import cpu, plain

log = logging.getLogger("finepseudo")


class Rows(Protocol):
    """A gallery laid out for one kernel."""

    def distances(self, emb_NTD: Tensor, gamma: float) -> Tensor:
        """Alignment distances, [N, G]; `emb_NTD` has the gallery's type."""
        ...

    def class_sums(
        self, emb_NTD: Tensor, gamma: float, label_G: Tensor, num_classes: int, head: ScoreHead, *, mean: Mean
    ) -> Tensor:
        """Sums over each class's members of f_S(D), or of its sigmoid; [N, K] in double. The labels are sorted."""
        ...


def rows(gallery_GUD: Tensor) -> Rows:
    """A gallery, fp32 or double, for the kernel that takes it."""
    kernel = choose(gallery_GUD) if gallery_GUD.dtype == torch.float32 else plain
    return kernel.Rows(gallery_GUD)


def choose(tensor: Tensor) -> ModuleType:
    """The module whose functions take tensors of this device and type; said in the log when first chosen."""
    return _choose(tensor.device.type, torch.promote_types(tensor.dtype, torch.float32))


@cache
def _choose(device: str, dtype: torch.dtype) -> ModuleType:
    kernel, why = plain, f"no kernel takes {dtype} on {device}"
    if device == "cpu":
        kernel, why = (cpu, cpu.describe()) if cpu.available() else (plain, cpu.missing())
    elif device == "cuda" and dtype == torch.float32:
        try:
            from finepseudo.align.kernels import cuda
        except ModuleNotFoundError as error:
            why = f"{error}; install triton for the GPU kernel"
        else:
            kernel, why = cuda, "Triton"
    level = logging.WARNING if kernel is plain else logging.INFO
    log.log(level, "alignment on %s: %s kernel (%s)", device, kernel.__name__.rpartition(".")[2], why)
    return kernel
