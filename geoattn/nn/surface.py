"""Attention among points of a surface, by what they are and by where they lie."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoattn.ops.attend import Pattern, attend


class SurfaceAttention(nn.Module):
    r"""Multi-head attention whose score knows distances and normals, and whose output knows directions.

    For the elements ``i`` of a surface, with positions :math:`p`, unit normals :math:`n` and intrinsic coordinates
    :math:`s` (in which distance is a distance along the surface), head ``h`` scores

    .. math::
        q_i^\top k_j / \sqrt{D} - \alpha_i |p_j - p_i|^2 - \beta_i |s_j - s_i|^2
        + \gamma_i \, n_i^\top (p_j - p_i) + \delta_i \, n_i^\top n_j,

    where :math:`\alpha, \beta \ge 0, \gamma, \delta` are linear in the features of ``i``: how far to look, in space and
    along the surface, and whether inwards or outwards. All of it is a dot product of lengthened queries and keys, so
    nothing is stored per edge. Beside the values, the head averages :math:`p_j - p_i` and :math:`n_j`, of which
    the length and the component along :math:`n_i` join its output. Turning or moving the surface changes nothing.

    The layer is ours; the invariant reading of averaged points follows invariant point attention (Jumper et al. 2021,
    algorithm 22), with a normal in place of a frame.

    Args:
        channels: Features of an element.
        heads: Number of heads; divides ``channels``.
        reach: The distance at which :math:`\alpha` and :math:`\beta` begin to matter, in the unit of ``pos``.

    Shapes:
        ``x`` ``[N, channels]``, ``pos`` ``[N, 3]``, ``normal`` ``[N, 3]``, ``spectral`` ``[N, S]``, pattern of ``N``
        queries and keys; output ``[N, channels]``.
    """

    def __init__(self, channels: int, heads: int = 4, reach: float = 0.2) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide channels, got {heads} and {channels}")
        self.heads, self.reach = heads, reach
        self.qkv = nn.Linear(channels, 3 * channels)
        self.geometry = nn.Linear(channels, 4 * heads)
        self.out = nn.Linear(channels + 4 * heads, channels)
        nn.init.zeros_(self.geometry.weight)
        nn.init.zeros_(self.geometry.bias)

    def forward(self, x: Tensor, pos: Tensor, normal: Tensor, spectral: Tensor, pattern: Pattern) -> Tensor:
        """Attend along ``pattern``."""
        count = x.size(0)
        query, key, value = self.qkv(x).view(count, 3, self.heads, -1).unbind(1)
        near, near_along, out, facing = self.geometry(x).view(count, 4, self.heads, 1).unbind(1)
        # Scores are compared within a row only: terms that depend on the query alone are left out.
        near = F.softplus(near) / self.reach**2
        near_along = F.softplus(near_along) / self.reach**2
        p, n, s = pos.unsqueeze(1), normal.unsqueeze(1), spectral.unsqueeze(1)
        scale = query.size(-1) ** -0.5
        query = torch.cat(
            [
                query * scale,
                2 * near * p + out / self.reach * n,
                -near,
                2 * near_along * s,
                -near_along,
                facing * n,
            ],
            -1,
        )
        place = torch.cat([p, p.square().sum(-1, True), s, s.square().sum(-1, True), n], -1)
        key = torch.cat([key, place.expand(-1, self.heads, -1)], -1)
        value = torch.cat([value, torch.cat([p, n], -1).expand(-1, self.heads, -1)], -1)

        # Squares of positions cancel in these products: half precision would leave nothing of distances.
        query, key, value = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (query, key, value))
        with torch.autocast(x.device.type, enabled=False):
            found = attend(query, key, value, pattern, scale=1.0)
        found, mean_p, mean_n = found.split([found.size(-1) - 6, 3, 3], -1)
        offset = (mean_p - p) / self.reach
        directions = torch.stack([_length(offset), (offset * n).sum(-1), _length(mean_n), (mean_n * n).sum(-1)], -1)
        return self.out(torch.cat([found.flatten(1), directions.flatten(1)], 1))


def _length(x: Tensor) -> Tensor:
    """Length, at least 1e-4 so that its gradient is finite at 0."""
    return (x.square().sum(-1) + 1e-8).sqrt()
