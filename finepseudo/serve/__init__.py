"""An exported classifier behind HTTP: what it is asked for, what it answers, and within which limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def application(args: Mapping[str, Any]) -> Any:
    """The application of Ray Serve, for `import_path: finepseudo.serve:application` and jobs/serve.py.

    Args:
        args: fields of `finepseudo.serve.options.ServeOptions`.
    Raises RecipeError: an unknown field, or a value out of its bounds.
    """
    from functools import partial

    from finepseudo.runtime.serving import Limits, deployed
    from finepseudo.serve.desk import Desk
    from finepseudo.serve.options import options_from

    options = options_from(args)
    limits = Limits(options.body_mib << 20, options.seconds, options.waiting, options.root)
    return deployed(partial(Desk, options.classifier), limits, replicas=options.replicas, cpus=options.cpus)
