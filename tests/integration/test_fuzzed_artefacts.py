"""Broken artefacts of a whole run: some of those of benchmarks/fuzz.py."""

import fuzz

from finepseudo.run import Run
from finepseudo.storage.store import Store


def test_broken_artefacts_are_one_error_that_names_them(short):
    report = fuzz.Report()
    fuzz.fuzz_artefacts(short.folder, None, 150, 3, report)
    assert report.wrong == []
    assert sum(tally.rejected for tally in report.kinds.values()) > 100
    assert Run.at(Store(str(short.folder))).results() == short.results, "nothing of the run itself was touched"
