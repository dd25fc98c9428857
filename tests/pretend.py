"""A GPU that is not there: tensors that say they are elsewhere and compute on the CPU, so that mixtures are found.

What torch refuses on a GPU raises here, too: tensors of both devices in one operation (but for numbers and indices), a
generator of the other device, and ``numpy()`` of a tensor that was not moved to the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
backend_registration._setup_privateuseone_for_python_backend("pretend")
torch.pretend.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
# Torch's own helpers take it for the machine's accelerator from here on: there is none to be used, or seeded.
torch.pretend.device_count = lambda: 0
torch.pretend.get_rng_state = lambda *device: torch.empty(0)
torch.pretend.set_rng_state = lambda *state: None
DEVICE = torch.device("pretend", 0)
COPIES = {aten._to_copy, aten.copy_, aten.copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}  # indices: either


class OnDevice(Tensor):
    """Wraps a tensor of the CPU."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        self = Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        self.inner = inner
        return self

    def tolist(self) -> list:  # torch's own refuses subclasses
        return self.inner.tolist()

    def __repr__(self) -> str:
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees what is made on the device from nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def dispatch(func, args, kwargs):
    packet = func.overloadpacket
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = [isinstance(x, OnDevice) for x in tensors]
    if packet in INDEXING:
        there = [isinstance(args[0], OnDevice)]
    elif packet not in COPIES:
        there = [on for on, x in zip(there, tensors, strict=True) if on or x.dim() > 0] or there
        if any(there) and not all(there):
            raise RuntimeError(
                f"{func}: expected all tensors on one device, found some on {DEVICE} and some on the CPU"
            )
    asked = kwargs.get("device")
    if packet is aten.copy_:
        on_device = isinstance(args[0], OnDevice)
    else:
        on_device = any(there) if asked is None else torch.device(asked).type == DEVICE.type
    generator = kwargs.get("generator")
    if generator is not None and on_device:
        raise RuntimeError(f"{func}: expected a generator of {DEVICE}, found one of {generator.device}")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(OnDevice, lambda x: x.inner, (args, kwargs))
    out = func(*args, **kwargs)
    if func._schema.is_mutable and not func._schema.returns[0:1]:
        return out
    return tree_map_only(Tensor, OnDevice, out) if on_device else out


@contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """A device to put tensors on inside the block."""
    with _Mode():
        yield DEVICE


# `torch.tensor(..., device=...)` looks for these kernels of the device, past any mode.
_kernels = torch.library.Library("aten", "IMPL")


@torch.library.impl(_kernels, "empty_strided", "PrivateUse1")
def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype))


@torch.library.impl(_kernels, "_copy_from", "PrivateUse1")
def _copy_from(source, target, non_blocking=False):
    target.inner.copy_(source)
    return target
