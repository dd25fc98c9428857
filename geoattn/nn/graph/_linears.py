"""Linear layers whose weights are used without calling them, and scores of what a layer makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch_geometric.nn.dense import Linear

_FORWARDS = {Linear: Linear.forward, nn.Linear: nn.Linear.forward}


def plain(*layers: nn.Module) -> bool:
    """Whether each is a linear layer and no more, so that a product with its weight is all that calling it would do."""
    return not any_hooks(*layers) and all(
        layer.__class__.forward is _FORWARDS.get(type(layer)) and type(layer.weight) is nn.Parameter for layer in layers
    )


def any_hooks(*modules: nn.Module) -> bool:
    """Whether somebody sees or changes that modules are called: by hooks, or a ``forward`` replaced on the instance."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    ) or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
        for module in modules
    )


def scores(heads: Tensor, *att: Tensor) -> list[Tensor]:
    """Dot products ``[N, H, 1]`` of ``heads`` ``[N, H * C]`` with each ``att`` ``[1, H, C]``, in one narrow product."""
    count, channels = att[0].shape[1:]
    own = torch.eye(count, dtype=heads.dtype, device=heads.device).view(count, count, 1)
    weight = (torch.cat(att).unsqueeze(2) * own).view(-1, count * channels)  # [A * H, H * C], zero for other heads
    return list(F.linear(heads, weight).unsqueeze(-1).split(count, 1))


def scores_of_edges(edge_attr: Tensor, layer: Any, att: Tensor) -> Tensor:
    """Dot products ``[E, H, 1]`` of ``att`` ``[1, H, C]`` and what ``layer`` makes of ``edge_attr`` ``[E, F]``.

    Of a plain layer they are one linear map of ``edge_attr``, and no heads ``[E, H * C]`` are made.
    """
    if not plain(layer) or layer.bias is not None:
        return scores(layer(edge_attr), att)[0]
    weight = torch.bmm(att.transpose(0, 1), layer.weight.view(*att.shape[1:], -1)).squeeze(1)
    return F.linear(edge_attr, weight).unsqueeze(-1)
