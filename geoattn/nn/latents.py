"""Global attention through a few latents."""

from __future__ import annotations

from torch import Tensor, nn

from geoattn.ops.attend import attend
from geoattn.patterns import Windows


class CrossAttention(nn.Module):
    """Multi-head dot-product attention of one set on another (Vaswani et al. 2017), ragged over samples.

    Args:
        channels: Features of ``x`` and of the output.
        heads: Number of heads; divides ``inner_channels``.
        source_channels: Features of ``source``; default: ``channels``.
        inner_channels: Features of queries, keys and values; default: ``channels``.

    Shapes:
        ``x`` ``[N, channels]``, ``source`` ``[M, source_channels]``, ``weight`` ``[M]``; output ``[N, channels]``.
    """

    def __init__(
        self, channels: int, heads: int = 4, source_channels: int | None = None, inner_channels: int | None = None
    ) -> None:
        super().__init__()
        source_channels = channels if source_channels is None else source_channels
        inner_channels = channels if inner_channels is None else inner_channels
        if heads < 1 or inner_channels % heads:
            raise ValueError(f"heads must divide channels, got {heads} and {inner_channels}")
        self.heads = heads
        self.query = nn.Linear(channels, inner_channels)
        self.key_value = nn.Linear(source_channels, 2 * inner_channels)
        self.out = nn.Linear(inner_channels, channels)

    def forward(self, x: Tensor, source: Tensor, pattern: Windows, weight: Tensor | None = None) -> Tensor:
        """Attend from ``x`` to ``source``; ``weight`` is `attend`'s ``key_weight``."""
        query = self.query(x).unflatten(1, (self.heads, -1))
        key, value = self.key_value(source).unflatten(1, (2, self.heads, -1)).unbind(1)
        return self.out(attend(query, key, value, pattern, key_weight=weight).flatten(1))


def feed_forward(channels: int, expansion: int, dropout: float, approximate: str = "none") -> nn.Sequential:
    """The transformer's two-layer perceptron, normalised first; ``approximate`` is that of `torch.nn.GELU`."""
    return nn.Sequential(
        nn.LayerNorm(channels),
        nn.Linear(channels, expansion * channels),
        nn.GELU(approximate),
        nn.Dropout(dropout),
        nn.Linear(expansion * channels, channels),
    )


class LatentAttention(nn.Module):
    """All elements of a sample exchange what they know through its latents, at a cost linear in their number.

    Latents read from the elements, weighted by area so that a finer mesh of the same surface says the same;
    they attend to each other; the elements read from them. It joins the reading and processing of Perceiver (Jaegle
    et al. 2021) and the induced set attention of Lee et al. (2019), with normalisation first and residuals.

    Args:
        channels: Features of elements and latents.
        heads: Number of heads.
        expansion: Width of the latents' perceptron over ``channels``.
        dropout: In the perceptron, in training.

    Shapes:
        ``x`` ``[N, channels]``, ``latents`` ``[L, channels]``, ``weight`` ``[N]``; outputs as ``x`` and ``latents``.
    """

    def __init__(self, channels: int, heads: int = 4, expansion: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_x = nn.LayerNorm(channels)
        self.norm_read = nn.LayerNorm(channels)
        self.norm_mix = nn.LayerNorm(channels)
        self.norm_write = nn.LayerNorm(channels)
        self.read = CrossAttention(channels, heads)
        self.mix = CrossAttention(channels, heads)
        self.write = CrossAttention(channels, heads)
        self.perceptron = feed_forward(channels, expansion, dropout)

    def forward(self, x: Tensor, latents: Tensor, weight: Tensor, reading: Windows) -> tuple[Tensor, Tensor]:
        """One exchange; ``reading`` says which elements (its keys) belong with which latents (its queries)."""
        seen = self.norm_x(x)
        latents = latents + self.read(self.norm_read(latents), seen, reading, weight)
        own = self.norm_mix(latents)
        latents = latents + self.mix(own, own, reading.among_queries)
        latents = latents + self.perceptron(latents)
        return x + self.write(seen, self.norm_write(latents), reading.transpose), latents
