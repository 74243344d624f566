"""What `--dry-run` says of a recipe: plan, data, resources, predicted hours and money, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from finepseudo.costs.model import CORE_PRICE, GPU_PRICE, Model, Sizes
from finepseudo.costs.predict import Predicted, comparison_hours, hours_text, predict
from finepseudo.costs.resources import needed
from finepseudo.costs.units import Known
from finepseudo.data.features import BYTES
from finepseudo.errors import RecipeError
from finepseudo.models.table import Role
from finepseudo.preview.inventory import Inventory, answering, take_stock
from finepseudo.recipe import Recipe, digest
from finepseudo.recipes import PUBLISHED
from finepseudo.storage.store import Store


@dataclass(frozen=True)
class Preview:
    """A dry run: what it says, and what the run would stop for."""

    text: str
    missing: list[str]


def preview(recipe: Recipe, run: Store, base: Store, known: Known, variants: Sequence[Recipe] = ()) -> Preview:
    """Look, count and predict; nothing is started and nothing written.

    Args:
        run: run directory, or that of a comparison.
        base: where manifest and pre-training lie.
        known: unit costs.
        variants: recipes of all runs of a comparison, which share what the recipe pre-trains.
    Raises StorageError: a store refuses, or does not answer.
    """
    named = (getattr(recipe.models, f"{role}_weights") for role in get_args(Role))
    with answering(run.uri(), base.uri(), recipe.data.root, *named):
        stock = take_stock(recipe, base)
        there = run.list()
    lines = [
        f"recipe {recipe.name}, digest {digest(recipe)}, methods {', '.join(recipe.methods)}",
        f"run directory {run.uri()}: {'has ' + ', '.join(there) if there else 'empty'}",
        *(f"data: {line}" for line in stock.lines),
        *_predicted(recipe, stock, known, variants),
        *_resources(recipe),
        *(f"missing: {line}" for line in stock.missing or ["nothing that can be seen from here"]),
    ]
    return Preview("\n".join(lines), stock.missing)


def _predicted(recipe: Recipe, stock: Inventory, known: Known, variants: Sequence[Recipe]) -> list[str]:
    """The plan, and what it costs; without sizes or unit costs, what of it can be said."""
    published, lines, frames = PUBLISHED.get(recipe.name), [], stock.frames
    sizes = Sizes(stock.videos, stock.tests, stock.classes, stock.labelled)
    if published is not None:
        frames = frames or published.frames
        if not stock.videos:
            sizes = Sizes(published.train, published.test, published.classes)
            lines.append(f"data: sizes of {published.name} as published are taken for what follows")
    try:
        found = predict(recipe, known, sizes, frames)
    except RecipeError as error:
        return [*lines, *_steps(recipe), f"predicted: not known, {error}"]
    return [*lines, *_plan(found.model), *_cost(found, variants)]


def _steps(recipe: Recipe) -> list[str]:
    steps = {
        "pretrain f_A": recipe.gitdl.frame_steps,
        "pretrain f_E": recipe.gitdl.video_steps,
        "align f_A": recipe.align.steps,
        "supervise f_E": recipe.supervise.steps,
        "round f_E": recipe.rounds.video_steps,
    }
    told = ", ".join(f"{name} {count}" for name, count in steps.items())
    return [f"steps: {told}; {recipe.rounds.count} round(s)"]


def _plan(model: Model) -> list[str]:
    """Clips of each set, steps, and every phase with its stages and the clips that they read."""
    sets = model.sets
    lines = [
        f"clips: {sets['labelled']} labelled, {sets['other']} unlabelled, {sets['test']} test; "
        f"gallery of {model.gallery}, {model.sizes.classes} classes",
        *_steps(model.recipe),
    ]
    for phase, chains in model.phases.items():
        stages = "; beside it ".join(
            ", ".join(f"{stage.name} ({stage.rows} clips)" for stage in chain if stage.rows) for chain in chains
        )
        lines.append(f"  {phase}, {hours_text(model.phase_seconds(phase) / 3600)}: {stages}")
    return lines


def _cost(found: Predicted, variants: Sequence[Recipe]) -> list[str]:
    costs = found.costs
    hours = comparison_hours(found, variants) if variants else found.hours
    money = found.money * hours / found.hours
    probing = f", after {hours_text(found.probing_hours)} of looking at every video" if found.probing_hours else ""
    return [
        f"predicted: {'at most ' if variants else ''}{hours_text(hours)}{probing}; {found.slowest} has most to do; "
        f"money {money:,.2f} at {CORE_PRICE:g} a core and {GPU_PRICE:g} a GPU an hour (assumed)",
        f"  by unit costs of {costs.machine}: {costs.source}",
    ]


def _resources(recipe: Recipe) -> list[str]:
    scale, need = recipe.scale, needed(recipe)
    asked = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
    features = []
    if recipe.models.frozen:
        each = recipe.frames.frozen * recipe.models.stored * BYTES / 1024
        features = [
            f"features: {recipe.frames.frozen} frames of a clip x {recipe.models.stored} of {recipe.models.frozen}, "
            f"fp16: {each:,.0f} KiB a clip"
        ]
    return [
        *features,
        f"resources: {asked}; 2 trainings x {scale.train_workers} ({scale.train_cpus:g} CPU, {scale.train_gpus:g} GPU "
        f"each, ZeRO stage {scale.zero_stage}), 3 streams x {scale.decode_workers} decoding, {scale.score_workers} "
        "scoring",
        f"bounds: object store {scale.object_store_mib} MiB where the run starts Ray itself, cache of decoded clips "
        f"{scale.cache_gib:g} GiB of disk a node",
    ]
