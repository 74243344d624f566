"""The short recipe, whole, in this one process: what the test of killed processes starts and kills."""

import sys

from conftest import short_recipe

from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.storage.store import Store

if __name__ == "__main__":
    ensure_results(run_rounds(short_recipe(), Store(sys.argv[1]), InProcess(short_recipe())))
