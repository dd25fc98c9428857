"""`attend` over `Windows`: torch's fused attention where that is right and fastest, else one recomputing engine.

Runs of one length are processed together, so nothing is padded. The engine works in tiles, some queries of some runs by
some of their keys: it keeps no score, computes tiles again in the backward pass, and sums in the accumulation dtype and
always in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from geoattn import native
from geoattn._arguments import check_tensors, described
from geoattn.ops.backends import cpu, philox, reference
from geoattn.ops.backends.modes import differentiable, traced, transforms_active, without_autocast
from geoattn.ops.backends.recompute import RandomNumbers, RefuseRandom, tensors_of, with_tensors
from geoattn.patterns.windows import Plan, Runs, Windows

# Scores of a tile of the engine, and how many keys of a run it has at most. On a CPU a tile stays in cache.
_SCORES = {"cpu": 1 << 18}
_SCORES_ELSEWHERE = 1 << 26
_KEYS = {"cpu": 512}
_KEYS_ELSEWHERE = 1 << 13
_FEWEST_QUERIES = 16  # of a tile, however many heads there are
_GATHERED = 1 << 22  # numbers gathered at a time for torch's fused attention
# Pairs are written out, for the CPU's kernels, up to so many keys of a query and numbers in the pairs of a run, on
# average: a product of matrices has a cost of its own, whatever their size.
_FEW_KEYS = 32
_SHORT_RUN = 8000


class Inputs(NamedTuple):
    """What has gradients; the state of the module that makes the bias follows."""

    query: Tensor  # [N, H, D]
    key: Tensor  # [M, G, D]
    value: Tensor  # [M, G, C]
    log_weight: Tensor | None  # [M, H or 1], in the accumulation dtype
    position: Tensor | None  # [N, P]
    key_position: Tensor | None  # [M, P]

    @property
    def dtype(self) -> torch.dtype:
        """The accumulation dtype."""
        return torch.promote_types(self.query.dtype, torch.float32)


@dataclass
class Bias:
    """A module that makes the bias of pairs from their positions."""

    module: Module
    autocast: tuple[str, torch.dtype, bool]

    @staticmethod
    def of(module: Module, device: str) -> tuple[Bias, list[Tensor]]:
        """The bias, and the tensors that are its state."""
        autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        return Bias(module, autocast), tensors_of(module)

    def __call__(self, state: Sequence[Tensor], query_position: Tensor, key_position: Tensor, heads: int) -> Tensor:
        """``[R, H or 1, q, k]`` of positions ``[R, q, P]`` and ``[R, k, P]``.

        Raises:
            ValueError: If the module gives another shape.
        """
        (module,) = with_tensors([self.module], state)
        with torch.autocast(*self.autocast, cache_enabled=False):
            found: Tensor = module(query_position, key_position)
        runs, queries, keys = *query_position.shape[:2], key_position.size(1)
        if found.shape not in ((runs, heads, queries, keys), (runs, 1, queries, keys)):
            raise ValueError(
                f"bias must map positions {tuple(query_position.shape)} and {tuple(key_position.shape)} to "
                f"[{runs}, {heads}, {queries}, {keys}], got {tuple(found.shape)}"
            )
        return found


@dataclass(frozen=True)
class Settings:
    """What has no gradient."""

    plan: Plan
    scale: float
    dropout: float = 0.0
    seed: Tensor | int | None = None
    bias: Bias | None = None


def split_bias(bias: object) -> tuple[Tensor | None, Module | None]:
    """The bias as a tensor, and as a module that makes it.

    Raises:
        TypeError: If it is neither.
    """
    if bias is None or isinstance(bias, Tensor):
        return bias, None
    if not isinstance(bias, Module):
        raise TypeError(f"bias must be a tensor or a torch.nn.Module, got {described('bias', bias)}")
    return None, bias


def pairs_written_out(name: str | None, pattern: Windows, query: Tensor, module: Module | None) -> bool:
    """Whether windows run as `Windows.to_neighbors`.

    So they do on backends of `Neighbors` that are forced; and in short runs, on average, where the kernels for CPUs are
    faster than products of many small matrices.

    Raises:
        RuntimeError: If such a backend is forced, and a module makes the bias.
    """
    if name in ("torch", "reference"):
        return False
    if name is not None:
        if module is not None:
            raise RuntimeError(
                f"backend {name!r} was asked for, but a bias made by a module runs on torch and reference only"
            )
        return True
    if module is not None or traced(query) or query.device.type != "cpu":
        return False
    pairs = pattern.num_pairs
    short = pairs <= _FEW_KEYS * query.size(0) and pairs * query.size(2) <= _SHORT_RUN * pattern.num_runs
    if short:
        native.warn_if_missing(query)
    return short and cpu.unavailable(query) is None


def check_positions(
    query: Tensor,
    key: Tensor,
    pattern: Any,
    module: Module | None,
    position: Tensor | None,
    key_position: Tensor | None,
) -> None:
    """That a module as bias comes with positions, and they with it.

    Raises:
        ValueError: If not.
    """
    if module is None:
        if key_position is not None:
            raise ValueError("positions are for a module as bias, which maps them to the bias of pairs in Windows")
        return
    if not isinstance(pattern, Windows):
        raise ValueError("a module as bias is for Windows; give Neighbors the bias of every edge, [E, H] or [E, 1]")
    if position is None or key_position is None:
        raise ValueError("a module as bias needs position [N, P]")
    check_tensors(position=position, key_position=key_position)
    shapes = f"got {tuple(position.shape)} and {tuple(key_position.shape)}"
    if position.dim() != 2 or key_position.dim() != 2 or position.size(1) != key_position.size(1):
        raise ValueError(f"expected position [N, P] and key_position [M, P], {shapes}")
    if position.size(0) != query.size(0) or key_position.size(0) != key.size(0):
        raise ValueError(f"every one of {query.size(0)} queries and {key.size(0)} keys must have a position, {shapes}")
    if not position.dtype == key_position.dtype or not position.device == key_position.device == query.device:
        raise ValueError("position and key_position must have one type and be on the device of the query")


def attend(
    inputs: Inputs,
    pattern: Windows,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    module: Module | None,
    name: str | None,
) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, C]`` and log-sum-exp ``[N, H]``, by the formulas where ``name`` is ``"reference"``.

    Raises:
        ValueError: If the module that makes the bias does not take every pair by itself, or gives another shape.
    """
    bias, state = (None, []) if module is None else Bias.of(module, inputs.query.device.type)
    with without_autocast(inputs.query.device.type):
        if traced(*inputs) and bias is None and not transforms_active() and name != "reference":
            found: tuple[Tensor, Tensor] = _operator(
                *inputs[:4], pattern.query_ptr, pattern.key_run, scale, dropout, seed
            )
            return found
        settings = Settings(pattern.plan, scale, dropout, seed, bias)
        if name == "reference" or transforms_active() or traced(*inputs):
            return formulas(settings, *inputs, *state)
        if bias is not None:
            _check_pairwise(bias, state, inputs)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*inputs, *state)):
            found = _Attend.apply(settings, *inputs, *state)
            return found
        return forward(settings, inputs, state)


# ---- The plain formulas ----------------------------------------------------------------------------------------------


def formulas(settings: Settings, *tensors: Any) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, differentiable any number of times; keeps every score."""
    inputs, state = Inputs(*tensors[:6]), tensors[6:]
    query, value = inputs.query, inputs.value
    outs, lses = [], []
    for runs in settings.plan.groups:
        if runs.keys == 0:
            out, lse = _nothing(inputs, runs.num_runs * runs.queries)
            outs.append(out)
            lses.append(lse)
            continue
        bias = _bias(settings, inputs, state, runs)
        score = _scores(_queries(query, value, runs, inputs.dtype) * settings.scale, inputs, runs, bias)
        highest = score.detach().amax(-1, keepdim=True)
        highest = highest.where(highest > -torch.inf, 0)
        weight = (score - highest).exp()
        total = weight.sum(-1, keepdim=True)
        weight = weight / total.where(total > 0, 1)
        if settings.dropout:
            weight = weight * _kept(settings, runs, query)
        out = _by_group(weight, value) @ _keys(value, runs, inputs.dtype)
        outs.append(_by_query(out, runs).flatten(0, 1).to(query.dtype))
        lses.append((reference.log(total) + highest).squeeze(-1).transpose(1, 2).flatten(0, 1))
    if not outs:
        return _nothing(inputs, 0)
    out, lse = torch.cat(outs), torch.cat(lses)
    if len(outs) > 1 or not settings.plan.groups[0].follow:
        places = [_index(runs.query_begin, runs.queries, query.device) for runs in settings.plan.groups]
        order = torch.cat(places).argsort()
        out, lse = out.index_select(0, order), lse.index_select(0, order)
    return out, lse


def _nothing(inputs: Inputs, queries: int) -> tuple[Tensor, Tensor]:
    """For queries without keys; all inputs have gradients of zero."""
    shape, zero = (queries, inputs.query.size(1)), sum(x[:0].sum() for x in inputs[:4] if x is not None)
    out = inputs.query.new_zeros(*shape, inputs.value.size(2))
    return out + zero, inputs.query.new_full(shape, -torch.inf, dtype=inputs.dtype) + zero


# ---- Parts of the formulas that tiles share --------------------------------------------------------------------------


def _index(begin: Sequence[int], length: int, device: torch.device) -> Tensor:
    """Places of the elements of runs, ``[R * length]``."""
    return (torch.tensor(begin, device=device).unsqueeze(1) + torch.arange(length, device=device)).flatten()


def _take(x: Tensor, begin: Sequence[int], length: int, follow: bool) -> Tensor:
    """The elements of runs, ``[R, length, ...]``; not a copy where runs follow each other."""
    if follow or len(begin) == 1:
        found = x[begin[0] : begin[0] + len(begin) * length]
    else:
        found = x.index_select(0, _index(begin, length, x.device))
    return found.unflatten(0, (len(begin), length))


def _take_queries(x: Tensor, runs: Runs) -> Tensor:
    return _take(x, runs.query_begin, runs.queries, runs.follow)


def _take_keys(x: Tensor, runs: Runs) -> Tensor:
    return _take(x, runs.key_begin, runs.keys, runs.follow)


def _queries(x: Tensor, key: Tensor, runs: Runs, dtype: torch.dtype) -> Tensor:
    """Of ``[N, H, D]`` the runs' queries ``[R, G, P * q, D]``; ``P`` heads share a head of the keys."""
    found = _take_queries(x, runs).to(dtype).unflatten(2, (key.size(1), -1))
    return found.permute(0, 2, 3, 1, 4).flatten(2, 3)


def _by_query(x: Tensor, runs: Runs) -> Tensor:
    """``[R, G, P * q, D]`` as ``[R, q, H, D]``."""
    return x.unflatten(2, (-1, runs.queries)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _keys(x: Tensor, runs: Runs, dtype: torch.dtype) -> Tensor:
    """Of ``[M, G, D]`` the runs' keys ``[R, G, k, D]``."""
    return _take_keys(x, runs).to(dtype).transpose(1, 2)


def _by_head(x: Tensor, runs: Runs) -> Tensor:
    """``[R, G, P * q, k]`` as ``[R, H, q, k]``."""
    return x.unflatten(2, (-1, runs.queries)).flatten(1, 2)


def _by_group(x: Tensor, key: Tensor) -> Tensor:
    """``[R, H, q, k]`` as ``[R, G, P * q, k]``."""
    return x.unflatten(1, (key.size(1), -1)).flatten(2, 3)


def _scores(query: Tensor, inputs: Inputs, runs: Runs, bias: Tensor | None) -> Tensor:
    """``[R, H, q, k]``, of queries as `_queries` gives them, scaled."""
    score = _by_head(query @ _keys(inputs.key, runs, inputs.dtype).mT, runs)
    if inputs.log_weight is not None:
        score = score + _take_keys(inputs.log_weight, runs).transpose(1, 2).unsqueeze(2)
    return score if bias is None else score + bias


def _bias(settings: Settings, inputs: Inputs, state: Sequence[Tensor], runs: Runs) -> Tensor | None:
    if settings.bias is None or inputs.position is None or inputs.key_position is None:
        return None
    positions = _take_queries(inputs.position, runs), _take_keys(inputs.key_position, runs)
    return settings.bias(state, *positions, inputs.query.size(1)).to(inputs.dtype)


def _kept(settings: Settings, runs: Runs, query: Tensor) -> Tensor:
    """What dropout multiplies probabilities ``[R, H, q, k]`` with; random bits belong to pairs, as in `philox`."""
    assert settings.seed is not None
    device, heads = query.device, query.size(1)
    pair = torch.tensor(runs.first_pair, device=device).view(-1, 1, 1)
    pair = pair + torch.arange(runs.queries, device=device).unsqueeze(1) * runs.pairs_per_query
    pair = pair + torch.arange(runs.keys, device=device)
    kept = philox.keep(pair.flatten(), heads, settings.dropout, settings.seed)
    dtype = torch.promote_types(query.dtype, torch.float32)
    return kept.view(*pair.shape, heads).permute(0, 3, 1, 2).to(dtype) / (1 - settings.dropout)


# ---- Forward ---------------------------------------------------------------------------------------------------------


def forward(settings: Settings, inputs: Inputs, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, C]`` and log-sum-exp ``[N, H]``."""
    query, plan = inputs.query, settings.plan
    fused = _fused_takes(settings, inputs)
    if fused and plan.whole:
        out, lse = _fused_forward(settings, inputs, plan.groups[0])
        return out.flatten(0, 1), lse.flatten(0, 1)
    out = query.new_empty(*query.shape[:2], inputs.value.size(2))
    lse = query.new_empty(query.shape[:2], dtype=inputs.dtype)
    for runs in plan.groups:
        for part in _fused_parts(runs, inputs) if fused else _parts(runs, inputs):
            if part.keys == 0:
                shape = (part.num_runs, part.queries, query.size(1))
                found = out.new_zeros(*shape, out.size(2)), lse.new_full(shape, -torch.inf)
            elif fused:
                found = _fused_forward(settings, inputs, part)
            else:
                found = _forward_part(settings, inputs, state, part)
            for total, x in zip((out, lse), found, strict=True):
                _put_queries(total, part, x)
    return out, lse


def _parts(runs: Runs, inputs: Inputs) -> Iterator[Runs]:
    """Some queries of some runs, such that a tile of them has not too many scores."""
    device, heads = inputs.query.device.type, inputs.query.size(1)
    most, keys = _SCORES.get(device, _SCORES_ELSEWHERE), min(runs.keys, _KEYS.get(device, _KEYS_ELSEWHERE))
    scores = max(heads * keys, 1)  # of a query
    queries = min(runs.queries, max(most // scores, _FEWEST_QUERIES))
    for part in runs.split(max(most // (scores * queries), 1)):
        yield from part.split_queries(queries)


def _tiles(part: Runs, inputs: Inputs) -> Iterator[Runs]:
    return part.split_keys(_KEYS.get(inputs.query.device.type, _KEYS_ELSEWHERE))


def _forward_part(settings: Settings, inputs: Inputs, state: Sequence[Tensor], part: Runs) -> tuple[Tensor, Tensor]:
    """``[R, q, H, C]`` and ``[R, q, H]``, by the online softmax over tiles (Milakov and Gimelshein 2018)."""
    query = _queries(inputs.query, inputs.key, part, inputs.dtype) * settings.scale
    highest = query.new_full((part.num_runs, inputs.query.size(1), part.queries, 1), -torch.inf)
    total, out = torch.zeros_like(highest), query.new_zeros(())
    for tile in _tiles(part, inputs):
        score = _scores(query, inputs, tile, _bias(settings, inputs, state, tile))
        before, highest = highest, torch.maximum(highest, score.amax(-1, keepdim=True))
        shift = highest.where(highest > -torch.inf, 0)
        weight = score.sub_(shift).exp_()
        fade = (before - shift).exp_()
        total = total * fade + weight.sum(-1, keepdim=True)
        if settings.dropout:
            weight.mul_(_kept(settings, tile, inputs.query))
        message = _by_group(weight, inputs.key) @ _keys(inputs.value, tile, inputs.dtype)
        out = out * _by_group(fade, inputs.key) + message
    out = out / _by_group(total.where(total > 0, 1), inputs.key)
    return _by_query(out, part), (total.log() + shift).squeeze(-1).transpose(1, 2)


def _put_queries(total: Tensor, runs: Runs, part: Tensor) -> None:
    """Write ``[R, q, ...]`` to the runs' queries."""
    if runs.follow or runs.num_runs == 1:
        _take_queries(total, runs).copy_(part)
    else:
        total.index_copy_(0, _index(runs.query_begin, runs.queries, total.device), part.flatten(0, 1).to(total.dtype))


# ---- Backward --------------------------------------------------------------------------------------------------------


def backward(
    settings: Settings,
    inputs: Inputs,
    state: Sequence[Tensor],
    needs: Sequence[bool],
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of the inputs and of the state, None where one is not needed."""
    fused = grad_lse is None and not needs[3] and _fused_takes(settings, inputs)
    if fused and settings.plan.whole:
        found = _fused_backward(settings, inputs, settings.plan.groups[0], out, lse, grad_out)
        found = [x.flatten(0, 1).to(out.dtype) for x in found]
        return [grad if needed else None for grad, needed in zip([*found, None, None, None], needs, strict=True)]
    sums = _Sums(settings, inputs, state, needs)
    for runs in settings.plan.groups:
        if runs.keys == 0:
            continue
        for part in _fused_parts(runs, inputs) if fused else _parts(runs, inputs):
            if fused:
                found = _fused_backward(settings, inputs, part, out, lse, grad_out)
                for name, grad in zip(("query", "key", "value"), found, strict=True):
                    sums.add(name, part, grad)
            else:
                _backward_part(sums, part, out, lse, grad_out, grad_lse)
    return sums.found()


class _Sums:
    """The gradients, while the parts of a backward pass add to them."""

    def __init__(self, settings: Settings, inputs: Inputs, state: Sequence[Tensor], needs: Sequence[bool]) -> None:
        self.settings, self.inputs, self.state, self.needs = settings, inputs, state, needs
        self.tensors = (*inputs, *state)
        self.totals = [
            torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) if needed and x is not None else None
            for x, needed in zip(self.tensors, needs, strict=True)
        ]

    def add(self, name: str, part: Runs, grad: Tensor) -> None:
        """Add ``[R, q or k, ...]`` to the gradient of an input."""
        total = self.totals[Inputs._fields.index(name)]
        if total is None:
            return
        if name in ("query", "position"):
            begin, length, apart = part.query_begin, part.queries, True
        else:
            begin, length, apart = part.key_begin, part.keys, self.settings.plan.apart
        if part.follow or part.num_runs == 1:
            _take(total, begin, length, True).add_(grad)
            return
        index, grad = _index(begin, length, total.device), grad.flatten(0, 1).to(total.dtype)
        if apart or total.device.type == "cpu":
            total.index_add_(0, index, grad)
        else:  # the order in which a GPU adds what belongs to one place is always the same only here
            total.index_put_((index,), grad, accumulate=True)

    def add_to_state(self, place: int, grad: Tensor) -> None:
        """Add to the gradient of a tensor of the state."""
        total = self.totals[len(self.inputs) + place]
        if total is not None:
            total.add_(grad)

    def found(self) -> list[Tensor | None]:
        """In the types of the inputs."""
        return [
            None if x is None or y is None else x.to(y.dtype) for x, y in zip(self.totals, self.tensors, strict=True)
        ]


def _backward_part(
    sums: _Sums, part: Runs, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> None:
    settings, inputs, of_query = sums.settings, sums.inputs, None
    query = _queries(inputs.query, inputs.key, part, inputs.dtype) * settings.scale
    upstream = _queries(grad_out, inputs.value, part, inputs.dtype)
    delta = (_take_queries(grad_out, part).to(inputs.dtype) * _take_queries(out, part)).sum(-1)
    lse = _take_queries(lse, part)
    if grad_lse is not None:
        delta = delta - _take_queries(grad_lse, part).where(lse > -torch.inf, 0)
    delta, shift = (x.transpose(1, 2).unsqueeze(-1) for x in (delta, lse.where(lse > -torch.inf, 0)))
    for tile in _tiles(part, inputs):
        bias = None if settings.bias is None else _TracedBias(settings.bias, sums, tile)
        weight = _scores(query, inputs, tile, None if bias is None else bias.values).sub_(shift).exp_()
        of_score = _by_head(upstream @ _keys(inputs.value, tile, inputs.dtype).mT, tile)
        kept = _kept(settings, tile, inputs.query) if settings.dropout else None
        if kept is not None:
            of_score.mul_(kept)
        of_score.sub_(delta).mul_(weight)
        if sums.needs[2]:
            weight = _by_group(weight if kept is None else weight.mul_(kept), inputs.key)
            sums.add("value", tile, (weight.mT @ upstream).transpose(1, 2))
        if sums.needs[3] and inputs.log_weight is not None:
            of_weight = of_score.sum(2)
            if inputs.log_weight.size(1) == 1:
                of_weight = of_weight.sum(1, keepdim=True)
            sums.add("log_weight", tile, of_weight.transpose(1, 2))
        if bias is not None:
            bias.backward(of_score)
        grouped = _by_group(of_score, inputs.key)
        if sums.needs[1]:
            sums.add("key", tile, (grouped.mT @ query).transpose(1, 2))
        if sums.needs[0]:
            found = grouped @ _keys(inputs.key, tile, inputs.dtype)
            of_query = found if of_query is None else of_query.add_(found)
    if of_query is not None:
        sums.add("query", part, _by_query(of_query.mul_(settings.scale), part))


class _TracedBias:
    """The bias of a tile, made so that it can be differentiated."""

    def __init__(self, bias: Bias, sums: _Sums, tile: Runs) -> None:
        inputs = sums.inputs
        assert inputs.position is not None
        assert inputs.key_position is not None
        self.sums, self.tile = sums, tile
        taken = [_take_queries(inputs.position, tile), _take_keys(inputs.key_position, tile), *sums.state]
        self.ends = [x.detach().requires_grad_(needed) for x, needed in zip(taken, sums.needs[4:], strict=True)]
        with torch.enable_grad():
            self.made = bias(self.ends[2:], self.ends[0], self.ends[1], inputs.query.size(1))
        self.values = self.made.detach().to(inputs.dtype)

    def backward(self, of_score: Tensor) -> None:
        """Add the gradients of positions and state."""
        if not self.made.requires_grad:
            return
        grad = of_score if self.made.size(1) == of_score.size(1) else of_score.sum(1, keepdim=True)
        wanted = [place for place, x in enumerate(self.ends) if x.requires_grad]
        ends = [self.ends[place] for place in wanted]
        found = torch.autograd.grad(self.made, ends, grad.to(self.made.dtype), allow_unused=True)
        for place, x in zip(wanted, found, strict=True):
            if x is not None and place < 2:
                self.sums.add(Inputs._fields[4 + place], self.tile, x)
            elif x is not None:
                self.sums.add_to_state(place - 2, x)


# ---- Torch's fused attention -----------------------------------------------------------------------------------------

# On CPUs it is the same run after run in both directions; its backward pass sums halves in halves, so it is given
# float32 there. On GPUs its backward pass is not, and the engine's is taken.
_FORWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def _fused_takes(settings: Settings, inputs: Inputs) -> bool:
    """Whether torch's fused attention gives these outputs, and on a CPU their gradients."""
    query, weight = inputs.query, inputs.log_weight
    return (
        query.device.type == "cpu"
        and None not in (_FORWARD, _BACKWARD)
        and settings.bias is None
        and not settings.dropout
        and query.size(2) == inputs.value.size(2) > 0
        and query.size(1) > 0
        and (weight is None or weight.dtype == query.dtype)  # a mask has the type of queries
    )


def _fused_parts(runs: Runs, inputs: Inputs) -> Iterator[Runs]:
    """All runs, or so many of them as may be gathered."""
    numbers = (runs.queries + runs.keys) * inputs.query[0].numel()
    return runs.split(runs.num_runs if runs.follow else max(_GATHERED // numbers, 1))


def _mask(inputs: Inputs, part: Runs) -> Tensor | None:
    """``[R, H or 1, 1, k]``."""
    if inputs.log_weight is None:
        return None
    return _take_keys(inputs.log_weight.detach(), part).transpose(1, 2).unsqueeze(2).contiguous()


def _fused_forward(settings: Settings, inputs: Inputs, part: Runs) -> tuple[Tensor, Tensor]:
    """``[R, q, H, D]`` and ``[R, q, H]``."""
    query = _take_queries(inputs.query.detach(), part).transpose(1, 2)
    key, value = (_take_keys(x.detach(), part).transpose(1, 2) for x in (inputs.key, inputs.value))
    mask = _mask(inputs, part)
    out, lse = _FORWARD(query, key, value, attn_mask=mask, scale=settings.scale)
    if mask is not None:  # of rows whose keys are all hidden, zero is given
        lse = lse.masked_fill(mask.amax(-1) == -torch.inf, -torch.inf)
    return out.transpose(1, 2), lse.transpose(1, 2)


def _fused_backward(
    settings: Settings, inputs: Inputs, part: Runs, out: Tensor, lse: Tensor, grad_out: Tensor
) -> list[Tensor]:
    """Gradients of queries ``[R, q, H, D]`` and of keys and values ``[R, k, G, D]``."""
    heads, dtype = inputs.query.size(1) // inputs.key.size(1), inputs.dtype
    grad_out, query, out = (_take_queries(x, part).to(dtype).transpose(1, 2) for x in (grad_out, inputs.query, out))
    key, value = (_take_keys(x, part).to(dtype).transpose(1, 2) for x in (inputs.key, inputs.value))
    if heads > 1:
        key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
    lse, mask = _take_queries(lse, part).transpose(1, 2), _mask(inputs, part)
    if mask is not None:
        lse = lse.where(lse > -torch.inf, 0)
    found = _BACKWARD(grad_out, query, key, value, out, lse, 0.0, False, attn_mask=mask, scale=settings.scale)
    of_query, of_key, of_value = (x.transpose(1, 2) for x in found)
    if heads > 1:
        of_key, of_value = (x.unflatten(2, (-1, heads)).sum(3) for x in (of_key, of_value))
    return [of_query, of_key, of_value]


# ---- Eager -----------------------------------------------------------------------------------------------------------


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, *tensors: Any) -> tuple[Tensor, Tensor]:
        out, lse = forward(settings, Inputs(*tensors[:6]), tensors[6:])
        ctx.settings = settings
        ctx.save_for_backward(*tensors, out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, out, lse = ctx.saved_tensors
        with without_autocast(out.device.type):
            needs = ctx.needs_input_grad[1:]
            return None, *_gradients(ctx.settings, tensors, needs, out, lse, grad_out, grad_lse)


def _gradients(
    settings: Settings,
    tensors: Sequence[Any],
    needs: Sequence[bool],
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
) -> list[Tensor | None]:
    if torch.is_grad_enabled() or transforms_active(grad_out, grad_lse):
        return differentiable(partial(formulas, settings), tensors, needs, (grad_out, grad_lse))
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    return backward(settings, Inputs(*tensors[:6]), tensors[6:], needs, out, lse, grad_out, grad_lse)


@torch.inference_mode(False)  # so that changes of copies can be seen
def _check_pairwise(bias: Bias, state: Sequence[Tensor], inputs: Inputs) -> None:
    """Try the module on a few positions and on copies of its state."""
    assert inputs.position is not None
    assert inputs.key_position is not None
    queries, keys = inputs.position[:3].unsqueeze(0), inputs.key_position[:3].unsqueeze(0)
    if not queries.numel() or not keys.numel():
        return
    heads, copies = inputs.query.size(1), [x.detach().clone() for x in state]
    versions = [x._version for x in copies]
    same = False
    with torch.no_grad(), suppress(RandomNumbers), RefuseRandom():
        whole = bias(copies, queries, keys, heads)
        part = bias(copies, queries[:, -1:], keys[:, :1], heads)
        tolerance = torch.finfo(whole.dtype).eps ** 0.5
        same = torch.allclose(whole[:, :, -1:, :1], part, tolerance, tolerance * float(whole.abs().max()))
    if not same or versions != [x._version for x in copies]:
        raise ValueError(
            "the module that makes the bias must take every pair of positions by itself and always give the same: "
            "no normalization over a batch, no dropout, no buffers that it changes. It runs again in the backward pass"
        )


# ---- Compiled, exported, fake ----------------------------------------------------------------------------------------

_SCHEMA = """
    Tensor query, Tensor key, Tensor value, Tensor? log_weight, Tensor query_ptr, Tensor key_run, float scale,
    float dropout, Tensor? seed
"""


@torch.library.custom_op("geoattn::attend_windows", mutates_args=(), schema=f"({_SCHEMA}) -> (Tensor, Tensor)")
def _operator(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, C]`` and log-sum-exp ``[N, H]``."""
    inputs, settings = _read(arguments)
    with without_autocast(inputs.query.device.type):
        return forward(settings, inputs, [])


@torch.library.custom_op(
    "geoattn::attend_windows_backward",
    mutates_args=(),
    schema=f"({_SCHEMA}, Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, bool[] needs) -> Tensor[]",
)
def _operator_backward(*arguments: Any) -> list[Tensor]:
    """Gradients of queries, keys, values and the logarithm of weights, empty where one is not needed."""
    *arguments_, out, lse, grad_out, grad_lse, needs = arguments
    inputs, settings = _read(arguments_)
    with without_autocast(out.device.type):
        found = backward(settings, inputs, [], [*needs, False, False], out, lse, grad_out, grad_lse)
    return [out.new_empty(0) if grad is None else grad for grad in found[:4]]


def _read(arguments: Sequence[Any]) -> tuple[Inputs, Settings]:
    query, key, value, log_weight, query_ptr, key_run, scale, dropout, seed = arguments
    pattern = Windows(query_ptr, key_run, key.size(0), check=False)
    if pattern.num_queries != query.size(0):
        raise ValueError(f"{pattern} does not fit: got query {tuple(query.shape)}")
    return Inputs(query, key, value, log_weight, None, None), Settings(pattern.plan, scale, dropout, seed)


@_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    return query.new_empty(*query.shape[:2], value.size(2)), lse


@_operator_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    out, needs = arguments[-5], arguments[-1]
    return [
        x.new_empty(x.shape) if needed else out.new_empty(0) for x, needed in zip(arguments[:4], needs, strict=True)
    ]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.dropout, seed = inputs
    ctx.save_for_backward(*tensors, seed, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    *tensors, seed, out, lse = ctx.saved_tensors
    needs, arguments = ctx.needs_input_grad[:4], (*tensors, ctx.scale, ctx.dropout, seed)
    if torch.is_grad_enabled() or transforms_active(grad_out, grad_lse):
        inputs, settings = _read(arguments)
        grads = _gradients(settings, inputs, [*needs, False, False], out, lse, grad_out, grad_lse)[:4]
    else:
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        found = _operator_backward(*arguments, out, lse, grad_out, grad_lse, needs)
        grads = [grad if needed else None for grad, needed in zip(found, needs, strict=True)]
    return *grads, None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_keep)
