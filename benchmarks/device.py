"""One command for a GPU machine without network: is everything right there, and how fast is it?

    python -m benchmarks.device                                  # in under eight minutes; needs torch and PyG alone
    python -m benchmarks.device --device cpu --quick             # shows on any machine that all of it runs

Parity first: operators, layers and searches on the device against float64 formulas on the CPU, and the same bits twice.
Then times, against PyG's gather and scatter, torch's dense attention and the bytes that must be moved. Tables are
written as they are made, to ``benchmarks/results/device-<name>.md``; the exit status is 1 if anything was wrong.

Every section is a process of its own, because an illegal access ends all that a process can do on a GPU: what failed is
recorded, with its traceback, and a new process goes on with the next step.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import geoattn
from benchmarks import peers
from benchmarks.harness import ROOT, machine, table
from geoattn import Neighbors, Windows, attend, ops
from geoattn.nn import GATConv, GATv2Conv, PointTransformerConv, TransformerConv
from tests.ops.problems import SCORES, assert_same, exact, problem, random_pattern, run

LOST = 3  # exit status of a process whose GPU context is gone
PARITY_SHARE = 0.6  # of the time


class NotHereError(Exception):
    """A step that this machine cannot take, which is no fault."""


@dataclass(frozen=True)
class Place:
    """Where and how large."""

    device: str
    quick: bool
    deadline: float = float("inf")  # when the process must be done, as `time.time` counts
    seconds: float = 0.4  # of every timing

    def sized(self, size: int) -> int:
        """The size, or a small one for a smoke run."""
        return max(size // 100, 256) if self.quick else size

    @property
    def backends(self) -> list[str]:
        """Of `attend` that are meant for this device."""
        wanted = {"cuda": ("triton", "torch"), "cpu": ("cpu", "torch")}.get(self.device, ("torch",))
        return [name for name in wanted if geoattn.backends()[name] == "available"]


Step = Callable[[Place], "list[list[str]]"]
SECTIONS: dict[str, dict[str, Step]] = {}
HEADERS: dict[str, list[str]] = {}
CHECKED = ["check", "result"]
TIMED = ["", "forward, ms", "forward + backward, ms", "times as fast as the first", "peak above inputs, MB"]


def steps_of(section: str, header: Sequence[str]) -> dict[str, Step]:
    """A new section."""
    HEADERS[section] = list(header)
    return SECTIONS.setdefault(section, {})


# Parity


def on(place: Place, value: object) -> object:
    """A tensor, a module or a pattern on the device; gradients are taken there."""
    if isinstance(value, Tensor):
        return value.detach().to(place.device).requires_grad_(value.requires_grad)
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(place.device)
    return value.to(place.device) if isinstance(value, Neighbors | Windows) else value


def here(results: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """On the CPU."""
    return {name: None if x is None else x.detach().cpu() for name, x in results.items()}


def cast(expected: dict[str, Tensor | None], found: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """What is expected, in the types that were found: its numbers were made in float64."""
    return {name: x if x is None or found[name] is None else x.to(found[name].dtype) for name, x in expected.items()}


def agree(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], dtype: torch.dtype) -> str:
    """The largest error over the largest number, if all is within the tests' tolerances."""
    found = here(found)
    expected = cast(here(expected), found)
    assert_same(found, expected, dtype)
    errors = [0.0]
    for name, x in expected.items():
        if x is not None and x.is_floating_point() and x.numel():
            finite = x.isfinite()
            error = (found[name].double() - x.double())[finite].abs()
            errors.append(float(error.max() / x[finite].double().abs().max().clamp(min=1)) if error.numel() else 0.0)
    return f"right, to {max(errors):.1e}"


def twice(function: Callable[[], dict[str, Tensor | None]]) -> dict[str, Tensor | None]:
    """The results, which must be the same to the bit in a second run."""
    first, second = function(), function()
    for name, x in first.items():
        if x is not None and not torch.equal(x.nan_to_num(), second[name].nan_to_num()):
            raise AssertionError(f"{name} differs from one run to the next")
    return first


def check_attend(
    pattern: Neighbors, score: str, dtype: torch.dtype, backend: str | None = None, dropout: float = 0.0, **shape: int
) -> Step:
    """Output, log-sum-exp and all gradients."""

    def step(place: Place) -> list[list[str]]:
        arguments = problem(pattern, score, dtype=dtype, **shape)
        expected = run("reference", pattern, exact(arguments), dropout=dropout)
        moved = {name: on(place, x) for name, x in arguments.items()}
        name, there = backend or place.backends[0], on(place, pattern)
        return [[agree(twice(lambda: run(name, there, moved, dropout=dropout)), expected, dtype)]]

    return step


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[object]) -> dict[str, Tensor | None]:
    """The output and the gradients of its sum of squares."""
    out = function(*inputs)
    leaves = {f"input {n}": x for n, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad}
    for x in inputs:
        leaves |= dict(x.named_parameters()) if isinstance(x, nn.Module) else {}
    if not leaves:
        return {"out": out}
    total = out.double().square().sum()
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"out": out, **dict(zip(leaves, grads, strict=True))}


def check(function: Callable[..., Tensor], *inputs: object, dtype: torch.dtype = torch.float64) -> Step:
    """A differentiable function on the device against itself in float64 on the CPU, by the reference formulas."""

    def step(place: Place) -> list[list[str]]:
        wide = [exactly(x) for x in inputs]
        with geoattn.backend("reference"):
            expected = with_gradients(function, wide)
        moved = [on(place, narrowed(x, dtype)) for x in wide]
        return [[agree(twice(lambda: with_gradients(function, moved)), expected, dtype)]]

    return step


def exactly(value: object) -> object:
    """In float64, what is a floating-point number."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def narrowed(value: object, dtype: torch.dtype) -> object:
    """In the type that is tested."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(dtype)
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().to(dtype).requires_grad_(value.requires_grad)
    return value


def check_equal(function: Callable[..., object], *inputs: object) -> Step:
    """Whole numbers, which must be the same as on the CPU."""

    def step(place: Place) -> list[list[str]]:
        expected, found = function(*inputs), function(*(on(place, x) for x in inputs))
        for a, b in zip(expected, found, strict=True):
            if not torch.equal(a, b.cpu()):
                raise AssertionError(f"differs in {int((a != b.cpu()).sum())} of {a.numel()} numbers")
        return [["equal"]]

    return step


def second_derivatives(score: str) -> Step:
    """Gradients of a function of the gradients, in float64."""

    def step(place: Place) -> list[list[str]]:
        pattern = random_pattern(9, 7, 40)
        arguments = problem(pattern, score)

        def twice_differentiated(pattern: Neighbors, *tensors: Tensor) -> Tensor:
            out = attend(pattern=pattern, **dict(zip(arguments, tensors, strict=True)))
            grads = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
            return torch.cat([x.flatten() for x in grads])

        return check(twice_differentiated, pattern, *arguments.values())(place)

    return step


def random(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Tensor:
    """Standard normal, the same for a shape."""
    make = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=make, dtype=torch.float64).to(dtype).requires_grad_(grad)


def attend_checks() -> None:
    """Two sections, which run side by side: most of their time kernels are compiled."""
    rows = random_pattern()
    single = steps_of("Parity: attend over Neighbors, float32", CHECKED)
    for score in SCORES:
        single[score] = check_attend(rows, score, torch.float32, dim=16, width=16)
    single["dot, plain torch"] = check_attend(rows, "everything", torch.float32, "torch")
    other = steps_of("Parity: attend over Neighbors, other types and shapes", CHECKED)
    for dtype, score in (
        (torch.bfloat16, "dot"), (torch.float16, "everything"), (torch.float64, "everything"),
        (torch.bfloat16, "gatv2_edges"),
    ):  # fmt: skip
        other[f"{score}, {str(dtype)[6:]}"] = check_attend(rows, score, dtype, dim=16, width=32)
    cases: dict[str, tuple[Neighbors, dict[str, int]]] = {
        "rows of hundreds of edges": (random_pattern(300, 200, 30_000), {"dim": 16, "width": 16}),
        "int32 indices, odd widths, grouped heads": (random_pattern(dtype=torch.int32), {"dim": 5, "width": 3}),
        "heads of 128": (rows, {"heads": 2, "groups": 1, "dim": 128, "width": 128}),
        "no edges": (random_pattern(edges=0), {"dim": 16, "width": 16}),
        "one query": (random_pattern(1, 5, 9), {"dim": 16, "width": 16}),
        "k-NN of 3,000 points": (Neighbors.knn(random(3000, 3, grad=False), 16), {"dim": 16, "width": 16}),
    }
    for name, (pattern, shape) in cases.items():
        other[name] = check_attend(pattern, "dot", torch.float32, **shape)
    other["dropout"] = check_attend(rows, "dot", torch.float32, dropout=0.3, dim=16, width=16)
    for score in ("dot", "everything", "gatv2_edges"):
        other[f"second derivatives, {score}"] = second_derivatives(score)
    other["compiled"] = check_compiled


def check_compiled(place: Place) -> list[list[str]]:
    """`torch.compile` in one graph gives what the eager call gives."""
    pattern = random_pattern().to(place.device)
    arguments = {k: on(place, x) for k, x in problem(random_pattern(), "everything", dtype=torch.float32).items()}
    compiled = torch.compile(lambda **terms: attend(pattern=pattern, **terms), fullgraph=True, backend="aot_eager")
    return [[agree({"out": compiled(**arguments)}, {"out": attend(pattern=pattern, **arguments)}, torch.float32)]]


def operator_checks() -> None:
    """Windows, edges, segments, vector attention, searches."""
    windows = steps_of("Parity: windows", CHECKED)
    shapes = {
        "equal runs": torch.arange(0, 1025, 128),
        "runs of very different lengths": torch.tensor([0, 3, 3, 400, 410, 1024]),
    }
    for name, ptr in shapes.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            qkv = [random(1024, 4, 16 + n) for n in (0, 0, 1)]
            windows[f"{name}, {str(dtype)[6:]}"] = check(attend, *qkv, Windows(ptr), dtype=dtype)
    latents = Windows(torch.arange(0, 33, 8), torch.tensor([0, 100, 100, 700, 1024]))
    windows["latents, weights of keys"] = check(
        lambda q, k, v, pattern, weight: attend(q, k, v, pattern, key_weight=weight),
        random(32, 4, 16), random(1024, 2, 16), random(1024, 2, 16), latents, random(1024, grad=False).abs(),
        dtype=torch.float32,
    )  # fmt: skip
    windows["log-sum-exp"] = check(
        lambda q, k, v, pattern: attend(q, k, v, pattern, return_lse=True)[1],
        *(random(1024, 4, 16) for _ in range(3)), Windows(shapes["equal runs"]), dtype=torch.float32,
    )  # fmt: skip

    operators = steps_of("Parity: operators", CHECKED)
    pattern = random_pattern(300, 200, 5000)
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype)[6:]
        operators[f"edge_dot, {kind}"] = check(
            ops.edge_dot, random(300, 4, 16), random(200, 4, 16), pattern, dtype=dtype
        )
        operators[f"weighted_sum, {kind}"] = check(
            ops.weighted_sum, random(5000, 4), random(200, 4, 16), pattern, dtype=dtype
        )
    operators["attention_weights"] = check(
        ops.attention_weights, random(300, 4, 16), random(200, 4, 16), pattern, dtype=torch.float32
    )
    for name in (name for name in ops.__all__ if name.startswith("segment_")):
        reduce = getattr(ops, name)
        operators[name] = check(
            lambda x, index, reduce=reduce: reduce(x, index, num_segments=90),
            random(5000, 8), pattern.col % 77, dtype=torch.float32,
        )  # fmt: skip
    near = random_pattern(200, 200, 3000)
    for name, networks in {
        "vector_attend": (nn.Linear(3, 32), None),
        "vector_attend, networks": (
            nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32)),
            nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)),
        ),
    }.items():
        operators[name] = check(
            lambda q, k, v, pattern, pos, pos_nn, attn_nn: ops.vector_attend(
                q, k, v, pattern, pos, pos_nn=pos_nn, attn_nn=attn_nn
            ),
            *(random(200, 32) for _ in range(3)), near, random(200, 3), *networks, dtype=torch.float32,
        )  # fmt: skip
    pos, batch = random(5000, 3, grad=False), torch.arange(5000) // 1700
    operators["knn"] = check_equal(lambda pos, batch: ops.knn(pos, 16, batch), pos, batch)
    operators["knn of 32 dimensions"] = check_equal(lambda pos: ops.knn(pos, 16), random(1000, 32, grad=False))
    operators["radius"] = check_equal(lambda pos, batch: ops.radius(pos, 0.2, batch), pos, batch)
    operators["farthest_point_sample"] = check_equal(lambda pos: [ops.farthest_point_sample(pos, 100)], pos)
    operators["grid_sample"] = check_equal(lambda pos: ops.grid_sample(pos, 0.3), pos)
    index = pattern.to_edge_index() % 200
    operators["patterns"] = check_equal(
        lambda index: [
            x
            for made in (
                Neighbors.from_edge_index(index, 200, self_loops=True), Neighbors.from_edge_index(index, 200).transpose,
                Neighbors.k_hop(index, 2, 200),
            )
            for x in (made.rowptr, made.col)
        ],
        index,
    )  # fmt: skip


def layer_checks() -> None:
    """Against PyG's layers on the device, in float64, by themselves and after `accelerate`."""
    layers = steps_of("Parity: layers beside PyG's", CHECKED)
    index = random_pattern(200, 200, 3000).to_edge_index()
    made = {
        "GATConv": lambda pyg: (GATConv, pyg.GATConv, {"edge_dim": 5}),
        "GATv2Conv": lambda pyg: (GATv2Conv, pyg.GATv2Conv, {"edge_dim": 5}),
        "TransformerConv": lambda pyg: (TransformerConv, pyg.TransformerConv, {"edge_dim": 5, "beta": True}),
    }
    x, attributes = random(200, 16), random(3000, 5)
    for name, choose in made.items():

        def step(place: Place, choose: Callable = choose) -> list[list[str]]:
            import torch_geometric.nn as pyg

            ours, theirs, settings = choose(pyg)
            torch.manual_seed(0)
            peer = theirs(16, 8, heads=4, **settings).double().to(place.device)
            layer = ours(16, 8, heads=4, **settings).double().to(place.device)
            layer.load_state_dict(peer.state_dict())
            inputs = [on(place, exactly(v)) for v in (x, index, attributes)]

            def call(layer: nn.Module) -> dict[str, Tensor | None]:
                return with_gradients(lambda layer, *inputs: layer(*inputs), [layer, *inputs])

            expected = call(peer)
            result = agree(twice(lambda: call(layer)), expected, torch.float64)
            accelerated = copy.deepcopy(peer)
            geoattn.accelerate(nn.ModuleList([accelerated]))
            return [[f"{result}; accelerated {agree(call(accelerated), expected, torch.float64)}"]]

        layers[name] = step

    def points(place: Place) -> list[list[str]]:
        import torch_geometric.nn as pyg

        torch.manual_seed(0)
        peer = pyg.PointTransformerConv(16, 32).double().to(place.device)
        layer = PointTransformerConv(16, 32).double().to(place.device)
        layer.load_state_dict(peer.state_dict())
        inputs = [on(place, exactly(v)) for v in (x, random(200, 3, grad=False), index)]
        results = [with_gradients(lambda layer, *i: layer(*i), [m, *inputs]) for m in (layer, peer)]
        return [[agree(*results, torch.float64)]]

    def network(place: Place) -> list[list[str]]:
        try:
            from geoattn.data import Bodies
            from geoattn.models.segmentation import SegmentationTask
            from geoattn.train import evaluate

            task, bodies = SegmentationTask(), Bodies(1)
            bodies[0]
        except ImportError as error:
            raise NotHereError(str(error)) from error
        torch.manual_seed(0)
        model = task.model(bodies, channels=32, blocks=2)
        expected = evaluate(task, model, bodies)
        found = evaluate(task, model.to(place.device), bodies)
        if any(abs(found[name] - expected[name]) > 0.02 for name in ("accuracy", "mean_iou")):
            raise AssertionError(f"expected {expected}, got {found}")
        return [["right"]]

    layers["PointTransformerConv"] = points
    layers["evaluation of SurfaceTransformer"] = network


def check_tests(place: Place) -> list[list[str]]:
    """The tests of the Triton kernels, which run on a GPU where there is one."""
    if importlib.util.find_spec("pytest") is None or place.device != "cuda":
        raise NotHereError("pytest is not installed, or there is no GPU; the checks above do not need it")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/ops/test_triton.py", "-p", "no:cacheprovider"]
    left = max(place.deadline - time.time(), 1)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=left)
    except subprocess.TimeoutExpired as error:
        raise NotHereError("they take longer than there is time") from error
    if done.returncode:
        raise AssertionError(done.stdout[-3000:])
    return [[done.stdout.strip().splitlines()[-1]]]


# Times


def clock(function: Callable[[], object], place: Place) -> float:
    """Median seconds: by events of the device, or by the clock."""
    function()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begin < place.seconds and len(times) < 200):
        if place.device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        else:
            start_s = time.perf_counter()
            function()
            times.append(time.perf_counter() - start_s)
        if place.quick:
            break
    return statistics.median(times)


def compare(
    place: Place, variants: dict[str, Callable[[], Tensor]], inputs: Sequence[Tensor], same: float = 2e-2
) -> list[list[str]]:
    """Times of all variants, their speed relative to the first, and their peak memory; each must agree with it."""
    rows: list[list[str]] = []
    base: tuple[float, float] | None = None
    expected: Tensor | None = None
    for name, forward in variants.items():
        try:
            with torch.no_grad():
                out = forward()
            grad = torch.ones_like(out)
            if expected is None:
                expected = out.float()
            error = float((out.float() - expected).norm() / expected.norm().clamp(min=1e-20))
            if not error <= same:
                raise AssertionError(f"differs from {next(iter(variants))} by {error:.1e}")

            def inference(forward: Callable[[], Tensor] = forward) -> None:
                with torch.no_grad():
                    forward()

            def training(forward: Callable[[], Tensor] = forward, grad: Tensor = grad) -> None:
                torch.autograd.grad(forward(), inputs, grad)

            del out
            times = clock(inference, place), clock(training, place)
            base = base or times
            rows.append(
                [
                    name,
                    *(f"{1000 * t:.3f}" for t in times),
                    " and ".join(f"{b / t:.2f}" for b, t in zip(base, times, strict=True)),
                    peak(training, place),
                ]
            )
        except Exception as error:  # noqa: PERF203 - the others can still be measured
            if lost(place):
                raise
            traceback.print_exc()
            rows.append([name, f"failed: {first_line(error)}", "-", "-", "-"])
    return rows


def peak(function: Callable[[], object], place: Place) -> str:
    """Highest memory of the device during a call, above what is held before it."""
    if place.device != "cuda":
        return "-"
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return f"{(torch.cuda.max_memory_allocated() - before) / 1e6:.1f}"


def bandwidth(place: Place) -> float:
    """Bytes that a copy reads and writes in a second."""
    source = torch.empty(place.sized(2**28), device=place.device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / clock(lambda: target.copy_(source), place)


def floors(place: Place, pattern: Neighbors, width: int, itemsize: int) -> list[list[str]]:
    """What the forward pass cannot be faster than, at the speed of a copy."""
    speed = bandwidth(place)
    once = (2 * pattern.num_queries + 2 * pattern.num_keys) * width * itemsize
    index = (pattern.num_queries + 1 + pattern.num_edges) * pattern.col.element_size()
    gathered = (2 * pattern.num_queries + 2 * pattern.num_edges) * width * itemsize
    return [
        [f"floor: every input and output once, at {speed / 1e9:.0f} GB/s", f"{1000 * (once + index) / speed:.3f}"],
        ["floor: keys and values once for every edge", f"{1000 * (gathered + index) / speed:.3f}"],
    ]


def torus(size: int) -> Neighbors:
    """A triangle mesh of about ``size`` vertices, each with its six neighbors and itself."""
    side = max(4, round(size**0.5))
    row, column = (x.flatten() for x in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    corner = [(row + i) % side * side + (column + j) % side for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    face = torch.cat([torch.stack(corner[:3]), torch.stack([corner[1], corner[3], corner[2]])], 1)
    return Neighbors.from_mesh(face, num_nodes=side * side)


def knn_graph(place: Place, size: int) -> Neighbors:
    """16 nearest neighbors of uniform points in the order of the Z-order curve."""
    from geoattn.geometry.curves import z_order

    pos = torch.rand(place.sized(size), 3, generator=torch.Generator().manual_seed(0))
    return Neighbors.knn(pos[z_order(pos).argsort()], 16).to(place.device)


def time_attend(graph: str, heads: int, width: int, dtype: torch.dtype) -> Step:
    """Ours on every backend against PyG's formulas."""

    def step(place: Place) -> list[list[str]]:
        size = 100_000
        pattern = knn_graph(place, size) if graph == "knn" else torus(place.sized(size)).to(place.device)
        qkv = [
            torch.randn(pattern.num_queries, heads, width, device=place.device, dtype=dtype).requires_grad_()
            for _ in range(3)
        ]
        pattern.transpose  # noqa: B018 - part of the pattern that is made once
        row, col = pattern.row, pattern.col

        def ours(name: str) -> Callable[[], Tensor]:
            def forward() -> Tensor:
                with geoattn.backend(name):
                    return attend(*qkv, pattern)

            return forward

        variants = {"PyG: gather, softmax, scatter": lambda: peers.pyg(*qkv, row, col)}
        variants |= {f"attend, {name}": ours(name) for name in place.backends}
        rows = compare(place, variants, qkv)
        rows += [[*line, "", "", ""] for line in floors(place, pattern, heads * width, qkv[0].element_size())]
        return rows

    return step


def time_layer(name: str, dtype: torch.dtype) -> Step:
    """A layer of 64 channels in 4 heads against PyG's."""

    def step(place: Place) -> list[list[str]]:
        import torch_geometric.nn as pyg

        pattern = knn_graph(place, 100_000)
        index = pattern.to_edge_index()
        torch.manual_seed(0)
        peer = getattr(pyg, name)(64, 16, heads=4).to(place.device, dtype)
        layer = getattr(geoattn.nn, name)(64, 16, heads=4).to(place.device, dtype)
        layer.load_state_dict(peer.state_dict())
        x = torch.randn(pattern.num_queries, 64, device=place.device, dtype=dtype).requires_grad_()
        variants = {f"PyG {name}": lambda: peer(x, index), f"geoattn {name}": lambda: layer(x, index)}
        return compare(place, variants, [x], same=5e-2)

    return step


def time_small(place: Place) -> list[list[str]]:
    """A batch of 32 molecules: what launches cost."""
    import torch_geometric.nn as pyg

    index = torch.cat([random_pattern(20, 20, 40).to_edge_index() + 20 * n for n in range(32)], 1).to(place.device)
    rows: list[list[str]] = []
    for name in ("GATConv", "GATv2Conv", "TransformerConv"):
        torch.manual_seed(0)
        peer = getattr(pyg, name)(64, 16, heads=4).to(place.device)
        layer = getattr(geoattn.nn, name)(64, 16, heads=4).to(place.device)
        layer.load_state_dict(peer.state_dict())
        x = torch.randn(640, 64, device=place.device).requires_grad_()
        variants = {
            f"PyG {name}": lambda peer=peer, x=x: peer(x, index),
            f"geoattn {name}": lambda layer=layer, x=x: layer(x, index),
        }
        rows += compare(place, variants, [x])
    return rows


def time_windows(ptr: Callable[[Place], Tensor], width: int, dtype: torch.dtype) -> Step:
    """Ours against torch's dense attention on runs padded to the longest."""

    def step(place: Place) -> list[list[str]]:
        bounds = ptr(place)
        size, lengths = int(bounds[-1]), bounds.diff()
        windows = Windows(bounds).to(place.device)
        qkv = [torch.randn(size, 4, width, device=place.device, dtype=dtype).requires_grad_() for _ in range(3)]
        longest = int(lengths.max())
        ragged = bool((lengths != longest).any())
        inside = (torch.arange(longest) < lengths[:, None]).to(place.device)
        at = inside.flatten().nonzero().squeeze(1)

        def dense() -> Tensor:
            if not ragged:
                q, k, v = (x.view(-1, longest, 4, width).transpose(1, 2) for x in qkv)
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(size, 4, width)
            padded = [x.new_zeros(inside.numel(), 4, width).index_copy(0, at, x) for x in qkv]
            q, k, v = (x.view(*inside.shape, 4, width).transpose(1, 2) for x in padded)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=inside[:, None, None, :])
            return out.transpose(1, 2).flatten(0, 1)[at]

        label = "SDPA on padded runs" if ragged else "SDPA on equal runs"
        return compare(place, {label: dense, "attend over Windows": lambda: attend(*qkv, windows)}, qkv)

    return step


def time_checks() -> None:
    """All that is timed."""
    for section in ("Times: attend", "Times: layers", "Times: windows"):
        steps_of(section, TIMED)
    single, half = torch.float32, torch.bfloat16
    for graph, heads, width, dtype in (
        ("knn", 4, 16, single), ("mesh", 4, 16, single), ("knn", 8, 32, half), ("mesh", 8, 32, half),
    ):  # fmt: skip
        name = f"{graph} of 100,000 nodes, {heads} heads of {width}, {str(dtype)[6:]}"
        SECTIONS["Times: attend"][name] = time_attend(graph, heads, width, dtype)
    for name in ("GATConv", "GATv2Conv", "TransformerConv"):
        SECTIONS["Times: layers"][f"{name}, k-NN graph of 100,000 nodes"] = time_layer(name, single)
    SECTIONS["Times: layers"]["a batch of 32 molecules, 640 nodes"] = time_small

    def equal(length: int) -> Callable[[Place], Tensor]:
        return lambda place: torch.arange(0, max(place.sized(98_304), 2 * length) + 1, length)

    def mixed(place: Place) -> Tensor:
        make = torch.Generator().manual_seed(0)
        lengths = torch.randint(16, 1025, (max(2, place.sized(98_304) // 520),), generator=make)
        return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])

    def one(place: Place) -> Tensor:
        return torch.tensor([0, place.sized(30_000)])

    for label, ptr in (("of 128", equal(128)), ("of 1,024", equal(1024)), ("of 16 to 1,024", mixed)):
        for width, dtype in ((16, single), (64, half)):
            name = f"runs {label}, 4 heads of {width}, {str(dtype)[6:]}"
            SECTIONS["Times: windows"][name] = time_windows(ptr, width, dtype)
    SECTIONS["Times: windows"]["one run of 30,000, 4 heads of 16, float32"] = time_windows(one, 16, single)


# Processes


def make_sections() -> None:
    """Fill `SECTIONS`, in their order."""
    attend_checks()
    operator_checks()
    layer_checks()
    steps_of("Parity: tests of the kernels", CHECKED)["tests/ops/test_triton.py"] = check_tests
    time_checks()


def first_line(error: BaseException) -> str:
    """Of a message, fit for a cell of a table."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:200]}".replace("|", "/")


def lost(place: Place) -> bool:
    """Whether this process can do nothing more on its GPU."""
    if place.device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except Exception:
        return True
    return False


def child(section: str, start: int, place: Place, log: Path) -> int:
    """Run a section's steps from the one numbered ``start`` on; a line of JSON for each, before it and after it."""

    def write(**line: object) -> None:
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    for number, (name, step) in enumerate(SECTIONS[section].items()):
        if number < start:
            continue
        if time.time() > place.deadline:
            write(number=number, name=name, rows=[["left out: no time"]], state="left out")
            continue
        write(number=number, name=name, state="begun")
        try:
            torch.manual_seed(0)
            write(number=number, name=name, rows=step(place), state="right")
        except NotHereError as reason:
            write(number=number, name=name, rows=[[f"left out: {reason}"]], state="left out")
        except Exception as error:
            traceback.print_exc()
            cell = f"**failed**: {first_line(error)}"
            write(number=number, name=name, rows=[[cell]], state="wrong", trace=traceback.format_exc()[-3000:])
            if lost(place):
                return LOST
    return 0


@dataclass
class Session:
    """The process that asks: starts one process after another for each section, and writes the tables."""

    place: Place
    path: Path
    logs: Path
    begin: float
    end: float

    def log(self, section: str) -> Path:
        """Where the processes of a section write their lines."""
        return self.logs / f"{list(SECTIONS).index(section)}.jsonl"

    def lines(self, section: str) -> list[dict]:
        """What they wrote: the last line of every step."""
        log = self.log(section)
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return list({line["number"]: line for line in lines}.values())

    def finish(self, section: str, deadline: float) -> Iterator[None]:
        """Run a section to its end, in as many processes as that takes; yields while it waits."""
        start = 0
        while start < len(SECTIONS[section]):
            command = [sys.executable, "-m", "benchmarks.device", "--section", section, "--start", str(start)]
            command += ["--device", self.place.device, "--deadline", str(deadline), "--log", str(self.log(section))]
            command += ["--quick"] if self.place.quick else []
            process = subprocess.Popen(command, cwd=ROOT)
            while process.poll() is None and time.time() < deadline + 30:
                yield
            if process.poll() is None:
                process.kill()
                process.wait()
            done = self.lines(section)
            last = done[-1] if done else None
            if last is not None and last["state"] == "begun":
                reason = f"**failed**: the process ended with {process.returncode}"
                if time.time() >= deadline + 30:
                    reason = "**failed**: not done 30 seconds after the time for it"
                last |= {"rows": [[reason]], "state": "wrong"}
                with self.log(section).open("a") as file:
                    file.write(json.dumps(last) + "\n")
            following = last["number"] + 1 if last is not None else start
            if following == start:  # it did not come to its first step
                line = {"number": start, "name": list(SECTIONS[section])[start], "state": "wrong"}
                line["rows"] = [[f"**failed**: the process ended with {process.returncode} before it began"]]
                with self.log(section).open("a") as file:
                    file.write(json.dumps(line) + "\n")
                following = len(SECTIONS[section])
            start = following

    def together(self, sections: Sequence[str], deadline: float) -> None:
        """Run sections side by side, and write the tables every second."""
        running = [self.finish(section, deadline) for section in sections]
        while running:
            running = [x for x in running if next(x, "done") is None]
            self.write()
            time.sleep(0.2 if self.place.quick else 1)

    def write(self) -> None:
        """The tables as they are now."""
        text = [f"# On {device_name(self.place.device)}\n", conditions(self.place)]
        traces: list[str] = []
        for section in SECTIONS:
            rows: list[list[str]] = []
            for line in self.lines(section):
                found = line.get("rows", [["running"]])
                if HEADERS[section] == TIMED:
                    rows.append([f"**{line['name']}**", *[""] * (len(TIMED) - 1)])
                    rows += [row + [""] * (len(TIMED) - len(row)) for row in found]
                else:
                    rows += [[line["name"], *row] for row in found]
                if "trace" in line:
                    traces.append(f"### {section}: {line['name']}\n\n```\n{line['trace']}```\n")
            if rows:
                text += [f"## {section}\n", table(HEADERS[section], rows)]
        text += ["## Tracebacks\n", *traces] if traces else []
        text.append(f"{time.time() - self.begin:.0f} seconds.\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("\n".join(text))
        os.replace(temporary, self.path)

    def wrong(self) -> list[str]:
        """What failed."""
        every = ((section, line) for section in SECTIONS for line in self.lines(section))
        return [f"{section}: {line['name']}" for section, line in every if line["state"] in ("wrong", "begun")]


def device_name(device: str) -> str:
    """For people."""
    return torch.cuda.get_device_name() if device == "cuda" else "the CPU"


def conditions(place: Place) -> str:
    """The machine and what runs on it."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    packages = ("torch", "triton", "torch-geometric", "numpy", "scipy", "pytest")
    rows = [
        ["date, geoattn", f"{datetime.date.today()}, {geoattn.__version__}"],
        ["versions", f"Python {sys.version.split()[0]}, {', '.join(f'{p} {version(p)}' for p in packages)}"],
        ["backends", "; ".join(f"{name}: {state}" for name, state in geoattn.backends().items()).replace("|", "/")],
    ]
    if place.device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        memory = f"{facts.total_memory / 1e9:.0f} GB, {facts.multi_processor_count} multiprocessors"
        rows.append(["device", f"{facts.name}, {memory}, CUDA {torch.version.cuda}"])
    return table(["", ""], rows) + ("\nA smoke run: small inputs; the figures mean nothing.\n" if place.quick else "")


def main() -> None:
    """The command line, and that of the processes it starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="small inputs: shows that everything runs")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all of it; what does not fit is left out")
    parser.add_argument("--only", nargs="+", default=[], help="sections whose names contain one of these")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the tables")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=float("inf"), help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    make_sections()
    place = Place(arguments.device, arguments.quick, arguments.deadline)
    if arguments.section:
        sys.exit(child(arguments.section, arguments.start, place, arguments.log))

    begin = time.time()
    chosen = [s for s in SECTIONS if not arguments.only or any(word.lower() in s.lower() for word in arguments.only)]
    parity = [section for section in chosen if section.startswith("Parity")]
    path = arguments.output / f"device-{machine(arguments.device)}.md"
    with tempfile.TemporaryDirectory() as logs:
        session = Session(place, path, Path(logs), begin, begin + 60 * arguments.minutes)
        session.together(parity, begin + 60 * arguments.minutes * PARITY_SHARE)
        for section in chosen:
            if section not in parity:
                session.together([section], session.end)
        session.write()
        wrong = session.wrong()
    print(path)
    if wrong:
        sys.exit("\n".join([f"{len(wrong)} of the steps failed, see the table:", *wrong]))


if __name__ == "__main__":
    main()
