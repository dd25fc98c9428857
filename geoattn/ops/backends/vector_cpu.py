"""The compiled kernels for vector attention on CPUs (csrc/simd_vector.cpp).

Networks of any kind run in torch, with the kernels between them; chains of linear layers and ReLU run inside the
kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MLP
from torch_geometric.nn import Linear as PyGLinear

from geoattn.native import function
from geoattn.ops.backends.vector_kernels import Rows, TorchKernels
from geoattn.patterns import Neighbors

_SLOTS = 16  # kBlocks in the kernels


class CompiledKernels:
    """`Kernels`, fused."""

    def relate(self, rows: Rows, query: Tensor, key: Tensor, delta: Tensor) -> Tensor:  # noqa: D102
        relation = torch.empty_like(delta, memory_format=torch.contiguous_format)
        _run("relate", _rows(rows), query=query, key=key, delta=delta, score=relation)
        return relation

    def sum(self, rows: Rows, score: Tensor, delta: Tensor, value: Tensor, out: Tensor) -> None:  # noqa: D102
        _run("sum", _rows(rows), score=score, delta=delta, value=value, out=out)

    def sum_backward(  # noqa: D102
        self, rows: Rows, score: Tensor, delta: Tensor, value: Tensor, grad_out: Tensor
    ) -> tuple[Tensor, Tensor]:
        written = {"grad_score": delta.new_empty(delta.shape), "message": delta.new_empty(delta.shape)}
        _run("sum_backward", _rows(rows), score=score, delta=delta, value=value, grad_out=grad_out, **written)
        return written["grad_score"], written["message"]

    def collect(  # noqa: D102
        self,
        rows: Rows,
        of_relation: Tensor,
        message: Tensor,
        of_query: Tensor | None,
        of_key: Tensor | None,
        of_value: Tensor | None,
    ) -> None:
        grads = {"grad_query": of_query, "grad_key": of_key, "grad_value": of_value}
        _run("collect", _rows(rows), score=of_relation, message=message, **grads)

    collect_positions = TorchKernels.collect_positions


# ---- With both networks ---------------------------------------------------------------------------------------------


class Linear(NamedTuple):
    """``x W^T + b``, then perhaps ReLU."""

    weight: Tensor
    bias: Tensor | None
    relu: bool


def chain(network: nn.Module | None) -> list[Linear] | None:
    """The layers of a network that is a chain of linear layers and ReLU; None if it is anything else."""
    layers: list[Linear] = []
    for module in [] if network is None else _leaves(network):
        if _hooked(module):
            return None
        if type(module) in (nn.Linear, PyGLinear):
            layers.append(Linear(module.weight, module.bias, False))
        elif type(module) is nn.ReLU and layers:
            layers[-1] = layers[-1]._replace(relu=True)
        elif type(module) is not nn.Identity and not (type(module) is nn.Dropout and not module.training):
            return None
    return layers


def _leaves(network: Any) -> list[Any]:
    """The modules that run one after the other; the network itself where that is not known."""
    if type(network) is nn.Sequential and not _hooked(network):
        return [leaf for module in network for leaf in _leaves(module)]
    if type(network) is MLP and not _hooked(network) and not (network.training and any(network.dropout)):
        leaves = []
        for layer, norm in zip(network.lins, network.norms, strict=False):
            leaves += [layer, network.act, norm] if network.act_first else [layer, norm, network.act]
        leaves += network.lins[-1:] if network.plain_last else []
        return [leaf for leaf in leaves if leaf is not None]
    return [network]


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks)


def takes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    key_position: Tensor,
    pos_nn: nn.Module,
    attn_nn: nn.Module | None,
) -> bool:
    """Whether the kernels can run both networks: chains of linear layers of one type and of widths that fit."""
    pos, attn = chain(pos_nn), chain(attn_nn)
    if not pos or attn is None or (attn_nn is not None and not attn):
        return False
    tensors = [t for layer in pos + attn for t in layer[:2] if t is not None]
    if any(
        type(t) not in (Tensor, nn.Parameter) or t.dtype != query.dtype or t.device != query.device for t in tensors
    ):
        return False
    if position.dtype != query.dtype or key_position.dtype != query.dtype:
        return False
    channels = query.size(1)
    widths = [position.size(1), *[layer.weight.size(0) for layer in pos]]
    if widths[:-1] != [layer.weight.size(1) for layer in pos] or widths[-1] != channels:
        return False
    widths = [channels, *[layer.weight.size(0) for layer in attn]]
    return widths[:-1] == [layer.weight.size(1) for layer in attn] and widths[-1] > 0 and channels % widths[-1] == 0


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    key_position: Tensor,
    pattern: Neighbors,
    pos_nn: nn.Module,
    attn_nn: nn.Module | None,
) -> Tensor:
    """``[N, C]``, of networks that it `takes`."""
    dtype = _sum_dtype(query)
    out = query.new_empty(query.shape, dtype=dtype)
    pos, attn = _pack(chain(pos_nn), query, dtype, False), _pack(chain(attn_nn), query, dtype, False)
    tensors = _nodes(query, key, value, position, key_position)
    _run("forward", _whole(pattern, position, pos, attn), out=out, **tensors)
    return out.to(query.dtype)


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    key_position: Tensor,
    pattern: Neighbors,
    pos_nn: nn.Module,
    attn_nn: nn.Module | None,
    grad_out: Tensor,
    needs: Sequence[bool],
    state: Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients of the five inputs that are needed, then of those of ``state`` that require them."""
    dtype = _sum_dtype(query)
    tensors = _nodes(query, key, value, position, key_position)
    grads = {
        f"grad_{name}": torch.zeros_like(x) if needed else None
        for (name, x), needed in zip(tensors.items(), needs, strict=True)
    }
    layers = [chain(pos_nn) or [], chain(attn_nn) or []]
    pos, attn = (_pack(each, query, dtype, True) for each in layers)
    grad_out = grad_out.to(dtype).contiguous()
    _run("backward", _whole(pattern, position, pos, attn), grad_out=grad_out, **tensors, **grads)

    of_state: list[Tensor | None] = [None] * len(state)
    place = {id(x): p for p, x in enumerate(state) if x.requires_grad}
    for layer, packed in zip(layers[0] + layers[1], [*pos, *attn], strict=True):
        for tensor, grad in zip(layer[:2], packed.gradients(layer.weight), strict=True):
            p = place.get(id(tensor))
            if p is not None:
                before = of_state[p]
                of_state[p] = grad if before is None else before + grad
    return [*grads.values(), *of_state]


class _Packed(NamedTuple):
    """A layer as the kernels want it: output rows repeated up to the channels, all rows padded to cache lines."""

    inputs: int
    outputs: int
    relu: bool
    forward: Tensor  # [in, out padded]
    backward: Tensor  # [out, in padded]
    bias: Tensor | None  # [out padded]
    grad: Tensor | None  # [slots, in + 1, out padded], of the transposed weight and, last, of the bias

    def gradients(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Of the weight and the bias of the layer."""
        assert self.grad is not None
        total = self.grad.sum(0)[:, : self.outputs].T.reshape(weight.size(0), -1, self.inputs + 1).sum(1)
        return total[:, :-1], total[:, -1]


def _pack(layers: list[Linear] | None, query: Tensor, dtype: torch.dtype, with_grad: bool) -> list[_Packed]:
    """The layers of a chain whose last has, or is repeated to have, as many outputs as ``query`` has channels."""
    packed = []
    for number, (weight, bias, relu) in enumerate(layers or [], 1):
        repeat = query.size(1) // weight.size(0) if number == len(layers or []) else 1
        weight = weight.detach().to(dtype).repeat_interleave(repeat, 0)
        outputs, inputs = weight.shape
        forward = _padded(weight.T)
        grad = forward.new_zeros(_SLOTS, inputs + 1, forward.size(1)) if with_grad else None
        if bias is not None:
            bias = _padded(bias.detach().to(dtype).repeat_interleave(repeat))
        packed.append(_Packed(inputs, outputs, relu, forward, _padded(weight), bias, grad))
    return packed


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.size(-1) % (64 // x.element_size()))).contiguous()


def _nodes(query: Tensor, key: Tensor, value: Tensor, position: Tensor, key_position: Tensor) -> dict[str, Tensor]:
    named = {"query": query, "key": key, "value": value, "position": position, "key_position": key_position}
    return {name: x.detach().to(_sum_dtype(query)).contiguous() for name, x in named.items()}


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# ---- Calls ----------------------------------------------------------------------------------------------------------


class _Layer(ctypes.Structure):
    """Mirrors ``Layer`` in csrc/simd_vector.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("inputs", "outputs", "relu")],
        *[(name, ctypes.c_void_p) for name in ("forward", "backward", "bias", "grad")],
    ]


_COUNTS = ("begin", "end", "keys", "edges", "channels", "positions", "is_double", "threads")


class _Call(ctypes.Structure):
    """Mirrors ``Call`` in csrc/simd_vector.cpp."""

    kept: Any  # what the pointers point to, as long as the call

    _fields_ = [
        *[(name, ctypes.c_int64) for name in _COUNTS],
        *[(name, ctypes.c_void_p) for name in ("rowptr", "col", "query", "key", "value", "position", "key_position")],
        *[(name, ctypes.c_void_p) for name in ("grad_out", "out", "grad_query", "grad_key", "grad_value")],
        *[
            (name, ctypes.c_void_p)
            for name in ("grad_position", "grad_key_position", "delta", "score", "grad_score", "message")
        ],
        *[(name, ctypes.c_int64) for name in ("pos_layers", "attn_layers")],
        *[(name, ctypes.POINTER(_Layer)) for name in ("pos", "attn")],
    ]


def _rows(rows: Rows) -> _Call:
    # The kernels count edges from the start of the pattern.
    return _Call(
        begin=rows.begin,
        end=rows.end,
        edges=rows.first + rows.col.numel(),
        rowptr=rows.rowptr.data_ptr(),
        col=rows.col.data_ptr() - rows.first * rows.col.element_size(),
    )


def _whole(pattern: Neighbors, position: Tensor, pos: list[_Packed], attn: list[_Packed]) -> _Call:
    rowptr, col = pattern.rowptr.long().contiguous(), pattern.col.long().contiguous()
    call = _Call(
        end=pattern.num_queries,
        edges=pattern.num_edges,
        positions=position.size(1),
        rowptr=rowptr.data_ptr(),
        col=col.data_ptr(),
        pos_layers=len(pos),
        attn_layers=len(attn),
        pos=_layers(pos),
        attn=_layers(attn),
    )
    call.kept = (rowptr, col, pos, attn)
    return call


def _layers(packed: list[_Packed]) -> ctypes.Array[_Layer]:
    return (_Layer * len(packed))(
        *[_Layer(p.inputs, p.outputs, p.relu, *[None if t is None else t.data_ptr() for t in p[3:]]) for p in packed]
    )


def _run(name: str, call: _Call, **tensors: Tensor | None) -> None:
    """Calls a kernel on tensors of one type; those it writes to must be contiguous."""
    given = {field: x.contiguous() for field, x in tensors.items() if x is not None}
    for field, x in given.items():
        setattr(call, field, x.data_ptr())
    edges = next(given[field] for field in ("score", "query") if field in given)
    call.channels, call.is_double = edges.size(1), edges.dtype == torch.float64
    # Where keys are not read their number is that of the gradients.
    call.keys = next(given[f].size(0) for f in ("key", "value", "grad_key", "grad_value") if f in given)
    call.threads = torch.get_num_threads()
    function(f"geoattn_vector_{name}")(ctypes.byref(call))
