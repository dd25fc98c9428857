"""What the layers that PyG also has share: when PyG's own path runs instead, and how its arguments become ours."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.aggr import Aggregation, SumAggregation
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import add_self_loops, is_sparse, remove_self_loops
from torch_geometric.utils.loop import compute_loop_attr

from geoattn import native
from geoattn._arguments import described, warn_once
from geoattn._forced import forced
from geoattn.nn.graph._linears import any_hooks
from geoattn.ops import attention_weights
from geoattn.ops.attend import attend
from geoattn.ops.backends.choose import BACKENDS
from geoattn.ops.backends.modes import transforms_active
from geoattn.patterns import Adjacency, Neighbors, as_neighbors

_HOOKS = tuple(
    f"_{name}_forward_{when}hooks"
    for name in ("propagate", "message", "aggregate", "edge_update")
    for when in ("", "pre_")
)
# Numbers in the messages of a layer from which torch's sparse matrix products are faster than writing them down.
_MANY_NUMBERS = 1 << 20
# Numbers in messages up to which several calls of kernels take longer than writing the messages down.
_FEW_NUMBERS = 1 << 13
_KERNELS = {False: "cpu", True: "triton"}  # compiled, by whether tensors are on a CUDA device
_METHODS = ("message", "aggregate", "update", "edge_update", "get_attention")
_LOOPS = ("propagate", "edge_updater")  # over edges


class DropIn(MessagePassing):
    """A layer of PyG that does not write its messages down.

    Whoever needs the messages gets them. PyG's own path runs, with the same numbers:

    - while an explainer is at work, and while hooks on messages or on their aggregation, or on all modules, see them;
    - with another aggregation or flow, and where a subclass or the layer itself has methods of its own for messages;
    - under the transforms of `torch.func` and in forward-mode differentiation;
    - while tracing for TorchScript or ONNX. `torch.jit.script` compiles PyG's layer;
    - without compiled kernels (on the ``torch`` backend) where it is faster: always for additive scores, edge features
      and attention dropout, and for graphs with few messages. With them, a few dozen edges are left to PyG by
      `SuperGATConv` and, with edge features and loops, by `GATConv` and `GATv2Conv`.
    """

    pyg_layer: ClassVar[type[MessagePassing]]
    aggregations: ClassVar[tuple[type[Aggregation], ...]] = (SumAggregation,)  # the modules that it stands for
    _methods: ClassVar[tuple[tuple[str, Any], ...]]  # PyG's, as they were when geoattn was imported
    _has_own_loops: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "pyg_layer" in cls.__dict__:
            cls._methods = tuple((name, getattr(cls, name)) for name in _METHODS if hasattr(cls, name))
        elif hasattr(cls, "pyg_layer"):  # of a user, with messages of any signature
            for name in _LOOPS:
                if name in cls.__dict__:
                    cls._has_own_loops = True
                else:
                    for attribute in (name, f"_orig_{name}", f"_jinja_{name}"):
                        setattr(cls, attribute, getattr(MessagePassing, name))

    def _set_jittable_templates(self, raise_on_error: bool = False) -> None:
        """PyG generates code for each class from the source of its forward; ours inherit what it makes for theirs."""
        _bare(self.pyg_layer)

    def _messages_needed(self, *x: Tensor | None) -> bool:
        """Whether PyG's own path must run; called for every pass, so it has to be quick."""
        own, cls = self.__dict__, type(self)
        aggregators = self._aggregators()
        return bool(
            own["_explain"]
            or transforms_active()
            or own["flow"] != "source_to_target"
            or tuple(map(type, aggregators)) != self.aggregations
            or any_hooks(*aggregators)
            or any([own[hooks] for hooks in _HOOKS])
            or any([name in own or getattr(cls, name) is not method for name, method in self._methods])
            or cls._has_own_loops
            or any([name in own and not self._is_pygs(name) for name in _LOOPS])
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
            or torch.onnx.is_in_onnx_export()
            or any([part is not None and part.dim() != 2 for part in x])  # PyG says what is wrong
        )

    def _faster_as_pygs(
        self, x: Tensor, edge_index: Adjacency, width: int, plain: bool = True, several: bool = False
    ) -> bool:
        """Whether PyG's own path is the faster one.

        Args:
            x: Features of the sources.
            edge_index: The graph.
            width: Numbers in a message.
            plain: Whether the torch backend does without formulas that it would compute twice.
            several: Whether it takes several calls of kernels.
        """
        if not isinstance(edge_index, Neighbors) and (
            type(edge_index) is not Tensor or edge_index.layout != torch.strided or edge_index.dtype != torch.int64
        ):
            return False  # PyG does not take all of what we take
        numbers = width * (edge_index.num_edges if isinstance(edge_index, Neighbors) else edge_index.size(-1))
        name = forced()
        missing = name is None and BACKENDS[_KERNELS[x.is_cuda]].unavailable() is not None
        if missing:
            native.warn_if_missing(x)
        if name == "torch" or missing:
            return not plain or numbers < _MANY_NUMBERS
        if not several or name is not None or torch.compiler.is_compiling():
            return False
        return numbers < _FEW_NUMBERS

    def _aggregators(self) -> tuple[Any, ...]:
        return (self.aggr_module,)

    def _is_pygs(self, name: str) -> bool:
        """Whether what the layer itself has under ``name`` is what PyG leaves there after an explanation."""
        function = getattr(self.__dict__[name], "__func__", None)
        return any(function is getattr(type(self), f"{kind}_{name}", None) for kind in ("_orig", "_jinja"))

    def __prepare_scriptable__(self) -> MessagePassing:
        """What `torch.jit.script` compiles."""
        layer = _bare(self.pyg_layer)
        inspector = layer.inspector  # knows classes by their names, and ours has the same
        layer.__dict__.update(self.__dict__, inspector=inspector)
        return layer

    def _pattern(self, edge_index: Adjacency, source: Tensor, target: Tensor | None, size: Any = None) -> Neighbors:
        """Who attends to whom; without targets, ``size`` or a matrix says how many there are."""
        if target is not None:
            num_queries = target.size(0)
        elif isinstance(edge_index, Neighbors):
            num_queries = edge_index.num_queries
        elif is_sparse(edge_index):
            num_queries = edge_index.size(0)
        else:
            num_queries = source.size(0) if size is None or size[1] is None else size[1]
        loops: bool = getattr(self, "add_self_loops", False)
        return as_neighbors(edge_index, num_queries, source.size(0), self_loops=loops)


class AttentionDropIn(DropIn):
    """A layer with heads of attention that can return its weights.

    Besides the kinds of ``edge_index`` that PyG takes, these layers take `geoattn.Neighbors`; ``edge_attr`` is then in
    the order of the ``edge_index`` that the pattern was built from, or else of its ``col``. Where there are fewer
    sources than targets, loops are added for the first of them, with and without ``edge_attr``. PyG's own path runs for
    what `DropIn` says, for attention weights that dropout applies to or that are wanted as a sparse matrix, and for
    what PyG refuses.
    """

    additive: ClassVar[bool]  # scores, or dot products
    needs_edge_attr: ClassVar[bool] = False  # where it was made with ``edge_dim``
    ignores_edge_attr: ClassVar[bool] = False  # where it was made without

    def _pygs_path_needed(
        self, edge_index: Adjacency, features: Tensor | None, weights: bool, source: Tensor, target: Tensor | None
    ) -> bool:
        dropout = self.dropout if self.training else 0.0
        plain = not self.additive and features is None and not dropout
        width = self.heads * self.out_channels
        several = features is not None and getattr(self, "add_self_loops", False)
        refused = several and target is not None and source.size(0) < target.size(0)  # by PyG
        if (
            self._messages_needed(source, target)
            or dropout >= 1
            or (not refused and self._faster_as_pygs(source, edge_index, width, plain, several))
        ):
            return True
        if features is None and not weights:
            return False
        sparse = not isinstance(edge_index, Neighbors) and is_sparse(edge_index)
        loops = getattr(self, "add_self_loops", False)
        return (weights and (sparse or dropout > 0)) or (sparse and loops and features is not None)

    def _check_edge_attr(self, edge_index: Adjacency, edge_attr: Tensor | None) -> None:
        """That edge features are what the layer was made for; PyG does without, or fails in the middle.

        Raises:
            TypeError: If they are no tensor.
            ValueError: If they do not fit the edges or ``edge_dim``, or the layer needs them or cannot use them.
        """
        edge_dim, name = self.edge_dim, type(self).__name__
        if edge_attr is None:
            if self.needs_edge_attr and edge_dim is not None:
                raise ValueError(f"{name} was made with edge_dim={edge_dim}: pass edge_attr [E, {edge_dim}]")
            return
        if not isinstance(edge_attr, Tensor):
            raise TypeError(f"edge_attr must be a tensor, got {described('edge_attr', edge_attr)}")
        width = 1 if edge_attr.dim() == 1 else edge_attr.size(-1)
        if edge_dim is None:
            without = f"{name} was made without edge_dim, so that"
            instead = f"make it with edge_dim={width}, or leave edge_attr out"
            if self.ignores_edge_attr:
                shape = list(edge_attr.shape)
                warn_once(f"{without} edge_attr {shape} changes nothing, as in PyG: {instead}")
            elif edge_attr.dim() < 3:
                raise ValueError(f"{without} it has no weights for edge_attr {list(edge_attr.shape)}: {instead}")
            return
        if torch.jit.is_tracing() or not _is_graph(edge_index):  # type: ignore[attr-defined]
            return
        num_edges = _num_edges(edge_index)
        lazy = edge_dim == -1
        if edge_attr.dim() > 2 or edge_attr.size(0) != num_edges or not (lazy or width == edge_dim):
            wanted = f"[{num_edges}, {'F' if lazy else edge_dim}]"
            raise ValueError(f"expected edge_attr {wanted}, a row for every edge, got {list(edge_attr.shape)}")

    def _heads(self, x: Tensor) -> Tensor:
        """As ``[N, H, C]``."""
        return x.view(-1, self.heads, self.out_channels)

    def _edge_features(self, edge_index: Adjacency, edge_attr: Tensor, pattern: Neighbors) -> Tensor:
        """Features ``[E, F]`` in the order of the pattern, those of loops made as ``fill_value`` says."""
        num_edges = _num_edges(edge_index)
        edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
        order = pattern.edge_order
        if order is not None and getattr(self, "add_self_loops", False):
            edge_index = as_edge_index(edge_index)
            source, target = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
            is_loop = source == target
            # What targets get for their loop is made of their other edges: loops go to one target more.
            others = source, target.masked_fill(is_loop, pattern.num_queries)
            of_loops = compute_loop_attr(others, edge_attr, pattern.num_queries + 1, False, self.fill_value)
            num_loops = min(pattern.num_queries, pattern.num_keys)
            loops = torch.arange(num_edges, num_edges + num_loops, device=order.device)
            order = torch.cat([is_loop.logical_not().nonzero().squeeze(1), loops]).index_select(0, order)
            edge_attr = torch.cat([edge_attr, of_loops[:num_loops]])
        return edge_attr if order is None else edge_attr.index_select(0, order)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, pattern: Neighbors, weights: bool, **terms: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Joined heads ``[N, H * C]``, or their mean ``[N, C]``; and the weights ``[E, H]`` if asked for."""
        dropout = self.dropout if self.training else 0.0
        out = attend(query, key, value, pattern, dropout=dropout, **terms)
        out = out.flatten(1) if self.concat else out.mean(1)
        if not weights:
            return out, None
        terms.pop("edge_value", None)
        return out, attention_weights(query, key, pattern, **terms).to(out.dtype)

    def _weights_of_edges(self, edge_index: Adjacency, weights: Tensor, pattern: Neighbors) -> tuple[Any, Tensor]:
        """The edges, loops included, and their weights ``[E, H]``, as PyG returns them."""
        weights = of_caller(pattern, weights)
        if isinstance(edge_index, Neighbors):
            return as_edge_index(pattern), weights
        if getattr(self, "add_self_loops", False):
            edge_index, _ = remove_self_loops(edge_index)
            edge_index, _ = add_self_loops(edge_index, num_nodes=min(pattern.num_queries, pattern.num_keys))
        return edge_index, weights


def _bare(kind: type[MessagePassing]) -> MessagePassing:
    """A layer without arguments and parameters."""
    layer: MessagePassing = object.__new__(kind)
    MessagePassing.__init__(layer)
    return layer


def as_edge_index(adjacency: Adjacency) -> Any:
    """A pattern as the ``edge_index`` it was made of; what PyG knows stays as it is."""
    if not isinstance(adjacency, Neighbors):
        return adjacency
    return of_caller(adjacency, adjacency.to_edge_index().long().t()).t()


def _num_edges(adjacency: Adjacency) -> int:
    if isinstance(adjacency, Neighbors):
        return adjacency.num_edges
    if isinstance(adjacency, SparseTensor):
        return adjacency.nnz()
    return adjacency.size(-1) if adjacency.layout == torch.strided else adjacency._nnz()


def _is_graph(adjacency: Any) -> bool:
    """Whether it has edges that can be counted; what it is instead is said where the pattern is made."""
    if isinstance(adjacency, Tensor):
        return adjacency.layout != torch.strided or (adjacency.dim() == 2 and adjacency.size(0) == 2)
    return isinstance(adjacency, (Neighbors, SparseTensor))


def sources_and_targets(x: Any, name: str = "x") -> tuple[Tensor, Any]:
    """Features of both, where PyG takes one tensor or a pair.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(x, Tensor):
        return x, x
    if not isinstance(x, (tuple, list)) or len(x) != 2 or not isinstance(x[0], Tensor):
        raise TypeError(f"{name} must be a tensor [N, F], or those of sources and targets, got {described(name, x)}")
    return x[0], x[1]


def of_caller(pattern: Neighbors, values: Tensor) -> Tensor:
    """Values of edges ``[E, ...]`` in the order of the ``edge_index`` that the pattern was built from, if from one."""
    order = pattern.edge_order
    return values if order is None else torch.empty_like(values).index_copy(0, order.long(), values)


def given_features(edge_index: Adjacency, edge_attr: Tensor | None) -> Tensor | None:
    """Edge features, which PyG also takes from the values of a sparse matrix."""
    if edge_attr is not None or isinstance(edge_index, Neighbors) or not is_sparse(edge_index):
        return edge_attr
    if isinstance(edge_index, SparseTensor):
        return edge_index.storage.value()
    values = edge_index._values() if edge_index.layout == torch.sparse_coo else edge_index.values()
    return values if values.dim() > 1 else None
