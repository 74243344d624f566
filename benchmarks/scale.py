"""What a run of any size costs on any cluster: unit costs measured here, the arithmetic of finepseudo/costs, tables.

    python benchmarks/scale.py rehearsal --measure                    # unit costs of this machine, to runs/units.json
    python benchmarks/scale.py rehearsal --cluster.cores 2            # every stage, who waits, money, growth
    python benchmarks/scale.py benchmarks/scale.py:kinetics --sizes.videos 240000 --sizes.classes 400
    python benchmarks/scale.py --check RUN --cluster.cores 2          # prediction against a finished run
    python benchmarks/scale.py --large                                # the tables of docs/scaling.md, in minutes

Cores at work slow each other: measure with as many of these at once as a run keeps busy, each with its own --units.

Axes: N videos, G gallery, K classes, T frames of a clip, B rows of a block. All times are seconds.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
import tyro

from finepseudo import rehearsal
from finepseudo.align import collaborate
from finepseudo.align.fusion import Referees, estimate
from finepseudo.align.gallery import Gallery
from finepseudo.align.head import ScoreHead
from finepseudo.align.score import class_scores
from finepseudo.costs.model import GROUPS, Cluster, Model, Sizes, growth, make_plan, row_frames
from finepseudo.costs.units import Known, UnitCosts, fits, known_units, read_units, units_for, write_units
from finepseudo.data.batch import make_batch
from finepseudo.data.cache import Kept
from finepseudo.data.child import answer
from finepseudo.data.manifest import CLIPS, Manifest
from finepseudo.data.plan import Plan, plan_score, samples
from finepseudo.data.stream import BlockReader
from finepseudo.data.transforms import centre
from finepseudo.errors import FinePseudoError
from finepseudo.recipe import (
    Align,
    CrossEntropy,
    Evaluate,
    Frames,
    Gitdl,
    Models,
    Optimiser,
    Recipe,
    Rehearsal,
    Rounds,
    Scale,
    Split,
    Supervise,
    changed,
)
from finepseudo.recipes import RECIPES, find
from finepseudo.recipes.kinetics400 import KINETICS400
from finepseudo.recipes.published import eight_gpus, public
from finepseudo.results import Results
from finepseudo.run import Run
from finepseudo.sizes import BLOCK_VIDEOS, JUDGED
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.engine import Engine
from finepseudo.train.initial import random_encoder
from finepseudo.train.predict import NEAREST
from finepseudo.train.pseudo_labels import label_table
from finepseudo.train.session import Session, join_alone
from finepseudo.train.stage import build_objective, stage_of

FILE_FRAMES, FILE_SIZE = 300, 256
"""Of the files on which a recipe is measured that does not generate its own."""


def kinetics() -> Recipe:
    """Kinetics-400 at 10 % with the full-size encoders, f_E from given weights: a what-if that nothing has run."""
    return Recipe(
        name="kinetics", split=Split(label_fraction=0.1), optimiser=Optimiser(blocks_per_step=8),
        frames=Frames(height=128, width=128, crop=112, align=16, video=16),
        models=Models(frame="vtn_resnet18", video="r2plus1d_18"),
        gitdl=Gitdl(frame_steps=9000, video_steps=0),  # 5 passes over all videos
        align=Align(steps=2000), supervise=Supervise(steps=3000),  # 21 and 32 passes over the labelled ones
        rounds=Rounds(video_steps=6000),  # 5 passes over the others
        scale=Scale(cache_gib=0.0),  # all videos, decoded, are terabytes
    )  # fmt: skip


# --- measuring ------------------------------------------------------------------------------------------------------


class Bench:
    """The parts of a run, one after the other, on generated files in a folder of its own."""

    def __init__(self, folder: str, recipe: Recipe, classes: int, device: str, rows: int) -> None:
        most = min(recipe.align.classes, classes, max(2, rows // recipe.align.clips))
        alone = {"scale.cache_dir": f"{folder}/cache", "scale.cache_gib": 4.0, "scale.train_workers": 1}
        small = {"gitdl.videos": min(rows, recipe.gitdl.videos), "supervise.batch": min(rows, recipe.supervise.batch)}
        self.recipe = changed(recipe, alone | small | {"optimiser.blocks_per_step": 1, "align.classes": most})
        self.store, self.classes, self.device = Store(folder), classes, torch.device(device)

    def costs(self) -> UnitCosts:
        """All unit costs."""
        recipe, T = self.recipe, self.recipe.frames.align
        rows = [self.file(index) for index in range(8)]
        manifest = Manifest(pa.Table.from_pylist(rows, CLIPS), pa.chunked_array([pa.nulls(len(rows), pa.int32())]), ())
        row_N, lengths = np.arange(len(rows)), {"align_frames": T, "video_frames": recipe.frames.video}
        labelled = samples(row_N, row_N % self.classes)
        view = plan_score(manifest, row_N, **lengths, clips=1, block_videos=len(rows))
        off = changed(recipe, {"scale.cache_gib": 0.0})
        # The first pass brings decoder and files into memory; the first row of each starts a process.
        clips = [self.decoded(view, how) for how in (off, off, recipe, recipe)]
        _, once_s, kept_s, hit_s = (float(found["decode_s"][1:].mean()) for found in clips)
        kinds = ["gitdl/frame", "align/frame", "classify/video"] + ["gitdl/video"] * bool(recipe.gitdl.video_steps)
        plan = make_plan(recipe, "classify/video", manifest, labelled, None, steps=20)
        size, fusion_s, label_s = plan.block_rows, *self.labels()
        rows_s = typical(lambda: [plan.rows(row, row + size) for row in range(0, len(plan), size)])
        return UnitCosts(
            machine=f"{self.device.type} of {platform.machine()} with {os.cpu_count()} cores",
            source="measured by benchmarks/scale.py, one thread",
            video_frames=statistics.mean(row["num_frames"] for row in rows),
            decode_once_s=once_s, decode_kept_s=kept_s, decode_hit_s=hit_s,
            embed_frame_s={part: self.embed(part, clips[-1]) for part in ("frame", "video")},
            train_frame_s={kind: self.step(kind, manifest, labelled) for kind in kinds}, cell_s=self.pair(T) / T**2,
            plan_row_s=rows_s / len(plan), fusion_class_s=fusion_s, label_class_s=label_s,
        )  # fmt: skip

    def file(self, index: int) -> dict[str, Any]:
        """The manifest's row of a generated file; as long as others are where the recipe does not generate its own."""
        spec, path = self.recipe.data.rehearsal or Rehearsal(size=FILE_SIZE), f"{index}.mp4"
        video_id, _ = rehearsal.video_ids(spec, "train")[index]
        frames_FHWC = rehearsal.clip(spec, "train", video_id).frames
        if self.recipe.data.rehearsal is None:
            frames_FHWC = np.resize(frames_FHWC, (FILE_FRAMES, *frames_FHWC.shape[1:]))
        self.store.write(path, rehearsal.encode_mp4(frames_FHWC, spec.fps))
        found = answer({"uri": self.store.uri(path)})[0]
        return {"video_id": video_id, "path": path, "start": 0, "file_frames": found["num_frames"], **found}

    def decoded(self, plan: Plan, recipe: Recipe) -> dict[str, Any]:
        """The first block of a plan, in a cache that keeps what it is given."""
        reader = BlockReader.of(recipe, self.store, plan)
        reader.kept = Kept(0, (1.0, 1.0), 0.0)
        found = reader.read([0])
        assert not any(found["error"]), found["error"]
        return found

    def step(self, kind: str, manifest: Manifest, labelled: pa.Table) -> float:
        """Seconds of a frame in one optimiser step of one block."""
        objective, part = kind.split("/")
        plan = make_plan(self.recipe, kind, manifest, labelled, None, steps=8)
        columns, common = self.decoded(plan, self.recipe), {"steps": 8, "lr": 1e-4}
        recipe = self.recipe
        losses = {"gitdl": recipe.gitdl.chosen(part), "align": recipe.align.chosen(), "classify": CrossEntropy()}
        stage: Any = stage_of(
            recipe, part, losses[objective], folder=kind, plan=kind, plan_fingerprint=plan.fingerprint,
            num_classes=self.classes, score_std=1.0 * (objective == "align"), **common,
        )  # fmt: skip
        engine: Any = Engine(
            build_objective(stage), Session(self.device, print), self.recipe.optimiser,
            block_rows=plan.block_rows, zero_stage=self.recipe.scale.zero_stage, **common,
        )  # fmt: skip

        def step() -> None:
            loss, _ = engine.forward(make_batch(plan, self.classes, columns).to(self.device))
            float(loss.detach())
            engine.step(loss)

        return typical(step) / (plan.block_rows * row_frames(plan))

    def encoder(self, part: Any) -> Any:
        """With random weights."""
        how, size = self.recipe.models.encoder(part), self.recipe.frames.crop
        return random_encoder(how, num_classes=self.classes, size=size, seed=self.recipe.seed)

    def embed(self, part: Any, columns: Mapping[str, Any]) -> float:
        """Seconds of a frame: from decoded clips to embeddings or logits."""
        encoder = self.encoder(part).to(self.device).eval()
        clip_BTHWC = columns["clip_0" if part == "frame" else "clip_1"]

        def forward() -> None:
            raw = torch.from_numpy(np.array(clip_BTHWC)).to(self.device)
            encoder(centre(raw, self.recipe.augment, self.recipe.frames.crop, encoder.preprocessing)).cpu()

        with torch.inference_mode():
            return typical(forward) / math.prod(clip_BTHWC.shape[:2])

    def pair(self, T: int, N: int = 4 * BLOCK_VIDEOS, G: int = 256) -> float:
        """Seconds of a video with a gallery member, from (unrelated) embeddings to class means."""
        recipe, dim = self.recipe, self.recipe.models.encoder("frame").options.dim
        emb_NTD, emb_GTD = F.normalize(torch.randn(N + G, T, dim), dim=-1).to(self.device).split([N, G])
        gallery = Gallery(emb_GTD, torch.arange(G) % self.classes, tuple(map(str, range(G))), self.classes)
        head, how = ScoreHead().to(self.device), {"gamma": recipe.align.gamma, "mean": recipe.label.mean}
        head.std.fill_(1.0)
        gallery = gallery.to(self.device)
        return typical(lambda: class_scores(emb_NTD, gallery, head, **how).cpu()) / (N * G)

    def labels(self, N: int = 2000) -> tuple[float, float]:
        """Seconds of a video and class: of the fusion of two nets; from scores to a table of labels."""
        sbar_NK, logits_NK = torch.randn(2, N, self.classes)
        some, many = range(min(N, JUDGED)), [str(index) for index in range(N)]
        referees = Referees([torch.rand(len(some), len(some))] * 2, torch.zeros(0, dtype=torch.int64))
        fused = functools.partial(estimate, sbar_NK[some], logits_NK[some], referees)
        fusion = fused()

        def decide() -> None:
            p_A_NK, p_E_NK, p_NK = fusion.p_A(sbar_NK), fusion.p_E(logits_NK), fusion.p(sbar_NK, logits_NK)
            near_N = collaborate.knownness(sbar_NK)
            made = collaborate.decide(p_NK, p_A_NK, p_E_NK, many, threshold=0.5, knownness_N=near_N)
            label_table(made, np.arange(N), p_A_NK, p_E_NK, near_NM, near_S_NM)

        near_NM, near_S_NM = np.zeros((N, NEAREST), np.int32), np.zeros((N, NEAREST), np.float32)
        return typical(fused) / (len(some) * self.classes), typical(decide) / (N * self.classes)


def typical(work: Callable[[], Any]) -> float:
    """Median seconds of five runs, after one that is not counted."""
    return statistics.median(timeit.repeat(work, number=1, repeat=6)[1:])


def measure(recipe: Recipe, classes: int, device: str, rows: int) -> UnitCosts:
    """Unit costs of this machine."""
    torch.set_num_threads(1)
    join_alone("gloo" if device == "cpu" else "nccl")
    with tempfile.TemporaryDirectory() as folder:
        return Bench(folder, recipe, classes, device, rows).costs()


# --- the command line -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to predict, from which unit costs."""

    recipe: tyro.conf.Positional[str] = "all"  # a name of finepseudo/recipes, file.py:function, or all
    sizes: Sizes = field(default_factory=Sizes)
    cluster: Cluster = field(default_factory=Cluster)
    units: Path = Path("runs/units.json")  # unit costs, by what they fit
    measure: bool = False  # first measure the unit costs of the recipe, and keep them in the file of units
    device: str = "cpu"  # where they are measured: one core, or cuda
    rows: int = 32  # largest block to measure; full-size encoders need smaller ones on a small machine
    large: bool = False  # instead: collections of up to tens of millions of videos on up to hundreds of GPUs
    check: str = ""  # run directory: compare what is predicted for it with what it measured


def main(argv: Sequence[str]) -> None:
    """Measure, predict or check."""
    options = tyro.cli(Options, args=list(argv), description=__doc__)
    if options.large:
        for shown in large(known_units(options.units)):
            print(f"{shown}\n", flush=True)
        return
    if options.check:
        recipe, sizes, measured = finished(Path(options.check))
        print(described(recipe, sizes, units_for(recipe, known_units(options.units)), options.cluster, measured))
        return
    for name in RECIPES if options.recipe == "all" else [options.recipe]:
        recipe = find(name)
        sizes = options.sizes.of(recipe)
        if options.measure:
            known = read_units(options.units)
            known[fits(recipe, options.device)] = measure(recipe, sizes.classes, options.device, options.rows)
            options.units.parent.mkdir(parents=True, exist_ok=True)
            write_units(options.units, known)
        print(described(recipe, sizes, units_for(recipe, known_units(options.units)), options.cluster))


def described(
    recipe: Recipe, sizes: Sizes, costs: UnitCosts, cluster: Cluster, measured: Mapping[str, float] | None = None
) -> str:
    """Every stage, beside what a finished run measured; the groups; and what doubling does."""
    found, measured, stages = Model(recipe, sizes, costs, cluster), measured or {}, []
    for phase, chains in found.phases.items():
        for stage in (stage for chain in chains for stage in chain):
            waiting = ", ".join(f"{group} {share:.0%}" for group, share in stage.idle.items() if group != stage.bound)
            seconds = [stage.start, stage.driver, *map(stage.busy.get, GROUPS), stage.seconds, measured.get(stage.name)]
            stages.append([stage.name, stage.rows, *seconds, stage.bound, waiting])
        stages.append([f"= {phase}", *[None] * 6, found.phase_seconds(phase), None, "", ""])
    stages.append(["= run", *[None] * 6, found.seconds, measured.get("run"), "", ""])
    work, money, hours = found.work, found.money, found.seconds / 3600
    groups = [
        [group, held, work[group], f"{1 - work[group] / held / found.seconds:.1%}", money[group]]
        for group, held in found.held.items()
    ]
    doubled, made = growth(recipe, sizes, costs, cluster), found.sizes
    return f"""
{recipe.name}: N = {made.videos} (G = {found.gallery}), {made.tests} test videos, K = {made.classes}, T = {made.frames}
unit costs of {costs.machine}, {costs.source}; videos are taken to be prepared

{table(["stage", "rows", "start", "driver", *GROUPS, "seconds", "measured", "bound by", "waiting meanwhile"], stages)}

{table(["group", "workers", "worker-seconds", "idle", "money"], groups)}
{hours:.2f} h, money {sum(money.values()):.2f}

Doubling multiplies by 2^e (steps stay, unless they are doubled too):
{table(["e", *doubled["N"]], [[name, *row.values()] for name, row in doubled.items()])}"""


# --- large collections ----------------------------------------------------------------------------------------------

LABELLED = 24_000  # of Kinetics-400 at 10 %
VIDEOS, MACHINES = (240_000, 2_400_000, 24_000_000), (1, 4, 16, 64)
SHARES, CORES = (0.001, 0.01, 0.1, 0.4), (4, 16, 64, 128, 256)


def grown(videos: int, machines: int, labelled: int = LABELLED, cores: int = 0) -> Recipe:
    """Kinetics-400 with another number of videos and machines of 8 GPUs, by the rules of recipes/published.py.

    A step has a block for each worker at least, so on many machines there are fewer and larger ones.

    Args:
        cores: that decode for each stream, of each machine; the recipe's, where it is not given.
    """
    recipe = public("grown", replace(KINETICS400, train=videos), labels=labelled / videos)
    scale, few = eight_gpus(machines), recipe.optimiser.blocks_per_step
    scale = replace(scale, decode_workers=machines * cores) if cores else scale
    blocks = max(few, scale.train_workers)

    def steps(count: int) -> int:
        return math.ceil(count * few / blocks)

    gitdl, align, supervise, rounds = recipe.gitdl, recipe.align, recipe.supervise, recipe.rounds
    return replace(
        recipe,
        optimiser=replace(recipe.optimiser, blocks_per_step=blocks),
        gitdl=replace(gitdl, frame_steps=steps(gitdl.frame_steps), video_steps=steps(gitdl.video_steps)),
        align=replace(align, steps=steps(align.steps)),
        supervise=replace(supervise, steps=steps(supervise.steps)),
        rounds=replace(rounds, video_steps=steps(rounds.video_steps)),
        scale=scale,
    )


def large(known: Known) -> Iterator[str]:
    """The tables: videos by machines; the share of labels; cores that decode; what doubling does."""

    def model(recipe: Recipe, videos: int, labelled: int = LABELLED) -> Model:
        sizes = Sizes(videos, KINETICS400.test, KINETICS400.classes, labelled)
        return Model(recipe, sizes, units_for(recipe, known), Cluster.of(recipe))

    def row(found: Model) -> list[Any]:
        idle = {group: 1 - found.work[group] / found.held[group] / found.seconds for group in GROUPS}
        slowest = min(idle, key=idle.__getitem__)
        shares = [f"{idle[group]:.0%}" for group in GROUPS]
        return [found.seconds / 3600, slowest, *shares, f"{found.work['driver']:.0f}", sum(found.money.values())]

    titles = ["hours", "slowest", *(f"{group} idle" for group in GROUPS), "driver s", "money"]
    rows = [
        [f"{videos:,}", 8 * machines, 48 * machines, *row(model(grown(videos, machines), videos))]
        for videos in VIDEOS
        for machines in MACHINES
    ]
    yield "Videos and machines\n" + table(["videos", "GPUs", "decode cores", *titles], rows)
    videos, machines, rows = VIDEOS[1], 16, []
    for share in SHARES:
        found = model(grown(videos, machines, round(share * videos)), videos, round(share * videos))
        (passed,) = (stage for stage in found.stages if stage.name == "labels/finepseudo/round-1")
        took = [
            passed.seconds / 3600,
            passed.bound,
            *(f"{passed.busy[group] / 3600:.2f}" for group in ("decode", "score")),
        ]
        aligned = f"{found.alignment / found.work['score']:.0%}"
        rows.append([f"{found.gallery:,}", f"{share:.1%}", *took, aligned, found.seconds / 3600])
    columns = ["gallery", "of the videos", "hours of a pass", "bound by", "decode h", "score h", "alignment in score"]
    yield f"Gallery, {videos:,} videos on {8 * machines} GPUs\n" + table([*columns, "run hours"], rows)
    rows = [[f"{3 * cores / 8:g}", *row(model(grown(videos, machines, cores=cores), videos))] for cores in CORES]
    yield f"Cores that decode, {videos:,} videos on {8 * machines} GPUs\n" + table(["cores a GPU", *titles], rows)
    recipe = grown(VIDEOS[0], 4)
    sizes = Sizes(VIDEOS[0], KINETICS400.test, KINETICS400.classes, LABELLED)
    doubled = growth(recipe, sizes, units_for(recipe, known), Cluster.of(recipe))
    rows = [[name, *found.values()] for name, found in doubled.items()]
    yield "Doubling multiplies by 2^e (steps stay, unless they are doubled too)\n" + table(["e", *doubled["N"]], rows)


def finished(run: Path) -> tuple[Recipe, Sizes, dict[str, float]]:
    """Recipe and sizes of a finished run, and the seconds of its stages and, from the split on, of all."""
    results = Results.from_json((run / "results.json").read_bytes())
    folder = Path(results.predictions).parent
    evaluated = json.loads((run / folder / artefacts.MARKER).read_text())["lineage"]["evaluate"]
    recipe = Run.at(Store(str(run))).recipe()
    recipe = replace(recipe, methods=tuple(results.rounds), evaluate=Evaluate(**evaluated))
    usable, parts = results.manifest.usable, ("launch", "setup", "wait", "transfer", "compute", "commit")
    timing = {**results.timing, "results": results.timing[f"{folder}"]}
    measured = {
        name: seconds.get("total", sum(seconds.get(part, 0.0) for part in parts)) for name, seconds in timing.items()
    }
    measured["run"] = sum(_after_split(path.read_text()) for path in (run / "logs").glob("*.log"))
    return recipe, Sizes(usable["train"], usable["test"], len(results.classes)), measured


def _after_split(log: str) -> float:
    """Seconds from the line of the split to the last."""
    lines = [line for line in log.splitlines() if line[:2] == "20"]
    first = next((line for line in lines if " INFO split " in line), lines[-1])
    return (datetime.fromisoformat(lines[-1][:23]) - datetime.fromisoformat(first[:23])).total_seconds()


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns, all but the first to the right."""
    cells = [[_cell(value) for value in row] for row in [titles, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[f"{text:>{width}}" for text, width in zip(row, widths, strict=True)] for row in cells]
    return "\n".join("  ".join([f"{row[0].strip():<{widths[0]}}", *row[1:]]).rstrip() for row in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{round(value, 2) + 0.0:.2f}"
    return "" if value is None else f"{value}"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FinePseudoError as error:
        sys.exit(f"{type(error).__name__}: {error}")
