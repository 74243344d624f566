"""Serve an exported classifier over HTTP, by Ray Serve: POST /predict, GET /health."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from finepseudo.cli import main, parse_plain
from finepseudo.serve.options import ServeOptions


@dataclass(frozen=True, kw_only=True)
class Options(ServeOptions):
    """What to serve, where."""

    host: str = "127.0.0.1"
    """Address to listen on. Nobody is asked who they are: others than this machine belong behind a proxy that asks."""
    port: int = 8000
    """Port to listen on."""


def job(argv: Sequence[str]) -> None:
    """Parse, start, say where, and stay until a signal ends it."""
    options = parse_plain(Options, argv, program="jobs/serve.py", description=__doc__ or "")
    from finepseudo.classifier import Classifier
    from finepseudo.runtime.cluster import connected
    from finepseudo.runtime.serving import serving
    from finepseudo.serve import application
    from finepseudo.stop import before_the_end
    from finepseudo.storage.store import Store

    args = {name: value for name, value in asdict(options).items() if name not in ("host", "port")}
    with connected(Classifier.at(Store(options.classifier)).recipe):
        end = serving(application(args), options.host, options.port, options.seconds)
        with before_the_end(end):
            where = f"http://{options.host}:{options.port}"
            print(f"serving {options.classifier} at {where}: curl --data-binary @VIDEO {where}/predict", flush=True)
            try:
                signal.pause()
            finally:
                end(0)


if __name__ == "__main__":
    main(job)
