"""Make a data set again at another place, packed: small files, quick to seek in, of the frames that a recipe needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from finepseudo.cli import RecipeOptions, main, parse, working_in
from finepseudo.fields import Count, CountOrZero
from finepseudo.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class PackOptions(RecipeOptions):
    """Options of packing."""

    to: str
    """The packed data set: a path, or a URI such as s3://bucket/packed. It becomes the recipe's data.root."""
    gop: Count = 8
    """Frames from one key frame to the next: 16 saves a tenth of the bytes and costs a fifth more time to decode."""
    crf: CountOrZero = 18
    """Quality of x264: less is better and larger; 18 to 26 are of use."""
    dry_run: bool = False
    """Say what would be done, and stop."""


def job(argv: Sequence[str]) -> None:
    """Parse, pack, print what was gained."""
    options = parse(PackOptions, argv, program="jobs/pack.py", description=__doc__ or "")
    recipe, to = options.recipe, Store(options.to)
    before = asdict(recipe.data)
    size = f"{recipe.frames.height} x {recipe.frames.width}"
    what = f"key frames every {options.gop}, crf {options.crf}"
    from finepseudo.driver.pack import check_places, ensure_packed, packed_data, summary

    check_places(recipe.data, to)
    if options.dry_run:
        print(f"{recipe.data.root} -> {to.uri()}: files that cover {size} pixels, {what}")
        return
    from finepseudo.data.pack import How
    from finepseudo.runtime.executor import on_ray

    how = How(recipe.frames.height, recipe.frames.width, options.gop, options.crf)
    with working_in(to.child("pack")), on_ray(recipe) as executor:
        rows = ensure_packed(recipe, to, how, executor)
    print(summary(rows))
    print(f"a row for each file: {to.uri('pack/packed/files.parquet')}; train on it with")
    there = asdict(packed_data(recipe.data, to))
    print(*(f"--data.{key} {value or chr(34) * 2}" for key, value in there.items() if value != before[key]))


if __name__ == "__main__":
    main(job)
