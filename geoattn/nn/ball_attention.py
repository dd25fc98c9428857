"""Attention inside the balls of a tree (Zhdanov et al. 2025, Erwin)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from geoattn.nn.position_bias import DistanceBias
from geoattn.ops import segment_mean
from geoattn.ops.attend import attend
from geoattn.patterns.windows import Windows, check_windows


class BallAttention(nn.Module):
    r"""Multi-head attention in windows of points, scored by features and distances (Zhdanov et al. 2025, Section 3.2).

    .. math::
        y_i = x_i + W (p_i - \bar p), \qquad
        s_{hij} = \frac{q_{hi}^\top k_{hj}}{\sqrt{E}} + \sigma_h \, |p_i - p_j|

    where :math:`\bar p` is the mean position of the ball, and queries, keys and values are linear in :math:`y`. Numbers
    and layout are those of the authors' code, in which the factor :math:`\sigma_h` (`DistanceBias`) may have any sign.

    Args:
        channels: Features of a point.
        heads: Number of heads; divides ``channels``.
        axes: Number of coordinates ``P``.

    Shapes:
        ``x`` ``[S, channels]``, ``pos`` ``[S, P]``, balls of ``S`` slots (`BallTree.balls`); output ``[S, channels]``.
    """

    def __init__(self, channels: int, heads: int, axes: int = 3) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide channels, got {heads} and {channels}")
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.pe_proj = nn.Linear(axes, channels)
        self.bias = DistanceBias(heads)

    def forward(self, x: Tensor, pos: Tensor, balls: Windows) -> Tensor:
        """Attend inside each ball.

        Raises:
            TypeError: If ``balls`` are no `Windows`, such as the `BallTree` itself.
            ValueError: If shapes do not fit.
        """
        check_windows(balls, "balls", "geoattn.patterns.ball_tree(...).balls(size)")
        if x.dim() != 2 or len(x) != len(pos):
            raise ValueError(f"expected x [S, C] and pos [S, P], got {tuple(x.shape)} and {tuple(pos.shape)}")
        center = segment_mean(pos, ptr=balls.query_ptr).repeat_interleave(balls.query_ptr.diff(), 0)
        x = x + self.pe_proj(pos - center)
        query, key, value = self.qkv(x).unflatten(1, (self.heads, -1, 3)).unbind(-1)  # which of the three runs fastest
        return self.proj(attend(query, key, value, balls, self.bias, position=pos).flatten(1))


class SwiGLU(nn.Module):
    r"""The gated perceptron :math:`W_3 (W_2 x \odot \operatorname{SiLU}(W_1 x))` (Shazeer 2020).

    Args:
        channels: Features.
        hidden: Width of the hidden layer.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(channels, hidden)
        self.w2 = nn.Linear(channels, hidden)
        self.w3 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        return self.w3(self.w2(x) * F.silu(self.w1(x)))


class BallBlock(nn.Module):
    """A transformer block in balls: `BallAttention` and `SwiGLU`, each normalised first and added to its input.

    Args:
        channels: Features of a point.
        heads: Number of heads; divides ``channels``.
        expansion: Width of the perceptron over ``channels``.
        axes: Number of coordinates ``P``.

    Shapes:
        As `BallAttention`.
    """

    def __init__(self, channels: int, heads: int, expansion: int = 4, axes: int = 3) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(channels)
        self.norm2 = nn.RMSNorm(channels)
        self.attention = BallAttention(channels, heads, axes)
        self.swiglu = SwiGLU(channels, expansion * channels)

    def forward(self, x: Tensor, pos: Tensor, balls: Windows) -> Tensor:
        """One block."""
        x = x.to(self.norm1.weight.dtype)  # under autocast, the mean of squares wants more than half a float
        x = x + self.attention(self.norm1(x), pos, balls)
        return x + self.swiglu(self.norm2(x))
