"""Neighborhood attention's windows on regular grids of one, two or three axes, and more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from geoattn import native
from geoattn._arguments import checked_integer
from geoattn.patterns.neighbors import INT32_MAX, Neighbors

T = TypeVar("T", Neighbors, Tensor)

# Patterns of so many shapes and windows are kept: DiNAT, with two dilations at each of four resolutions, uses eight.
_KEPT = 16


class Axis(NamedTuple):
    """One axis of a grid and of the windows on it."""

    length: int
    kernel_size: int
    stride: int
    dilation: int
    is_causal: bool

    def keys(self) -> tuple[Tensor, Tensor]:
        """The keys of every position, ascending, and which of them are there, ``[length, kernel_size]``."""
        size = self.kernel_size
        position = torch.arange(self.length)
        # Positions that are a dilation apart form a group, in which windows lie as if there was no dilation.
        group, place = position % self.dilation, position // self.dilation
        last = (self.length - 1 - group) // self.dilation
        slot = torch.arange(size)
        if self.is_causal:
            leader = torch.minimum(place // self.stride * self.stride + self.stride - 1, last)
            first = (leader - size + 1).clamp(min=0)
            there = slot <= (place - first).unsqueeze(1)
        else:
            leader = torch.minimum(place // self.stride * self.stride + self.stride // 2, last)
            first = torch.minimum(leader - size // 2, last - size + 1).clamp(min=0)
            there = torch.ones(self.length, size, dtype=torch.bool)
        return group.unsqueeze(1) + self.dilation * (first.unsqueeze(1) + slot), there


def grid_neighbors(
    shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    samples: int = 1,
    device: torch.device | str | None = None,
) -> Neighbors:
    r"""Every position of a grid attends to a window around it, which moves inwards at borders: neighborhood attention.

    Windows are those of NATTEN (Hassani et al. 2023, "Neighborhood Attention Transformer"; Hassani and Shi 2022,
    "Dilated Neighborhood Attention Transformer"; Hassani et al. 2025, "Generalized Neighborhood Attention"), axis by
    axis; the window in the grid is their product. On an axis of length :math:`L`, position :math:`p` is the
    :math:`i`-th of the :math:`n` positions that equal it modulo the dilation :math:`d`. With kernel size :math:`k` and
    stride :math:`s`, its keys among these are

    .. math::
        c - \lfloor k/2 \rfloor, \dots, c - \lfloor k/2 \rfloor + k - 1, \qquad
        c = \operatorname{clamp}\bigl(\min(\lfloor i/s \rfloor s + \lfloor s/2 \rfloor, n - 1)\bigr),

    where the clamp moves the window into :math:`[0, n)`: always :math:`k` keys, nothing truncated or padded. The
    ``s`` queries of one stride group have the same window. On a causal axis they are

    .. math::
        \max(0, a - k + 1), \dots, i, \qquad a = \min(\lfloor i/s \rfloor s + s - 1, n - 1).

    A window always holds its query. A stride equal to the kernel size gives blocks; a kernel size equal to the length,
    attention among everything. Patterns of 16 shapes and windows are kept and given out again: do not change them in
    place.

    Args:
        shape: Length of every axis; positions are numbered with the last axis running fastest.
        kernel_size: Number of keys along every axis, one for all axes or one for each.
        stride: Number of consecutive positions that share a window, from 1 to the kernel size.
        dilation: Distance between the keys of a window; times the kernel size at most the length.
        is_causal: Whether keys lie at or before the query on the axis.
        samples: Number of grids, one after the other, at least 1.
        device: Where the pattern is to be; default: the CPU.

    Returns:
        A pattern of all positions of all samples, with ascending rows, int32 where that can count the edges.

    Raises:
        TypeError: If a number is no integer, or ``is_causal`` no bool.
        ValueError: If the numbers of axes differ, a number is out of its range, or the window does not fit the grid.

    Example:
        >>> grid_neighbors([5], kernel_size=3).col.view(5, 3).tolist()
        [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4]]
    """
    axes = grid_axes(shape, kernel_size, stride, dilation, is_causal)
    samples = checked_integer("samples", samples, least=1)
    return _kept(_grid_neighbors, device, axes, samples)


def grid_axes(
    shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    is_causal: bool | Sequence[bool],
) -> tuple[Axis, ...]:
    """What `grid_neighbors` is given, axis by axis; errors are those it raises."""
    lengths = [checked_integer("shape", length, least=1) for length in shape]
    if not lengths:
        raise ValueError("expected the length of at least one axis as shape, got none")
    axes = [
        Axis(*of_axis)
        for of_axis in zip(
            lengths, *window_of_axes(len(lengths), kernel_size, stride, dilation, is_causal), strict=True
        )
    ]
    for number, axis in enumerate(axes):
        if axis.kernel_size * axis.dilation > axis.length:
            raise ValueError(
                f"kernel_size * dilation must be at most the length of the axis, got {axis.kernel_size} * "
                f"{axis.dilation} and {axis.length} for axis {number} of {tuple(lengths)}"
            )
    return tuple(axes)


def window_of_axes(
    count: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    is_causal: bool | Sequence[bool],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """Kernel size, stride, dilation and causality of each of ``count`` axes; errors are those of `grid_neighbors`."""
    sizes, strides, dilations = (
        tuple(checked_integer(name, number, least=1) for number in _each(name, value, count))
        for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
    )
    causal = _each("is_causal", is_causal, count)
    if not all(isinstance(value, bool) for value in causal):
        raise TypeError(f"is_causal must be True or False, or one of them for each axis, got {is_causal!r}")
    for size, step in zip(sizes, strides, strict=True):
        if step > size:
            raise ValueError(f"stride must be at most kernel_size, got {step} and {size}")
    return sizes, strides, dilations, causal


def _each(name: str, value: Any, count: int) -> tuple[Any, ...]:
    """One value for each axis."""
    values = tuple(value) if isinstance(value, (list, tuple, torch.Size)) else (value,) * count
    if len(values) != count:
        raise ValueError(f"expected one {name} for all axes or one for each of {count}, got {value}")
    return values


def grid_offsets(
    shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Where each key lies, seen from its query, as a place in a table of ``2 * kernel_size - 1`` entries for each axis.

    Arguments and errors are those of `grid_neighbors`; all samples have the same.

    Returns:
        ``[E]``, int64, in the order of the pattern's ``col``: with ``o`` the number of dilations from query to key
        along an axis, the entry ``o + kernel_size - 1`` of that axis, the last axis fastest.
    """
    axes = grid_axes(shape, kernel_size, stride, dilation, is_causal)
    return _kept(_grid_offsets, device, axes)


@torch.compiler.disable  # what is kept is made outside of programs
def _kept(make: Callable[..., T], device: torch.device | str | None, *arguments: Any) -> T:
    """What ``make`` makes, once, and once for each device."""
    if device is None or torch.device(device).type == "cpu":
        return make(*arguments)
    if native.modes_active():
        return make(*arguments).to(device)
    found: T = _on_device(make, torch.device(device), *arguments)
    return found


@lru_cache(maxsize=2 * _KEPT)
def _on_device(make: Callable[..., Any], device: torch.device, *arguments: Any) -> Any:
    with native.outside_modes():
        return make(*arguments).to(device)


@lru_cache(maxsize=_KEPT)
def _grid_neighbors(axes: tuple[Axis, ...], samples: int) -> Neighbors:
    with native.outside_modes():
        there = _there(axes)
        degree = there.sum(1)
        rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
        dtype = torch.int32 if samples * int(rowptr[-1]) <= INT32_MAX else torch.int64
        key = torch.zeros(1, 1, dtype=torch.int64)
        for axis in axes:
            key = _product(key * axis.length, axis.keys()[0], torch.add)
        found = Neighbors(rowptr.to(dtype), key[there].to(dtype), key.size(0))
        return found if samples == 1 else found.repeat(samples)


@lru_cache(maxsize=_KEPT)
def _grid_offsets(axes: tuple[Axis, ...]) -> Tensor:
    with native.outside_modes():
        entry = torch.zeros(1, 1, dtype=torch.int64)
        for axis in axes:
            offset = (axis.keys()[0] - torch.arange(axis.length).unsqueeze(1)) // axis.dilation
            entry = _product(entry * (2 * axis.kernel_size - 1), offset + axis.kernel_size - 1, torch.add)
        return entry[_there(axes)]


def _there(axes: tuple[Axis, ...]) -> Tensor:
    """Which keys of every position are there, ``[positions, keys]``."""
    there = torch.ones(1, 1, dtype=torch.bool)
    for axis in axes:
        there = _product(there, axis.keys()[1], torch.logical_and)
    return there


def _product(before: Tensor, along: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Of ``[P, K]`` and an axis' ``[L, k]``, all combinations ``[P * L, K * k]``."""
    return combine(before[:, None, :, None], along[None, :, None, :]).flatten(2, 3).flatten(0, 1)
