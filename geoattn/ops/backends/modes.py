"""In which of its forms an operator runs: eager kernels, an operator of torch's library, or plain formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter, type(None))


def transforms_active(*tensors: Tensor | None) -> bool:
    """Whether derivatives or batches are made by transforming plain torch code, through which kernels cannot be seen.

    So it is under ``torch.func`` (``grad``, ``vmap``, ``jvp``, ...), in forward-mode differentiation, for upstream
    gradients in a batch (``is_grads_batched``), and while `torch.jit.trace` records a program. The formulas of an
    operator run then, instead of its kernels.

    Args:
        tensors: In a backward pass, the upstream gradients.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return False
    return torch._C._get_tracing_state() is not None or any(
        x is not None and torch._C._functorch.is_legacy_batchedtensor(x) for x in tensors
    )


def traced(*tensors: Tensor | None) -> bool:
    """Whether an operator must be one node of torch's library, given tensors it is called on.

    So it is while compiling or exporting, and for fake tensors or other subclasses, which have no memory to read.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(type(x) not in _PLAIN for x in tensors)
    )


def differentiable(
    formulas: Callable[..., Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of ``formulas(*tensors)``, as functions of the tensors and of the upstream gradients.

    For a backward pass that is itself differentiated or transformed.

    Args:
        formulas: Plain torch formulas of the outputs.
        tensors: Its arguments.
        needs: Which arguments want a gradient.
        grads: Upstream gradient of each output; None where there is none.

    Returns:
        A gradient for every argument, None where none is wanted or an argument is not used.
    """
    with torch.enable_grad():
        ends = [
            x if x is None or not needed else x.view_as(x).requires_grad_(x.is_floating_point())
            for x, needed in zip(tensors, needs, strict=True)
        ]
        pairs = [
            (out, grad)
            for out, grad in zip(formulas(*ends), grads, strict=True)
            if grad is not None and out.requires_grad
        ]
        wanted = [x for x, needed in zip(ends, needs, strict=True) if needed and x is not None]
        if not pairs:
            return [None] * len(needs)
        outputs, upstream = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, upstream, create_graph=True, allow_unused=True))
    return [next(found) if needed and x is not None else None for x, needed in zip(tensors, needs, strict=True)]


def autocast(device: str, *tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors in the type that autocast asks matrix products to run in; float64 and None stay as they are."""
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Inside, torch casts nothing: what kernels and formulas are given already has its type."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
