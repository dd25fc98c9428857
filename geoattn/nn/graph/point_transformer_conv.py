"""`PointTransformerConv`."""

from __future__ import annotations

import torch
import torch_geometric.nn as pyg
from torch import Tensor
from torch_geometric.utils import is_sparse

from geoattn._forced import forced
from geoattn.nn.graph._drop_in import DropIn, as_edge_index, sources_and_targets
from geoattn.ops import vector_attend
from geoattn.ops.backends.recompute import edges_per_chunk
from geoattn.ops.backends.vector_chain import chain
from geoattn.patterns import Adjacency

# With fewer edges, sorting them takes as long as is won afterwards.
_FEW_EDGES = 128


class PointTransformerConv(DropIn, pyg.PointTransformerConv):
    r"""Point Transformer's layer (Zhao et al. 2021, eq. 3): PyG's ``PointTransformerConv``, its messages not kept.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i) \cup \{i\}} \operatorname{softmax}_j \bigl(\gamma(
        W_t x_i - W_s x_j + \delta_{ij})\bigr) \odot (W x_j + \delta_{ij}), \qquad \delta_{ij} = \theta(p_i - p_j),

    a softmax for every channel; :math:`\theta` is ``pos_nn``, :math:`\gamma` is ``attn_nn``.

    Constructor, arguments, results, parameters and their names are those of `torch_geometric.nn.PointTransformerConv`,
    whose documentation applies; ``edge_index`` may be a `geoattn.Neighbors`, too. See `DropIn` for when PyG's own path
    runs; it also runs where it is as fast: for an ``edge_index`` of few edges, or of some thousand if the networks are
    no chains of linear layers and ReLU. See `geoattn.ops.vector_attend` for the networks that are run again in the
    backward pass.
    """

    pyg_layer = pyg.PointTransformerConv

    def forward(
        self, x: Tensor | tuple[Tensor, Tensor], pos: Tensor | tuple[Tensor, Tensor], edge_index: Adjacency
    ) -> Tensor:
        """Features ``[N, C]`` of the targets."""
        source, target = sources_and_targets(x)
        source_pos, target_pos = sources_and_targets(pos, "pos")
        if self._messages_needed(source, target, source_pos, target_pos) or self._pyg_is_as_fast(edge_index):
            return super().forward(x, pos, as_edge_index(edge_index))
        key, query = self.lin_src(source), self.lin_dst(target)
        return vector_attend(
            query,
            key,
            self.lin(source),
            self._pattern(edge_index, source, target),
            target_pos,
            source_pos,
            pos_nn=self.pos_nn,
            attn_nn=self.attn_nn,
        )

    def _pyg_is_as_fast(self, edge_index: Adjacency) -> bool:
        """Whether sorting the edges would not pay, or nothing but the formulas that PyG has would run."""
        if not isinstance(edge_index, Tensor) or is_sparse(edge_index) or forced() or torch.compiler.is_compiling():
            return False
        edges = edge_index.size(-1)
        if edges < _FEW_EDGES:
            return True
        networks = [network for network in (self.pos_nn, self.attn_nn) if network is not None]
        return edges <= edges_per_chunk(edge_index.device) and not all(map(chain, networks))
