"""Attention among points that follow each other along a space-filling curve."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from geoattn._arguments import check_tensors, checked_integer
from geoattn.nn.position_bias import RelativePositionTable
from geoattn.ops.attend import attend
from geoattn.ops.permute import permute_rows
from geoattn.patterns import Windows


class SerializedAttention(nn.Module):
    r"""Attention within patches of points along a curve (Wu et al. 2024, Point Transformer V3, Section 4.3).

    .. math::
        y = W_o \operatorname{softmax}\Bigl(\tfrac{q k^\top}{\sqrt{D}} + B\Bigr) v
        \qquad \text{in every patch of } K \text{ points that follow each other}

    A cloud's last patch is filled up with points of the one before, as the authors do; here the runs of keys overlap,
    and nothing is padded. Clouds of fewer than ``K`` points are one patch. Parameters are named as theirs.

    Args:
        channels: Features of a point ``C``.
        heads: Number of heads ``H``, each of ``C / H`` channels.
        patch_size: Number of points ``K`` of a patch.
        relative_positions: Whether scores have a learned term ``B`` for how far apart two voxels are along each axis
            (`RelativePositionTable`).
        dropout: Of attention weights and of the output, in training.

    Shapes:
        ``x`` ``[N, C]``, ``order`` and ``inverse`` ``[N]`` (one row of `geoattn.geometry.serialize`), ``grid_coord``
        ``[N, 3]`` integers; output ``[N, C]``.

    Raises:
        TypeError: If the patch size is no integer.
        ValueError: If heads do not divide channels, or the patch size is less than 1.

    Example:
        >>> grid = torch.randint(0, 64, (1000, 3))
        >>> found = geoattn.geometry.serialize(grid)
        >>> layer = SerializedAttention(32, heads=4, patch_size=128)
        >>> layer(torch.randn(1000, 32), found.order[0], found.inverse[0], layer.windows([1000])).shape
        torch.Size([1000, 32])
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        patch_size: int = 1024,
        relative_positions: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide channels, got {channels} channels and {heads} heads")
        self.heads = heads
        self.patch_size = checked_integer("patch_size", patch_size, least=1)
        self.dropout = dropout
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.rpe = RelativePositionTable(heads, patch_size) if relative_positions else None

    def windows(self, counts: Tensor | list[int]) -> Windows:
        """The patches of clouds of ``counts`` ``[B]`` points; layers that work on the same clouds can share them."""
        return Windows.along(self.patch_size, counts=counts, borrow=True)

    def forward(
        self, x: Tensor, order: Tensor, inverse: Tensor, windows: Windows, grid_coord: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            x: Features.
            order: The points along the curve, cloud after cloud.
            inverse: Where each point stands in ``order``.
            windows: The patches, of `windows`.
            grid_coord: The voxels, for relative positions.

        Raises:
            TypeError: If something is no tensor.
            ValueError: If shapes do not fit, or there are relative positions and no voxels.
        """
        check_tensors(x=x, order=order, inverse=inverse)
        if x.dim() != 2 or not order.shape == inverse.shape == x.shape[:1]:
            raise ValueError(
                "expected x [N, C] and one row [N] each of geoattn.geometry.serialize(...).order and .inverse, "
                f"got {tuple(x.shape)}, {tuple(order.shape)} and {tuple(inverse.shape)}"
            )
        if self.rpe is not None and grid_coord is None:
            raise ValueError("relative positions need grid_coord [N, 3], the voxel of every point")
        query, key, value = permute_rows(self.qkv(x), order, inverse).unflatten(1, (3, self.heads, -1)).unbind(1)
        dropout = self.dropout if self.training else 0.0
        if self.rpe is None or grid_coord is None:
            out = attend(query, key, value, windows, dropout=dropout)
        else:
            out = attend(query, key, value, windows, self.rpe, dropout=dropout, position=grid_coord[order])
        out = permute_rows(out.flatten(1), inverse, order)
        return F.dropout(self.proj(out), self.dropout, self.training)
