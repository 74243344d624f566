"""Convert public weights for an encoder, so that a run can start from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finepseudo.cli import Positional, main, parse_plain


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of an import."""

    source: Positional[str]
    """File, or folder of one model, as it was published: a path, or a URI."""
    encoder: str
    """Name of models/table.py, such as r2plus1d_18 or vtn_resnet50."""
    out: str
    """The converted file: a path, or a URI such as s3://bucket/weights/r2plus1d_18.safetensors."""
    licence: str = ""
    """Of the weights, as their publisher states it; kept in the file."""
    sha256: str = ""
    """Expected digest of the source."""
    mean: tuple[float, ...] = ()
    """Of the pixels that the weights were trained with, red green blue in 0..1; empty: what the folder says, else what
    the encoder's family has."""
    std: tuple[float, ...] = ()


def job(argv: Sequence[str]) -> None:
    """Parse, convert, print what was loaded, renamed, left aside and initialised."""
    options = parse_plain(ImportOptions, argv, program="jobs/import_weights.py", description=__doc__ or "")
    from finepseudo.driver.public_weights import import_weights

    print(
        import_weights(
            options.source, options.encoder, options.out, licence=options.licence, sha256=options.sha256,
            mean=options.mean, std=options.std,
        ).summary()
    )  # fmt: skip


if __name__ == "__main__":
    main(job)
