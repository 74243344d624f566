"""The smoke recipe, whole, in this one process: what the tests of killed drivers start and kill."""

import sys

from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.recipes import find
from finepseudo.storage.store import Store

if __name__ == "__main__":
    recipe = find("rehearsal_smoke")
    ensure_results(run_rounds(recipe, Store(sys.argv[1]), InProcess(recipe)))
