"""List the recipes with what each would cost; or copy one to a file of your own, to edit and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finepseudo.cli import Positional, main, parse_plain
from finepseudo.errors import RecipeError
from finepseudo.recipes import copy_recipe


@dataclass(frozen=True, kw_only=True)
class RecipesOptions:
    """What to do."""

    verb: Positional[Literal["list", "cp"]] = "list"
    """`cp NAME FILE.py` writes a recipe as a file that stands alone; it never writes over one."""
    name: Positional[str] = ""
    file: Positional[str] = ""


def job(argv: Sequence[str]) -> None:
    """Parse, list or copy."""
    options = parse_plain(RecipesOptions, argv, program="jobs/recipes.py", description=__doc__ or "")
    if options.verb == "list":
        from finepseudo.costs.units import known_units
        from finepseudo.preview.listing import listing

        print(listing(known_units()))
        return
    if not (options.name and options.file):
        raise RecipeError("cp: expected the name of a recipe and a file, as in: jobs/recipes.py cp rehearsal mine.py")
    run = copy_recipe(options.name, Path(options.file))
    print(f"{options.file}: {options.name}, to edit; run it: python jobs/run.py {run} --run DIR")


if __name__ == "__main__":
    main(job)
