"""Look at the cluster that a job would run on, and say what stands against a start: a line a check, within a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from finepseudo.cli import Options, main, parse
from finepseudo.storage.store import Store


def job(argv: Sequence[str]) -> None:
    """Parse, look, print; exit code 1 where there is a fault, warnings or not."""
    options = parse(Options, argv, program="jobs/doctor.py", description=__doc__ or "")
    run = Store(options.run)
    from finepseudo.doctor.judge import faults, lines, summary
    from finepseudo.runtime.doctor import examine

    began = time.monotonic()
    findings = examine(options.recipe, run, Store(options.base or options.run))
    print(*lines(findings), summary(findings, time.monotonic() - began), sep="\n")
    sys.exit(1 if faults(findings) else 0)


if __name__ == "__main__":
    main(job)
