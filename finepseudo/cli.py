"""What the jobs share: a command line made from the recipe's fields, a log, and an exit code that can be trusted."""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from finepseudo.errors import ClusterError, FinePseudoError, NotReadyError, OutageError, RecipeError
from finepseudo.recipe import Recipe
from finepseudo.recipes import RECIPES, find
from finepseudo.stop import AGAIN, answer_sigterm, before_the_end
from finepseudo.storage.check import check_store
from finepseudo.storage.lease import held, release
from finepseudo.storage.store import Store

log = logging.getLogger("finepseudo")

Flat = Annotated[Recipe, tyro.conf.arg(name="")]
"""The recipe's fields as options of their own: --align.steps, not --recipe.align.steps."""


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The recipe's fields, as every job has them."""

    recipe: Flat


@dataclass(frozen=True, kw_only=True)
class Options(RecipeOptions):
    """Options of the jobs of a run."""

    run: str
    """Run directory: a path, or a URI such as s3://bucket/run."""
    base: str = ""
    """Another run directory of the same data: its manifest, its pre-training, and every training that would be the same
    are used from there."""


T = TypeVar("T", bound=RecipeOptions)
U = TypeVar("U")

Positional = tyro.conf.Positional  # of a value that has its place on the command line instead of a name


def named(name: str) -> Any:
    """For `Annotated`: an option whose name Python keeps for itself."""
    return tyro.conf.arg(name=name)


def parse_plain(kind: type[U], argv: Sequence[str], *, program: str, description: str) -> U:
    """Options of a job that has no recipe. Raises SystemExit: help was asked for, or an option is wrong."""
    return tyro.cli(kind, args=list(argv), prog=program, description=description)


def parse(kind: type[T], argv: Sequence[str], *, program: str, description: str) -> T:
    """`<recipe> [options]` as an instance of `kind`. The command line wins over the recipe; nothing comes after it.

    Raises:
        RecipeError: unknown recipe (nearest names shown) or values that break a rule of the recipe.
        SystemExit: help was asked for, or an option is unknown (tyro shows the nearest).
    """
    names = ", ".join(RECIPES)
    asked = [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
    places = [name for name in asked if name != "recipe"]
    dirs = " ".join(f"--{name} DIR" for name in places)
    usage = f"{description}\n\nusage: {program} RECIPE {dirs} [options]; recipes: {names}, or file.py:function"
    if not argv or argv[0] in ("-h", "--help"):
        argv = ("rehearsal", "--help")
    if argv[0].startswith("-"):
        raise RecipeError(f"the first argument names the recipe, got {argv[0]!r}; there are: {names}")
    options = tyro.cli(
        kind, args=list(argv[1:]), prog=f"{program} {argv[0]}", description=usage,
        default=kind(recipe=find(argv[0]), **dict.fromkeys(places, tyro.MISSING)),
    )  # fmt: skip
    for name in places:
        if not getattr(options, name):
            raise RecipeError(f"--{name}: expected a directory, got an empty name")
    return options


def main(job: Callable[[Sequence[str]], None]) -> None:
    """Run a job; exit 0 for success only, and AGAIN where starting the same command again is the remedy.

    Expected errors are one line, unexpected ones keep their traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    log.setLevel(logging.INFO)
    answer_sigterm()
    try:
        job(sys.argv[1:])
    except FinePseudoError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(AGAIN if isinstance(error, ClusterError | OutageError) else 1)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last commit", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def dry_run(recipe: Recipe, run: Store, base: Store, units: str, variants: Sequence[Recipe] = ()) -> None:
    """Print what a run, or all runs of a comparison, would do and cost.

    Raises NotReadyError: something is missing that it would stop for.
    """
    from finepseudo.costs.units import known_units  # arrow, and tables of clips: not for --help
    from finepseudo.preview.page import preview

    if units and not Path(units).is_file():
        raise RecipeError(f"--units {units}: no such file; benchmarks/scale.py --measure writes one")
    found = preview(recipe, run, base, known_units(Path(units) if units else None), variants)
    print(found.text)  # noqa: T201
    if found.missing:
        count = len(found.missing)
        raise NotReadyError(f"{recipe.name} cannot start: {count} thing{'s' * (count > 1)} missing, named above")


@contextmanager
def working_in(folder: Store) -> Iterator[Store]:
    """A run directory, or another folder that a job commits to, which is this job's alone within the block.

    The log is kept beside what is made, as logs/<start>.log; the file is renewed now and then, so s3 works too. A log
    that cannot be written is one warning.

    Raises:
        StorageError: the folder does not do what a run asks of it; said before anything is started.
        LeaseError: another job works in it.
    """
    check_store(folder, f"probe-{uuid.uuid4().hex}")
    with _logged(folder), held(folder) as mine, before_the_end(lambda _: release(folder)):
        yield mine


@contextmanager
def _logged(run: Store) -> Iterator[None]:
    handler = _StoreHandler(run, f"logs/{time.strftime('%Y%m%dT%H%M%S')}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class _StoreHandler(logging.Handler):
    """Rewrites one small file every few seconds, in a thread of its own: a store that is away delays nobody."""

    EVERY_S = 20.0
    LAST_S = 40.0  # that the end of a job waits for the last lines to be written

    def __init__(self, run: Store, path: str) -> None:
        super().__init__()
        self.run, self.path = replace(run, patience_s=0.0), path
        self.lines: list[str] = []
        self.written = 0
        self.warning: threading.Thread | None = None  # that it cannot be kept, once
        self.guard, self.over = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._renew, daemon=True)
        self.thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(self.format(record))

    def flush(self) -> None:
        """Write all lines so far."""
        with self.guard:
            count = len(self.lines)
            if count == self.written:
                return
            try:
                self.run.write(self.path, ("\n".join(self.lines[:count]) + "\n").encode())
                self.written = count
            except Exception as error:  # noqa: BLE001  a log is no reason to stop, and must not hide one
                away = isinstance(error, OutageError) and not self.over.is_set()  # the next time will do
                if not self.warning and not away:
                    text = f"the log cannot be kept beside the results, the job goes on: {error}"
                    self.warning = threading.Thread(target=log.warning, args=(text,), daemon=True)
                    self.warning.start()

    def close(self) -> None:
        """Write what is left."""
        self.over.set()
        self.thread.join(self.LAST_S)
        if self.warning:
            self.warning.join(1.0)  # so that the last line is that of the error that ends the job
        super().close()

    def _renew(self) -> None:
        while not self.over.wait(self.EVERY_S):
            self.flush()
        self.flush()
