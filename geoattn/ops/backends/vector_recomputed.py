"""Vector attention that keeps nothing per edge: rows in chunks that stay in cache, computed again in the backward pass.

A backward pass that is to be differentiated again runs the reference formulas instead, which are right to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module, Parameter

from geoattn.ops.backends import vector_cpu, vector_reference
from geoattn.ops.backends.vector_kernels import Kernels, Rows, TorchKernels
from geoattn.patterns import Neighbors

# A chunk has at least as many edges, unless it is the last, and less than one row more. On a CPU its tensors stay in
# cache; on a GPU they must be large enough to be worth the launches.
EDGES_PER_CHUNK = {"cpu": 1 << 13, "cuda": 1 << 18}


class Inputs(NamedTuple):
    """The tensors of one call, as in `geoattn.ops.vector_attend`; or their gradients."""

    query: Tensor
    key: Tensor
    value: Tensor
    position: Tensor
    key_position: Tensor


class Networks(Module):
    """Both networks, so that one `functional_call` gives them the tensors they had in the forward pass."""

    def __init__(self, pos_nn: Module, attn_nn: Module | None) -> None:
        super().__init__()
        self.pos_nn = pos_nn
        self.attn_nn = attn_nn

    def forward(self, body: Callable[[], Any]) -> Any:
        """Whatever ``body`` makes of the networks."""
        return body()

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers, shared ones once."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def modes(self) -> list[bool]:
        """Which modules are in training mode."""
        return [module.training for module in self.modules()]


@dataclass(frozen=True)
class _Plan:
    """What a forward pass was made of, except for tensors."""

    networks: Networks
    pattern: Neighbors
    backend: str
    names: list[str]  # of the state of the networks
    modes: list[bool]
    autocast: tuple[str, torch.dtype, bool]

    @property
    def kernels(self) -> Kernels:
        return vector_cpu.CompiledKernels() if self.backend == "cpu" else TorchKernels()


def forward(inputs: Inputs, pattern: Neighbors, pos_nn: Module, attn_nn: Module | None, backend: str) -> Tensor:
    """``[N, C]``; the networks must be `separable`, ``backend`` is ``"torch"`` or ``"cpu"``."""
    networks = Networks(pos_nn, attn_nn)
    state = networks.state()
    device = inputs.query.device.type
    autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
    plan = _Plan(networks, pattern, backend, list(state), networks.modes(), autocast)
    return _Recomputed.apply(plan, *inputs, *state.values())


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        inputs = Inputs(*tensors[:5])
        if _compiled_whole(plan, inputs):
            return vector_cpu.forward(*inputs, plan.pattern, plan.networks.pos_nn, plan.networks.attn_nn)
        return _forward(plan, inputs)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        plan, tensors, needs = ctx.plan, ctx.saved_tensors, ctx.needs_input_grad[1:]
        if plan.modes != plan.networks.modes():
            raise RuntimeError(
                "pos_nn or attn_nn was switched between training and evaluation after the forward pass of "
                "vector_attend, which runs them again in the backward pass; switch them after it"
            )
        if torch.is_grad_enabled():
            return None, *_differentiable(plan, tensors, needs, grad_out)
        inputs, state = Inputs(*tensors[:5]), [x.detach().requires_grad_(x.requires_grad) for x in tensors[5:]]

        def body() -> list[Tensor | None]:
            if _compiled_whole(plan, inputs):
                networks = plan.networks
                return vector_cpu.backward(
                    *inputs, plan.pattern, networks.pos_nn, networks.attn_nn, grad_out, needs[:5], state
                )
            return _backward(plan, inputs, grad_out, needs[:5], state)

        grads = functional_call(plan.networks, dict(zip(plan.names, state, strict=True)), (body,))
        return None, *[
            None if grad is None or not needed else grad.to(x.dtype)
            for x, grad, needed in zip(tensors, grads, needs, strict=True)
        ]


def _compiled_whole(plan: _Plan, inputs: Inputs) -> bool:
    """Whether compiled code can take the networks, too."""
    networks = plan.networks
    return (
        plan.backend == "cpu" and not plan.autocast[2] and vector_cpu.takes(*inputs, networks.pos_nn, networks.attn_nn)
    )


def _differentiable(
    plan: _Plan, tensors: Sequence[Tensor], needs: Sequence[bool], grad_out: Tensor
) -> list[Tensor | None]:
    """The gradients through the reference formulas, as functions of all tensors and of the upstream gradient."""
    ends = [x.view_as(x) for x in tensors]  # where this backward pass ends
    networks = plan.networks

    def body() -> Tensor:
        device, dtype, enabled = plan.autocast
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            return vector_reference.forward(*Inputs(*ends[:5]), plan.pattern, networks.pos_nn, networks.attn_nn, 0.0)

    out = functional_call(networks, dict(zip(plan.names, ends[5:], strict=True)), (body,))
    wanted = [x for x, needed in zip(ends, needs, strict=True) if needed]
    found = iter(torch.autograd.grad(out, wanted, grad_out, create_graph=True, allow_unused=True))
    return [next(found) if needed else None for needed in needs]


def _chunks(pattern: Neighbors) -> Iterator[Rows]:
    """Runs of rows, cut where the pattern alone says."""
    rowptr, col = pattern.rowptr.long(), pattern.col.long()
    edges = EDGES_PER_CHUNK.get(pattern.rowptr.device.type, EDGES_PER_CHUNK["cuda"])
    starts = torch.arange(0, max(pattern.num_edges, 1), edges, dtype=rowptr.dtype, device=rowptr.device)
    cuts = torch.searchsorted(rowptr, starts)
    cuts[0] = 0
    cuts = torch.cat([cuts, cuts.new_tensor([pattern.num_queries])]).unique_consecutive()
    # One transfer for all that the host must know.
    cut, first = torch.stack([cuts, rowptr[cuts]]).tolist()
    degree = rowptr.diff()
    uniform = int(degree[0]) if degree.numel() and bool((degree == degree[0]).all()) else 0
    for c in range(len(cut) - 1):
        if first[c + 1] > first[c]:
            yield Rows(rowptr, col[first[c] : first[c + 1]], cut[c], cut[c + 1], first[c], uniform)


def _offset(rows: Rows, inputs: Inputs) -> Tensor:
    position = inputs.position[rows.begin : rows.end].detach()
    return rows.repeat(position) - inputs.key_position.detach().index_select(0, rows.col)


class _Chain:
    """Linear layers and ReLU, differentiated by hand: in fewer passes than autograd takes, and narrow products fast."""

    def __init__(self, layers: list[vector_cpu.Linear]) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        self.passed = [x]
        for weight, bias, relu in self.layers:
            x = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
            self.passed.append(x.relu_() if relu else x)
        return x

    def pull_back(self, upstream: Tensor, totals: dict[int, Tensor], wanted: bool) -> Tensor | None:
        grad = upstream.to(self.passed[-1].dtype)
        for place in reversed(range(len(self.layers))):
            weight, bias, relu = self.layers[place]
            x, y = self.passed[place : place + 2]
            if relu:
                grad = torch.ops.aten.threshold_backward(grad, y, 0)
            if bias is not None and bias.requires_grad:
                totals[id(bias)] += grad.sum(0)
            if weight.requires_grad:
                # The narrower side first: the other way round a product of few columns takes several times as long.
                totals[id(weight)] += (x.t() @ grad).t() if x.size(1) < grad.size(1) else grad.t() @ x
            if place or wanted:
                grad = grad @ weight
        return grad if wanted else None


class _Traced:
    """Any network, differentiated by autograd."""

    def __init__(self, network: Module, parameters: list[Tensor], autocast: tuple[str, torch.dtype, bool]) -> None:
        self.network, self.parameters, self.autocast = network, parameters, autocast

    def __call__(self, x: Tensor) -> Tensor:
        device, dtype, enabled = self.autocast
        self.x = x.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(device, dtype, enabled, cache_enabled=False):
            self.y: Tensor = self.network(self.x.clone())  # it may work in place, which a leaf does not allow
        return self.y.detach()

    def pull_back(self, upstream: Tensor, totals: dict[int, Tensor], wanted: bool) -> Tensor | None:
        if not self.y.requires_grad:
            return None
        ends = [*self.parameters, self.x] if wanted else self.parameters
        found = torch.autograd.grad(self.y, ends, upstream.to(self.y.dtype), allow_unused=True)
        for parameter, grad in zip(self.parameters, found, strict=False):
            if grad is not None:
                totals[id(parameter)] += grad
        return found[-1] if wanted else None


def _chain(network: Module, x: Tensor, plan: _Plan) -> _Chain | None:
    """The network as a chain that takes inputs like ``x``, if it is one."""
    layers = None if plan.autocast[2] else vector_cpu.chain(network)
    tensors = [t for layer in layers or [] for t in layer[:2] if t is not None]
    plain = all(type(t) in (Tensor, Parameter) and t.dtype == x.dtype and t.device == x.device for t in tensors)
    return _Chain(layers) if layers and plain else None


def _forward(plan: _Plan, inputs: Inputs) -> Tensor:
    kernels = plan.kernels
    query, key, value = (x.to(_sum_dtype(x)) for x in inputs[:3])
    pos_nn = _chain(plan.networks.pos_nn, inputs.position, plan) or plan.networks.pos_nn
    attn_nn = plan.networks.attn_nn
    out = query.new_zeros(query.size(0), value.size(1))
    for rows in _chunks(plan.pattern):
        delta = vector_reference.checked_delta(pos_nn(_offset(rows, inputs)), value)
        dtype = torch.promote_types(inputs.query.dtype, delta.dtype)
        delta = delta.to(query.dtype)
        score = kernels.relate(rows, query, key, delta)
        if attn_nn is not None:
            score = score.to(dtype)
            score = (_chain(attn_nn, score, plan) or attn_nn)(score)
        kernels.sum(rows, vector_reference.per_channel(score, value).to(query.dtype), delta, value, out)
    return out.to(inputs.query.dtype)


def _backward(
    plan: _Plan, inputs: Inputs, grad_out: Tensor, needs: Sequence[bool], state: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of inputs and state; those not needed may be None."""
    attn_nn, kernels = plan.networks.attn_nn, plan.kernels
    query, key, value = (x.detach().to(_sum_dtype(x)) for x in inputs[:3])
    grad_out = grad_out.to(query.dtype).contiguous()
    grads = [
        x.new_zeros(x.shape, dtype=_sum_dtype(x)) if needed else None for x, needed in zip(inputs, needs, strict=True)
    ]
    of_query, of_key, of_value, of_position, of_key_position = grads
    parameters = [x for x in state if x.requires_grad]
    totals = {id(x): x.new_zeros(x.shape, dtype=_sum_dtype(x)) for x in parameters}

    def differentiable(network: Module, x: Tensor) -> _Chain | _Traced:
        return _chain(network, x, plan) or _Traced(network, parameters, plan.autocast)

    for rows in _chunks(plan.pattern):
        offset = _offset(rows, inputs)
        pos = differentiable(plan.networks.pos_nn, offset)
        delta = pos(offset)
        dtype = torch.promote_types(inputs.query.dtype, delta.dtype)
        delta = delta.to(query.dtype)
        score = relation = kernels.relate(rows, query, key, delta)
        if attn_nn is not None:
            relation = relation.to(dtype)
            attn = differentiable(attn_nn, relation)
            score = attn(relation)
        of_score, message = kernels.sum_backward(
            rows, vector_reference.per_channel(score, value).to(query.dtype), delta, value, grad_out
        )
        of_relation = _per_score(of_score, score)
        if attn_nn is not None:
            found = attn.pull_back(of_relation, totals, True)
            of_relation = torch.zeros_like(message) if found is None else found.to(query.dtype)
        kernels.collect(rows, of_relation, message, of_query, of_key, of_value)
        of_offset = pos.pull_back(message.add_(of_relation), totals, needs[3] or needs[4])
        if of_offset is not None:
            kernels.collect_positions(rows, of_offset, of_position, of_key_position)
    return [*grads, *[totals.get(id(x)) for x in state]]


def _per_score(of_channels: Tensor, score: Tensor) -> Tensor:
    """The gradient of `vector_reference.per_channel`."""
    return of_channels if score.shape == of_channels.shape else of_channels.view(*score.shape, -1).sum(-1)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def separable(network: Module, x: Tensor) -> bool:
    """Whether a network takes every edge by itself, always to the same result, and remembers nothing.

    It is tried on four edges with the width and type of ``x``, and left as it was. Batch normalization in training
    mode, dropout and the like are found out.
    """
    device = x.device
    if any(torch.nn.parameter.is_lazy(p) for p in network.parameters()):
        return False
    if vector_cpu.chain(network) is not None:
        return True
    if any(p.device != device for p in network.parameters()):
        return False
    edges = torch.arange(4 * x.size(1), device=device, dtype=torch.float32).mul(1.7).sin().view(4, -1).to(x.dtype)
    buffers = list(network.buffers())
    before, versions = [b.clone() for b in buffers], [b._version for b in buffers]
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        seeds = _random_state(device)
        whole, part = network(edges.clone()), network(edges[:2].clone())
        unrandom = all(torch.equal(a, b) for a, b in zip(seeds, _random_state(device), strict=True))
        unchanged = versions == [b._version for b in buffers]
        if not unchanged:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
    tolerance = torch.finfo(whole.dtype).eps ** 0.5
    return unrandom and unchanged and torch.allclose(whole[:2], part, tolerance, tolerance * float(whole.abs().max()))


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
