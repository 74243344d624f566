"""Every kernel of this machine against the log-domain reference in double, on costs made to break it."""

import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import normalize

from finepseudo.align import kernels
from finepseudo.align.head import ScoreHead
from finepseudo.align.kernels import cpu, plain, reference
from finepseudo.align.score import ClassScorer, distances
from finepseudo.align.softdtw import alignment_distance, block_distances, cosine_cost, soft_dtw

torch.set_num_threads(1)
LEVELS = ["baseline", "avx2", "avx512"]
SHAPES = [(1, 1), (1, 9), (8, 8), (16, 16), (33, 20), (64, 64), (20, 128)]


def instructions():
    """Levels that this machine has."""
    found = []
    for level in LEVELS:
        try:
            with cpu.limited(level):
                found.append(level)
        except ValueError:
            break
    return found


assert cpu.available(), "the C++ kernel is part of the installation"


@pytest.fixture(params=[*(f"cpu-{level}" for level in instructions()), "plain"])
def kernel(request):
    name, _, level = request.param.partition("-")
    if name == "plain":
        yield plain
    else:
        with cpu.limited(level):
            yield cpu


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frames(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def dead_end(P, T, U):
    """The upper edge is free and ends at a wall two high; the way that ends well costs one a step."""
    cost = torch.ones(P, T, U, dtype=torch.float64)
    cost[:, 0] = 0
    cost[:, :, -1] = 2
    cost[:, -1, -1] = 0
    return cost


def hidden_way(P, T, U):
    """All costs are at their worst but for one random path, dear at first and free at the end."""
    cost = torch.full((P, T, U), 2.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(T + U)
    for p in range(P):
        i = j = 0
        while (i, j) != (T - 1, U - 1):
            cost[p, i, j] = 1.5 if i + j < (T + U) // 2 else 0
            step = int(torch.randint(3, (1,), generator=generator))
            i, j = min(i + (step != 1), T - 1), min(j + (step != 0), U - 1)
        cost[p, -1, -1] = 0
    return cost


KINDS = {
    "uniform": lambda P, T, U: 2 * noise(P, T, U),
    "strangers": lambda P, T, U: cosine_cost(frames(P, T, 64), frames(P, U, 64, seed=1)),
    "same": lambda P, T, U: cosine_cost(frames(P, max(T, U), 8)[:, :T], frames(P, max(T, U), 8)[:, :U]),
    "below_zero": lambda P, T, U: 0.5 * noise(P, T, U) - 0.2,
    "dead_end": dead_end,
    "hidden_way": hidden_way,
    "mixed": lambda P, T, U: torch.cat(
        [KINDS[k](P // 4 + 1, T, U) for k in ("uniform", "same", "dead_end", "hidden_way")]
    )[:P],
}


def truth(cost, gamma, lengths=None):
    """R and dR/dC by the reference in double, of exactly these costs."""
    leaf = cost.detach().double().clone().requires_grad_()
    value = reference.soft_dtw(leaf, gamma, lengths)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def assert_right(kernel, cost, gamma, lengths=None):
    want, slope = truth(cost, gamma, lengths)
    leaf = cost.clone().requires_grad_()
    got = kernel.soft_dtw(leaf, gamma, lengths)
    (gradient,) = torch.autograd.grad(got.sum(), leaf)
    steps = sum(cost.shape[1:]) if lengths is None else lengths.sum(1)
    for value in (got.detach(), kernel.soft_dtw(cost, gamma, lengths)):
        torch.testing.assert_close(value.double() / steps, want / steps, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=1e-3 if kernel is plain else 5e-6)


@pytest.mark.parametrize("gamma", [0.001, 0.03, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_the_references(kernel, kind, gamma):
    for T, U in SHAPES:
        assert_right(kernel, KINDS[kind](19, T, U).float(), gamma)


@pytest.mark.parametrize("kind", ["strangers", "dead_end", "mixed"])
def test_long_clips(kernel, kind):
    for gamma in (0.001, 0.1, 10.0):
        assert_right(kernel, KINDS[kind](3, 300, 290).float(), gamma)


@pytest.mark.parametrize("kind", KINDS)
def test_double_is_computed_in_double(kernel, kind):
    for gamma in (0.01, 0.1, 1.0):
        cost = KINDS[kind](17, 12, 15)
        want, slope = truth(cost, gamma)
        cost.requires_grad_()
        got = kernel.soft_dtw(cost, gamma, None)
        got.sum().backward()
        torch.testing.assert_close(got.detach(), want, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(cost.grad, slope, rtol=1e-8, atol=1e-10)


def test_unequal_lengths_in_one_group(kernel):
    P, T, U = 40, 40, 70
    generator = torch.Generator().manual_seed(3)
    lengths = torch.stack(
        [torch.randint(1, T + 1, (P,), generator=generator), torch.randint(1, U + 1, (P,), generator=generator)], 1
    )
    lengths[0] = torch.tensor([T, U])
    lengths[1] = 1
    for kind in ("strangers", "dead_end"):
        for gamma in (0.01, 0.1, 1.0):
            assert_right(kernel, KINDS[kind](P, T, U).float(), gamma, lengths)


@pytest.mark.parametrize("kind", ["strangers", "mixed"])
def test_a_pair_does_not_depend_on_its_neighbours(kernel, kind):
    cost = KINDS[kind](33, 64, 60).float()
    together = kernel.soft_dtw(cost, 0.1, None)
    alone = torch.cat([kernel.soft_dtw(c[None], 0.1, None) for c in cost])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_where_it_is(kernel, bad):
    cost = (2 * noise(5, 6, 7)).float()
    cost[2, 3, 4] = bad
    cost[4, -1, -1] = bad
    clean = cost[[0, 1, 3]]
    got = kernel.soft_dtw(cost, 0.1, None)
    torch.testing.assert_close(got[[0, 1, 3]], kernel.soft_dtw(clean, 0.1, None), rtol=1e-6, atol=0)
    assert not got[4].isfinite()
    if math.isnan(bad):
        assert got[2].isnan()
    if bad == math.inf:  # the way around it
        cost[2, 3, 4] = 50
        torch.testing.assert_close(got[2], kernel.soft_dtw(cost[2:3], 0.1, None)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("T", [4, 40])
@pytest.mark.parametrize("gamma", [0.001, 0.1])
def test_nan_gives_nan_wherever_it_is(kernel, T, gamma):
    cost = torch.ones(6, T, T)
    cost[0, 0, 0] = cost[1, 0] = cost[2, :, 0] = cost[3, -1] = cost[4, :, -1] = cost[5, 1:3] = math.nan
    cost.requires_grad_()
    value = kernel.soft_dtw(cost, gamma, None)
    assert value.isnan().all()
    assert kernel.soft_dtw(cost.detach(), gamma, None).isnan().all()


def test_a_clip_with_nan_spoils_its_own_pairs_only(kernel, monkeypatch):
    monkeypatch.setattr(kernels, "choose", lambda tensor: kernel)
    emb = frames(20, 6, 8).float()
    emb[3, 2, 1] = math.nan
    block = block_distances(emb, gamma=0.1)
    assert block[3].isnan().all()
    assert block[:, 3].isnan().all()
    rest = [i for i in range(20) if i != 3]
    assert block[rest][:, rest].isfinite().all()


def test_an_infinite_cost_forbids_its_cell(kernel):
    cost = torch.ones(3, 4, 4)
    cost[0, 0, 1] = cost[1, 0, 1:] = cost[2, 1, 1] = cost[2, 2, 2] = math.inf
    dear = cost.clone()
    dear[dear == math.inf] = 60
    cost.requires_grad_()
    dear.requires_grad_()
    got, want = kernel.soft_dtw(cost, 0.1, None), kernel.soft_dtw(dear, 0.1, None)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    got.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(cost.grad, dear.grad, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_very_long_still_clips_is_finite(kernel, monkeypatch):
    """b outgrows double where a(T,U) does not."""
    monkeypatch.setattr(kernels, "choose", lambda tensor: kernel)
    emb = torch.zeros(2, 430, 4)
    emb[..., 0] = 1
    emb[0, :10] = torch.tensor([0, 1.0, 0, 0])
    emb[1, :10] = torch.tensor([0, 0, 1.0, 0])
    want = emb.double().requires_grad_()
    reference.soft_dtw(cosine_cost(want[:1], want[1:]), 0.1, None).sum().backward()
    emb.requires_grad_()
    (alignment_distance(emb[:1], emb[1:], gamma=0.1) * 860).sum().backward()
    torch.testing.assert_close(emb.grad.double(), want.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gamma", [0.005, 0.01])
def test_ways_of_equal_cost_share_alike_however_long(gamma):
    """Two disjoint ways; a rounding of the exponent would add up along them."""
    T = 300
    cost = torch.full((1, T, T), 2.0)
    for k in range(T - 1):
        cost[0, k, k + 1] = cost[0, k + 1, k] = 0.9 if gamma == 0.005 else 1.95
    cost[0, range(T), range(T)] = 2.0
    cost[0, 0, 0] = cost[0, -1, -1] = 0
    cost[0, range(1, T // 2), range(2, T // 2 + 1)] += 1e-7
    leaf = cost.clone().requires_grad_()
    cpu.soft_dtw(leaf, gamma, None).sum().backward()
    torch.testing.assert_close(leaf.grad.double(), truth(cost, gamma)[1], rtol=0, atol=2e-5)


def test_every_step_is_taken_and_counted():
    def steps(cost, gamma):
        before = cpu.solved()
        kernels.choose(cost).soft_dtw(cost, gamma, None)
        return [b - a for a, b in zip(before, cpu.solved(), strict=True)]

    assert steps(KINDS["strangers"](40, 16, 16).float(), 0.1) == [40, 0, 0]
    assert steps(KINDS["strangers"](40, 64, 64).float(), 0.1) == [0, 40, 0]
    assert steps(KINDS["strangers"](40, 16, 16).float(), 0.001) == [0, 0, 40]
    assert steps(KINDS["below_zero"](40, 16, 16).float(), 0.1) == [0, 0, 40]


def narrow_then_wide(T=80, half=40):
    """A way whose weight leaves the range of double, then opens into so many that they decide the end; and a bypass
    whose weight stays within the range and is a little less at the end.
    """
    cost = torch.full((1, T, T), 100.0)
    cost[0, half:, half:] = 0
    cost[0, range(half), range(half)] = 1.87
    cost[0, 0, 1:] = cost[0, :-1, -1] = 0.434
    return cost


@pytest.mark.parametrize(("gamma", "step"), [(0.1, 1), (0.01, 2)])
def test_a_run_that_looks_right_and_is_wrong_is_not_believed(gamma, step):
    cost = narrow_then_wide()
    right, _ = truth(cost, gamma)
    if gamma == 0.1:
        K = plain._kernel(cost, gamma, None)
        log_a = float(plain._forward(K, 80, 80, None, keep=False)[1].log())
        assert log_a > plain.LOG_SMALLEST + 5  # normal numbers to the end,
        assert abs(-gamma * log_a - float(right)) > 0.1  # and wrong
    before = cpu.solved()
    got = cpu.soft_dtw(cost, gamma, None)
    assert [b - a for a, b in zip(before, cpu.solved(), strict=True)] == [int(step == k) for k in range(3)]
    for value in (got, plain.soft_dtw(cost, gamma, None)):
        torch.testing.assert_close(value.double(), right, rtol=1e-5, atol=1e-6)


def test_what_is_lost_never_exceeds_what_the_bound_allows():
    """Runs that flush, beside exact ones: wherever the comparison would prove a pair, the loss is below 1e-7."""
    proven = lost = 0
    for seed in range(60):
        T = U = 70
        scale = 0.5 + 1.0 * float(noise(1, seed=seed))
        cost = scale * (0.6 + 0.8 * noise(1, T, U, seed=seed))
        right, _ = truth(cost, 0.1)
        a = plain._forward(plain._kernel(cost, 0.1, None), T, U, None, keep=False)[1]
        log_a = float(a.log()) if float(a) > 0 else -math.inf
        error = abs(log_a + float(right) / 0.1)
        if log_a > plain.log_bound(T, U, 0, 1e-7):
            proven += 1
            assert error < 1e-7 + 1e-12 * abs(log_a)
        lost += error > 1e-7
    assert proven > 5
    assert lost > 5


def test_gradcheck_in_double(kernel, monkeypatch):
    monkeypatch.setattr(kernels, "choose", lambda tensor: kernel)
    lengths = torch.tensor([[4, 5], [2, 5], [3, 1]])
    assert torch.autograd.gradcheck(lambda c: soft_dtw(c, 0.3, lengths), (2 * noise(3, 4, 5)).requires_grad_())
    assert torch.autograd.gradcheck(lambda a: block_distances(a, gamma=0.1), frames(5, 4, 6).requires_grad_())
    pair = frames(3, 4, 5).requires_grad_(), frames(3, 6, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, v: alignment_distance(u, v, gamma=0.1), pair)


@pytest.mark.parametrize(("B", "T"), [(1, 5), (5, 16), (32, 16), (19, 40), (6, 150)])
@pytest.mark.parametrize("gamma", [0.01, 0.1])
def test_the_block_equals_its_pairs(kernel, monkeypatch, B, T, gamma):
    monkeypatch.setattr(kernels, "choose", lambda tensor: kernel)
    emb = frames(B, T, 32).float()
    emb[B // 2] = emb[0]
    weight = noise(B, B).float()
    leaf = emb.clone().requires_grad_()
    block = block_distances(leaf, gamma=gamma)
    (block * weight).sum().backward()
    wide = emb.double().requires_grad_()
    i, j = torch.cartesian_prod(torch.arange(B), torch.arange(B)).T
    want = reference.soft_dtw(cosine_cost(wide[i], wide[j]), gamma, None).view(B, B) / (2 * T)
    (want * weight).sum().backward()
    assert torch.equal(block, block.T)
    # the costs themselves are of single precision here, so the bound is that of the product
    torch.testing.assert_close(block.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), wide.grad, rtol=1e-3, atol=2e-3 * float(wide.grad.abs().max()))


@pytest.mark.parametrize(("T", "U"), [(1, 1), (16, 16), (12, 64), (64, 64), (130, 150)])
@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0])
def test_scores_equal_the_reference(kernel, monkeypatch, T, U, gamma):
    monkeypatch.setattr(kernels, "choose", lambda tensor: kernel)
    emb, gallery = frames(9, T, 24).float(), frames(37, U, 24, seed=1).float()
    gallery[3, : min(T, U)] = emb[2, : min(T, U)]
    cost = cosine_cost(emb.reshape(1, -1, 24), gallery.reshape(1, -1, 24)).view(9, T, 37, U).transpose(1, 2)
    want, _ = truth(cost.reshape(-1, T, U), gamma)
    torch.testing.assert_close(distances(emb, gallery, gamma).double().flatten(), want / (T + U), rtol=1e-5, atol=1e-6)


def test_embeddings_that_are_not_normalised_are_scored_right(kernel, monkeypatch):
    monkeypatch.setattr(kernels, "choose", lambda tensor: kernel)
    emb, gallery = 3 * frames(4, 16, 24).float(), 2 * frames(20, 16, 24, seed=1).float()
    cost = (1 - emb.reshape(-1, 24) @ gallery.reshape(-1, 24).T).view(4, 16, 20, 16).transpose(1, 2)
    want, _ = truth(cost.reshape(-1, 16, 16), 0.1)
    torch.testing.assert_close(distances(emb, gallery, 0.1).double().flatten(), want / 32, rtol=1e-5, atol=2e-6)


def test_threads_and_repetition_give_the_same_bits():
    emb, gallery = frames(50, 16, 32).float(), frames(100, 16, 32, seed=1).float()
    from finepseudo.align.gallery import Gallery

    members = Gallery(gallery, torch.arange(100) % 7, tuple(map(str, range(100))), 7)
    head = ScoreHead()
    head.standardise(0.4, 0.1414)

    def everything():
        leaf = emb[:32].clone().requires_grad_()
        block = block_distances(leaf, gamma=0.1)
        block.sum().backward()
        pairs = soft_dtw(cosine_cost(emb, gallery[:50]), 0.1)
        return (
            distances(emb, gallery, 0.1),
            ClassScorer(members, head, gamma=0.1)(emb),
            block.detach(),
            leaf.grad,
            pairs,
        )

    first = everything()
    assert all(map(torch.equal, first, everything()))
    torch.set_num_threads(2)
    try:
        other = everything()
    finally:
        torch.set_num_threads(1)
    for a, b in zip(first, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for a, b in zip(first[:3], other[:3], strict=True):
        assert torch.equal(a, b)


def test_memory_does_not_follow_the_gallery():
    """A child's peak while it scores galleries of 500 and 8,000 into classes: the same beside the gallery itself."""
    code = """
import resource, sys, torch
from finepseudo.align.kernels import cpu
from finepseudo.align.head import ScoreHead
cpu.available()
torch.set_num_threads(1)
head = ScoreHead()
head.standardise(.4, .1414)
G = int(sys.argv[1])
rows = cpu.Rows(torch.zeros(16, 16, 64))
rows.G, rows.panels = G, rows.panels.expand(G // 16, 64, 256)  # one panel stands for all: no memory of its own
emb = torch.zeros(64, 16, 64)
label = torch.zeros(G, dtype=torch.int64)
run = lambda: rows.class_sums(emb, .1, label, 5, head, mean="log_odds")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", code, G], capture_output=True, text=True, check=True, timeout=120
            ).stdout
        )
        for G in ("512", "8192")
    ]
    assert abs(peaks[1] - peaks[0]) < 8 * 1024  # KiB; the distances alone would be 2 MiB, the costs 512 MiB


CHILD = """
import logging, torch
logging.basicConfig(level=logging.INFO)
from finepseudo.align.kernels import cpu
{change}
from finepseudo.align.softdtw import soft_dtw
print(float(soft_dtw(torch.ones(1, 3, 3), .1)))
print(float(soft_dtw(torch.ones(1, 3, 3), .1)))
"""


def run_child(change="", path=None):
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(change=change)],
        capture_output=True, text=True, check=True, timeout=120,
        env={**os.environ, **({"PYTHONPATH": str(path)} if path else {})}, cwd=path,
    )  # fmt: skip
    want = float(soft_dtw(torch.ones(1, 3, 3), 0.1))
    assert [float(line) for line in done.stdout.split()] == pytest.approx([want, want], abs=1e-6)
    return done.stderr


def test_without_the_extension_plain_torch_runs_and_says_so():
    said = run_child("cpu._folders = lambda: ()")
    assert said.count("WARNING:finepseudo:alignment on cpu: plain kernel (slower: the C++ kernel was not built") == 1


def test_a_copy_without_the_extension_finds_the_installed_one_if_its_sources_are_the_same(tmp_path):
    """What the upload of a job's working directory is: git ignores the extension, so it does not travel."""
    shutil.copytree(cpu.HERE.parents[1], tmp_path / "finepseudo", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    assert "INFO:finepseudo:alignment on cpu: cpu kernel (C++" in run_child(path=tmp_path)
    source = tmp_path / "finepseudo/align/kernels/solve.h"
    (tmp_path / "finepseudo/align/kernels/_cpu.cpython-39-x86_64-linux-gnu.so").write_bytes(b"of another Python")
    assert "cpu kernel (C++" in run_child(path=tmp_path)
    source.write_text(source.read_text() + "// changed\n")
    assert "plain kernel (slower: " in (said := run_child(path=tmp_path))
    assert "was built from other sources" in said


def test_an_unknown_instruction_set_is_refused():
    with (
        pytest.raises(ValueError, match="expected an instruction set of this machine, up to .*, got mmx"),
        cpu.limited("mmx"),
    ):
        pass


def test_which_kernel_runs_is_said_once(caplog):
    kernels._choose.cache_clear()
    with caplog.at_level("INFO", "finepseudo"):
        kernels.choose(torch.zeros(1))
        kernels.choose(torch.zeros(2))
    assert [record.message for record in caplog.records] == [f"alignment on cpu: cpu kernel ({cpu.describe()})"]


def test_labels_beyond_the_classes_are_refused():
    head = ScoreHead()
    head.standardise(0.4, 0.1414)
    rows, emb = cpu.Rows(frames(3, 4, 8).float()), frames(2, 4, 8).float()
    with pytest.raises(ValueError, match=r"labels within 0..1, got 2 in row 1"):
        rows.class_sums(emb, 0.1, torch.tensor([0, 2, 1]), 2, head, mean="log_odds")
    with pytest.raises(ValueError, match=r"expected 3 labels, got 2"):
        rows.class_sums(emb, 0.1, torch.tensor([0, 1]), 2, head, mean="log_odds")


def test_norms_beyond_single_precision_are_not_taken_for_zero():
    emb, other = (frames(2, 6, 8) * 1e24).float(), (frames(3, 6, 8, seed=1) * 1e-23).float()
    cost = (1 - emb.reshape(-1, 8) @ other.reshape(-1, 8).T).view(2, 6, 3, 6).transpose(1, 2).reshape(-1, 6, 6)
    want, _ = truth(cost, 0.01)
    torch.testing.assert_close(distances(emb, other, 0.01).double().flatten(), want / 12, rtol=1e-5, atol=1e-5)


def test_the_package_builds_without_torch_in_reach(tmp_path):
    """Build isolation hides torch: the extension is left out, the build goes on."""
    code = """
import sys
sys.modules["torch"] = None  # import fails
from setuptools import Distribution, Extension
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("build_kernel", sys.argv[1])
module = module_from_spec(spec)
spec.loader.exec_module(module)
ext = Extension("_cpu", ["cpu.cpp"], optional=True)
command = module.BuildKernel(Distribution({"ext_modules": [ext]}))
command.ensure_finalized()
command.run()
print("went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(cpu.HERE / "build.py")],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert "went on" in done.stdout, done.stderr
    assert "install with --no-build-isolation" in done.stdout + done.stderr
