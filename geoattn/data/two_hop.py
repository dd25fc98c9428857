"""What LargeGT reads of a large graph: samples of two hops, drawn batch by batch, and features averaged over hops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader
from torch_geometric.sampler import BaseSampler, NodeSamplerInput, SamplerOutput
from torch_geometric.transforms import BaseTransform

from geoattn.patterns import as_neighbors


class HopFeatures(BaseTransform):
    r"""Features averaged over one hop and over two, as ``data.hop_x`` ``[N, 2, F]``.

    .. math::
        C_1 = \hat{A} X, \quad C_2 = \hat{A}^2 X, \qquad
        \hat{A}_{ij} = \frac{A_{ij} + \delta_{ij}}{\sqrt{d^{\text{out}}_i \, d^{\text{in}}_j}},

    the two context features of LargeGT (Dwivedi et al. 2023), after NAGphormer (Chen et al. 2023). :math:`A_{ij}`
    counts the edges from ``j`` to ``i``, and a degree is 1 plus the number of edges that leave or enter the node; on
    an undirected graph this is the usual symmetric normalization.

    Reads ``data.x`` ``[N, F]`` and ``data.edge_index`` ``[2, E]``; computes on the CPU, in float32 or float64.

    Raises:
        ValueError: If ``data`` lacks one of them.
    """

    def forward(self, data: Data) -> Data:
        """Add ``hop_x``."""
        if data.x is None or data.edge_index is None:
            raise ValueError(f"expected data with x and edge_index, got {data}")
        pattern = as_neighbors(data.edge_index.cpu(), data.num_nodes)
        x = data.x.cpu().to(torch.promote_types(data.x.dtype, torch.float32)).numpy()
        entering = pattern.degree + 1
        leaving = torch.bincount(pattern.col, minlength=pattern.num_keys) + 1
        weight = (leaving[pattern.row] * entering[pattern.col]).numpy().astype(x.dtype) ** -0.5
        average = csr_array((weight, pattern.col.numpy(), pattern.rowptr.numpy()), (data.num_nodes, data.num_nodes))
        of_self = (leaving * entering).unsqueeze(1).numpy().astype(x.dtype) ** -0.5

        def hop(x: NDArray[Any]) -> NDArray[Any]:
            return average @ x + of_self * x

        once = hop(x)
        data.hop_x = torch.from_numpy(np.stack([once, hop(once)], 1)).to(data.x.device)
        return data


class TwoHopSampler(BaseSampler):
    r"""Draws for every node a list of nodes one or two hops away, the sampler of LargeGT (Dwivedi et al. 2023).

    The list of node ``i`` is ``i`` itself, then ``num_neighbors`` nodes drawn without replacement from

    .. math::
        \mathcal{N}_1(i) \mathbin{+\!\!+} \mathcal{N}_2(i), \qquad
        \mathcal{N}_1(i) = \{j : A_{ij} > 0\}, \quad \mathcal{N}_2(i) = \{j : (A^2)_{ij} > 0\},

    one after the other: a neighbor that two steps reach, too, stands there twice, and so can be drawn twice; ``i`` is
    in :math:`\mathcal{N}_2(i)` if it has an edge there and back. Several edges between two nodes count as one. If
    there are fewer than ``num_neighbors``, they are repeated in turn; a node without any draws from all nodes.

    As in the published code a node has one list for good: it is a function of ``seed`` and the node, whatever the batch
    it comes in. But no list is kept, it is drawn when it is asked for, in a time and memory that grow with what the
    nodes asked for have within two hops.

    As in PyG's loaders, a neighbor is one *from* which an edge leads to the node. The published code follows edges
    forwards; on a directed graph pass ``edge_index.flip(0)`` for its lists.

    Args:
        edge_index: Edges ``[2, E]``: row 0 the sources, row 1 the targets.
        num_nodes: Number of nodes ``N``.
        num_neighbors: How many to draw, one less than the length of a list: with the published settings 99 for
            ogbn-products and ogbn-papers100M, 49 for snap-patents.
        seed: Another seed gives other lists.

    Raises:
        ValueError: If ``num_neighbors`` is less than 1 or an edge is out of range.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int, num_neighbors: int, seed: int = 0) -> None:
        if num_neighbors < 1:
            raise ValueError(f"num_neighbors must be at least 1, got {num_neighbors}")
        pattern = as_neighbors(edge_index.cpu(), num_nodes)
        there = np.ones(pattern.num_edges, dtype=bool)
        rows = (there, pattern.col.numpy(), pattern.rowptr.numpy())
        self.adjacency = csr_array(rows, (num_nodes, num_nodes), copy=True)  # others use the pattern, too
        self.adjacency.sum_duplicates()
        self.num_neighbors = num_neighbors
        self.seed = seed

    def lists(self, nodes: Tensor) -> Tensor:
        """The list of every node.

        Args:
            nodes: ``[B]``.

        Returns:
            ``[B, 1 + num_neighbors]``, int64, on the CPU.
        """
        node = nodes.cpu().numpy()
        one_hop = self.adjacency[node]
        two_hop = one_hop @ self.adjacency
        two_hop.sort_indices()
        near, far = (np.diff(hop.indptr)[:, None] for hop in (one_hop, two_hop))
        alone = near + far == 0
        position = self._draw(node, np.where(alone, self.adjacency.shape[0], near + far))

        # Where they lie in the two rows; a node that is alone takes the positions themselves.
        in_near, in_far = position < near, (position >= near) & ~alone
        drawn = position.copy()
        drawn[in_near] = one_hop.indices[(one_hop.indptr[:-1, None] + position)[in_near]]
        drawn[in_far] = two_hop.indices[(two_hop.indptr[:-1, None] + position - near)[in_far]]
        return torch.from_numpy(np.concatenate([node[:, None], drawn], 1))

    def _draw(self, node: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in ``count[i]``, drawn for each node without replacement, or in turn where there are too few.

        Floyd's algorithm (Bentley and Floyd 1987): the s-th of k draws is from the first ``n - k + s``; what has been
        drawn before is replaced by the last of these.
        """
        size = self.num_neighbors
        uniform = _uniform(self.seed, node, size)
        position = np.arange(size) % count
        enough = np.flatnonzero(count[:, 0] >= size)
        drawn = np.empty((len(enough), size), dtype=np.int64)
        for s in range(size):
            last = count[enough, 0] - size + s
            pick = (uniform[enough, s] * (last + 1)).astype(np.int64)
            before = (drawn[:, :s] == pick[:, None]).any(1)
            drawn[:, s] = np.where(before, last, pick)
        position[enough] = drawn
        return position

    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: Any) -> SamplerOutput:
        """The nodes of all lists, seeds first, and an edge from every node of a list to its seed, list after list."""
        seeds = index.node
        lists = self.lists(seeds)
        found, place = lists.unique(return_inverse=True)
        others = torch.ones_like(found, dtype=torch.bool)
        others[place[:, 0]] = False
        local = others.cumsum(0) - 1 + seeds.numel()
        seed = torch.arange(seeds.numel())
        local[place[:, 0]] = seed
        return SamplerOutput(
            node=torch.cat([seeds, found[others]]),
            row=torch.cat([seed.unsqueeze(1), local[place[:, 1:]]], 1).flatten(),
            col=seed.repeat_interleave(lists.size(1)),
            edge=None,
            metadata=(index.input_id, index.time),
        )

    def sample_from_edges(self, *args: Any, **kwargs: Any) -> SamplerOutput:
        """Lists belong to nodes: PyG's loaders of links cannot use them."""
        raise NotImplementedError("TwoHopSampler samples from nodes, not from edges")


class TwoHopLoader(NodeLoader):
    r"""Batches of seed nodes with the lists of `TwoHopSampler`, by the conventions of PyG's ``NeighborLoader``.

    A batch is a `Data` of the seeds and of the nodes in their lists, each once, seeds first. It has

    - every node attribute of ``data`` for its nodes: ``x`` and ``y``, and for LargeGT ``hop_x`` (`HopFeatures`) and a
      positional encoding ``pos_enc``,
    - ``edge_index`` ``[2, B * S]``: the ``S = 1 + num_neighbors`` nodes of each list (row 0) to its seed (row 1), the
      seed itself first; list after list. So ``edge_index[0].view(B, S)`` are the lists,
    - ``n_id``: the nodes' numbers in ``data``; ``input_id``: the seeds' positions in ``input_nodes``, or their numbers
      if that is a mask; ``batch_size``: the number ``B`` of seeds.

    Edge attributes become None: the edges of a batch are no edges of ``data``.

    Args:
        data: The graph, with ``edge_index``.
        num_neighbors: How many nodes to draw for every seed, see `TwoHopSampler`.
        input_nodes: The seeds: indices or a mask ``[N]``; default: all nodes.
        transform: Applied to every batch.
        seed: Of the lists. To draw new ones, say for every epoch, change ``loader.node_sampler.seed``.
        **kwargs: Of `torch.utils.data.DataLoader`, such as ``batch_size``, ``shuffle``, ``num_workers`` or
            ``generator``, which seeds the order of the seeds; and PyG's ``filter_per_worker`` and ``input_id``.

    Raises:
        ValueError: If ``data`` has no ``edge_index``, or as `TwoHopSampler`.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> from geoattn.data import HopFeatures, TwoHopLoader
        >>> data = Data(x=torch.randn(5, 8), edge_index=torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]]))
        >>> loader = TwoHopLoader(HopFeatures()(data), num_neighbors=3, batch_size=2)
        >>> next(iter(loader)).edge_index.shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        data: Data,
        num_neighbors: int,
        input_nodes: Tensor | None = None,
        transform: Callable[[Data], Data] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if data.edge_index is None:
            raise ValueError(f"expected data with edge_index, got {data}")
        sampler = TwoHopSampler(data.edge_index, data.num_nodes, num_neighbors, seed)
        super().__init__(data, sampler, input_nodes, transform=transform, **kwargs)


def _uniform(seed: int, node: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on the seed, the node and their place alone, ``[B, size]``.

    They are the outputs of one SplitMix64 generator (Steele, Lea and Flood 2014) for every node.
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    start = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) + node.astype(np.uint64))
    bits = _mix(start[:, None] + step * np.arange(1, size + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Output function of SplitMix64."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
