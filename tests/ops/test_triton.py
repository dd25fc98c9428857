"""The Triton kernels against the reference formulas in float64.

Where there is a GPU they run on it. Where there is none, `test_in_the_interpreter` runs the same tests in a process of
its own, in which Triton interprets the kernels, and `test_compiled` compiles them for two GPUs and reads the result.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from geoattn.ops.backends import reference, triton
from geoattn.ops.backends.choose import BACKENDS, choose
from geoattn.ops.backends.problem import Gradients, Problem
from geoattn.patterns.visits import Visits

INSTALLED = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs = pytest.mark.skipif(
    not INSTALLED or not (INTERPRETED or torch.cuda.is_available()),
    reason="triton is not installed, or there is no GPU (test_in_the_interpreter covers that)",
)
compiles = pytest.mark.skipif(not INSTALLED or INTERPRETED, reason="triton is not installed, or is interpreting")

# Largest error over the largest number, for what comes out in the type. Half types round out, which the backward pass
# reads, so their gradients lose about two bits more than out itself.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
SEED = 0x1234_5678_9ABC_DEF0


def make(
    degree: list[int],
    keys: int = 7,
    heads: int = 2,
    groups: int = 0,
    d: int = 8,
    c: int = 8,
    bias: int = 0,
    log_weight: int = 0,
    edge_key: int = 0,
    edge_value: int = 0,
    additive: bool = False,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    index: torch.dtype = torch.int64,
    device: str = DEVICE,
) -> Problem:
    """Random; the optional inputs are given as their number of heads, 0 for none."""
    generator = torch.Generator().manual_seed(len(degree) + heads + d)
    rowptr = torch.tensor([0, *degree]).cumsum(0)
    edges, groups = int(rowptr[-1]), groups or heads
    sum_dtype = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    return Problem(
        query=normal(len(degree), heads, d),
        key=normal(keys, groups, d),
        value=normal(keys, groups, c),
        rowptr=rowptr.to(device, index),
        col=torch.randint(keys, (edges,), generator=generator).to(device, index),
        bias=normal(edges, bias, dtype=sum_dtype) if bias else None,
        log_weight=normal(keys, log_weight, dtype=sum_dtype) if log_weight else None,
        edge_key=normal(edges, edge_key, d) if edge_key else None,
        edge_value=normal(edges, edge_value, c) if edge_value else None,
        att=normal(heads, d, dtype=sum_dtype) if additive else None,
        scale=d**-0.5,
        negative_slope=0.2,
        dropout=dropout,
        seed=SEED if dropout else None,
    )


def names(problem: Problem) -> list[str]:
    return [name for name in Gradients._fields if getattr(problem, name) is not None]


def transpose(problem: Problem) -> Visits:
    col, order = problem.col.long().sort(stable=True)
    rowptr = torch.searchsorted(col, torch.arange(problem.key.size(0) + 1, device=col.device))
    row = reference.row_of_edges(problem)
    return Visits(rowptr.to(row.dtype), row[order], order.to(row.dtype))


def run(problem: Problem, needs: list[str] | None = None, grad_of_lse: bool = True) -> dict[str, Tensor]:
    """Output, log-sum-exp and gradients of the kernels, for upstream gradients that are the same every time."""
    out, lse = triton.forward(problem)
    grad_out, grad_lse = upstream(out, lse)
    grads = triton.backward(
        problem, transpose(problem), out, lse, grad_out, grad_lse if grad_of_lse else None, needs or names(problem)
    )
    return {"out": out, "lse": lse, **{k: v for k, v in grads._asdict().items() if v is not None}}


def truth(problem: Problem, grad_of_lse: bool = True) -> dict[str, Tensor]:
    """The same from the formulas in float64."""
    exact = problem._replace(**{name: getattr(problem, name).double().requires_grad_() for name in names(problem)})
    out, lse = reference.forward(exact)
    grad_out, grad_lse = upstream(out.to(problem.query.dtype), lse)
    loss = (out * grad_out).sum()
    if grad_of_lse:
        loss = loss + (lse.where(lse > -torch.inf, 0) * grad_lse).sum()
    grads = torch.autograd.grad(loss, [getattr(exact, name) for name in names(problem)])
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(names(problem), grads, strict=True))}


def upstream(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Not contiguous, as autograd may give them."""
    generator = torch.Generator().manual_seed(0)
    grad_out = torch.randn(out.size(0), out.size(2), out.size(1), generator=generator).transpose(1, 2)
    grad_lse = torch.randn(lse.size(1), lse.size(0), generator=generator).t()
    dtype = torch.float32 if lse.dtype == torch.float32 else torch.float64
    return grad_out.to(out.device, out.dtype), grad_lse.to(out.device, dtype)


def assert_right(problem: Problem, tolerance: float | None = None, grad_of_lse: bool = True) -> None:
    found, expected = run(problem, grad_of_lse=grad_of_lse), truth(problem, grad_of_lse)
    tolerance = tolerance or TOLERANCE[problem.query.dtype]
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        y = found[name]
        assert y.shape == x.shape
        assert y.dtype == (problem.sum_dtype if name == "lse" else getattr(problem, name, problem.query).dtype)
        finite = x.isfinite()
        assert torch.equal(y[~finite].double(), x[~finite]), name
        x, y = x[finite], y[finite].double()
        assert (x - y).abs().max() <= tolerance * x.abs().max().clamp(min=1) if x.numel() else True, name


# Rows that are empty, that fill a tile, that take several, and that go to the second bucket.
DEGREE = [3, 0, 8, 1, 70, 6, 0]


@runs
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="dot"),
        pytest.param({"additive": True, "heads": 4, "d": 16, "c": 16}, id="gatv2"),
        pytest.param({"additive": True, "d": 1, "c": 20}, id="gat"),
        pytest.param({"d": 5, "c": 3, "heads": 3}, id="no powers of two"),
        pytest.param({"d": 40, "c": 130}, id="wide values"),
        pytest.param({"d": 300, "c": 2, "heads": 1}, id="wider than a warp"),
        pytest.param({"heads": 6, "groups": 2}, id="three heads share a key"),
        pytest.param({"heads": 8, "groups": 2, "d": 64}, id="four heads share a key, two in a program"),
        pytest.param({"bias": 2, "log_weight": 2}, id="bias and weight per head"),
        pytest.param({"heads": 3, "bias": 1, "log_weight": 1}, id="bias and weight for all heads"),
        pytest.param({"heads": 6, "bias": 1, "log_weight": 1, "d": 64}, id="bias and weight over many programs"),
        pytest.param({"heads": 6, "edge_key": 2, "edge_value": 3}, id="edge terms"),
        pytest.param({"heads": 12, "edge_key": 2, "edge_value": 3, "c": 64}, id="edge terms over many programs"),
        pytest.param({"heads": 4, "edge_key": 1, "edge_value": 1, "groups": 1, "additive": True}, id="edge gatv2"),
        pytest.param({"dropout": 0.4, "heads": 6}, id="dropout"),
        pytest.param(
            {"heads": 6, "groups": 3, "bias": 6, "log_weight": 1, "edge_key": 1, "edge_value": 6, "dropout": 0.4},
            id="all",
        ),
    ],
)  # fmt: skip
def test_output_and_gradients(options: dict[str, Any]) -> None:
    assert_right(make(DEGREE, **options))


@runs
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types(dtype: torch.dtype) -> None:
    """Half types give gradients in their own type, and sum in float32 also where heads share one."""
    options: dict[str, Any] = {"heads": 4, "dtype": dtype, "index": torch.int32}
    assert_right(make(DEGREE, groups=2, d=12, bias=1, edge_key=2, edge_value=1, **options))
    assert_right(make([5, 9], groups=1, d=64, additive=True, **options))


@runs
def test_dropout_masks_are_those_of_the_reference() -> None:
    """Values are one-hot per edge, so that the output shows which edges were kept."""
    problem = make([40, 24], keys=64, heads=5, c=64, dropout=0.5)
    value = torch.eye(64, device=DEVICE).unsqueeze(1).expand(64, 5, 64)
    problem = problem._replace(value=value, col=torch.arange(64, device=DEVICE))
    kept = triton.forward(problem)[0] > 0
    assert torch.equal(kept, reference.forward(problem)[0] > 0)
    late = problem._replace(first_edge=2**32 - 30)
    assert torch.equal(triton.forward(late)[0] > 0, reference.forward(late)[0] > 0)
    assert 0.3 < kept[0, :, :40].float().mean() < 0.7
    assert not torch.equal(kept, triton.forward(problem._replace(seed=SEED ^ 1 << 40))[0] > 0)


@runs
def test_strides() -> None:
    """Heads and nodes of one packed tensor, and a row repeated by a stride of 0."""
    problem = make(DEGREE, keys=len(DEGREE), heads=3, d=8, c=8)
    packed = torch.stack([problem.query, problem.key, problem.value], 2).transpose(0, 1).contiguous().transpose(0, 1)
    views = problem._replace(query=packed[:, :, 0], key=packed[:, :, 1], value=packed[:1, :, 2].expand(7, 3, 8))
    assert not views.query.is_contiguous()
    assert_right(views)


@runs
def test_without_a_gradient_of_the_log_sum_exp() -> None:
    assert_right(make(DEGREE), grad_of_lse=False)


@runs
def test_only_what_is_needed() -> None:
    problem = make([4, 9], bias=2, log_weight=1, edge_key=1, edge_value=1, additive=True)
    everything = run(problem)
    for name in names(problem):
        found = run(problem, [name])
        assert found.keys() == {"out", "lse", name}
        torch.testing.assert_close(found[name], everything[name])
    out, lse = triton.forward(problem)
    nothing = triton.backward(problem, None, out, lse, out, None, ["query"])
    assert nothing.key is None


@runs
def test_same_bits() -> None:
    problem = make(DEGREE, heads=4, groups=2, bias=1, log_weight=1, edge_key=1, additive=True)
    first, second = run(problem), run(problem)
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@runs
def test_order_of_edges_within_a_row_does_not_matter() -> None:
    problem = make([9], bias=2)
    order = torch.randperm(9, device=DEVICE)
    assert problem.bias is not None
    other = run(problem._replace(col=problem.col[order], bias=problem.bias[order]))
    for name, x in run(problem).items():
        torch.testing.assert_close(other[name], x[order] if name == "bias" else x)


@runs
@pytest.mark.parametrize("degree", [[], [0, 0, 0]])
def test_no_edges(degree: list[int]) -> None:
    found = run(make(degree, bias=1, edge_key=1, additive=True))
    assert (found.pop("lse") == -torch.inf).all()
    assert all((x == 0).all() for x in found.values())


@runs
def test_hidden_keys() -> None:
    """Weights of 0, one row of nothing else, and a bias of minus infinity."""
    problem = make([3, 4, 2], log_weight=1, bias=2)
    assert problem.log_weight is not None
    assert problem.bias is not None
    problem.log_weight[:3] = -torch.inf
    problem.bias[3] = -torch.inf
    problem.col[:3] = torch.arange(3, device=DEVICE)
    problem.col[3:] = 4
    assert_right(problem)
    found = run(problem)
    assert (found["out"][0] == 0).all()
    assert (found["lse"][0] == -torch.inf).all()
    assert (found["query"][0] == 0).all()
    assert (found["log_weight"][:3] == 0).all()


@runs
def test_large_scores() -> None:
    """Float32 has 1e-3 left at 1e4."""
    problem = make(DEGREE, bias=1)
    assert problem.bias is not None
    problem.bias[::2] += 1e4
    problem.bias[1::2] -= 1e4
    assert_right(problem, tolerance=5e-3)


@runs
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_columns_that_are_out_of_range_are_skipped(index: torch.dtype) -> None:
    problem = make([4, 70, 2], bias=2, log_weight=1, edge_value=1, index=index)
    wrong = torch.tensor([1, 5, 20, 74, 75], device=DEVICE)
    outside = torch.tensor([-1, 7, torch.iinfo(index).max, torch.iinfo(index).min, 8], device=DEVICE)
    assert problem.bias is not None
    hidden = problem._replace(bias=problem.bias.index_fill(0, wrong, -torch.inf))
    problem.col[wrong] = outside.to(index)
    found = run(problem)
    hidden.col[wrong] = 0
    for name, x in truth(hidden).items():
        torch.testing.assert_close(found[name].double(), x, rtol=1e-5, atol=1e-5)


@runs
def test_more_than_2_to_the_31_numbers() -> None:
    """Only the last keys are used: memory that is not touched is not there."""
    if not INTERPRETED and torch.cuda.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("needs 8 GB of GPU memory")
    keys = 2**24 + 8
    small = make([3, 4], keys=8, heads=1, d=128, c=1, dtype=torch.bfloat16)
    key = torch.empty(keys, 1, 128, dtype=torch.bfloat16, device=DEVICE)
    value = torch.empty(keys, 1, 1, dtype=torch.bfloat16, device=DEVICE)
    key[-8:], value[-8:] = small.key, small.value
    large = small._replace(key=key, value=value, col=small.col + keys - 8)
    expected, found = run(small, ["query"]), {}
    found["out"], found["lse"] = triton.forward(large)
    grad_out, grad_lse = upstream(found["out"], found["lse"])
    found["query"] = triton.backward(large, None, found["out"], found["lse"], grad_out, grad_lse, ["query"]).query
    assert all(torch.equal(x, found[name]) for name, x in expected.items())


@runs
def test_right_after_rows_are_written_to() -> None:
    """Buckets are kept with them."""
    problem = make([2, 70, 3])
    run(problem)
    problem.rowptr[1:3] = torch.tensor([65, 70])
    assert_right(problem)


@runs
def test_more_rows_than_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_RESIDENT", 2)
    monkeypatch.setattr(triton, "_LONG_PROGRAMS", 2)
    monkeypatch.setattr(triton, "_LONG", 4)
    assert_right(make([2, 5, 0, 6, 1, 1, 5, 9, 3, 4, 5], additive=True))


@runs
@pytest.mark.skipif(INTERPRETED, reason="too large for the interpreter")
@pytest.mark.parametrize("options", [{}, {"additive": True}, {"dropout": 0.1, "edge_key": 1, "edge_value": 1}])
def test_at_size(options: dict[str, Any]) -> None:
    degree = torch.randint(0, 40, (20_000,)).tolist() + [5_000, 100, 65]
    assert_right(make(degree, keys=20_000, heads=4, d=32, c=32, **options), tolerance=1e-4)


def test_without_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None
from geoattn.ops.backends import triton
assert "pip install triton" in triton.unavailable()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@compiles
def test_says_why_not() -> None:
    problem = make([2], device="cpu")
    reason = triton.unavailable(problem)
    assert reason is not None
    assert ("CUDA" in reason) if torch.cuda.is_available() else ("no" in reason)


@compiles
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_takes_tensors_of_a_recent_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from a machine without one: tensors that hold nothing, and what torch says of the device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    here = make([2], dtype=dtype, device="cpu")
    with FakeTensorMode():
        there = {name: torch.empty((1, 2, 8), dtype=dtype, device="cuda") for name in ("query", "key", "value")}
    problem = here._replace(**there)
    assert triton.unavailable() is None
    assert triton.unavailable(problem) is None
    assert choose(problem, None) is triton
    assert "CUDA devices" in (triton.unavailable(here) or "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    assert "an old one" in (triton.unavailable(problem) or "")
    assert choose(problem, None) is BACKENDS["torch"]


@runs
def test_says_what_it_does_not_take() -> None:
    problem = make([2])
    assert triton.unavailable() is None
    assert triton.unavailable(problem) is None
    assert "empty" in (triton.unavailable(problem._replace(query=problem.query[:, :0])) or "")
    assert "complex64" in (triton.unavailable(problem._replace(query=problem.query.to(torch.complex64))) or "")


@compiles
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
def test_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"\d{2} passed", done.stdout), done.stdout[-500:]


EVERYTHING = {"heads": 2, "d": 64, "bias": 1, "log_weight": 1, "edge_key": 1, "edge_value": 1, "dropout": 0.1}


@compiles
@pytest.mark.parametrize(
    ("capability", "options"),
    [
        pytest.param(90, {"heads": 4, "d": 32}, id="sm_90, D=32"),
        pytest.param(90, {"heads": 2, "d": 64}, id="sm_90, D=64"),
        pytest.param(90, {"heads": 2, "d": 128}, id="sm_90, D=128"),
        pytest.param(90, {"heads": 4, "d": 32, "additive": True, "dtype": torch.bfloat16}, id="sm_90, gatv2"),
        pytest.param(90, EVERYTHING, id="sm_90, all"),
        pytest.param(80, {"heads": 2, "d": 128}, id="sm_80, D=128"),
        pytest.param(80, EVERYTHING, id="sm_80, all"),
    ],
)
def test_compiled(capability: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every kernel that a call would launch: no spills, no local memory, no atomics."""
    problem = make([16] * 50, c=options["d"], index=torch.int32, device="cpu", **options)
    launches = recorded(problem, monkeypatch)
    assert {kernel.__name__ for kernel, _ in launches} == {"forward", "backward_rows", "backward_columns"}
    assert {arguments["BUCKET"] for _, arguments in launches} == {0, 1}
    for kernel, arguments in launches:
        compiled = compile_for(capability, kernel, arguments)
        usage = resources(compiled.asm["cubin"], tmp_path)
        assert usage["STACK"] == usage["LOCAL"] == 0, (kernel.__name__, usage)
        assert not re.search(r"(?m)^\s*(?:@!?%\w+\s+)?(?:atom|red)\b", compiled.asm["ptx"])
        assert "ld.global.v4" in compiled.asm["ptx"]  # rows are read 16 bytes a lane


def recorded(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Kernels and arguments of the launches of one forward and backward pass; launches that compile alike once."""
    from geoattn.ops.backends.triton import kernels

    launches: dict[tuple[str, int], tuple[Any, dict[str, Any]]] = {}

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(**arguments: Any) -> None:
                launches.setdefault((self.kernel.__name__, arguments["BUCKET"]), (self.kernel, arguments))

            return launch

    for name in ("forward", "backward_rows", "backward_columns"):
        monkeypatch.setattr(kernels, name, Recorder(getattr(kernels, name)))
    run(problem)
    return list(launches.values())


def compile_for(capability: int, kernel: Any, arguments: dict[str, Any]) -> Any:
    """As Triton's launcher would, without a driver: pointers and sizes that 16 divides are known to be."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, alignment = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        given = arguments[parameter.name]
        if parameter.is_constexpr or given is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", given
        elif isinstance(given, Tensor):
            letter = "fp" if given.dtype.is_floating_point else "i"
            bits = given.dtype.itemsize * 8
            signature[parameter.name] = "*bf16" if given.dtype == torch.bfloat16 else f"*{letter}{bits}"
            alignment[place,] = [["tt.divisibility", 16]]
        elif parameter.annotation_type:
            signature[parameter.name] = parameter.annotation_type
        else:
            signature[parameter.name] = "i32"
            if given % 16 == 0 and not parameter.do_not_specialize:
                alignment[place,] = [["tt.divisibility", 16]]
    options = {option: arguments[option] for option in ("num_warps", "maxnreg")}
    return compile(
        ASTSource(kernel, signature, constants, alignment), target=GPUTarget("cuda", capability, 32), options=options
    )


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    import triton as installed

    path = Path(installed.__file__).parent / "backends/nvidia/bin/cuobjdump"
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    listing = subprocess.run([path, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", listing)}
