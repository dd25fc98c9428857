"""The compiled kernels for vector attention on CPUs (csrc/simd_vector.cpp), in which both networks run, too."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geoattn.native import function
from geoattn.ops.backends.vector_problem import Linear, Problem

_SLOTS = 16  # kBlocks in the kernels
_BLOCK_EDGES = 512  # kTileEdges * kBlockTiles: a block has at least as many, but for the last


def forward(problem: Problem) -> Tensor:
    """``[N, C]`` in the accumulation dtype."""
    nodes = _nodes(problem)
    out = torch.empty_like(nodes["query"])
    _run("forward", problem, _pack(problem, problem.pos, False), _pack(problem, problem.attn, False), out=out, **nodes)
    return out


def backward(problem: Problem, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of `Problem.tensors` where needed, in the accumulation dtype."""
    nodes = _nodes(problem)
    grads = {
        f"grad_{name}": torch.zeros_like(x) if needed else None
        for (name, x), needed in zip(nodes.items(), needs, strict=False)
    }
    pos, attn = _pack(problem, problem.pos, True), _pack(problem, problem.attn, True)
    _run("backward", problem, pos, attn, grad_out=grad_out.to(problem.sum_dtype), **nodes, **grads)
    layers = zip(problem.pos + problem.attn, [*pos, *attn], strict=True)
    return [*grads.values(), *(grad for layer, packed in layers for grad in packed.gradients(layer))]


class _Packed(NamedTuple):
    """A layer as the kernels want it: output rows repeated up to the channels, all rows padded to cache lines."""

    inputs: int
    outputs: int
    relu: bool
    forward: Tensor  # [in, out padded]
    backward: Tensor  # [out, in padded]
    bias: Tensor | None  # [out padded]
    grad: Tensor | None  # [slots, in + 1, out padded], of the transposed weight and, last, of the bias

    def gradients(self, layer: Linear) -> tuple[Tensor, Tensor | None]:
        """Of the weight and the bias of the layer."""
        assert self.grad is not None
        total = (self.grad[0] if self.grad.size(0) == 1 else self.grad.sum(0))[:, : self.outputs].T
        if self.outputs > layer.weight.size(0):
            total = total.reshape(layer.weight.size(0), -1, self.inputs + 1).sum(1)
        return total[:, :-1], None if layer.bias is None else total[:, -1]


def _pack(problem: Problem, layers: Sequence[Linear], with_grad: bool) -> list[_Packed]:
    """The layers of a chain whose last has, or is repeated to have, as many outputs as the query has channels."""
    packed, channels, dtype = [], problem.query.size(1), problem.sum_dtype
    slots = min(_SLOTS, problem.pattern.num_edges // _BLOCK_EDGES + 1)
    for number, (weight, bias, relu) in enumerate(layers, 1):
        repeat = channels // weight.size(0) if number == len(layers) else 1
        weight, bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        if repeat > 1:
            weight, bias = weight.repeat_interleave(repeat, 0), None if bias is None else bias.repeat_interleave(repeat)
        outputs, inputs = weight.shape
        forward = _padded(weight.T)
        grad = forward.new_zeros(slots, inputs + 1, forward.size(1)) if with_grad else None
        bias = None if bias is None else _padded(bias)
        packed.append(_Packed(inputs, outputs, relu, forward, _padded(weight), bias, grad))
    return packed


def _padded(x: Tensor) -> Tensor:
    missing = -x.size(-1) % (64 // x.element_size())
    return (F.pad(x, (0, missing)) if missing else x).contiguous()


def _nodes(problem: Problem) -> dict[str, Tensor]:
    dtype = problem.sum_dtype
    return {name: x.detach().to(dtype).contiguous() for name, x in zip(Problem._fields, problem[:5], strict=False)}


# ---- Calls ----------------------------------------------------------------------------------------------------------


class _Layer(ctypes.Structure):
    """Mirrors ``Layer`` in csrc/simd_vector.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("inputs", "outputs", "relu")],
        *[(name, ctypes.c_void_p) for name in ("forward", "backward", "bias", "grad")],
    ]


_COUNTS = ("queries", "keys", "edges", "channels", "positions", "is_double", "threads")


class _Call(ctypes.Structure):
    """Mirrors ``Call`` in csrc/simd_vector.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in _COUNTS],
        *[(name, ctypes.c_void_p) for name in ("rowptr", "col", "query", "key", "value", "position", "key_position")],
        *[(name, ctypes.c_void_p) for name in ("grad_out", "out", "grad_query", "grad_key", "grad_value")],
        *[(name, ctypes.c_void_p) for name in ("grad_position", "grad_key_position")],
        *[(name, ctypes.c_int64) for name in ("pos_layers", "attn_layers")],
        *[(name, ctypes.POINTER(_Layer)) for name in ("pos", "attn")],
    ]


def _layers(packed: list[_Packed]) -> ctypes.Array[_Layer]:
    return (_Layer * len(packed))(
        *[_Layer(p.inputs, p.outputs, p.relu, *[None if t is None else t.data_ptr() for t in p[3:]]) for p in packed]
    )


def _run(name: str, problem: Problem, pos: list[_Packed], attn: list[_Packed], **tensors: Tensor | None) -> None:
    """Calls a kernel on tensors of one type; those it writes to must be contiguous."""
    rowptr, col = problem.pattern.rowptr.long().contiguous(), problem.pattern.col.long().contiguous()
    given = {field: x.contiguous() for field, x in tensors.items() if x is not None}
    call = _Call(
        queries=problem.pattern.num_queries,
        keys=problem.key.size(0),
        edges=problem.pattern.num_edges,
        channels=problem.query.size(1),
        positions=problem.position.size(1),
        is_double=problem.sum_dtype == torch.float64,
        threads=torch.get_num_threads(),
        rowptr=rowptr.data_ptr(),
        col=col.data_ptr(),
        **{field: x.data_ptr() for field, x in given.items()},
        pos_layers=len(pos),
        attn_layers=len(attn),
        pos=_layers(pos),
        attn=_layers(attn),
    )
    function(f"geoattn_vector_{name}")(ctypes.byref(call))
