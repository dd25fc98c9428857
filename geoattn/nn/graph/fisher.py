"""Fisher information embedding of Chen et al. (2023): attention from Gaussian mixtures, with or without labels."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from tqdm import tqdm

from geoattn.ops import segment_mean
from geoattn.ops.attend import attend
from geoattn.patterns import Adjacency, Neighbors, as_neighbors

# Samples compared with all centers at a time.
SAMPLES_PER_CHUNK = 1 << 14


class KernelLayer(nn.Module):
    r"""Coordinates of features in the space of a kernel, as far as anchors span it (Nyström).

    With unit anchors :math:`w_1, \dots, w_K` as the rows of :math:`W`, and
    :math:`\kappa(t) = \exp((t - 1) / \sigma^2)` taken entry by entry,

    .. math::
        \phi(x) = \|x\| \, \kappa(W W^\top)^{-1/2} \, \kappa\bigl(W x / \|x\|\bigr),

    so that :math:`\phi(x)^\top \phi(y)` approximates the kernel
    :math:`\|x\| \|y\| \, \kappa(x^\top y / \|x\| \|y\|)`. Part of the Fisher information embedding of Chen, Pellizzoni
    and Borgwardt (2023), whose code this follows where the paper leaves it open:

    - Every forward pass in training mode brings the anchors back to length 1, in place. Their gradient is that at the
      unit anchors; it does not go through the division by the length.
    - Where :math:`e` are the eigenvalues of the Gram matrix, the inverse root has :math:`1 / (\sqrt{e} + 0.01)`. Its
      derivative divides by :math:`r_i r_j (r_i + r_j)` with :math:`r = \sqrt{e} + 0.01`, which is finite where anchors
      coincide. It is the exact derivative of :math:`M^{-1/2}` at the matrix with eigenvalues :math:`r^2`, and so close
      to the exact one only where :math:`\sqrt{e} \gg 0.01`. Second derivatives with respect to the anchors raise.
    - In evaluation the inverse root is kept until the anchors change, unless gradients of them are wanted.

    All of it runs in at least float32, because the inverse root enlarges rounding errors.

    Args:
        in_channels: Features of an element.
        out_channels: Number of anchors.
        sigma: Width of the kernel.

    Shapes:
        ``x`` ``[N, in_channels]``; output ``[N, out_channels]``.

    Raises:
        ValueError: If a number is not positive.

    Source: the paper's code, https://github.com/BorgwardtLab/fisher_information_embedding, compared with it number by
    number. Its linear kernel, which its experiments do not use, is left out.
    """

    def __init__(self, in_channels: int, out_channels: int, sigma: float = 1.0) -> None:
        super().__init__()
        _check_positive(in_channels=in_channels, out_channels=out_channels, sigma=sigma)
        self.in_channels, self.out_channels, self.sigma = in_channels, out_channels, sigma
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        # The kept inverse root, and what identifies the anchors it was made of.
        self._kept: tuple[tuple[object, ...], Tensor] | None = None
        self.register_load_state_dict_pre_hook(_without_inverse_root)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the anchors anew."""
        bound = 1 / math.sqrt(self.in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight, dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``."""
        if x.dim() != 2 or x.size(1) != self.in_channels:
            raise ValueError(f"expected x [N, {self.in_channels}], got {tuple(x.shape)}")
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            x_, anchors = x.to(dtype), self._unit_anchors().to(dtype)
            norm = x_.norm(dim=-1, keepdim=True)
            similarity = norm * self._kappa(x_ @ anchors.T / norm.clamp_min(1e-12))
            return (similarity @ self._inverse_root(anchors)).to(x.dtype)

    @torch.no_grad()
    def fit(self, x: Tensor, num_samples: int = 300_000, generator: torch.Generator | None = None) -> None:
        """Set the anchors to the centers of `spherical_kmeans`.

        Args:
            x: Features ``[N, in_channels]``.
            num_samples: How many of them to draw, at most, without replacement.
            generator: Of the CPU; default: torch's.

        Raises:
            ValueError: If there are fewer samples than anchors.
        """
        samples = x[torch.randperm(x.size(0), generator=generator)[:num_samples].to(x.device)]
        self.weight.copy_(spherical_kmeans(samples, self.out_channels, generator=generator, title="anchors"))

    def _kappa(self, cosine: Tensor) -> Tensor:
        return ((cosine - 1) / self.sigma**2).exp()

    def _unit_anchors(self) -> Tensor:
        unit = F.normalize(self.weight.detach(), dim=-1)
        if self.training:
            with torch.no_grad():
                self.weight.copy_(unit)
        return self.weight + (unit - self.weight.detach())  # the unit anchors, exactly; the gradient passes as it is

    def _inverse_root(self, anchors: Tensor) -> Tensor:
        """Of the anchors' Gram matrix."""
        weight = self.weight
        differentiated = torch.is_grad_enabled() and weight.requires_grad
        if self.training or differentiated or weight.is_inference() or torch.compiler.is_compiling():
            return _InverseSquareRoot.apply(self._kappa(anchors @ anchors.T))
        made_of = weight._version, weight.data_ptr(), anchors.dtype, anchors.device
        if self._kept is None or self._kept[0] != made_of:
            # Inference tensors could not be used under autograd later.
            with torch.inference_mode(False), torch.no_grad():
                unit = F.normalize(weight, dim=-1).to(anchors.dtype)
                self._kept = made_of, _InverseSquareRoot.apply(self._kappa(unit @ unit.T))
        return self._kept[1]

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, sigma={self.sigma}"


class FisherInformationConv(nn.Module):
    r"""Fisher information embedding of every node's neighborhood (Chen, Pellizzoni and Borgwardt, ICML 2023).

    A neighborhood is seen as samples of a Gaussian mixture. One step of expectation maximisation from anchor means
    :math:`\mu_m`, shared by all nodes, gives the node's own means; how far they are from the anchors is its embedding.
    For features :math:`x_j` of ``d`` channels and mixture components ``m`` of each head:

    .. math::
        \alpha_{jm} &= \operatorname{softmax}_m\bigl((\mu_m^\top x_j / \|x_j\| + b_m) / d\bigr) \\
        z_{im} &= \sum_{j \in \mathcal{N}(i)} \operatorname{softmax}_j(\alpha_{jm}) \, x_j - \mu_m \\
        x'_i &= \phi\bigl([z_{i1}, \dots, z_{ip}]\bigr)

    with :math:`\phi` a `KernelLayer`. The second softmax, over the neighbors, is one of probabilities, as in the
    paper's code; expectation maximisation would divide them by their sum. Its scores depend on the neighbor alone, so
    they are weights :math:`\exp \alpha` of keys, and nothing is stored per edge. A node without neighbors gets
    :math:`z_{im} = -\mu_m`.

    The anchor means begin with unit length. As in the paper's code, training does not bring them back to it.

    Args:
        in_channels: Features of a node, ``d``.
        out_channels: Features of the output, or None for :math:`z` itself, which is what the last layer of an
            unsupervised network gives: ``num_mixtures * heads * in_channels`` of them.
        num_mixtures: Components of a mixture, ``p``.
        heads: Number of mixtures; their components are assigned independently.
        sigma: Width of the kernel of :math:`\phi`.
        out_proj: ``"kernel"``, or ``"relu"``: in place of :math:`\phi` a linear layer, batch normalization and ReLU, of
            the paper's code for supervised learning on large graphs.
        add_self_loops: Whether every node is its own neighbor, too, once. The layer of the paper's code adds none, but
            all of its experiments add them to the graph.

    Shapes:
        ``x`` ``[N, in_channels]``, output ``[N, out_channels]``. In a bipartite graph of ``M`` sources and ``N``
        targets, a pair ``([M, in_channels], [N, ...])``, of the second of which only the number of rows is used.

    Raises:
        ValueError: If a number is not positive, ``out_proj`` is unknown, or shapes do not fit.

    Source: https://github.com/BorgwardtLab/fisher_information_embedding, compared with it number by number;
    parameters have its names and its state dict loads, except that an output layer's ``lintrans``, which follows from
    its weight, is neither written nor read. Left out are options its experiments do not use: scaling by degree
    (``use_deg``), keeping :math:`\mu` in the output (``residue=False``), a linear kernel, and assignment by
    optimal transport, which its layer does not reach.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None,
        num_mixtures: int = 8,
        heads: int = 1,
        sigma: float = 1.0,
        out_proj: Literal["kernel", "relu"] = "kernel",
        add_self_loops: bool = True,
    ) -> None:
        super().__init__()
        _check_positive(in_channels=in_channels, num_mixtures=num_mixtures, heads=heads)
        embedded = in_channels * num_mixtures * heads
        self.in_channels, self.out_channels = in_channels, embedded if out_channels is None else out_channels
        self.add_self_loops = add_self_loops
        self.weight = nn.Parameter(torch.empty(num_mixtures, heads, in_channels))
        self.bias = nn.Parameter(torch.empty(num_mixtures, heads))
        self.out_proj: nn.Module | None = None
        if out_proj not in ("kernel", "relu"):
            raise ValueError(f'out_proj must be "kernel" or "relu", got {out_proj!r}')
        if out_channels is not None and out_proj == "kernel":
            self.out_proj = KernelLayer(embedded, out_channels, sigma)
        elif out_channels is not None:
            self.out_proj = nn.Sequential(nn.Linear(embedded, out_channels), nn.BatchNorm1d(out_channels), nn.ReLU())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        _reset_mixtures(self.weight, self.bias)
        for module in [] if self.out_proj is None else self.out_proj.modules():
            if isinstance(module, KernelLayer | nn.Linear | nn.BatchNorm1d):
                module.reset_parameters()

    def forward(self, x: Tensor | tuple[Tensor, Tensor], edge_index: Adjacency) -> Tensor:
        """Embed every node; ``edge_index`` may be whatever `geoattn.patterns.as_neighbors` takes."""
        out = self.embed(x, edge_index)
        return out if self.out_proj is None else self.out_proj(out)

    def embed(self, x: Tensor | tuple[Tensor, Tensor], edge_index: Adjacency) -> Tensor:
        """The embedding :math:`z` before the output layer, ``[N, num_mixtures * heads * in_channels]``."""
        x, pattern = self._neighborhoods(x, edge_index)
        return _embed(x, pattern, self.weight, self.bias, temperature=self.in_channels)

    @torch.no_grad()
    def fit(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Adjacency,
        num_samples: int = 300_000,
        generator: torch.Generator | None = None,
    ) -> None:
        """Set the anchor means by `spherical_kmeans` of neighbors, then fit the output layer where it is a kernel's.

        Neighbors are the sources of edges drawn at random. In the paper's code, which is run with one head, further
        heads keep the means they have; here each is fitted from centers of its own. Biases stay as they are.

        Args:
            x: As in `forward`.
            edge_index: As in `forward`.
            num_samples: How many edges, and how many nodes for the output layer, to draw, at most.
            generator: Of the CPU; default: torch's.

        Raises:
            ValueError: If there are fewer edges than mixtures, or fewer nodes than output channels.
        """
        source, pattern = self._neighborhoods(x, edge_index)
        drawn = torch.randperm(pattern.num_edges, generator=generator)[:num_samples].to(source.device)
        _fit_mixtures(self.weight, source[pattern.col[drawn]], generator)
        if isinstance(self.out_proj, KernelLayer):
            self.out_proj.fit(self.embed(x, edge_index), num_samples, generator)

    def _neighborhoods(self, x: Tensor | tuple[Tensor, Tensor], edge_index: Adjacency) -> tuple[Tensor, Neighbors]:
        source, target = (x, x) if isinstance(x, Tensor) else x
        if source.dim() != 2 or source.size(1) != self.in_channels:
            raise ValueError(f"expected x [N, {self.in_channels}], got {tuple(source.shape)}")
        pattern = as_neighbors(edge_index, target.size(0), source.size(0), self_loops=self.add_self_loops)
        return source, pattern

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        mixtures, heads, _ = self.weight.shape
        return f"{self.in_channels}, {self.out_channels}, num_mixtures={mixtures}, heads={heads}"


class FisherInformationPooling(nn.Module):
    r"""Fisher information embedding of every graph's nodes: `FisherInformationConv` with graphs as the queries.

    The assignment to components is not divided by the number of channels, as in the paper's code; otherwise the
    formulas are the same.

    Args:
        in_channels: Features of a node.
        out_channels: Features of a graph.
        num_mixtures: Components of a mixture; the paper's code has as many as ``out_channels``.
        heads: Number of mixtures.
        sigma: Width of the kernel of the output layer.

    Shapes:
        ``x`` ``[N, in_channels]``, ``batch`` ``[N]``; output ``[batch_size, out_channels]``.

    Raises:
        ValueError: If a number is not positive, or shapes do not fit.

    Source: the paper's code, https://github.com/BorgwardtLab/fisher_information_embedding, compared with it number by
    number. It has no experiment with it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_mixtures: int, heads: int = 1, sigma: float = 1.0
    ) -> None:
        super().__init__()
        _check_positive(in_channels=in_channels, num_mixtures=num_mixtures, heads=heads)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.empty(num_mixtures, heads, in_channels))
        self.bias = nn.Parameter(torch.empty(num_mixtures, heads))
        self.out_proj = KernelLayer(in_channels * num_mixtures * heads, out_channels, sigma)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        _reset_mixtures(self.weight, self.bias)
        self.out_proj.reset_parameters()

    def forward(self, x: Tensor, batch: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """Embed every graph; ``batch`` gives the graph of each node (default: one graph)."""
        return self.out_proj(self.embed(x, batch, batch_size))

    def embed(self, x: Tensor, batch: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """The embedding before the output layer, ``[batch_size, num_mixtures * heads * in_channels]``."""
        if x.dim() != 2 or x.size(1) != self.in_channels:
            raise ValueError(f"expected x [N, {self.in_channels}], got {tuple(x.shape)}")
        if batch is None:
            batch, batch_size = torch.zeros(x.size(0), dtype=torch.int64, device=x.device), batch_size or 1
        if batch.shape != x.shape[:1]:
            raise ValueError(f"expected batch [{x.size(0)}], got {tuple(batch.shape)}")
        if batch_size is None:
            batch_size = int(batch.max()) + 1 if batch.numel() else 0
        node = torch.arange(x.size(0), device=x.device)
        pattern = Neighbors.from_edge_index(torch.stack([node, batch]), batch_size, x.size(0))
        return _embed(x, pattern, self.weight, self.bias, temperature=1)

    @torch.no_grad()
    def fit(
        self,
        x: Tensor,
        batch: Tensor | None = None,
        num_samples: int = 300_000,
        generator: torch.Generator | None = None,
    ) -> None:
        """Set the anchor means by `spherical_kmeans` of the nodes, then fit the output layer.

        This is ours: the paper's code fits no pooling.

        Args:
            x: Features of the nodes ``[N, in_channels]``.
            batch: Graph of each node ``[N]``.
            num_samples: How many nodes, and how many graphs for the output layer, to draw, at most.
            generator: Of the CPU; default: torch's.

        Raises:
            ValueError: If there are fewer nodes than mixtures, or fewer graphs than output channels.
        """
        drawn = torch.randperm(x.size(0), generator=generator)[:num_samples].to(x.device)
        _fit_mixtures(self.weight, x[drawn], generator)
        self.out_proj.fit(self.embed(x, batch), num_samples, generator)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        mixtures, heads, _ = self.weight.shape
        return f"{self.in_channels}, {self.out_channels}, num_mixtures={mixtures}, heads={heads}"


class FisherInformationEmbedding(nn.Module):
    r"""The network of Chen, Pellizzoni and Borgwardt, *Fisher Information Embedding for Node and Graph Learning*, 2023.

    A `KernelLayer`, then `FisherInformationConv` layers; the features of all of them side by side are the embedding.
    Without labels, `fit` sets all anchors; a classifier of any kind then reads the embedding. With labels, give
    ``out_channels`` and train as usual, which the authors do from fitted anchors.

    The authors' experiments divide the features of every node by their length beforehand, and add self loops.

    Args:
        in_channels: Features of a node.
        hidden_channels: Number of anchors of every kernel layer.
        num_layers: Number of `FisherInformationConv` layers.
        out_channels: Outputs of a linear classifier at the end, or None for the embedding itself, whose last layer
            then has no output layer.
        num_mixtures: Components of a mixture.
        heads: Number of mixtures.
        sigma: Width of the kernels.
        concat: Whether the embedding is that of all layers, or of the last alone.
        pool_mixtures: Components of a `FisherInformationPooling` to ``hidden_channels`` features of every graph, or
            None for an embedding of nodes. The paper's code has ``hidden_channels`` of them.
        add_self_loops: See `FisherInformationConv`.

    Shapes:
        ``x`` ``[N, in_channels]``; output ``[N, C]``, or ``[batch_size, C]`` with pooling, where ``C`` is
        ``out_channels``, or else the attribute ``embedding_channels``.

    Raises:
        ValueError: If a number is not positive.

    Source: https://github.com/BorgwardtLab/fisher_information_embedding, compared with it number by number: its
    ``FIENet`` and, with ``out_channels``, its ``SupFIENet``, whose state dicts load. Its network for supervised
    learning on large graphs (``ReLUFIENet``: a linear layer, ``"relu"`` layers, dropout, sums in place of
    concatenation) and mean and sum pooling are left out.

    Example:
        >>> import torch
        >>> from geoattn.nn.graph.fisher import FisherInformationEmbedding
        >>> x, edge_index = torch.randn(100, 32), torch.randint(100, (2, 400))
        >>> model = FisherInformationEmbedding(32, 16, num_layers=2, num_mixtures=4).eval()
        >>> model.fit(x, edge_index, generator=torch.Generator().manual_seed(0))
        >>> model(x, edge_index).shape
        torch.Size([100, 96])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int | None = None,
        num_mixtures: int = 8,
        heads: int = 1,
        sigma: float = 1.0,
        concat: bool = True,
        pool_mixtures: int | None = None,
        add_self_loops: bool = True,
    ) -> None:
        super().__init__()
        _check_positive(num_layers=num_layers)
        self.concat = concat
        self.in_head = KernelLayer(in_channels, hidden_channels, sigma)
        of_layers = [hidden_channels] * (num_layers - 1) + [None if out_channels is None else hidden_channels]
        self.layers = nn.ModuleList(
            FisherInformationConv(hidden_channels, out, num_mixtures, heads, sigma, add_self_loops=add_self_loops)
            for out in of_layers
        )
        widths = [hidden_channels] + [layer.out_channels for layer in self._convs()]
        self.embedding_channels = sum(widths) if concat else widths[-1]
        self.pooling: FisherInformationPooling | None = None
        if pool_mixtures is not None:
            self.pooling = FisherInformationPooling(
                self.embedding_channels, hidden_channels, pool_mixtures, heads, sigma
            )
            self.embedding_channels = hidden_channels
        self.classifier = None if out_channels is None else nn.Linear(self.embedding_channels, out_channels)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for module in (self.in_head, *self._convs(), self.pooling, self.classifier):
            if module is not None:
                module.reset_parameters()

    def forward(
        self, x: Tensor, edge_index: Adjacency, batch: Tensor | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Embed or classify every node, or with pooling every graph.

        Args:
            x: Features of the nodes ``[N, in_channels]``.
            edge_index: Whatever `geoattn.patterns.as_neighbors` takes.
            batch: Graph of each node ``[N]``, for pooling; default: one graph.
            batch_size: Number of graphs; default: largest entry of ``batch`` plus one.
        """
        pattern = as_neighbors(edge_index, x.size(0))
        features = [self.in_head(x)]
        for layer in self.layers:
            features.append(layer(features[-1], pattern))
        out = torch.cat(features, 1) if self.concat else features[-1]
        if self.pooling is not None:
            out = self.pooling(out, batch, batch_size)
        return out if self.classifier is None else self.classifier(out)

    @torch.no_grad()
    def fit(
        self,
        x: Tensor,
        edge_index: Adjacency,
        batch: Tensor | None = None,
        num_samples: int = 300_000,
        generator: torch.Generator | None = None,
    ) -> None:
        """Set all anchors without labels, layer after layer, each from the features that those before it give.

        Args:
            x: Features of the nodes ``[N, in_channels]``; of many graphs, those of a batch.
            edge_index: As in `forward`.
            batch: Graph of each node ``[N]``, for pooling.
            num_samples: How many features to draw, at most, for every clustering.
            generator: Of the CPU; default: torch's. The same state gives the same anchors.

        Raises:
            ValueError: If there are fewer nodes or edges than anchors.
        """
        pattern = as_neighbors(edge_index, x.size(0))
        with tqdm(
            total=1 + len(self.layers) + (self.pooling is not None), desc="fit", unit="layer", disable=None
        ) as bar:
            self.in_head.fit(x, num_samples, generator)
            features = [self.in_head(x)]
            bar.update()
            for layer in self._convs():
                layer.fit(features[-1], pattern, num_samples, generator)
                features.append(layer(features[-1], pattern))
                bar.update()
            if self.pooling is not None:
                out = torch.cat(features, 1) if self.concat else features[-1]
                self.pooling.fit(out, batch, num_samples, generator)
                bar.update()

    def _convs(self) -> list[FisherInformationConv]:
        return cast("list[FisherInformationConv]", list(self.layers))


@torch.no_grad()
def spherical_kmeans(
    x: Tensor,
    num_clusters: int,
    num_iters: int = 100,
    generator: torch.Generator | None = None,
    title: str = "spherical k-means",
) -> Tensor:
    """Centers on the unit sphere, each the direction of the mean of the samples whose cosine with it is largest.

    It begins with samples drawn at random and ends when the mean cosine changes by less than a millionth of itself. A
    center that no sample is nearest to begins anew at the sample that is farthest from its own.

    Args:
        x: Samples ``[S, D]``; only their directions matter.
        num_clusters: Number of centers ``K``.
        num_iters: How often to move them, at most.
        generator: Of the CPU; default: torch's.
        title: Of the progress bar.

    Returns:
        ``[K, D]``.

    Raises:
        ValueError: If there are fewer samples than clusters.
    """
    if x.dim() != 2 or x.size(0) < num_clusters:
        raise ValueError(f"expected x [S, D] of at least {num_clusters} samples, got {tuple(x.shape)}")
    x = F.normalize(x, dim=-1)
    center = x[torch.randperm(x.size(0), generator=generator)[:num_clusters].to(x.device)]
    before = math.inf
    for _ in tqdm(range(num_iters), title, leave=False, disable=None):
        parts = [(chunk @ center.T).max(-1) for chunk in x.split(SAMPLES_PER_CHUNK)]
        cosine, nearest = (torch.cat(part) for part in zip(*parts, strict=True))
        objective = float(cosine.mean())
        mean = segment_mean(x, nearest, num_segments=num_clusters)
        center = mean / mean.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        empty = (nearest.bincount(minlength=num_clusters) == 0).nonzero().flatten().tolist()
        for cluster in empty:
            farthest = cosine.argmin()
            center[cluster] = x[farthest]
            cosine[farthest] = 1
        if abs(before - objective) < 1e-6 * abs(objective):
            break
        before = objective
    return center


def _embed(x: Tensor, pattern: Neighbors, weight: Tensor, bias: Tensor, temperature: float) -> Tensor:
    """Of each query, how far the means of its mixtures are from the anchors; ``[N, p * h * D]``."""
    mixtures, heads, _ = weight.shape
    means = weight.flatten(0, 1)
    score = F.linear(F.normalize(x, dim=-1), means, bias.flatten()) / temperature
    assignment = score.unflatten(1, (mixtures, heads)).softmax(1).flatten(1)
    # All that is scored is the key: without a product, but with exp(score) as its weight.
    query, key = x.new_zeros(pattern.num_queries, mixtures * heads, 1), x.new_zeros(pattern.num_keys, 1, 1)
    mean = attend(query, key, x.unsqueeze(1), pattern, key_weight=assignment.exp())
    return (mean - means).flatten(1)


def _fit_mixtures(weight: Tensor, samples: Tensor, generator: torch.Generator | None) -> None:
    mixtures, heads, _ = weight.shape
    for head in range(heads):
        weight[:, head] = spherical_kmeans(samples, mixtures, generator=generator, title="mixtures")


def _reset_mixtures(weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(F.normalize(torch.randn_like(weight), dim=-1))
        bias.zero_()


def _without_inverse_root(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Checkpoints of the paper's code hold the inverse root, too."""
    state_dict.pop(prefix + "lintrans", None)


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if number <= 0:
            raise ValueError(f"{name} must be positive, got {number}")


class _InverseSquareRoot(torch.autograd.Function):
    """See `KernelLayer`."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, eps: float = 1e-2) -> Tensor:
        eigenvalue, vector = torch.linalg.eigh(matrix)
        root = eigenvalue.clamp(min=0).sqrt() + eps
        ctx.save_for_backward(root, vector)
        return (vector / root) @ vector.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        root, vector = ctx.saved_tensors
        ri, rj = root.unsqueeze(1), root
        inner = (vector.T @ grad @ vector) / (ri * rj * (ri + rj))
        return -vector @ inner @ vector.T, None
