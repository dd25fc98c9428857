"""Fused attention over compressed rows on CUDA, written in Triton (`kernels`); this file decides how to launch it.

Rows are put in two buckets by their number of edges, so that a row of six does not occupy four warps and a row of
thousands does not keep one warp busy. The buckets live on the device and nothing waits for them: grids are as large as
they could be needed, and programs without a row end at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from geoattn.ops.backends.problem import Gradients, Problem
from geoattn.patterns.visits import Visits

READS_OUT, VISITS = True, False  # see `Backend`

# Rows with more edges than this are long: a program of several warps walks them in larger tiles.
_LONG = 64
# A lane's share of one gathered tile, in 4-byte words. Two tiles are live at a time (keys and values, or queries and
# upstream gradients): about 100 registers in all, so 16 to 20 warps fit a multiprocessor and each has 8 KB under way.
_WORDS_PER_LANE = 32
# Programs that a large GPU holds at a time, and no more: fewer rows than this get a program each.
_RESIDENT = 4096
_LONG_PROGRAMS = 1024
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@functools.cache
def _import_error() -> str | None:
    try:
        from geoattn.ops.backends.triton import kernels  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported ({error}); on Linux: pip install triton"
    return None


def _interpreting() -> bool:
    """Whether triton runs its kernels in Python, on tensors of any device (TRITON_INTERPRET=1)."""
    from geoattn.ops.backends.triton import kernels

    return not hasattr(kernels.forward, "cache_key")


def unavailable(problem: Problem | None = None) -> str | None:
    """Why these kernels cannot run here, or cannot take ``problem``; None if they can."""
    reason = _import_error()
    if reason is not None:
        return reason
    if not _interpreting():
        if not torch.cuda.is_available():
            return "triton needs a CUDA device, and torch sees none"
        device = torch.device("cuda") if problem is None else problem.query.device
        if device.type != "cuda":
            return f"triton runs on CUDA devices, and the tensors are on {device}"
        if torch.version.hip is not None:
            return "these triton kernels are compiled and tested for NVIDIA GPUs only"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"triton needs compute capability 8.0, and {torch.cuda.get_device_name(device)} has less"
    if problem is None:
        return None
    if problem.query.dtype not in _DTYPES:
        return f"triton takes float16, bfloat16, float32 and float64, not {problem.query.dtype}"
    if 0 in (*problem.query.shape[1:], problem.value.size(2)):
        return f"triton takes no empty heads, got {tuple(problem.query.shape)} and {tuple(problem.value.shape)}"
    return None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Attention of every row.

    Returns:
        ``[N, H, C]`` in the type of the query, and the log-sum-exp of every row, ``[N, H]``.
    """
    from geoattn.ops.backends.triton import kernels

    query, value = problem.query, problem.value
    out = query.new_empty(*query.shape[:2], value.size(2))
    lse = query.new_empty(query.shape[:2], dtype=problem.sum_dtype)
    heads = _heads_per_program(problem, [])
    for launch in _launches(problem, problem.rowptr, heads):
        launch.run(
            kernels.forward,
            blocks=_ceil(query.size(1), heads),
            rowptr=problem.rowptr,
            col=problem.col,
            out=out,
            lse=lse,
            keys=problem.key.size(0),
        )
    return out, lse


def backward(
    problem: Problem,
    columns: Visits | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Sequence[str],
) -> Gradients:
    """Gradients of the inputs named in ``needs``, from what `forward` returned.

    Args:
        problem: As given to `forward`.
        columns: The same edges by key; may be None where neither key, value nor log_weight is needed.
        out: ``[N, H, C]``.
        lse: ``[N, H]``.
        grad_out: ``[N, H, C]``.
        grad_lse: ``[N, H]``.
        needs: Names of fields of `Gradients`.
    """
    grad_out = grad_out.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    delta = torch.empty_like(lse)
    grads = _backward_rows(problem, out, lse, grad_out, grad_lse, delta, needs)
    if columns is not None and not {"key", "value", "log_weight"}.isdisjoint(needs):
        grads |= _backward_columns(problem, columns, lse, grad_out, delta, needs)
    return Gradients(**grads)


def _backward_rows(
    problem: Problem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    delta: Tensor,
    needs: Sequence[str],
) -> dict[str, Tensor]:
    """Writes ``delta`` too, which the gradients by key read."""
    from geoattn.ops.backends.triton import kernels

    query = problem.query
    shared = [x for name in ("bias", "edge_key", "edge_value") if (x := _needed(problem, name, needs)) is not None]
    heads = _heads_per_program(problem, shared)
    launches = _launches(problem, problem.rowptr, heads)
    grads = {
        name: torch.empty_like(x, dtype=_sum_type(problem, x, heads), memory_format=torch.contiguous_format)
        for name in ("query", "bias", "edge_key", "edge_value")
        if (x := _needed(problem, name, needs)) is not None
    }
    parts = None
    if "att" in needs:
        parts = lse.new_empty(sum(launch.programs for launch in launches), query.size(1), query.size(2))

    for step, steps in _steps(problem, shared, heads):
        first_part = 0
        for launch in launches:
            launch.run(
                kernels.backward_rows,
                blocks=_ceil(_ceil(query.size(1), heads), steps),
                rowptr=problem.rowptr,
                col=problem.col,
                out=out,
                lse=lse,
                grad_out=grad_out,
                grad_lse=grad_lse,
                delta=delta,
                grad_query=grads.get("query"),
                grad_bias=grads.get("bias"),
                grad_edge_key=grads.get("edge_key"),
                grad_edge_value=grads.get("edge_value"),
                grad_att=parts,
                keys=problem.key.size(0),
                head_block=step,
                head_block_step=steps,
                partial_row=first_part,
            )
            first_part += launch.programs
    if parts is not None:
        grads["att"] = parts.sum(0)
    return {name: grad.to(getattr(problem, name).dtype) for name, grad in grads.items()}


def _backward_columns(
    problem: Problem, columns: Visits, lse: Tensor, grad_out: Tensor, delta: Tensor, needs: Sequence[str]
) -> dict[str, Tensor]:
    from geoattn.ops.backends.triton import kernels

    inputs = {name: x for name in ("key", "value", "log_weight") if (x := _needed(problem, name, needs)) is not None}
    heads = _heads_per_program(problem, list(inputs.values()))
    grads = {
        name: torch.empty_like(x, dtype=_sum_type(problem, x, heads), memory_format=torch.contiguous_format)
        for name, x in inputs.items()
    }
    for step, steps in _steps(problem, list(inputs.values()), heads):
        for launch in _launches(problem, columns.rowptr, heads):
            launch.run(
                kernels.backward_columns,
                blocks=_ceil(_ceil(problem.query.size(1), heads), steps),
                rowptr=columns.rowptr,
                row=columns.col,
                edge=columns.edge,
                lse=lse,
                grad_out=grad_out,
                delta=delta,
                grad_key=grads.get("key"),
                grad_value=grads.get("value"),
                grad_log_weight=grads.get("log_weight"),
                queries=problem.query.size(0),
                head_block=step,
                head_block_step=steps,
            )
    return {name: grad.to(inputs[name].dtype) for name, grad in grads.items()}


def _needed(problem: Problem, name: str, needs: Sequence[str]) -> Tensor | None:
    return getattr(problem, name) if name in needs else None


# Heads: a program has a power of two of them. Where the gradient of a tensor with fewer heads than the query is wanted,
# a program sums over those that share one, so its heads must not straddle two of them; where more share than a program
# has, one launch after another adds to the same sum. No atomics, no copy of the gradient per query head.


def _heads_per_program(problem: Problem, shared: Sequence[Tensor]) -> int:
    """As many as one warp reads at 16 bytes a lane, but for the rule above, which ``shared`` asks for."""
    total = problem.query.size(1)
    width = max(_power_of_two(problem.query.size(2)), _power_of_two(problem.value.size(2)))
    heads = min(_power_of_two(total), max(1, 128 // width))
    for x in shared:
        sharing = total // x.size(1)
        while sharing % heads and heads % sharing and not heads >= sharing == total:
            heads //= 2
    return heads


def _steps(problem: Problem, shared: Sequence[Tensor], heads: int) -> list[tuple[int, int]]:
    """``(step, steps)`` of launches that must follow each other."""
    sharing = [problem.query.size(1) // x.size(1) for x in shared]
    steps = math.lcm(*(max(1, n // heads) for n in sharing))
    return [(step, steps) for step in range(steps)]


def _sum_type(problem: Problem, x: Tensor, heads: int) -> torch.dtype:
    """The type of the gradient of ``x`` until the last launch has added to it."""
    return problem.sum_dtype if problem.query.size(1) // x.size(1) > heads else x.dtype


class _Launch:
    """A kernel's launch on one bucket of rows."""

    def __init__(self, problem: Problem, rowptr: Tensor, heads: int, bucket: int) -> None:
        self.problem, self.rowptr, self.heads, self.bucket = problem, rowptr, heads, bucket
        rows, edges = rowptr.numel() - 1, problem.col.numel()
        if bucket == 0:
            # Some consecutive rows a program: along a space-filling curve they share keys, which stay in its cache.
            self.programs = min(rows, max(_RESIDENT, _ceil(rows, 8)))
        else:
            self.programs = min(edges // (_LONG + 1), _LONG_PROGRAMS)
        self.mean_degree = edges // max(1, rows)

    def run(self, kernel: Any, blocks: int, **arguments: Any) -> None:
        """On ``blocks`` blocks of heads."""
        from geoattn.ops.backends.triton import kernels

        problem = self.problem
        query, key, value = problem.query, problem.key, problem.value
        order, bounds = _buckets(self.rowptr)
        d_tile, c_tile = _power_of_two(query.size(2)), _power_of_two(value.size(2))
        edges, warps = self._tile(self.heads * max(d_tile, c_tile))
        with torch.cuda.device_of(query):
            kernel[(self.programs, blocks)](
                query=query,
                key=key,
                value=value,
                bias=problem.bias,
                log_weight=problem.log_weight,
                edge_key=problem.edge_key,
                edge_value=problem.edge_value,
                att=problem.att,
                order=order,
                bounds=bounds,
                query_row=query.stride(0),
                key_row=key.stride(0),
                value_row=value.stride(0),
                scale=problem.scale,
                slope=problem.negative_slope,
                seed=int(problem.seed or 0),
                first_edge=problem.first_edge,
                threshold=int(problem.dropout * 2**32),
                rescale=1 / (1 - problem.dropout),
                QUERY_HEAD=query.stride(1),
                KEY_HEAD=key.stride(1),
                VALUE_HEAD=value.stride(1),
                H=query.size(1),
                G=key.size(1),
                D=query.size(2),
                C=value.size(2),
                BIAS_HEADS=_heads_of(problem.bias),
                WEIGHT_HEADS=_heads_of(problem.log_weight),
                EDGE_KEY_HEADS=_heads_of(problem.edge_key),
                EDGE_VALUE_HEADS=_heads_of(problem.edge_value),
                DROPOUT=problem.dropout > 0,
                SUM=kernels.TYPES[problem.sum_dtype],
                HEADS=self.heads,
                D_TILE=d_tile,
                C_TILE=c_tile,
                EDGES=edges,
                BUCKET=self.bucket,
                num_warps=warps,
                maxnreg=255,  # else ptxas aims at more programs a multiprocessor and spills a word or two to get there
                **arguments,
            )

    def _tile(self, width: int) -> tuple[int, int]:
        """Edges in a tile of rows of ``width`` numbers, and warps."""
        words = width * self.problem.sum_dtype.itemsize // 4
        if self.problem.edge_key is not None or self.problem.edge_value is not None:
            words *= 2  # four gathered tiles instead of two
        warps = min(8, max(1, words // 256))
        most = max(8, _power_of_two(self.mean_degree))
        if self.bucket == 1:
            warps, most = min(8, 4 * warps), _LONG
        return max(1, min(32 * warps * _WORDS_PER_LANE // words, 32 * warps, most)), warps


def _launches(problem: Problem, rowptr: Tensor, heads: int) -> list[_Launch]:
    """One for each bucket that could have a row."""
    launches = [_Launch(problem, rowptr, heads, bucket) for bucket in (0, 1)]
    return [launch for launch in launches if launch.programs]


_cache = WeakIdKeyDictionary()


def _buckets(rowptr: Tensor) -> tuple[Tensor, Tensor]:
    """Rows, short ones first and otherwise in order, ``[N]``; where each of the two buckets begins and ends, ``[3]``.

    Kept for as long as ``rowptr`` lives, for the stream it was made on. A row is right in either bucket, so one that
    grows when ``rowptr`` is written to is slower, not wrong.
    """
    stream = torch.cuda.current_stream(rowptr.device).cuda_stream if rowptr.is_cuda else 0
    found = _cache.get(rowptr)
    if found is None or found[0] != stream:
        long = rowptr.diff() > _LONG
        order = torch.argsort(long.to(torch.uint8), stable=True)
        short = (~long).sum()
        bounds = torch.stack([torch.zeros_like(short), short, torch.full_like(short, long.numel())])
        found = _cache[rowptr] = (stream, order, bounds)
    return found[1], found[2]


def _heads_of(x: Tensor | None) -> int:
    return 1 if x is None else x.size(1)


def _power_of_two(n: int) -> int:
    """The smallest that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()


def _ceil(n: int, by: int) -> int:
    return -(-n // by)
