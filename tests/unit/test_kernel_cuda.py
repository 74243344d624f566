"""The Triton kernels without a device: their numbers in the interpreter, their code compiled for sm_80 and sm_90.

No test here says anything about speed, or about races between threads. Triton reads TRITON_INTERPRET while it is
imported, so each half runs in a process of its own: this file as a script, which prints its results as JSON.

Axes: P pairs, N videos, G gallery, T U frames, D embedding, K classes. The suffix 2 is (length in T, length in U).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from finepseudo.align.head import ScoreHead
from finepseudo.align.kernels import reference
from finepseudo.align.softdtw import cosine_cost

torch.set_num_threads(1)
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

LABELS = torch.tensor([1] * 35 + [2] * 3 + [4] * 2)  # classes 0, 3 and 5 are empty; class 1 takes two rounds of 32
CLASSES = 6
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have


@dataclass(frozen=True)
class Scored:
    """N videos and a gallery; `kind` says what is special about their frames."""

    shape: tuple[int, int, int, int, int]  # N G T U D
    gamma: float = 0.1
    dtype: torch.dtype = torch.float32
    kind: str = "random"

    def frames(self) -> tuple[Tensor, Tensor]:
        N, G, T, U, D = self.shape
        random = torch.Generator().manual_seed(N * T + D)
        u = normalize(torch.randn(N, T, D, generator=random), dim=-1)
        v = normalize(torch.randn(G, U, D, generator=random), dim=-1)
        if self.kind == "same":
            v[0] = u[0]
        if self.kind == "dead end":  # free at first, then a wall of cost 2: the way on is along the edge
            a, b = u[0, 0].clone(), -u[0, 0]
            u[:] = torch.where(torch.arange(T)[:, None] < T // 2, a, b)
            v[:] = torch.where(torch.arange(U)[:, None] < U // 4, a, b)
            v[:, -1] = a
        if self.kind == "not finite":
            u[1, 2, 0], u[2, 0, 1], v[1, 1, 0] = torch.nan, torch.inf, -torch.inf
        return u.to(self.dtype), v.to(self.dtype)

    def distances(self) -> Tensor:
        N, G, T, U, _ = self.shape
        u, v = (x.double().flatten(0, 1)[None] for x in self.frames())
        cost_PTU = cosine_cost(u, v).view(N, T, G, U).transpose(1, 2).reshape(-1, T, U)
        return reference.soft_dtw(cost_PTU, self.gamma, None).view(N, G) / (T + U)


@dataclass(frozen=True)
class Paired:
    """Three cost matrices, maybe of unequal lengths."""

    T: int
    U: int
    gamma: float = 0.1
    ragged: bool = False
    kind: str = "random"

    def costs(self) -> tuple[Tensor, Tensor | None]:
        T, U = self.T, self.U
        cost_PTU = 2 * torch.rand(3, T, U, generator=torch.Generator().manual_seed(T * U))
        if self.kind == "dead end":  # the first rows are free, until a wall at their end
            cost_PTU[:] = 1
            cost_PTU[:, : T // 2] = 0
            cost_PTU[:, : T // 2 + 1, U // 2 :] = 50
            cost_PTU[1] = cost_PTU[1].flip(0, 1)
        if self.kind == "huge":
            cost_PTU *= 1e30
        if self.kind == "negative":
            cost_PTU -= 3
        if self.kind == "strided":
            cost_PTU = cost_PTU.transpose(1, 2).contiguous().transpose(1, 2)
        if self.kind == "not finite":
            cost_PTU[0, 1, 2], cost_PTU[1, 0, 0], cost_PTU[2, T - 1, 0] = torch.inf, torch.nan, -torch.inf
        lengths_P2 = torch.tensor([[T, U], [1, U], [max(1, T - 2), 1]]) if self.ragged else None
        if lengths_P2 is not None:
            cost_PTU[1, 1:], cost_PTU[2, :, 1:] = torch.nan, torch.nan
        return cost_PTU, lengths_P2

    def solve(self, kernel) -> tuple[Tensor, Tensor]:
        """Values and the gradient of a weighted sum of them."""
        cost_PTU, lengths_P2 = self.costs()
        if kernel is reference:
            cost_PTU = cost_PTU.double()
            if lengths_P2 is not None:
                cost_PTU = cost_PTU.nan_to_num()  # the reference reads the padding
        cost_PTU.requires_grad_()
        dist_P = kernel.soft_dtw(cost_PTU, self.gamma, lengths_P2)
        (grad_PTU,) = torch.autograd.grad((dist_P * torch.tensor([1.0, -2.0, 0.5])).sum(), cost_PTU)
        return dist_P.detach(), grad_PTU


SCORED = {
    "one of each": Scored((1, 1, 1, 1, 3)),
    "several videos in a tile": Scored((6, 5, 5, 7, 20)),
    "small gamma": Scored((2, 33, 16, 9, 40), gamma=0.001),
    "large gamma": Scored((3, 3, 12, 10, 17), gamma=10.0),
    "one row above a stripe": Scored((1, 3, 33, 6, 8)),
    "three stripes, deep": Scored((1, 2, 70, 5, 130)),
    "300 frames": Scored((1, 1, 300, 3, 5), gamma=1.0),
    "more tiles than blocks": Scored((18, 1, 40, 2, 4)),
    "fp16": Scored((2, 3, 9, 8, 24), dtype=torch.float16),
    "bf16": Scored((2, 3, 9, 8, 24), dtype=torch.bfloat16),
    "same, small gamma": Scored((1, 2, 20, 20, 16), gamma=0.001, kind="same"),
    "same": Scored((1, 2, 20, 20, 16), kind="same"),
    "dead end": Scored((1, 1, 16, 16, 8), kind="dead end"),
    "dead end, small gamma": Scored((1, 1, 40, 16, 8), gamma=0.001, kind="dead end"),
}
PAIRED = {
    "one cell": Paired(1, 1),
    "wide": Paired(4, 9),
    "tall": Paired(9, 4),
    "small gamma": Paired(6, 7, gamma=0.001),
    "large gamma": Paired(6, 7, gamma=10.0),
    "ragged": Paired(6, 8, ragged=True),
    "ragged, tall": Paired(8, 6, ragged=True),
    "two lanes a thread": Paired(40, 41),
    "dead end": Paired(8, 12, kind="dead end"),
    "dead end, small gamma": Paired(8, 12, gamma=0.001, kind="dead end"),
    "huge": Paired(5, 6, kind="huge"),
    "negative": Paired(5, 6, kind="negative"),
    "strided": Paired(5, 6, kind="strided"),
}
SUMMED = Scored((5, len(LABELS), 6, 5, 12))
LOST = Scored((3, 3, 4, 5, 6), kind="not finite")
LOST_PAIRS = Paired(4, 5, kind="not finite")
# name -> kernel, element, constants, and whether it is what is launched or a variant that must spill
COMPILED = {
    "class sums, long": ("_class_sums", "*fp32", (32, 128), {"LONG": True, "AS_SCORE": False}),
    "class sums, T 16": ("_class_sums", "*fp32", (16, 128), {"LONG": False, "AS_SCORE": True}),
    "class sums, T 8, few members": ("_class_sums", "*fp32", (8, 32), {"LONG": False, "AS_SCORE": False}),
    "class sums, bf16": ("_class_sums", "*bf16", (32, 128), {"LONG": True, "AS_SCORE": False}),
    "distances": ("_distances", "*fp32", (32, 64), {"LONG": True}),
    "values": ("_values", "*fp32", 64, {"RAGGED": True, "KEEP": True}),
    "values, most lanes": ("_values", "*fp32", 2048, {"RAGGED": True, "KEEP": True}),
    "shares": ("_shares", "*fp32", 64, {"RAGGED": True}),
    "shares, most lanes": ("_shares", "*fp32", 2048, {"RAGGED": True}),
    "starved": ("_values", "*fp32", 2048, {"RAGGED": True, "KEEP": True, "maxnreg": 32}),
}


def head() -> ScoreHead:
    made = ScoreHead(5)
    made.standardise(0.4667, 0.1528)
    return made


def interpret() -> dict[str, list]:
    """Every case through the kernels, on CPU tensors."""
    from finepseudo.align.kernels import cuda

    found = {f"distances {name}": cuda.distances(*case.frames(), case.gamma) for name, case in SCORED.items()}
    found["distances not finite"] = cuda.distances(*LOST.frames(), LOST.gamma)
    for name, case in PAIRED.items():
        found[f"values {name}"], found[f"shares {name}"] = case.solve(cuda)
    with torch.no_grad():
        found["values not finite"] = cuda.soft_dtw(LOST_PAIRS.costs()[0], 0.1, None)
        emb, gallery = SUMMED.frames()
        for score in (False, True):
            rows = cuda.Rows(gallery)
            found[f"sums {score}"] = rows.class_sums(
                emb, SUMMED.gamma, LABELS, CLASSES, head(), mean="score" if score else "log_odds"
            )
    nothing = cuda.class_sums(
        *(torch.empty(2, 3, 4), torch.empty(0, 3, 4), torch.zeros(3, dtype=torch.long), *torch.ones(3, 2)),
        *(0.0, 0.0, 1.0, 0.1),
        as_score=False,
    )
    found["nothing"] = nothing
    found["launches"] = torch.tensor([launches(cuda, *size) for size in ((100_000, 400), (2**27, 1000))])
    return {name: tensor.tolist() for name, tensor in found.items()}


def launches(cuda, videos: int, across: int) -> list[int]:
    """Launches for so many videos of 64 frames, the most blocks and tiles of one, videos in all, and border numbers."""
    seen = []

    class Recorder:
        def __getitem__(self, grid):
            def run(emb, gallery, edge, N, T, U, D, down, tiles, scale, unit, **constants):
                seen.append((grid[0], tiles, N, len(edge)))

            return run

    emb = torch.zeros(1, 64, 4).expand(videos, 64, 4)
    cuda._launch(emb, torch.zeros(2, 64, 4), 0.1, across, 128, lambda n: (Recorder(), (), {}))
    blocks, tiles, counts, edges = zip(*seen, strict=True)
    return [len(seen), max(blocks), max(tiles), sum(counts), max(edges)]


def compile_for(arch: int) -> dict[str, dict[str, int]]:
    """Registers, spilled and shared bytes of each kernel, and the instructions that matter."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from finepseudo.align.kernels import cuda

    found = {}
    for name, (kernel, element, sizes, constants) in COMPILED.items():
        function = getattr(cuda, kernel)
        if isinstance(sizes, tuple):
            constants = constants | cuda._shape(*sizes)
        else:
            constants = constants | {"LANES": sizes, "num_warps": cuda._lanes(sizes)[1]}
        if "DEVICE" in function.arg_names:
            constants = constants | {"DEVICE": True}
        options = {key: constants.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in constants}
        types = {"u_ptr": element, "v_ptr": element, "start_ptr": "*i64", "lengths_ptr": "*i64"}
        types |= {"cells_ptr": "*fp64", "total_ptr": "*fp64", "scale": "fp32", "unit": "fp32"}
        signature = {
            key: "constexpr" if key in constants else types.get(key, "*fp32" if key.endswith("_ptr") else "i32")
            for key in function.arg_names
        }
        aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(signature) if key[-4:] in ("_ptr", "D")}
        source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
        built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        ptx = built.asm["ptx"]
        found[name] = usage(built.asm["cubin"], Path(triton.__file__).parent) | {
            "shared": built.metadata.shared,
            "exp2": ptx.count("ex2.approx"),
            "log2": ptx.count("lg2.approx"),
            "tf32": ptx.count("mma.sync.aligned.m16n8k8.row.col.f32.tf32") + len(re.findall(r"wgmma\S+tf32", ptx)),
            "bf16": len(re.findall(r"mma\S+bf16", ptx)),
        }
    return found


def usage(cubin: bytes, triton_home: Path) -> dict[str, int]:
    """Registers of a thread, and the bytes of its stack: none of the kernels has arrays, so all of it is spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton_home / "backends/nvidia/bin/cuobjdump"
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    (registers, stack, local), *more = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said.stdout)
    assert not more
    return {"registers": int(registers), "spilled": int(stack) + int(local)}


def child(cache: Path, *what: str, **more: str):
    env = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, *what], env=env | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=[pytest.param("in Triton's interpreter", marks=pytest.mark.long)])
def interpreted(tmp_path_factory):
    found = child(tmp_path_factory.mktemp("triton"), "interpret", TRITON_INTERPRET="1")
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


@pytest.fixture(scope="module", params=[pytest.param(arch, marks=pytest.mark.long) for arch in (80, 90)])
def compiled(request, tmp_path_factory):
    return request.param, child(tmp_path_factory.mktemp("triton"), "compile", str(request.param))


@pytest.mark.parametrize("name", SCORED)
def test_distances_are_those_of_the_log_domain_in_double(interpreted, name):
    got, want = interpreted[f"distances {name}"], SCORED[name].distances()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PAIRED)
def test_values_and_gradients_are_those_of_the_log_domain_in_double(interpreted, name):
    want_P, want_PTU = PAIRED[name].solve(reference)
    lengths = PAIRED[name].T + PAIRED[name].U
    torch.testing.assert_close(interpreted[f"values {name}"], want_P, rtol=1e-5, atol=1e-6 * lengths)
    torch.testing.assert_close(interpreted[f"shares {name}"], want_PTU, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", [False, True])
def test_class_sums_are_the_sums_over_members(interpreted, score):
    with torch.no_grad():
        values_NG = head()(SUMMED.distances())
    values_NG = values_NG.sigmoid() if score else values_NG
    want = torch.zeros(SUMMED.shape[0], CLASSES, dtype=torch.float64).index_add(1, LABELS, values_NG)
    torch.testing.assert_close(interpreted[f"sums {score}"], want, rtol=1e-5, atol=1e-4)
    assert interpreted[f"sums {score}"][:, [0, 3, 5]].eq(0).all()


def test_an_empty_gallery_sums_to_nothing(interpreted):
    assert interpreted["nothing"].tolist() == [[0, 0], [0, 0]]


def test_what_is_not_finite_never_becomes_a_finite_number(interpreted):
    assert not interpreted["values not finite"].isfinite().any()
    assert interpreted["distances not finite"].isfinite().tolist() == [[True, False, True], [False] * 3, [False] * 3]


def test_a_launch_stays_within_the_grid_and_32_bits(interpreted):
    (one, *small), (several, *large) = interpreted["launches"].tolist()
    assert (one, several) == (1, -(-(2**27) // ((2**30 - 1) // 1000)))
    assert small == [4, 100_000 * 400, 100_000, 4 * 2 * 64 * 128]  # blocks of one processor, and a set of borders each
    assert large[1] < 2**31
    assert large[2] == 2**27


def test_no_register_is_spilled_and_shared_memory_suffices(compiled):
    arch, kernels = compiled
    for name, used in kernels.items():
        if name != "starved":
            assert used["spilled"] == 0, (name, used)
            assert used["shared"] <= SHARED_LIMIT[arch], (name, used)


def test_a_spill_would_be_seen(compiled):
    assert compiled[1]["starved"]["spilled"] > 0


def test_a_cell_costs_three_special_functions_and_the_products_run_on_tensor_cores(compiled):
    kernels = compiled[1]
    assert (kernels["distances"]["exp2"], kernels["distances"]["log2"]) == (2 * 32, 32)  # a column of 32 rows
    assert kernels["distances"]["tf32"] > 0
    assert kernels["distances"]["bf16"] == 0
    assert kernels["class sums, bf16"]["bf16"] > 0
    assert kernels["class sums, bf16"]["tf32"] == 0


@pytest.fixture
def benchmark_gpu():
    spec = spec_from_file_location("benchmark_gpu", BENCHMARK)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_the_benchmark_says_that_there_is_no_device():
    env = os.environ | {"PYTHONPATH": str(BENCHMARK.parents[1])}
    done = subprocess.run([sys.executable, BENCHMARK, "--checks-only"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"no NVIDIA device to run on: torch {torch.__version__} sees none\n"


def test_the_benchmark_needs_nothing_but_torch_and_align():
    paths = [str(BENCHMARK.parents[1]), str(BENCHMARK.parent)]
    code = f"import sys; sys.path[:0] = {paths}; import gpu; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"safetensors", "ray", "triton"} & set(done.stdout.split())


@pytest.mark.parametrize("wrong", [["--lengths", "0"], ["--seconds", "0"], ["--rounds", "0"]])
def test_the_benchmark_refuses_what_it_cannot_measure(benchmark_gpu, wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark_gpu.main(wrong)
    assert "expected lengths and rounds of at least 1 and a positive number of seconds" in capsys.readouterr().err


def test_the_benchmarks_table(benchmark_gpu):
    ours = ("forward", "16", "finepseudo", *benchmark_gpu.figures([2.0, 1.0, 4.0], [], 1000), "0.5")
    theirs = ("forward", "16", "loop", *benchmark_gpu.figures([6.0, 9.0, 30.0], [3.0, 4.0, 7.0], 1000), "12.0")
    assert benchmark_gpu.table(benchmark_gpu.HEADER, [ours, theirs]).splitlines() == [
        "| work    | T  | implementation | ms    | cells/s  | times ours | spread    | peak MiB |",
        "|---------|----|----------------|-------|----------|------------|-----------|----------|",
        "| forward | 16 | finepseudo     | 2.000 | 5.00e+05 | 1          | 0.50-2.00 | 0.5      |",
        "| forward | 16 | loop           | 9.000 | 1.11e+05 | 4.00       | 3.00-7.00 | 12.0     |",
    ]


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    sys.stdout.write("\n" + json.dumps(interpret() if what == "interpret" else compile_for(int(arguments[0]))) + "\n")
