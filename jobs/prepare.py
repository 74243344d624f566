"""Make a run's data ready: generate the rehearsal set where asked for, probe every video, write manifest and split."""

from __future__ import annotations

import json
from collections.abc import Sequence

from finepseudo.cli import Options, main, parse, working_in
from finepseudo.storage.store import Store


def job(argv: Sequence[str]) -> None:
    """Parse, prepare, print what is usable and what was rejected, with reasons."""
    options = parse(Options, argv, program="jobs/prepare.py", description=__doc__ or "")
    run, base = Store(options.run), Store(options.base or options.run)
    from finepseudo.driver.prepare import ensure_manifest, ensure_split
    from finepseudo.run import claim, data_store
    from finepseudo.runtime.executor import on_ray

    with working_in(run) as run, on_ray(options.recipe) as executor:
        claim(run, options.recipe)
        manifest = ensure_manifest(options.recipe, base, executor)
        split = ensure_split(options.recipe, run, data_store(options.recipe, base), manifest)
    for line in manifest.rejections():
        print(f"rejected {line}")
    print(json.dumps({"manifest": manifest.fingerprint, **manifest.summary()}))
    print(f"split {split.fingerprint}: {len(split.labelled)} labelled, {len(split.unlabelled)} unlabelled")


if __name__ == "__main__":
    main(job)
