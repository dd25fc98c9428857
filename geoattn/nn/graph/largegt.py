"""LargeGT: a transformer for one large graph, of samples of two hops and of a codebook of all nodes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoattn.ops.attend import attend
from geoattn.patterns import Windows


class LargeGTLocal(nn.Module):
    r"""Local module of LargeGT (Dwivedi et al. 2023): a node's tokens attend to each other, then are read by its own.

    A node has tokens :math:`t_0, \dots, t_{T-1}`, the first its own features. Each of ``H`` heads has the full width
    ``D`` = ``out_channels``:

    .. math::
        u &= W_{\text{in}} t, \\
        z &= \operatorname{LN}\bigl(W_{\text{skip}} u +
        \operatorname{MultiHead}(\operatorname{LN}(u))\bigr) \in \mathbb{R}^{T \times HD}, \\
        o &= z_0 + \sum_{s \ge 1} \operatorname{softmax}_{s \ge 1}(w^\top z_s) \, z_s,

    with biases. The readout is NAGphormer's (Chen et al. 2023), who score :math:`w_0^\top z_0 + w^\top z_s + b`; what
    is the same for all tokens cancels in the softmax and is left out here.

    Weights begin as :math:`\mathcal{N}(0, 0.02^2)`, biases as zeros. From the published code (snap-research/LargeGT),
    whose feed-forward and last projection are never called and are left out.

    Args:
        in_channels: Features of a token.
        out_channels: Width ``D`` of a head.
        heads: Number of heads ``H``.
        dropout: After the attention, and again after the sum with the skip connection.

    Shapes:
        Tokens ``[B, T, in_channels]``, ``T`` at least 2; output ``[B, H * D]``.
    """

    def __init__(self, in_channels: int, out_channels: int, heads: int = 2, dropout: float = 0.3) -> None:
        super().__init__()
        self.heads = heads
        self.lin_in = nn.Linear(in_channels, out_channels)
        self.norm = nn.LayerNorm(out_channels)
        self.lin_query = nn.Linear(out_channels, heads * out_channels)
        self.lin_key = nn.Linear(out_channels, heads * out_channels)
        self.lin_value = nn.Linear(out_channels, heads * out_channels)
        self.lin_out = nn.Linear(heads * out_channels, heads * out_channels)
        self.lin_skip = nn.Linear(out_channels, heads * out_channels)
        self.dropout = nn.Dropout(dropout)
        self.final_norm = nn.LayerNorm(heads * out_channels)
        self.lin_readout = nn.Linear(heads * out_channels, 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin anew."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, tokens: Tensor) -> Tensor:
        """Features ``[B, H * D]`` of the nodes whose tokens these are."""
        if tokens.dim() != 3 or tokens.size(1) < 2:
            raise ValueError(f"expected tokens [B, T, C] with T at least 2, got {tuple(tokens.shape)}")
        nodes, count, _ = tokens.shape
        u = self.lin_in(tokens.flatten(0, 1))
        normed = self.norm(u)
        query, key, value = (
            lin(normed).unflatten(-1, (self.heads, -1)) for lin in (self.lin_query, self.lin_key, self.lin_value)
        )
        of_node = Windows(count * torch.arange(nodes + 1, device=tokens.device))
        attended = self.lin_out(attend(query, key, value, of_node).flatten(1))
        z = self.final_norm(self.dropout(self.lin_skip(u) + self.dropout(attended)))
        own, others = z.unflatten(0, (nodes, count)).split([1, count - 1], 1)
        return (own + self.lin_readout(others).softmax(1).mT @ others).squeeze(1)


class EMACodebook(nn.Module):
    r"""Centroids that follow what they are shown, by moving averages (van den Oord et al. 2017, appendix A).

    Inputs are normalized per channel by the statistics of the batch, :math:`\hat{x}`. Each goes to its nearest
    centroid, :math:`a_i = \operatorname{argmin}_k |\hat{x}_i - c_k|`, and then

    .. math::
        n_k &\leftarrow \gamma n_k + (1 - \gamma) \, |\{i : a_i = k\}|, \qquad
        n_k \leftarrow \frac{n_k + \epsilon}{\sum_l n_l + K \epsilon} \sum_l n_l, \\
        m_k &\leftarrow \gamma m_k + (1 - \gamma) \sum_{i : a_i = k} \hat{x}_i, \qquad
        c_k \leftarrow m_k / n_k,

    where the second step smooths the counts (Laplace), with :math:`\epsilon = 10^{-5}`. As in GOAT (Kong et al. 2023)
    and LargeGT, centroids begin as random normal vectors with counts of 0, so that one that no input is near soon has a
    tiny count and lies far out.

    All of it is state, kept in the ``state_dict``; nothing is learned by gradients.

    Args:
        num_centroids: Number of centroids ``K``.
        channels: Their size ``C``.
        decay: :math:`\gamma`.
    """

    embedding: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor

    def __init__(self, num_centroids: int, channels: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.norm = nn.BatchNorm1d(channels, affine=False)
        self.register_buffer("embedding", torch.empty(num_centroids, channels))
        self.register_buffer("cluster_size", torch.empty(num_centroids))
        self.register_buffer("cluster_sum", torch.empty(num_centroids, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin anew."""
        self.norm.reset_parameters()
        nn.init.normal_(self.embedding)
        nn.init.zeros_(self.cluster_size)
        nn.init.normal_(self.cluster_sum)

    def centroids(self) -> Tensor:
        """The centroids among the inputs as they come, not normalized, ``[K, C]``."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        return self.embedding * (variance + self.norm.eps).sqrt() + mean

    @torch.no_grad()
    def update(self, x: Tensor) -> Tensor:
        """Move the centroids towards the inputs ``[B, C]``; B at least 2, in training mode.

        Returns:
            The centroid each input was assigned to, before they moved, ``[B]``.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.to(self.embedding.dtype))
            squares = self.embedding.square().sum(1)
            nearest = (squares - 2 * x @ self.embedding.T).argmin(1)
            assigned = F.one_hot(nearest, self.embedding.size(0)).to(x.dtype)

            self.cluster_size.mul_(self.decay).add_(assigned.sum(0), alpha=1 - self.decay)
            total, smoothing = self.cluster_size.sum(), 1e-5
            self.cluster_size.add_(smoothing).mul_(total / (total + self.cluster_size.numel() * smoothing))
            self.cluster_sum.mul_(self.decay).add_(assigned.T @ x, alpha=1 - self.decay)
            self.embedding.copy_(self.cluster_sum / self.cluster_size.unsqueeze(1))
        return nearest


class CodebookAttention(nn.Module):
    r"""Global module of LargeGT (Dwivedi et al. 2023), from GOAT (Kong et al. 2023): nodes attend to a codebook of all.

    With ``G`` = ``global_dim`` channels of features and as many of positional encoding :math:`p`, head ``h`` of
    width ``D`` = ``out_channels`` gives

    .. math::
        o_i = \sum_k \operatorname{softmax}_k \Bigl(\tfrac{1}{\sqrt{D}}
        (W_q [W_{\text{in}} x_i, p_i])^\top W_k c_k + \log |\{j : a_j = k\}| \Bigr) \, W_v c_k^{:G},

    with biases; :math:`c_k` are the centroids of `EMACodebook`, :math:`c_k^{:G}` their half that stands for
    features, and :math:`a_j` is the centroid of node ``j``. A centroid counts as often as it has nodes: not at all if
    none.

    In training mode a call also updates the codebook, after it was read, with :math:`[W_{\text{in}} x_i, p_i]` of its
    nodes, and assigns them to their centroids. Nodes begin with random centroids; those that are never in a training
    batch keep them, as in the published code. Codebook and assignment are in the ``state_dict``.

    Args:
        in_channels: Features of a node.
        out_channels: Width ``D`` of a head.
        num_nodes: Number of nodes of the graph ``N``.
        global_dim: ``G``.
        heads: Number of heads ``H``.
        num_centroids: Number of centroids ``K``.
        dropout: Of the attention weights.

    Shapes:
        ``x`` ``[B, in_channels]``, ``pos_enc`` ``[B, G]``, ``n_id`` ``[B]`` (the nodes' numbers in the graph); output
        ``[B, H * D]``.
    """

    c_idx: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_nodes: int,
        global_dim: int = 64,
        heads: int = 2,
        num_centroids: int = 4096,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.global_dim, self.heads, self.num_centroids, self.dropout = global_dim, heads, num_centroids, dropout
        self.lin_in = nn.Linear(in_channels, global_dim)
        self.lin_query = nn.Linear(2 * global_dim, heads * out_channels)
        self.lin_key = nn.Linear(2 * global_dim, heads * out_channels)
        self.lin_value = nn.Linear(global_dim, heads * out_channels)
        self.codebook = EMACodebook(num_centroids, 2 * global_dim)
        self.register_buffer("c_idx", torch.empty(num_nodes, dtype=torch.int32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin anew, with nodes assigned at random."""
        for module in (self.lin_in, self.lin_query, self.lin_key, self.lin_value, self.codebook):
            module.reset_parameters()
        self.c_idx.random_(0, self.num_centroids)

    def forward(self, x: Tensor, pos_enc: Tensor, n_id: Tensor) -> Tensor:
        """Features ``[B, H * D]``."""
        if pos_enc.shape != (x.size(0), self.global_dim) or n_id.shape != x.shape[:1]:
            raise ValueError(
                f"expected pos_enc [{x.size(0)}, {self.global_dim}] and n_id [{x.size(0)}], "
                f"got {tuple(pos_enc.shape)} and {tuple(n_id.shape)}"
            )
        features = torch.cat([self.lin_in(x), pos_enc], 1)
        centroids = self.codebook.centroids()
        query, key, value = (
            lin(source).unflatten(-1, (self.heads, -1))
            for lin, source in (
                (self.lin_query, features),
                (self.lin_key, centroids),
                (self.lin_value, centroids[:, : self.global_dim]),
            )
        )
        everything = Windows(
            torch.tensor([0, x.size(0)], device=x.device), torch.tensor([0, self.num_centroids], device=x.device)
        )
        count = torch.bincount(self.c_idx, minlength=self.num_centroids)
        dropout = self.dropout if self.training else 0.0
        out = attend(query, key, value, everything, dropout=dropout, key_weight=count)
        if self.training:
            self.c_idx[n_id] = self.codebook.update(features).to(self.c_idx.dtype)
        return out.flatten(1)


class LargeGTLayer(nn.Module):
    """Layer of LargeGT (Dwivedi et al. 2023): `LargeGTLocal` and `CodebookAttention`, side by side.

    Args:
        in_channels: Features of a token and of a node.
        out_channels: Width ``D`` of a head.
        num_nodes: Number of nodes of the graph.
        global_dim: Channels ``G`` of the positional encoding, see `CodebookAttention`.
        heads: Number of heads ``H`` of each.
        num_centroids: Number of centroids of the codebook.
        dropout: Of the attention to the codebook.

    Shapes:
        Tokens ``[B, T, in_channels]``, ``x`` ``[B, in_channels]``, ``pos_enc`` ``[B, G]``, ``n_id`` ``[B]``; output
        ``[B, 2 * H * D]``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_nodes: int,
        global_dim: int = 64,
        heads: int = 2,
        num_centroids: int = 4096,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.local = LargeGTLocal(in_channels, out_channels, heads)
        self.codebook = CodebookAttention(
            in_channels, out_channels, num_nodes, global_dim, heads, num_centroids, dropout
        )

    def reset_parameters(self) -> None:
        """Begin anew."""
        self.local.reset_parameters()
        self.codebook.reset_parameters()

    def forward(self, tokens: Tensor, x: Tensor, pos_enc: Tensor, n_id: Tensor) -> Tensor:
        """Features ``[B, 2 * H * D]``: local, global."""
        return torch.cat([self.local(tokens), self.codebook(x, pos_enc, n_id)], 1)


class LargeGT(nn.Module):
    r"""LargeGT: Graph Transformers for Large Graphs (Dwivedi et al. 2023), for the nodes of one graph.

    A node reads a list of ``S`` nodes, itself first, sampled from its two hops
    (`geoattn.data.two_hop.TwoHopLoader`). Each stands for three tokens: its features and their averages over one
    and two hops (`geoattn.data.two_hop.HopFeatures`), which makes a receptive field of four hops. In parallel it reads
    a codebook of the whole graph:

    .. math::
        y = W_{\text{out}} \operatorname{FF}\bigl[
        \operatorname{Local}(\operatorname{MLP}_{\text{seq}}(x_j, C_{1,j}, C_{2,j})_{j \in S(i)}), \;
        \operatorname{Codebook}(\operatorname{MLP}_{\text{in}}(x_i), p_i) \bigr],

    where FF is twice Linear, batch normalization, ReLU and dropout. The paper takes node2vec as positional encoding
    :math:`p`. As the codebook knows the nodes by their numbers, a trained model is one of that graph; with
    ``conv_type="local"`` it takes any. Equal to the published code (snap-research/LargeGT) with its default settings.

    Args:
        num_nodes: Number of nodes of the graph ``N``.
        in_channels: Features of a node ``F``.
        hidden_channels: Width of a head, 256 for ogbn-products, 128 for snap-patents, 512 for ogbn-papers100M.
        out_channels: Outputs of a node.
        global_dim: Channels ``G`` of the positional encoding, 64; 128 for ogbn-papers100M.
        heads: Number of heads.
        num_centroids: Number of centroids of the codebook.
        ff_dropout: Dropout of MLPs and FF. That of the local module is 0.3.
        attn_dropout: Dropout of the attention to the codebook.
        conv_type: ``"full"``, or ``"local"`` for the model without codebook.

    Raises:
        ValueError: If ``conv_type`` is neither.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> from geoattn.data import HopFeatures, TwoHopLoader
        >>> from geoattn.nn.graph.largegt import LargeGT
        >>> edge_index = torch.randint(0, 100, (2, 400))
        >>> data = HopFeatures()(Data(x=torch.randn(100, 8), pos_enc=torch.randn(100, 64), edge_index=edge_index))
        >>> model = LargeGT(data.num_nodes, in_channels=8, hidden_channels=16, out_channels=3, num_centroids=32)
        >>> batch = next(iter(TwoHopLoader(data, num_neighbors=9, batch_size=20)))
        >>> model(batch.x, batch.hop_x, batch.edge_index, batch.batch_size, batch.pos_enc, batch.n_id).shape
        torch.Size([20, 3])
    """

    def __init__(
        self,
        num_nodes: int,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        global_dim: int = 64,
        heads: int = 2,
        num_centroids: int = 4096,
        ff_dropout: float = 0.5,
        attn_dropout: float = 0.0,
        conv_type: Literal["full", "local"] = "full",
    ) -> None:
        super().__init__()
        if conv_type not in ("full", "local"):
            raise ValueError(f'conv_type must be "full" or "local", got {conv_type!r}')
        hidden = hidden_channels
        self.fc_in_seq = nn.Sequential(
            nn.Linear(in_channels, hidden), nn.ReLU(), nn.Dropout(ff_dropout), nn.Linear(hidden, hidden)
        )
        self.conv: LargeGTLocal | LargeGTLayer
        if conv_type == "local":
            self.conv = LargeGTLocal(hidden, hidden, heads)
        else:
            self.fc_in = nn.Sequential(
                nn.Linear(in_channels, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Dropout(ff_dropout),
                nn.Linear(hidden, hidden),
            )
            self.conv = LargeGTLayer(hidden, hidden, num_nodes, global_dim, heads, num_centroids, attn_dropout)
        self.ff = nn.Sequential(
            nn.Linear((1 if conv_type == "local" else 2) * hidden * heads, hidden * heads),
            nn.BatchNorm1d(hidden * heads),
            nn.ReLU(),
            nn.Dropout(ff_dropout),
            nn.Linear(hidden * heads, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(ff_dropout),
        )
        self.fc_out = nn.Linear(hidden, out_channels)

    def reset_parameters(self) -> None:
        """Begin anew."""
        for part in self.children():
            for module in [part] if part is self.conv else part.modules():
                if isinstance(module, nn.Linear | nn.BatchNorm1d | LargeGTLocal | LargeGTLayer):
                    module.reset_parameters()

    def forward(
        self,
        x: Tensor,
        hop_x: Tensor,
        edge_index: Tensor,
        batch_size: int,
        pos_enc: Tensor | None = None,
        n_id: Tensor | None = None,
    ) -> Tensor:
        """Outputs ``[B, out_channels]`` of the seeds of a batch of `geoattn.data.two_hop.TwoHopLoader`.

        Args:
            x: Features ``[n, F]`` of the batch's nodes, seeds first.
            hop_x: Their averages over one and two hops, ``[n, 2, F]``.
            edge_index: From the nodes of every list to its seed, itself first, list after list, ``[2, B * S]``.
            batch_size: Number of seeds ``B``.
            pos_enc: Positional encoding ``[n, G]``; not needed if ``conv_type`` is ``"local"``.
            n_id: The nodes' numbers in the graph, ``[n]``; likewise.

        Raises:
            ValueError: If something is missing or shapes do not fit, or ``edge_index`` is not in this order.
        """
        if x.dim() != 2 or hop_x.shape != (x.size(0), 2, x.size(1)):
            raise ValueError(f"expected x [n, F] and hop_x [n, 2, F], got {tuple(x.shape)} and {tuple(hop_x.shape)}")
        lists = _lists(edge_index, batch_size)
        # Up to the dropout a node is the same in all lists it stands in.
        lin_in, relu, dropout, lin_out = self.fc_in_seq
        hidden = relu(lin_in(torch.cat([x.unsqueeze(1), hop_x], 1)))
        tokens = lin_out(dropout(hidden[lists].flatten(1, 2)))
        if isinstance(self.conv, LargeGTLocal):
            out = self.conv(tokens)
        else:
            if pos_enc is None or n_id is None:
                raise ValueError("the codebook needs pos_enc and n_id")
            out = self.conv(tokens, self.fc_in(x[:batch_size]), pos_enc[:batch_size], n_id[:batch_size])
        return self.fc_out(self.ff(out))


def _lists(edge_index: Tensor, batch_size: int) -> Tensor:
    """For every seed the nodes of its list, ``[B, S]``."""
    size = edge_index.size(-1) // batch_size if batch_size > 0 else 0
    if edge_index.shape != (2, batch_size * size) or size == 0:
        raise ValueError(
            f"expected edge_index [2, B * S] with lists of {batch_size} seeds, got {tuple(edge_index.shape)}"
        )
    lists, target = edge_index.view(2, batch_size, size)
    seed = torch.arange(batch_size, device=edge_index.device).unsqueeze(1)
    if (target != seed).any() or (lists[:, :1] != seed).any():
        raise ValueError("edge_index must lead from every list to its seed, itself first, as TwoHopLoader has it")
    return lists
