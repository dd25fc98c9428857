"""Linear attention over runs: keys and values are summed once per run, queries read the sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoattn._arguments import check_tensors, checked_integer
from geoattn.nn.sparse_conv import DepthwiseSubMConv3d
from geoattn.ops import segment_max, segment_sum
from geoattn.patterns import KernelMap, Windows

FeatureMap: TypeAlias = Literal["elu", "relu", "softmax"]


def linear_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Windows,
    feature_map: FeatureMap = "elu",
    key_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    r"""Attention without a softmax of scores, at a cost linear in the number of elements.

    For query ``i``, whose run sees the run of keys ``r``,

    .. math::
        o_i = \frac{\phi(q_i)^\top \sum_{j \in r} w_j \, \phi(k_j) \, v_j^\top}
                   {\phi(q_i)^\top \sum_{j \in r} w_j \, \phi(k_j) + \epsilon}

    with :math:`\phi(x) = \operatorname{elu}(x) + 1` (Katharopoulos et al., "Transformers are RNNs", ICML 2020) or
    :math:`\operatorname{relu}(x)` (ScatterFormer, He et al., ECCV 2024). With ``"softmax"`` it is the efficient
    attention of Shen et al. (WACV 2021), whose rows sum to one by themselves:

    .. math::
        o_i = \operatorname{softmax}(q_i)^\top G_r, \qquad
        G_{rd} = \frac{\sum_{j \in r} w_j \, e^{k_{jd}} \, v_j}{\sum_{j \in r} w_j \, e^{k_{jd}}}

    Computed in float32 at least. What is kept grows with the number of elements, plus ``[D, E]`` for every head of
    every run; differentiable any number of times. The same input gives the same bits, run after run.

    Args:
        query: ``[N, H, D]``.
        key: ``[M, H, D]``.
        value: ``[M, H, E]``.
        pattern: Of ``N`` queries and ``M`` keys.
        feature_map: :math:`\phi`.
        key_weight: Weight ``w`` of every key ``[M]``, such as the area it stands for; default: ones.
        eps: Added to the denominator, except with ``"softmax"``.

    Returns:
        ``[N, H, E]`` in the type of ``value``; zeros for queries that see no keys.

    Raises:
        TypeError: If an argument is no tensor, or ``pattern`` no `Windows`.
        ValueError: If shapes do not fit together, or there is no such ``feature_map``.
    """
    _check(query, key, value, pattern, feature_map, key_weight)
    dtype = torch.promote_types(value.dtype, torch.float32)
    with torch.autocast(value.device.type, enabled=False):
        q, k, v = (x.to(dtype) for x in (query, key, value))
        keys = _blocks(pattern.key_run[:, 0], pattern.key_run[:, 1])
        queries = _blocks(pattern.query_ptr[:-1], pattern.query_ptr[1:])
        k, v = _rows(k, keys.element), _rows(v, keys.element)
        if feature_map == "softmax":
            # Softmax does not change when a constant is subtracted: the largest key of the run.
            highest = segment_max(k.detach(), keys.run, num_segments=pattern.num_runs)
            q, k = q.softmax(-1), (k - _rows(highest, keys.run)).exp()
        else:
            q, k = (F.relu(x) if feature_map == "relu" else F.elu(x) + 1 for x in (q, k))
        if key_weight is not None:
            k = k * _rows(key_weight.to(dtype), keys.element).view(-1, 1, 1)

        k, v = keys.filled(k), keys.filled(v)
        state = segment_sum(torch.einsum("bshd,bshe->bhde", k, v), keys.run_of_block, num_segments=pattern.num_runs)
        total = segment_sum(k.sum(1), keys.run_of_block, num_segments=pattern.num_runs)
        if feature_map == "softmax":
            state = state / total.where(total > 0, 1).unsqueeze(-1)
        q = queries.filled(q)
        out = torch.einsum("bshd,bhde->bshe", q, _rows(state, queries.run_of_block))
        if feature_map != "softmax":
            norm = torch.einsum("bshd,bhd->bsh", q, _rows(total, queries.run_of_block))
            out = out / (norm + eps).unsqueeze(-1)
        return out.flatten(0, 1).index_select(0, queries.slot).to(value.dtype)


class _Blocks(NamedTuple):
    """Runs cut into blocks of equally many slots, of which the last of a run may have empty ones."""

    element: Tensor  # of every entry of a run, one run after the other, [P]
    run: Tensor  # of every entry
    slot: Tensor  # of every entry
    run_of_block: Tensor  # [B]
    size: int  # number of slots of a block

    def filled(self, x: Tensor) -> Tensor:
        """``[P, ...]`` in slots ``[B, size, ...]``, zeros in empty ones."""
        zeros = x.new_zeros(self.run_of_block.numel() * self.size, *x.shape[1:])
        return zeros.index_copy(0, self.slot, x).unflatten(0, (-1, self.size))


def _blocks(begin: Tensor, end: Tensor) -> _Blocks:
    """Of runs ``[R]``; blocks are a fraction of the mean run, so that few slots are empty and few sums are added."""
    begin, count = begin.long(), (end - begin).long()
    mean = int(count.sum()) // max(len(count), 1)
    size = min(max(1 << (mean // 4).bit_length(), 16), 1024)
    blocks = (count + size - 1) // size
    number = torch.arange(len(count), device=count.device)
    run = number.repeat_interleave(count)
    within = torch.arange(len(run), device=count.device) - (count.cumsum(0) - count)[run]
    slot = (blocks.cumsum(0) - blocks)[run] * size + within
    return _Blocks(begin[run] + within, run, slot, number.repeat_interleave(blocks), size)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows, whose gradients are summed in the same order run after run."""
    return x.index_select(0, index) if x.device.type == "cpu" else x[index]


def _check(
    query: Tensor, key: Tensor, value: Tensor, pattern: Windows, feature_map: str, key_weight: Tensor | None
) -> None:
    check_tensors(query=query, key=key, value=value)
    if not isinstance(pattern, Windows):
        raise TypeError(f"expected Windows as pattern, got {type(pattern).__name__}")
    if feature_map not in get_args(FeatureMap):
        raise ValueError(f"feature_map must be one of {', '.join(get_args(FeatureMap))}, got {feature_map!r}")
    queries, keys = pattern.num_queries, pattern.num_keys
    if query.dim() != 3 or query.size(0) != queries or key.shape != (keys, *query.shape[1:]):
        raise ValueError(
            f"expected query [{queries}, H, D] and key [{keys}, H, D], got {list(query.shape)} and {list(key.shape)}"
        )
    if value.dim() != 3 or value.shape[:2] != key.shape[:2]:
        raise ValueError(f"expected value [{keys}, {key.size(1)}, E], got {list(value.shape)}")
    if key_weight is not None:
        check_tensors(key_weight=key_weight)
        if key_weight.shape != (keys,):
            raise ValueError(f"expected key_weight [{keys}], got {list(key_weight.shape)}")


class LinearAttention(nn.Module):
    """Multi-head `linear_attend` among the elements of each run.

    Args:
        channels: Features of an element.
        heads: Number of heads; divides ``channels``.
        feature_map: That of `linear_attend`: ``"elu"``, ``"relu"``, or ``"softmax"`` for efficient attention.
        qkv_bias: Whether queries, keys and values have a bias.

    Shapes:
        ``x`` ``[N, channels]``, a pattern of ``N`` queries and keys, ``weight`` ``[N]``; output ``[N, channels]``.

    Raises:
        ValueError: If ``heads`` does not divide ``channels``.
    """

    def __init__(self, channels: int, heads: int = 4, feature_map: FeatureMap = "elu", qkv_bias: bool = False) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide channels, got {heads} and {channels}")
        self.heads, self.feature_map = heads, feature_map
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, pattern: Windows, weight: Tensor | None = None) -> Tensor:
        """Attend within runs; ``weight`` is the ``key_weight`` of `linear_attend`."""
        query, key, value = self.qkv(x).view(x.size(0), 3, self.heads, -1).unbind(1)
        return self.proj(linear_attend(query, key, value, pattern, self.feature_map, weight).flatten(1))


class ScatteredLinearAttention(LinearAttention):
    """Scattered linear attention of ScatterFormer (He et al., ECCV 2024): linear attention with ReLU within windows.

    Parameters have the names of the authors' ``SLALayer``. Windows may hold any number of voxels: nothing is padded to
    the fullest, and voxels are sorted once for all layers (`ScatterFormerStage`).

    Args:
        channels: Features of a voxel.
        heads: Number of heads; divides ``channels``.

    Shapes:
        ``x`` ``[N, channels]`` sorted by window, a pattern with one run per window; output ``[N, channels]``.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__(channels, heads, "relu")


class CrossWindowFeedForward(nn.Module):
    """The cross-window feed-forward network of ScatterFormer, by which windows learn of each other.

    Of four groups of channels, three go through depth-wise submanifold convolutions: of 3 x 3 x 3 voxels, and of a
    row of one more than a window's side along either axis of the ground; then a perceptron follows. As in the authors'
    ``CWI_FFN_Layer``, whose names parameters have, the first batch norm has no residual around it.

    Args:
        channels: Features of a voxel; a multiple of 4.
        window: Side of a window in voxels; the row has ``window + 1``, which must be odd.

    Shapes:
        ``x`` ``[N, channels]``, three maps as `ScatterFormerStage` makes them; output ``[N, channels]``.

    Raises:
        ValueError: If ``channels`` is no multiple of 4, or ``window`` is odd.
    """

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"channels must be a multiple of 4, got {channels}")
        self.bn = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)
        self.conv_k, self.conv_h, self.conv_w = (
            DepthwiseSubMConv3d(channels // 4, size) for size in _kernel_sizes(window)
        )
        self.bn2 = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)
        self.fc1 = nn.Linear(channels, 2 * channels)
        self.fc2 = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor, maps: Sequence[KernelMap]) -> Tensor:
        """Mix along ``maps``, then channel by channel."""
        x = self.bn(x)
        *parts, same = x.chunk(4, 1)
        convolutions = self.conv_k, self.conv_h, self.conv_w
        mixed = [conv(part.contiguous(), of) for conv, part, of in zip(convolutions, parts, maps, strict=True)]
        x = x + torch.cat([*mixed, same], 1)
        return x + self.fc2(F.relu(self.fc1(self.bn2(x))))


class ScatterFormerStage(nn.Module):
    """Blocks of ScatterFormer on the voxels of one resolution, and the sorting that they share.

    Each block adds `ScatteredLinearAttention` of the batch-normalized features and goes through a
    `CrossWindowFeedForward`. Windows are columns of ``window`` x ``window`` voxels of the ground and full height. What
    is not here of the authors' backbone are its strided convolutions and the pooling of pillars. Parameters have the
    names of their ``ScatterFormerLayer3x``.

    Args:
        channels: Features of a voxel; a multiple of 4.
        heads: Number of heads; divides ``channels``.
        layers: Number of blocks.
        window: Side of a window in voxels, even.

    Shapes:
        ``x`` ``[N, channels]``, ``grid`` ``[N, 3]`` in the order (z, y, x) of the authors, ``batch`` ``[N]``; output
        ``[N, channels]`` in the order of ``x``.

    Raises:
        ValueError: If ``heads`` does not divide ``channels``, 4 does not, or ``window`` is odd.
    """

    def __init__(self, channels: int, heads: int = 4, layers: int = 3, window: int = 12) -> None:
        super().__init__()
        self.window = window
        self.norm_layers = nn.ModuleList(nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01) for _ in range(layers))
        self.attn_layers = nn.ModuleList(ScatteredLinearAttention(channels, heads) for _ in range(layers))
        self.cffn_layers = nn.ModuleList(CrossWindowFeedForward(channels, window) for _ in range(layers))

    def forward(self, x: Tensor, grid: Tensor, batch: Tensor | None = None) -> Tensor:
        """All blocks.

        Raises:
            ValueError: If a voxel is there twice, or shapes or types are wrong, as in `KernelMap.from_grid`.
        """
        order, pattern = _windows(grid, batch, self.window)
        placed, sample = grid[order], None if batch is None else batch[order]
        maps = [KernelMap.from_grid(placed, size, sample) for size in _kernel_sizes(self.window)]
        inverse = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        x = x.index_select(0, order)
        for norm, attention, feed_forward in zip(self.norm_layers, self.attn_layers, self.cffn_layers, strict=True):
            x = feed_forward(x + attention(norm(x), pattern), maps)
        return x.index_select(0, inverse)


def _kernel_sizes(window: int) -> list[tuple[int, int, int]]:
    """Of the three convolutions across windows, along (z, y, x)."""
    window = checked_integer("window", window, least=1)
    if window % 2:
        raise ValueError(f"window must be even, so that a row of one voxel more has a centre, got {window}")
    return [(3, 3, 3), (1, 1, window + 1), (1, window + 1, 1)]


def _windows(grid: Tensor, batch: Tensor | None, window: int) -> tuple[Tensor, Windows]:
    """The order of voxels by sample and window, and one run for each window."""
    sample = torch.zeros_like(grid[:, 0]) if batch is None else batch.to(grid.dtype)
    place = torch.cat([sample.unsqueeze(1), grid[:, 1:].div(window, rounding_mode="floor")], 1)
    _, number, counts = place.unique(dim=0, return_inverse=True, return_counts=True)
    order = number.argsort(stable=True)
    return order, Windows(torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
