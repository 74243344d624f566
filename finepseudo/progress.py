"""How far something is: one form of line for all that takes long, a few times a minute at most."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("finepseudo")

EVERY_S = 10.0


def line(name: str, done: int, total: int, left_s: float, loss: float | None = None) -> str:
    """`align/frame: 40/150, loss 0.123, 2 min 05 s left`."""
    told = "" if loss is None else f", loss {loss:.3f}"
    return f"{name}: {done}/{total}{told}, {_duration(left_s)} left"


class Progress:
    """Logs how far a number of equal pieces is. The first ones take the start with them, so the pace is that after."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self._began: float | None = None
        self._first, self._logged = 0, time.monotonic()

    def add(self, pieces: int) -> None:
        """So many pieces more are done."""
        self.done += pieces
        now = time.monotonic()
        if self._began is None:
            self._began, self._first = now, self.done
        elif now - self._logged > EVERY_S and self.done < self.total:
            self._logged = now
            left_s = (now - self._began) / max(1, self.done - self._first) * (self.total - self.done)
            log.info("%s", line(self.name, self.done, self.total, left_s))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
