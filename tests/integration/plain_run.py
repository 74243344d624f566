"""A short recipe, whole, in this one process: what the tests of killed processes start and kill."""

import sys

from conftest import short_recipe, wide_recipe

from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.storage.store import Store

if __name__ == "__main__":
    recipe = {"short": short_recipe, "wide": wide_recipe}[sys.argv[2]]()
    ensure_results(run_rounds(recipe, Store(sys.argv[1]), InProcess(recipe)))
