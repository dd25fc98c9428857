"""The block of a mesh transformer: attention along the edges of a mesh, and a gated feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoattn.ops.attend import attend
from geoattn.patterns.adjacency import Adjacency, as_neighbors


class RMSNorm(nn.Module):
    r"""Divides every row by the root of its mean square, to which a small number is added *outside* the root.

    .. math::
        y = \frac{x}{\lVert x \rVert_2 / \sqrt{d} + \varepsilon} \cdot s

    `torch.nn.RMSNorm` adds it to the mean square, inside the root; no value of its ``eps`` gives these numbers for all
    rows. Half types are normalized in float32.

    Args:
        channels: Number of features ``d``.
        eps: The small number :math:`\varepsilon`.

    Shapes:
        ``[..., d]`` to ``[..., d]``.
    """

    def __init__(self, channels: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to 1."""
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        root_mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) / x.size(-1) ** 0.5
        return (wide / (root_mean_square + self.eps) * self.scale).to(x.dtype)

    def extra_repr(self) -> str:
        """Size and eps."""
        return f"{self.scale.numel()}, eps={self.eps}"


class MaskedAttention(nn.Module):
    r"""Multi-head attention of every node over the nodes that its edges come from.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i)} \operatorname{softmax}_j
        \Bigl( \frac{(W_q x_i + b_q)^\top (W_k x_j + b_k)}{\sqrt{d}} \Bigr) (W_v x_j + b_v), \qquad
        y_i = W_o o_i + b_o

    in each of ``heads`` heads of :math:`d` channels. The head is the *fastest* axis of the projected features: channel
    ``c`` belongs to head ``c % heads``. A node that no edge leads to has :math:`o_i = 0`.

    The adjacency-masked attention of Garnier et al., "Training Transformers for Mesh-Based Simulations" (2025, arXiv
    2508.18051), with the parameter names of their code, https://github.com/DonsetPG/graph-physics. There, nodes of
    ``edge_index[0]`` attend to those of ``edge_index[1]``; here, as in all layers of PyG, ``edge_index[1]`` are those
    that attend. Of a mesh, whose edges go both ways, that is the same; turn other graphs by ``edge_index.flip(0)``. Of
    the options of their code, rotary embeddings of positions and an output gate are left out.

    Args:
        channels: Features of a node.
        heads: Number of heads; divides ``channels``.
        self_loops: Whether every node attends to itself, too.

    Shapes:
        ``x`` ``[N, channels]``; graph of ``N`` nodes, see `geoattn.patterns.as_neighbors`; output ``[N, channels]``.
    """

    def __init__(self, channels: int, heads: int, self_loops: bool = False) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide channels, got {heads} and {channels}")
        self.heads, self.self_loops = heads, self_loops
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.proj):
            linear.reset_parameters()

    def forward(self, x: Tensor, edge_index: Adjacency) -> Tensor:
        """Attend along ``edge_index``."""
        pattern = as_neighbors(edge_index, x.size(0), self_loops=self.self_loops)
        query, key, value = (
            linear(x).unflatten(1, (-1, self.heads)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = attend(query, key, value, pattern)
        return self.proj(out.transpose(1, 2).flatten(1))


class GatedLinear(nn.Module):
    r"""Two linear maps, of which one gates the other: :math:`\operatorname{GELU}(W_1 x + b_1) \odot (W_2 x + b_2)`.

    Args:
        in_channels: Features in.
        out_channels: Features out.

    Shapes:
        ``[..., in_channels]`` to ``[..., out_channels]``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_channels, out_channels)
        self.linear2 = nn.Linear(in_channels, out_channels)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.linear1.reset_parameters()
        self.linear2.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map and gate."""
        return F.gelu(self.linear1(x)) * self.linear2(x)


class MeshTransformerBlock(nn.Module):
    r"""A block of the mesh transformer: masked attention and a gated feed-forward network, each added to its input.

    .. math::
        x &\leftarrow x + \operatorname{Attention}(\operatorname{RMSNorm}_1(x)) \\
        x &\leftarrow x + W_3 \operatorname{Gated}(\operatorname{RMSNorm}_3(\operatorname{RMSNorm}_2(x))) + b_3

    with `MaskedAttention`, and `GatedLinear` of three times the width: the second norm is followed by one of the
    feed-forward network's own. Of :math:`h` channels, a block has :math:`13 h^2 + 14 h` parameters.

    Garnier et al., "Training Transformers for Mesh-Based Simulations" (2025, arXiv 2508.18051), with the parameter
    names of their code. The graph may be more than the mesh: `Neighbors.k_hop` and `geoattn.patterns.augment` reach
    farther.

    Args:
        channels: Features of a node.
        heads: Number of heads; divides ``channels``.
        self_loops: Whether every node attends to itself, too; not so in their code.

    Shapes:
        ``x`` ``[N, channels]``; graph of ``N`` nodes, see `geoattn.patterns.as_neighbors`; output ``[N, channels]``.

    Example:
        >>> import torch
        >>> from geoattn.patterns import Neighbors
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> block = MeshTransformerBlock(32, heads=4)
        >>> block(torch.randn(3, 32), Neighbors.k_hop(edge_index, 2, self_loops=False)).shape
        torch.Size([3, 32])
    """

    def __init__(self, channels: int, heads: int, self_loops: bool = False) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels)
        self.attention = MaskedAttention(channels, heads, self_loops)
        self.norm2 = RMSNorm(channels)
        self.gated_mlp = nn.Sequential(
            RMSNorm(channels), GatedLinear(channels, 3 * channels), nn.Linear(3 * channels, channels)
        )

    def reset_parameters(self) -> None:
        """Draw all weights anew and set the scales to 1."""
        for module in (self.norm1, self.attention, self.norm2, *self.gated_mlp):
            module.reset_parameters()

    def forward(self, x: Tensor, edge_index: Adjacency) -> Tensor:
        """Attend along ``edge_index``, then transform every node."""
        x = x + self.attention(self.norm1(x), edge_index)
        return x + self.gated_mlp(self.norm2(x))
