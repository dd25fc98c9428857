"""Balls of a balanced tree as windows: what Erwin (Zhdanov et al. 2025) attends in.

A cloud is halved along its longest side again and again, so that every node has as many points as any other of its
level. With the points in the tree's order, each node is a run: attention inside balls is attention in equal windows.

    tree = ball_tree(pos, batch)
    balls = tree.balls(64)
    out = attend(query[tree.index], key[tree.index], value[tree.index], balls)[tree.slot]

Balls have fixed borders. So that points on both sides of one meet, other layers attend in the balls of turned
coordinates: `ball_order` of these is one more rearrangement, and the windows stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geoattn._arguments import checked_integer
from geoattn.geometry.nth_element import nth_element
from geoattn.geometry.search import checked_pos, samples
from geoattn.patterns.windows import Windows


@dataclass(frozen=True, eq=False)
class BallTree:
    """The points of every cloud in the order of a tree, filled up to a power of two: what `ball_tree` finds.

    Args:
        index: The point in each slot, ``[S]`` int64; each has one slot or, beside each other, several.
        slot: The slot of each point, ``[N]`` int64: ``index[slot[n]] == n``; the other slots hold copies.
        counts: Number of slots of each cloud, ``[B]``: powers of two.
    """

    index: Tensor
    slot: Tensor
    counts: Tensor

    def balls(self, size: int, stride: int = 1) -> Windows:
        """Windows of ``size`` slots each, or all slots of a cloud that has fewer.

        Args:
            size: Number of slots of a ball, a power of two.
            stride: So many slots that follow each other have been pooled into one before.

        Raises:
            TypeError: If ``size`` or ``stride`` is no integer.
            ValueError: If one of them is no power of two, or ``stride`` is more than the slots of a cloud.
        """
        return Windows.along(_power_of_two("size", size), counts=self.pooled(stride))

    def pooled(self, stride: int) -> Tensor:
        """Number of slots of each cloud ``[B]`` once every ``stride`` of them are one; errors as of `balls`."""
        if _power_of_two("stride", stride) > int(self.counts.min() if len(self.counts) else stride):
            raise ValueError(
                f"stride {stride} is more than the {int(self.counts.min())} slots of a cloud: "
                f"make the tree with least={stride}"
            )
        return self.counts // stride


@torch.compiler.disable  # sizes depend on the data
def ball_tree(pos: Tensor, batch: Tensor | None = None, least: int = 2) -> BallTree:
    """A balanced tree over the points of each cloud (Zhdanov et al. 2025), as ``balltree-erwin`` makes it.

    A node of ``c`` points is cut across its longest side, the first of several that are as long, into the
    ``floor(c / 2)`` lowest and the others, until each has 1 or 2; one that is alone fills two slots. So a cloud has the
    next power of two of slots, and every aligned run of ``2^j`` slots is a node. Trees equal those of the authors'
    package, the order of points in a node included, which that leaves to the C++ library
    (`geoattn.geometry.nth_element`). No gradient flows to positions.

    Args:
        pos: Points ``[N, D]``.
        batch: Cloud of every point ``[N]``, ascending. Default: one cloud.
        least: Slots that a cloud has at least, a power of two: smaller ones get more copies of each point (ours; the
            package refuses a single point).

    Raises:
        TypeError: If points or clouds are no tensors, or ``least`` is no integer.
        ValueError: On bad shapes, coordinates that are not finite, clouds that do not ascend, or if ``least`` is no
            power of two.

    Example:
        >>> ball_tree(torch.tensor([[4.0], [0.0], [3.0], [1.0], [9.0]])).index
        tensor([1, 1, 3, 3, 2, 2, 0, 4])
    """
    least = _power_of_two("least", least)
    pos = checked_pos("pos", pos)
    counts = samples("batch", batch, pos)[1].diff() if len(pos) else pos.new_zeros(0, dtype=torch.int64)
    slots = [1 << (n - 1).bit_length() for n in counts.tolist()]
    leaves = [max(n // 2, 1) for n in slots]
    order, leaf, cloud = _halved(pos, counts, [n.bit_length() - 1 for n in leaves])
    slots = [max(n, least) for n in slots]
    slots_of_leaf = counts.new_tensor([n // parts for n, parts in zip(slots, leaves, strict=True)])[cloud]
    copies = (slots_of_leaf // leaf).repeat_interleave(leaf)  # of each point
    slot = torch.empty_like(order)
    slot[order] = copies.cumsum(0) - copies
    return BallTree(order.repeat_interleave(copies), slot, counts.new_tensor(slots))


@torch.compiler.disable
def ball_order(pos: Tensor, counts: Tensor, size: int) -> Tensor:
    """Slots rearranged so that runs of ``size`` are balls of other positions than the tree's, such as turned ones.

    Args:
        pos: A position for every slot ``[S, D]``.
        counts: Slots of each cloud ``[B]``, powers of two: `BallTree.counts`, or `BallTree.pooled`.
        size: Number of slots of a ball, a power of two.

    Returns:
        Which slot goes to each place ``[S]``; every cloud keeps its places.

    Raises:
        TypeError: If points are no tensor, or ``size`` is no integer.
        ValueError: On bad shapes, coordinates that are not finite, or if ``size`` is no power of two.
    """
    size = _power_of_two("size", size)
    pos = checked_pos("pos", pos)
    if int(counts.sum()) != len(pos) or any(n & (n - 1) for n in counts.tolist()):
        raise ValueError(
            f"counts must be powers of two whose sum is {len(pos)}, as of ball_tree, got {counts.tolist()}"
        )
    return _halved(pos, counts, [max(n // size, 1).bit_length() - 1 for n in counts.tolist()])[0]


def _halved(pos: Tensor, counts: Tensor, levels: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The order of points ``[N]`` after so many cuts of each cloud, and the size and the cloud of each node."""
    pos = pos.double()
    order = torch.arange(len(pos), device=pos.device)
    size, cloud = counts, torch.arange(len(counts), device=pos.device)
    for level in range(max(levels, default=0)):
        node = torch.arange(len(size), device=pos.device).repeat_interleave(size)
        x = pos[order]
        rows, corner = node.unsqueeze(1).expand_as(x), x.new_zeros(len(size), x.size(1))
        low = corner.scatter_reduce(0, rows, x, "amin", include_self=False)
        high = corner.scatter_reduce(0, rows, x, "amax", include_self=False)
        axis = (high - low).argmax(1)
        end, half = size.cumsum(0), size // 2
        begin = end - size
        cut = counts.new_tensor(levels)[cloud] > level
        key = x.gather(1, axis[node].unsqueeze(1)).squeeze(1)
        order = order[nth_element(key, begin[cut], end[cut], (begin + half)[cut])]
        halves = torch.stack([half.where(cut, size), size - half], 1)
        size = halves[torch.stack([torch.ones_like(cut), cut], 1)]
        cloud = cloud.repeat_interleave(1 + cut.long())
    return order, size, cloud


def _power_of_two(name: str, value: int) -> int:
    value = checked_integer(name, value, least=1)
    if value & (value - 1):
        raise ValueError(f"{name} must be a power of two, got {value}")
    return value
