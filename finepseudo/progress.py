"""How far something is: one form of line for all that takes long, a few times a minute at most."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

log = logging.getLogger("finepseudo")

EVERY_S = 10.0


@dataclass(frozen=True)
class Told:
    """How far something is."""

    name: str
    done: int
    total: int
    left_s: float
    loss: float | None = None

    def __str__(self) -> str:
        """`align/frame: 40/150, loss 0.123, 2 min 05 s left`."""
        told = "" if self.loss is None else f", loss {self.loss:.3f}"
        return f"{self.name}: {self.done}/{self.total}{told}, {_duration(self.left_s)} left"


def tell(name: str, done: int, total: int, left_s: float, loss: float | None = None) -> None:
    """Log it as a line; the record carries what it was made of, for those who show it elsewhere."""
    told = Told(name, done, total, left_s, loss)
    log.info("%s", told, extra={"progress": told})


class Pace:
    """Seconds left of equal pieces. The first ones take the start with them, so the pace is that after them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._first: tuple[float, int] | None = None

    def left_s(self, done: int) -> float | None:
        """None when it is asked first."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
            return None
        began, first = self._first
        return (now - began) / max(1, done - first) * (self.total - done)


class Progress:
    """Logs how far a number of equal pieces is."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.pace, self.done = name, Pace(total), 0
        self._logged = time.monotonic()

    def add(self, pieces: int) -> None:
        """So many pieces more are done."""
        self.done += pieces
        left_s, total = self.pace.left_s(self.done), self.pace.total
        if left_s is not None and time.monotonic() - self._logged > EVERY_S and self.done < total:
            self._logged = time.monotonic()
            tell(self.name, self.done, total, left_s)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
