"""Figures as they are written: shares without a leading zero, each with its standard error."""

from __future__ import annotations

import math
import re

from finepseudo import measures
from finepseudo.results import Interval, Share


def figure(share: Share | None, sign: str = "") -> str:
    """`.950 ±.009`; `-` for what is not known."""
    if share is None or not is_known(share.value):
        return "-"
    se = f" ±{short(share.se)}" if is_known(share.se) else " ±?"
    return short(share.value, sign) + se


def interval(found: Interval | None) -> str:
    """`.812 (.790 to .835)`."""
    return "not known" if found is None else f"{short(found.value)} ({short(found.low)} to {short(found.high)})"


def shared(share: float, count: int) -> str:
    """A share of `count` videos."""
    return figure(Share(share, measures.proportion_standard_error(share, count))) if is_known(share) else "-"


def short(number: float | None, sign: str = "") -> str:
    """Three decimals without a leading zero, as shares are written."""
    if number is None or not math.isfinite(number):
        return "-"
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{round(number, 3) + 0.0:{sign}.3f}")


def is_known(number: float | None) -> bool:
    """Whether a figure has a value."""
    return number is not None and math.isfinite(number)
