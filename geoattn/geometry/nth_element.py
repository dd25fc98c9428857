"""Many ranges of numbers, each parted at one place, all at once."""

from __future__ import annotations

import torch
from torch import Tensor


def nth_element(key: Tensor, begin: Tensor, end: Tensor, nth: Tensor) -> Tensor:
    """Rearrange each range so that nothing before its ``nth`` place is larger than what is there, or after it smaller.

    The rearrangement is that of ``std::nth_element`` in libstdc++, GCC's library, to the last exchange: on trees that
    were built with it, and on what was trained on their order, other code is equal only so. Where libstdc++ would give
    up dividing and build a heap, which takes rare and adverse numbers, the rest is sorted instead.

    Args:
        key: Numbers ``[N]``, without NaN.
        begin: Where each range begins, ``[R]``; ranges do not overlap.
        end: Where it ends, ``[R]``.
        nth: A place in it, ``[R]``.

    Returns:
        Which number goes to each place, ``[N]`` int64; outside of the ranges they stay.
    """
    key, order = key.clone(), torch.arange(len(key), device=key.device)
    first, last = begin.clone(), end.clone()
    longest = int((end - begin).max()) if len(begin) else 0
    for _ in range(2 * (longest.bit_length() - 1)):
        long = (last - first > 3).nonzero().squeeze(1)
        if not len(long):
            break
        low, high = first[long], last[long]
        _exchange(key, order, low, _median(key, low, high))
        cut = _partition(key, order, low + 1, high, key[low])
        after = cut <= nth[long]
        first[long], last[long] = torch.where(after, cut, low), torch.where(after, high, cut)
    of_range, place = _members(first, last)
    by_key = key[place].argsort(stable=True)
    by_range = by_key[of_range[by_key].argsort(stable=True)]
    order[place] = order[place[by_range]]
    return order


def _median(key: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The place of the median of the second, the middle and the last number of each range."""
    three = torch.stack([low + 1, low + (high - low) // 2, high - 1])
    a, b, c = key[three]
    rising = torch.where(b < c, 1, torch.where(a < c, 2, 0))
    falling = torch.where(a < c, 0, torch.where(b < c, 2, 1))
    return three.gather(0, torch.where(a < b, rising, falling).unsqueeze(0))[0]


def _partition(key: Tensor, order: Tensor, low: Tensor, high: Tensor, pivot: Tensor) -> Tensor:
    """Hoare's partition of each range, one of whose numbers is not below the pivot: where the second part begins.

    From the left come the numbers not below the pivot, from the right those not above it; the first of the one are
    exchanged with the first of the other until they meet.
    """
    of_range, place = _members(low, high)
    x, p = key[place], pivot[of_range]
    from_left = (~(x < p)).nonzero().squeeze(1)
    from_right = (~(p < x)).nonzero().squeeze(1).flip(0)
    lefts = torch.bincount(of_range[from_left], minlength=len(low))
    rights = torch.bincount(of_range[from_right], minlength=len(low))
    first_left, first_right = lefts.cumsum(0) - lefts, rights.flip(0).cumsum(0).flip(0) - rights

    left, of_left = place[from_left], of_range[from_left]
    rank = torch.arange(len(left), device=key.device) - first_left[of_left]
    paired = rank < rights[of_left]
    left, of_left, rank = left[paired], of_left[paired], rank[paired]
    right = place[from_right[first_right[of_left] + rank]]
    apart = left < right
    _exchange(key, order, left[apart], right[apart])

    done = torch.bincount(of_left[apart], minlength=len(low))
    cut = high.clone()
    more = done < lefts
    cut[more] = place[from_left[(first_left + done)[more]]]
    some = done > 0
    cut[some] = torch.minimum(cut[some], place[from_right[(first_right + done - 1)[some]]])
    return cut


def _exchange(key: Tensor, order: Tensor, one: Tensor, other: Tensor) -> None:
    to, source = torch.cat([one, other]), torch.cat([other, one])
    key[to], order[to] = key[source], order[source]


def _members(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Of all places in ranges: the range, and the place."""
    size = end - begin
    of_range = torch.arange(len(size), device=size.device).repeat_interleave(size)
    return of_range, torch.arange(len(of_range), device=size.device) + (begin - (size.cumsum(0) - size))[of_range]
