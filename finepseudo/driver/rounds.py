"""The story of the method, from videos to results, each step looked up before it is made.

    f_A:  pre-train by GITDL -> embed D_l -> align by L_AV ---+
    f_E:  pre-train by GITDL -> supervise by cross-entropy ---+-> rounds of: label D_u, train both again -> evaluate

A killed run that is started again with the same command continues and ends with the same artefacts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from finepseudo.align.gallery import Embeddings, Gallery
from finepseudo.data.manifest import FOLDER
from finepseudo.data.plan import Plan, plan_align, plan_classify, plan_pretrain, samples
from finepseudo.driver.executor import Executor
from finepseudo.driver.features import ensure_features
from finepseudo.driver.prepare import ensure_manifest, ensure_split
from finepseudo.driver.referees import Judged
from finepseudo.driver.steps import Steps, Trained, both, log, side_by_side, told_of
from finepseudo.models.table import ENCODERS, PARTS, Part
from finepseudo.recipe import METHODS, CrossEntropy, FixMatch, InstanceLoss, Method, Recipe, TclrLoss, part_of
from finepseudo.run import LABELS, claim, data_store, labels, pair_videos, round_name
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.initial import ensure_initial
from finepseudo.train.predict import NEAREST, Pass, Scores
from finepseudo.train.pseudo_labels import compare_labelled, pseudo_samples
from finepseudo.train.teachers import teacher_targets, teachers

LABELLED = CrossEntropy()  # with labels or pseudo-labels that stand in the plan


@dataclass(frozen=True)
class Start:
    """What all methods start from: the encoders after stage 2, and what f_A makes of D_l."""

    frame: Trained
    video: Trained
    untaught: Trained  # f_E before stage 2: it has seen no label
    pretrained: Embeddings
    aligned: Embeddings
    judged: Callable[[], Judged]  # clips of D_u, before stage 2; a pass over them where somebody asks


@dataclass(frozen=True)
class Finish:
    """What a method ends with; `gallery` is that of its f_A."""

    frame: Trained
    video: Trained
    gallery: Gallery
    rounds: list[str] = field(default_factory=list[str])  # names of its committed labels


@dataclass(frozen=True)
class Story:
    """A run that is trained."""

    steps: Steps
    shared: Steps  # the same verbs in the base: pre-training lies there
    start: Start
    finishes: dict[Method, Finish]


def run_rounds(
    recipe: Recipe,
    run: Store,
    executor: Executor,
    base: Store | None = None,
    *,
    kin: Sequence[Store] = (),
    train: bool = True,
) -> Story:
    """Train, or continue to train, everything that the recipe asks for.

    Args:
        recipe: what to run.
        run: the run directory.
        executor: who does the work.
        base: another run directory whose data, manifest and pre-training are used (and made if missing); the run's own
            by default. Any other training that is committed there is used too if it would be the same one here: an
            ablation shares all that it does not change.
        kin: more run directories whose trainings are used in the same way.
        train: False: only read what is committed.
    Raises:
        ArtefactError: the run directory belongs to another recipe; or, without `train`, a stage is not committed.
        RecipeError: an encoder needs a library that is not installed.
    """
    for part in PARTS:
        recipe.models.encoder(part).check_library()  # now, and not when hours of other work are done
    claim(run, recipe)
    base = base or run
    manifest = ensure_manifest(recipe, base, executor)
    if base != run:
        artefacts.copy(base, run, FOLDER)  # a plan lies beside the manifest of its clips
    videos, features = data_store(recipe, base), None
    if recipe.models.frozen:
        manifest = ensure_features(recipe, base, manifest, videos, executor)
        features = base.child(manifest.folder.rpartition("/")[0])
        if base != run:
            artefacts.copy(base, run, manifest.folder)
    split = ensure_split(recipe, run, videos, manifest)
    steps = Steps(recipe, run, base, manifest, split, executor, features, tuple(kin), may_train=train)
    shared = dataclasses.replace(steps, run=base, kin=())
    start = stage_2(steps, shared)
    return Story(steps, shared, start, run_methods(steps, shared, start))


def stage_2(steps: Steps, shared: Steps) -> Start:
    """Both encoders, pre-trained without labels and then trained on D_l, side by side."""
    recipe, held_out = steps.recipe, pair_videos(steps.recipe, steps.manifest, steps.split.test)

    def frame_side() -> tuple[Trained, Embeddings, Embeddings, Trained]:
        pretrained = pretrain(shared, "frame", recipe.gitdl.frame_steps)
        before = steps.embed("pretrained", pretrained, held_out)
        compared = compare_labelled(steps.gallery(before), recipe.align.gamma, steps.seed("compare"))
        plan = _align_plan(steps, "align", recipe.align.steps)
        align, loss = recipe.align, recipe.align.chosen()
        aligned = steps.train(
            "align/frame", "frame", loss, plan, steps=align.steps, lr=align.lr, init=pretrained, compared=compared
        )
        return aligned, before, steps.embed("aligned", aligned, held_out), pretrained

    def video_side() -> tuple[Trained, Trained]:
        pretrained = pretrain(_of_video(steps, shared), "video", recipe.gitdl.video_steps)
        plan = _classify_plan(steps, "supervise", recipe.supervise.steps)
        count, lr = recipe.supervise.steps, recipe.supervise.lr
        return _train_video(steps, "supervise/video", plan, count, lr, pretrained), pretrained

    (frame, before, after, pretrained), (video, untaught) = both(frame_side, video_side)
    judged = functools.cache(lambda: steps.judge(pretrained, untaught))
    return Start(frame, video, untaught, before, after, judged)


def _of_video(steps: Steps, shared: Steps) -> Steps:
    """Who pre-trains f_E: the run itself where answers have brought classes, which the base's classifier lacks."""
    return steps if steps.split.new_classes else shared


def pretrain(steps: Steps, part: Part, count: int, invariant: InstanceLoss | None = None) -> Trained:
    """By all training videos, without labels, from the weights that the recipe names or random ones; or these alone."""
    recipe = steps.recipe
    named = bool(getattr(recipe.models, f"{part}_weights"))
    classes = steps.split.num_classes if part == "video" else steps.manifest.num_classes  # f_A has none
    alone = ENCODERS[getattr(recipe.models, part)].frozen  # refused there without weights
    initial = Trained(*ensure_initial(recipe, part, classes, steps.run)) if named or not count or alone else None
    if initial and not count:
        if not named:
            log.warning("gitdl.%s_steps is 0 and no weights are named: the %s encoder starts at random", part, part)
        return initial
    manifest, k = steps.manifest, recipe.optimiser.blocks_per_step
    train = np.setdiff1d(manifest.rows("train"), steps.split.test)
    loss, name = (invariant, "invariant") if invariant else (recipe.gitdl.chosen(part), part)
    kind = "tclr" if isinstance(loss, TclrLoss) else "gitdl"
    plan = plan_pretrain(manifest, train, recipe.gitdl, kind, steps=count, blocks_per_step=k, seed=recipe.seed)
    return steps.train(f"pretrain/{name}", part, loss, plan, steps=count, lr=recipe.gitdl.lr, init=initial)


def run_methods(steps: Steps, shared: Steps, start: Start) -> dict[Method, Finish]:
    """Every method of the recipe that trains, from the same start and with the same number of f_E steps."""
    methods, members = steps.recipe.methods, steps.gallery(start.aligned)

    @functools.cache
    def first_scores() -> Scores:
        return _score_unlabelled(steps, "round-1", start.frame, start.video, members)

    labelling: list[Method] = [method for method in methods if METHODS[method].labels]
    if any(artefacts.committed(steps.run, labels(round_name(method, 1))) is None for method in labelling):
        first_scores()  # once, for all methods that label: their first round starts from the same encoders

    def self_trained(method: Method) -> dict[Method, Finish]:
        return {method: _self_train(steps, start, members, method, first_scores)}

    branches = [functools.partial(self_trained, method) for method in labelling]
    if "timebalance" in methods:
        branches.insert(0, functools.partial(_timebalance, steps, shared, start, members))
    if "fixmatch" in methods:
        branches.insert(0, functools.partial(_fixmatch, steps, start, members))
    if any(METHODS[method].trains and not METHODS[method].unlabelled for method in methods):
        branches.insert(0, functools.partial(_supervised, steps, start, members))
    return {name: finish for ends in side_by_side(branches) for name, finish in ends.items()}


def _self_train(
    steps: Steps, start: Start, members: Gallery, method: Method, first_scores: Callable[[], Scores]
) -> Finish:
    """Rounds of labels and trainings: round r + 1 is labelled after round r or, by `label.lag`, in its second half."""
    rounds, lag, names = steps.recipe.rounds, steps.recipe.label.lag, list[str]()
    frame, video, gallery = start.frame, start.video, members
    with ThreadPoolExecutor(max_workers=1) as beside:
        tables: dict[int, Future[pa.Table]] = {}

        def label(number: int, frame: Trained, gallery: Gallery, video: Trained) -> None:
            name = round_name(method, number)
            later_scores = functools.partial(_score_unlabelled, steps, name, frame, video, gallery)
            scores = first_scores if number == 1 else later_scores
            tables[number] = beside.submit(steps.label, name, method, frame, video, gallery, scores, start.judged)

        label(1, frame, gallery, video)
        for number in range(1, rounds.count + 1):
            name, more = round_name(method, number), number < rounds.count
            pseudo = pseudo_samples(tables.pop(number).result(), soft=rounds.targets == "soft")
            names.append(name)
            halfway = functools.partial(label, number + 1, frame, gallery) if lag and more else None
            train_video = functools.partial(_round_video, steps, name, pseudo, video, halfway=halfway)
            if number <= rounds.frame_rounds and METHODS[method].trains_f_A:
                train_frame = functools.partial(_round_frame, steps, name, pseudo, frame)
                video, frame = both(train_video, train_frame)
                gallery = steps.gallery(steps.embed(name, frame))
            else:
                video = train_video()
            if more and not lag:
                label(number + 1, frame, gallery, video)
    return Finish(frame, video, gallery, names)


def _round_video(
    steps: Steps,
    name: str,
    others: pa.Table | None,
    init: Trained,
    loss: CrossEntropy | FixMatch = LABELLED,
    halfway: Callable[[Trained], None] | None = None,
) -> Trained:
    """`others` are the clips of D_u that f_E is trained on beside D_l."""
    rounds = steps.recipe.rounds
    plan = _classify_plan(steps, name, rounds.video_steps, others)
    count, lr = rounds.video_steps, rounds.video_lr
    return steps.train(f"{name}/video", "video", loss, plan, steps=count, lr=lr, init=init, halfway=halfway)


def _all_rounds(
    steps: Steps, method: Method, others: pa.Table | None, video: Trained, loss: CrossEntropy | FixMatch = LABELLED
) -> Trained:
    """f_E after every round of a method whose clips are the same ones in each."""
    for number in range(1, steps.recipe.rounds.count + 1):
        video = _round_video(steps, round_name(method, number), others, video, loss)
    return video


def _round_frame(steps: Steps, name: str, pseudo: pa.Table, init: Trained) -> Trained:
    rounds, loss = steps.recipe.rounds, steps.recipe.align.chosen()
    plan = _align_plan(steps, f"{name}/frame", rounds.frame_steps, pseudo, rounds.frame_label_share)
    return steps.train(f"{name}/frame", "frame", loss, plan, steps=rounds.frame_steps, lr=rounds.frame_lr, init=init)


def _supervised(steps: Steps, start: Start, members: Gallery) -> dict[Method, Finish]:
    """f_E goes on with D_l alone, for as many steps as the rounds take; and, where asked, for twice as many in all."""
    recipe, rounds, video = steps.recipe, steps.recipe.rounds, start.video
    ends: dict[Method, Finish] = {}
    video = _all_rounds(steps, "supervised", None, video)
    if "supervised" in recipe.methods:
        ends["supervised"] = Finish(start.frame, video, members)
    if "supervised_2x" in recipe.methods:
        count = recipe.supervise.steps + rounds.count * rounds.video_steps
        plan = _classify_plan(steps, "supervised_2x", count)
        again = _train_video(steps, "supervised_2x/video", plan, count, rounds.video_lr, video)
        ends["supervised_2x"] = Finish(start.frame, again, members)
    return ends


def _fixmatch(steps: Steps, start: Start, members: Gallery) -> dict[Method, Finish]:
    """f_E goes on with D_l and D_u, whose labels it makes itself in every step."""
    unlabelled, loss = samples(steps.split.unlabelled), steps.recipe.fixmatch
    video = _all_rounds(steps, "fixmatch", unlabelled, start.video, loss)
    return {"fixmatch": Finish(start.frame, video, members)}


def _timebalance(steps: Steps, shared: Steps, start: Start, members: Gallery) -> dict[Method, Finish]:
    """f_E, the student, goes on with D_l and D_u, whose soft targets two teachers have made (Dave et al., CVPR 2023).

        p = s p_I + (1 - s) p_D,   s = temporal similarity of the video's own features

    f_D, temporally distinctive, is f_E as stage 2 leaves it, pre-trained by GITDL or TCLR; f_I, temporally invariant,
    is pre-trained by contrast of videos, for as many steps, and supervised like f_E. Other than in the paper [C]:
    s is of the time features in the clips that are labelled, and of f_D; the student starts from f_D, as that of every
    method does; targets are made once, of clips without augmentation; they are for cross-entropy, as soft labels are
    here, and not for a squared difference; labelled clips have their label alone.
    Where the recipe names weights and has no steps of pre-training, both teachers start from these.
    """
    recipe = steps.recipe
    count, lr, init = recipe.supervise.steps, recipe.supervise.lr, part_of(InstanceLoss, recipe.gitdl)
    untaught = pretrain(_of_video(steps, shared), "video", recipe.gitdl.video_steps, init)
    plan = _classify_plan(steps, "timebalance/invariant", count)
    invariant = _train_video(steps, "timebalance/invariant", plan, count, lr, untaught)
    video = _all_rounds(steps, "timebalance", _teach(steps, invariant, start.video), start.video)
    return {"timebalance": Finish(start.frame, video, members)}


def _teach(steps: Steps, invariant: Trained, distinctive: Trained) -> pa.Table:
    """Committed soft targets of all of D_u by both teachers, as samples."""
    clips, folder = steps.recipe.label.clips, labels("timebalance/targets")
    lineage = {"f_I": invariant.digest, "f_D": distinctive.digest, "clips": clips, "split": steps.split.fingerprint}

    def make() -> dict[str, bytes]:
        what = teachers(invariant.uri, distinctive.uri, clips)
        found = steps.score("label/timebalance", steps.split.unlabelled, what)
        return {LABELS: artefacts.tables_bytes(teacher_targets(found)), **told_of(found)}

    artefacts.ensure(steps.run, folder, lineage, make)
    return artefacts.read_table(steps.run, folder, LABELS)


def _score_unlabelled(steps: Steps, name: str, frame: Trained, video: Trained, gallery: Gallery) -> Scores:
    clips = steps.recipe.label.clips
    what = Pass(
        frame={"f_A": frame.uri}, video={"f_E": video.uri}, galleries={"f_A": gallery}, clips=clips, nearest=NEAREST
    )
    return steps.score(f"label/{name}", steps.split.unlabelled, what)


def _train_video(steps: Steps, name: str, plan: Plan, count: int, lr: float, init: Trained) -> Trained:
    return steps.train(name, "video", LABELLED, plan, steps=count, lr=lr, init=init)


def _classify_plan(steps: Steps, name: str, count: int, pseudo: pa.Table | None = None) -> Plan:
    recipe = steps.recipe
    return plan_classify(
        steps.manifest,
        steps.labelled(),
        pseudo,
        frames=recipe.frames.video,
        augment=recipe.augment,
        steps=count,
        batch=recipe.supervise.batch,
        label_share=recipe.rounds.video_label_share,
        blocks_per_step=recipe.optimiser.blocks_per_step,
        seed=steps.seed(name),
    )


def _align_plan(steps: Steps, name: str, count: int, pseudo: pa.Table | None = None, label_share: float = 1.0) -> Plan:
    recipe = steps.recipe
    return plan_align(
        steps.manifest,
        steps.labelled(),
        pseudo,
        recipe.align,
        frames=recipe.frames.align,
        augment=recipe.augment,
        steps=count,
        label_share=label_share,
        blocks_per_step=recipe.optimiser.blocks_per_step,
        seed=steps.seed(name),
    )
