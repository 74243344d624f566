"""The driver: the story of the method, from videos to results, each step looked up before it is made.

    f_A:  pre-train by GITDL -> embed D_l -> align by L_AV ---+
    f_E:  pre-train by GITDL -> supervise by cross-entropy ---+-> rounds of: label D_u, train both again -> evaluate

A killed run that is started again with the same command continues and ends with the same artefacts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from finepseudo.align.gallery import Embeddings, Gallery
from finepseudo.data.plan import Plan, plan_align, plan_classify, plan_gitdl
from finepseudo.data.split import SplitLists, make_split
from finepseudo.errors import ManifestError
from finepseudo.recipe import METHODS, Recipe
from finepseudo.run import claim, labels, round_name
from finepseudo.runtime import results
from finepseudo.runtime.prepare import ensure_manifest
from finepseudo.runtime.progress import listening
from finepseudo.runtime.scorers import Scores
from finepseudo.runtime.stages import Finish, Start, Trained, Work, side_by_side
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.initial import Part, ensure_initial
from finepseudo.train.pseudo_labels import compare_labelled

log = logging.getLogger("finepseudo")


def run_rounds(recipe: Recipe, run: Store, base: Store | None = None, *, train: bool = True) -> dict[str, Any]:
    """Run, or continue, everything that the recipe asks for; the results, as committed in results.json.

    Args:
        recipe: what to run.
        run: the run directory.
        base: another run directory whose data, manifest and pre-training are used (and made if missing); the run's own
            by default. Any other training that is committed there is used too if it would be the same one here: an
            ablation shares all that it does not change.
        train: False: only evaluate what is committed.
    Raises:
        ArtefactError: the run directory belongs to another recipe; or, without `train`, a stage is not committed.
    """
    claim(run, recipe)
    base = base or run
    manifest = ensure_manifest(recipe, base)
    split = ensure_split(recipe, run, manifest.truth("train"))
    log.info("split %s: %d labelled, %d unlabelled", split.fingerprint, len(split.labelled), len(split.unlabelled))
    with listening() as board:
        shared = Work(recipe, base, base, manifest, split, board, may_train=train)
        work = Work(recipe, run, base, manifest, split, board, may_train=train)
        start = stage_2(work, shared)
        finishes = run_methods(work, start)
        return results.ensure_results(work, shared, start, finishes)


def stage_2(work: Work, shared: Work) -> Start:
    """Both encoders, pre-trained without labels and then trained on D_l, side by side."""
    recipe = work.recipe

    def frame_side() -> tuple[Trained, Embeddings, Embeddings, float | None]:
        pretrained = pretrain(shared, "frame", recipe.gitdl.frame_steps)
        before = work.embed("pretrained", pretrained, results.pair_videos(work))
        compared = compare_labelled(work.gallery(before), recipe.align.gamma, work.seed("compare"))
        make = functools.partial(
            plan_align, work.labelled(), [], recipe.align, frames=recipe.frames.align, augment=recipe.augment,
            steps=recipe.align.steps, label_share=1.0, blocks_per_step=recipe.optimiser.blocks_per_step,
            seed=work.seed("align"),
        )  # fmt: skip
        aligned = work.train(
            "align/frame", "frame", "align", make, steps=recipe.align.steps, lr=recipe.align.lr, init=pretrained.uri,
            init_digest=pretrained.digest, score_mean=compared.mean, score_std=compared.std,
        )  # fmt: skip
        after = work.embed("aligned", aligned, results.pair_videos(work))
        return aligned, before, after, compared.accuracy

    def video_side() -> Trained:
        pretrained = pretrain(shared, "video", recipe.gitdl.video_steps)
        make = _classify_plan(work, "supervise", recipe.supervise.steps)
        return _train_video(work, "supervise/video", make, recipe.supervise.steps, recipe.supervise.lr, pretrained)

    (frame, before, after, accuracy_A), video = side_by_side(frame_side, video_side)
    return Start(frame, video, before, after, accuracy_A)


def pretrain(work: Work, part: Part, steps: int) -> Trained:
    """GITDL on all training videos; the recipe's weights where it names some."""
    recipe = work.recipe
    if getattr(recipe.models, f"{part}_weights") or steps == 0:
        if steps == 0:
            log.warning("gitdl.%s_steps is 0: the %s encoder is not pre-trained here", part, part)
        return Trained(*ensure_initial(recipe, part, work.manifest.num_classes, work.run))
    make = functools.partial(
        plan_gitdl, work.manifest.videos("train"), recipe.gitdl, steps=steps,
        blocks_per_step=recipe.optimiser.blocks_per_step, seed=recipe.seed,
    )  # fmt: skip
    return work.train(f"pretrain/{part}", part, "gitdl", make, steps=steps, lr=recipe.gitdl.lr)


def run_methods(work: Work, start: Start) -> dict[str, Finish]:
    """Every method of the recipe, from the same start and with the same number of f_E steps."""
    methods = work.recipe.methods
    unlabelled = [work.videos[video_id] for video_id in work.split.unlabelled]
    members = work.gallery(start.aligned)

    @functools.cache
    def first_scores() -> Scores:
        return _score_unlabelled(work, "round-1", start.frame, start.video, members)

    pseudo = [method for method in methods if METHODS[method].labels]
    if unlabelled and any(artefacts.committed(work.run, labels(round_name(method, 1))) is None for method in pseudo):
        first_scores()  # once, for all methods that label: their first round starts from the same encoders

    branches: list[Callable[[], dict[str, Finish]]] = [
        lambda method=method: {method: _self_train(work, start, members, method, first_scores)} for method in pseudo
    ]
    if len(pseudo) < len(methods):
        branches.insert(0, lambda: _supervised(work, start, members))
    return {name: finish for found in side_by_side(*branches) for name, finish in found.items()}


def _self_train(work: Work, start: Start, members: Gallery, method: Any, first_scores: Callable[[], Scores]) -> Finish:
    recipe, rounds = work.recipe, work.recipe.rounds
    frame, video, gallery, names = start.frame, start.video, members, []
    for number in range(1, rounds.count + 1):
        name = round_name(method, number)
        lineage = {"f_A": frame.digest, "f_E": video.digest, "clips": recipe.label.clips}
        scores = first_scores if number == 1 else functools.partial(
            _score_unlabelled, work, name, frame, video, gallery
        )  # fmt: skip
        table = work.label(name, method, scores, start.accuracy_A, lineage)
        names.append(name)
        samples, targets = work.pseudo(table)
        make_video = _classify_plan(work, name, rounds.video_steps, samples, targets)

        def train_video(name: str = name, make: Callable[[], Plan] = make_video, init: Trained = video) -> Trained:
            return _train_video(work, f"{name}/video", make, rounds.video_steps, rounds.video_lr, init)

        def train_frame(name: str = name, samples: list[Any] = samples, init: Trained = frame) -> Trained:
            make = functools.partial(
                plan_align, work.labelled(), samples, recipe.align, frames=recipe.frames.align, augment=recipe.augment,
                steps=rounds.frame_steps, label_share=rounds.frame_label_share,
                blocks_per_step=recipe.optimiser.blocks_per_step, seed=work.seed(f"{name}/frame"),
            )  # fmt: skip
            return work.train(
                f"{name}/frame", "frame", "align", make, steps=rounds.frame_steps, lr=rounds.frame_lr, init=init.uri,
                init_digest=init.digest,
            )  # fmt: skip

        if number <= rounds.frame_rounds and METHODS[method].trains_f_A:
            video, frame = side_by_side(train_video, train_frame)
            gallery = work.gallery(work.embed(name, frame))
        else:
            video = train_video()
    return Finish(frame, video, gallery, names)


def _supervised(work: Work, start: Start, members: Gallery) -> dict[str, Finish]:
    """f_E goes on with D_l alone, for as many steps as the rounds take; and, where asked, for twice as many in all."""
    recipe, rounds, video = work.recipe, work.recipe.rounds, start.video
    found = {}
    for number in range(1, rounds.count + 1):
        name = round_name("supervised", number)
        make = _classify_plan(work, name, rounds.video_steps)
        video = _train_video(work, f"{name}/video", make, rounds.video_steps, rounds.video_lr, video)
    if "supervised" in recipe.methods:
        found["supervised"] = Finish(start.frame, video, members)
    if "supervised_2x" in recipe.methods:
        steps = recipe.supervise.steps + rounds.count * rounds.video_steps
        make = _classify_plan(work, "supervised_2x", steps)
        again = _train_video(work, "supervised_2x/video", make, steps, rounds.video_lr, video)
        found["supervised_2x"] = Finish(start.frame, again, members)
    return found


def _score_unlabelled(work: Work, name: str, frame: Trained, video: Trained, gallery: Gallery) -> Scores:
    videos = [work.videos[video_id] for video_id in work.split.unlabelled]
    return work.score(
        f"label/{name}", videos, frame={"f_A": frame.uri}, video={"f_E": video.uri}, galleries={"f_A": gallery},
        clips=work.recipe.label.clips,
    )  # fmt: skip


def _train_video(work: Work, name: str, make: Callable[[], Plan], steps: int, lr: float, init: Trained) -> Trained:
    return work.train(name, "video", "classify", make, steps=steps, lr=lr, init=init.uri, init_digest=init.digest)


def _classify_plan(work: Work, name: str, steps: int, pseudo: Any = (), targets: Any = None) -> Callable[[], Plan]:
    recipe = work.recipe
    return functools.partial(
        plan_classify, work.labelled(), pseudo, frames=recipe.frames.video, augment=recipe.augment, steps=steps,
        batch=recipe.supervise.batch, label_share=recipe.rounds.video_label_share,
        blocks_per_step=recipe.optimiser.blocks_per_step, seed=work.seed(name), targets_MK=targets,
    )  # fmt: skip


def ensure_split(recipe: Recipe, run: Store, truth: dict[str, int]) -> SplitLists:
    """D_l and D_u, committed with their seed in the name."""
    made = make_split(truth, label_fraction=recipe.split.label_fraction, seed=recipe.split.seed)
    labelling = [method for method in recipe.methods if METHODS[method].labels]
    if labelling and not made.unlabelled:
        raise ManifestError(
            f"no unlabelled video is left for {', '.join(labelling)}: {len(made.labelled)} training videos, all "
            f"labelled; lower split.label_fraction (now {recipe.split.label_fraction:g}), or ask for methods supervised"
        )
    lineage = {"fingerprint": made.fingerprint, "seed": recipe.split.seed, "fraction": recipe.split.label_fraction}
    artefacts.ensure(run, "split", lineage, lambda: {f"split-seed{recipe.split.seed}.json": made.to_bytes()})
    return made
