"""Weights & Biases, where WANDB_PROJECT or WANDB_MODE asks for it: the same curves as in TensorBoard, in one W&B run a
run directory.

The W&B run's id is a digest of the address of the run directory, so a run that is started again goes on in it; and what
W&B has of a series decides what it is sent, so that each step is there once. Offline there is nobody to ask: each start
writes all curves anew, in a folder of its own.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from finepseudo.recipe import Recipe, digest
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store
from finepseudo.tracking.parts import Part

log = logging.getLogger("finepseudo")

ANSWER_S = 20.0  # that W&B may take to begin a run, and to take the rest of it in the end


def from_environment(run: Store, recipe: Recipe) -> Tracker | None:
    """None where it is not asked for; or not installed, or without a key, which is a warning."""
    mode = os.environ.get("WANDB_MODE", "")
    asked = next((name for name in ("WANDB_PROJECT", "WANDB_MODE") if os.environ.get(name)), None)
    if asked is None or mode == "disabled":
        return None
    # Curves are all that is sent: no crash reports, and nothing on the terminal.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        log.warning("%s is set, but wandb is not installed: pip install wandb", asked)
        return None
    # Without a key it would ask for one at a terminal, where nobody may sit.
    if mode in ("", "online") and not wandb.login(prompt=False, verify=False):
        log.warning("%s is set, but W&B has no key: set WANDB_API_KEY, or WANDB_MODE=offline", asked)
        return None
    return Tracker(run, recipe)


class Tracker:
    """Of one run directory."""

    def __init__(self, run: Store, recipe: Recipe) -> None:
        self.id, self.name = fingerprint(run.uri()), os.environ.get("WANDB_NAME", recipe.name)
        self.config = {"finepseudo.run": run.uri(), "finepseudo.recipe": digest(recipe)}
        self._run: Any = None
        self._taken, self._last = set[tuple[str, str]](), dict[str, float]()

    def take(self, part: Part) -> None:
        """Send what W&B does not have of a part."""
        if (part.series, part.digest) in self._taken:
            return
        self._run = self._run or self._begun()
        for point in part.points():
            if point["step"] > self._last_of(part.series):
                self._run.log({f"{part.series}/{tag}": value for tag, value in point.items()})
                self._last[part.series] = point["step"]
        self._taken.add((part.series, part.digest))

    def close(self) -> None:
        """Wait until W&B has all, at most `ANSWER_S`."""
        if self._run is not None:
            self._run.finish()

    def _last_of(self, series: str) -> float:
        """The last step that W&B has."""
        if series not in self._last:
            step = f"{series}/step"
            self._run.define_metric(step, hidden=True)
            self._run.define_metric(f"{series}/*", step_metric=step)
            self._last[series] = self._run.summary.get(step, -1)
        return self._last[series]

    def _begun(self) -> Any:
        import wandb  # pyright: ignore[reportMissingImports]

        settings = wandb.Settings(
            init_timeout=ANSWER_S, finish_timeout=ANSWER_S, reinit="create_new", console="off", save_code=False,
            disable_git=True, x_disable_meta=True, x_disable_stats=True, x_save_requirements=False,
        )  # fmt: skip
        return wandb.init(
            id=self.id, resume="allow", name=self.name, project=os.environ.get("WANDB_PROJECT", "finepseudo"),
            config=self.config, settings=settings,
        )  # fmt: skip
