"""The blocks of Perceiver, and the Fourier features it reads positions by."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geoattn.nn.latents import CrossAttention, feed_forward
from geoattn.patterns import Windows


class PerceiverBlock(nn.Module):
    r"""Attention and a perceptron, normalized first (Jaegle et al. 2021, "Perceiver" and "Perceiver IO").

    .. math::
        z \leftarrow z + \operatorname{Attention}(\operatorname{LN}(z), \operatorname{LN}(s)), \qquad
        z \leftarrow z + \operatorname{MLP}(\operatorname{LN}(z)),

    the cross attention of latents :math:`z` to a source :math:`s`, or with ``z`` as its own source the self-attention
    among latents. As in the authors' JAX code, queries, keys and values of a cross attention are as wide as the source,
    GELU is approximated by tanh, and weights begin as truncated normal numbers of variance ``1 / fan_in``. It was
    compared with the formulas only, not with that code's numbers.

    Args:
        channels: Features of ``z``.
        source_channels: Features of the source; default: self-attention.
        heads: Number of heads; divides the width of queries.
        expansion: Width of the perceptron over ``channels``.
        dropout: Of what the attention and the perceptron add, in training.

    Shapes:
        ``z`` ``[N, channels]``, ``source`` ``[M, source_channels]``; output ``[N, channels]``.
    """

    def __init__(
        self,
        channels: int,
        source_channels: int | None = None,
        heads: int = 8,
        expansion: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.norm_source = None if source_channels is None else nn.LayerNorm(source_channels)
        self.attention = CrossAttention(channels, heads, source_channels, source_channels)
        self.dropout = nn.Dropout(dropout)
        self.perceptron = feed_forward(channels, expansion, dropout, approximate="tanh")
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # Cut at two standard deviations, which makes the variance smaller.
                std = module.in_features**-0.5 / 0.87962566103423978
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, pattern: Windows, source: Tensor | None = None) -> Tensor:
        """One block; ``pattern`` has the latents as queries and the source, or the latents, as keys.

        Raises:
            ValueError: If a source is given to a self-attention, or none to a cross attention.
        """
        if (source is None) != (self.norm_source is None):
            raise ValueError("give a source if, and only if, the block was made with source_channels")
        x = self.norm(z)
        seen = x if source is None or self.norm_source is None else self.norm_source(source)
        z = z + self.dropout(self.attention(x, seen, pattern))
        return z + self.perceptron(z)


def fourier_features(pos: Tensor, bands: int, max_frequency: float) -> Tensor:
    r"""Sines and cosines of coordinates: :math:`\sin(\pi f_k p_a)`, then :math:`\cos(\pi f_k p_a)`.

    The frequencies :math:`f_k` are evenly spaced from 1 to ``max_frequency`` (Jaegle et al. 2021, section 3.2).

    Args:
        pos: Positions ``[N, P]``, in ``[-1, 1]``.
        bands: Number of frequencies ``K``.
        max_frequency: The highest frequency; half the number of samples between -1 and 1 that are told apart.

    Returns:
        ``[N, 2 * P * K]``, in float32 at least.
    """
    pos = pos.to(torch.promote_types(pos.dtype, torch.float32))
    frequency = torch.linspace(1.0, max_frequency, bands, dtype=pos.dtype, device=pos.device)
    angle = math.pi * (pos.unsqueeze(-1) * frequency).flatten(1)
    return torch.cat([angle.sin(), angle.cos()], 1)
