"""Write the classifier of a finished run as one folder that stands alone, for jobs/predict.py or other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finepseudo.cli import main, parse_plain
from finepseudo.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to write where."""

    run: str
    """Directory of a finished run."""
    to: str
    """Folder, or URI, of the classifier."""
    base: str = ""
    """The run directory that the run shares with others, if it does."""
    programs: bool = True
    """Also f_A.pt2 and f_E.pt2, the encoders as programs of torch.export."""


def job(argv: Sequence[str]) -> None:
    """Parse, write."""
    options = parse_plain(ExportOptions, argv, program="jobs/export.py", description=__doc__ or "")
    from finepseudo.classifier import Classifier
    from finepseudo.driver.export import export_classifier

    to = Store(options.to)
    classifier = Classifier.at(Store(options.run), Store(options.base) if options.base else None)
    export_classifier(classifier, to, programs=options.programs)
    counts = f"{len(classifier.class_names)} classes, {len(classifier.gallery)} gallery clips"
    print(f"classifier: {to.uri()}, {counts}")
    print(f"use it: python jobs/predict.py VIDEO... --run {to.uri()}")


if __name__ == "__main__":
    main(job)
