"""Tables of positions for other grids and other numbers of frames.

Axes: L places, T frames, F features, h w grid of patches. A module names its tables in an attribute `tables`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["grid", "times"]
"""(1 + h w, F), the class token's own first, h = w; or (T, F). Axes of length 1 may stand before."""


def resized_grid(table_1Fhw: Tensor, side: int) -> Tensor:
    """For side x side places: bicubic, what is made smaller being smoothed first, in fp32 [A]."""
    if table_1Fhw.shape[2:] == (side, side):
        return table_1Fhw
    with torch.autocast(table_1Fhw.device.type, enabled=False):
        whole = table_1Fhw.to(torch.promote_types(table_1Fhw.dtype, torch.float32))
        return F.interpolate(whole, (side, side), mode="bicubic", align_corners=False, antialias=True)


def resized_times(table_TF: Tensor, frames: int) -> Tensor:
    """For another number of frames: linear, in fp32."""
    if len(table_TF) == frames:
        return table_TF
    with torch.autocast(table_TF.device.type, enabled=False):
        whole = table_TF.to(torch.promote_types(table_TF.dtype, torch.float32))
        return F.interpolate(whole.T[None], frames, mode="linear", align_corners=False)[0].T


def tables(module: nn.Module) -> Mapping[str, Kind]:
    """The tables of positions in a module, by the names of its state dict."""
    return {
        f"{path}.{name}".lstrip("."): kind
        for path, part in module.named_modules()
        for name, kind in getattr(part, "tables", {}).items()
    }


def fitted(kind: Kind, table: Tensor, wanted: Tensor) -> tuple[Tensor, str] | None:
    """A table in the shape of another of its kind, and what was done, such as '24 x 24 places as 14 x 14'.

    None where there is nothing to do, or nothing that could be done.
    """
    (*front, found, width), (*others, length, same) = (table.shape, wanted.shape)
    if found == length or width != same or front != others or set(front) > {1}:
        return None
    rows_LF = table.reshape(found, width)
    if kind == "times":
        made, said = resized_times(rows_LF, length), f"{found} times as {length}"
    else:
        side, to = math.isqrt(found - 1), math.isqrt(length - 1)
        if side * side != found - 1 or not side:
            return None
        grid_1Fhw = resized_grid(rows_LF[1:].T.reshape(1, width, side, side), to)
        made = torch.cat([rows_LF[:1].to(grid_1Fhw.dtype), grid_1Fhw.flatten(2)[0].T])
        said = f"{side} x {side} places as {to} x {to}"
    return made.to(table.dtype).reshape(wanted.shape).contiguous(), said
