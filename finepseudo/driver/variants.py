"""The runs of a comparison, one after the other, all from one pre-training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import Executor
from finepseudo.driver.rounds import run_rounds
from finepseudo.errors import TrainingError
from finepseudo.recipe import Recipe
from finepseudo.recipes.variants import Variant
from finepseudo.results import Results
from finepseudo.storage.lease import held
from finepseudo.storage.store import Store

log = logging.getLogger("finepseudo")


def run_variants(
    runs: Sequence[Variant],
    root: Store,
    base: Store,
    executor: Callable[[Recipe], Executor],
    within: Callable[[Variant], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Iterator[tuple[Variant, Results | TrainingError]]:
    """Results of each, as it is done; what is committed below `root` and in `base` is looked up.

    A training that cannot go on, such as one on labels that have collapsed, is a finding on its variant: it takes the
    place of the results, and the other runs go on. Each is worked on inside a block of `within`.
    """
    for number, one in enumerate(runs):
        log.info("%s: run %d of %d", one.folder, number + 1, len(runs))
        kin = (root.child(one.kin),) if one.kin else ()
        try:
            with held(root.child(one.folder)) as run, within(one):
                story = run_rounds(one.recipe, run, executor(one.recipe), base, kin=kin)
                results = ensure_results(story)
            yield one, results
        except TrainingError as error:
            log.warning("%s: %s", one.folder, error)
            yield one, error
