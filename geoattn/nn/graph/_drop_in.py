"""What the layers that PyG also has share: when PyG's own path runs instead, and how its arguments become ours."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import add_self_loops, is_sparse, remove_self_loops

from geoattn.ops import attend, attention_weights
from geoattn.patterns import Adjacency, Neighbors, as_neighbors

_HOOKS = ("propagate", "message", "aggregate", "edge_update")
_OVERRIDABLE = ("message", "aggregate", "update", "edge_update", "get_attention")


class DropIn(MessagePassing):
    """A layer of PyG that does not write its messages down.

    Whoever needs the messages gets them: PyG's own path runs, with the same numbers, while an explainer is at work,
    while a hook on messages is registered, with another aggregation or flow, in subclasses with messages of their own,
    and while tracing for TorchScript or ONNX. `torch.jit.script` compiles PyG's layer.
    """

    peer: ClassVar[type[MessagePassing]]  # PyG's layer
    aggregations: ClassVar[tuple[Any, ...]] = ("add", "sum")  # those it has kernels for

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "peer") and "peer" not in cls.__dict__:  # of a user, with messages of any signature
            cls.propagate = cls._orig_propagate = cls._jinja_propagate = MessagePassing.propagate
            cls.edge_updater = cls._orig_edge_updater = cls._jinja_edge_updater = MessagePassing.edge_updater

    def _set_jittable_templates(self, raise_on_error: bool = False) -> None:
        """PyG generates code for each class from the source of its forward; ours inherit what it makes for theirs."""
        _bare(self.peer)

    def _messages_needed(self, *x: Tensor | None) -> bool:
        """Whether PyG's own path must run."""
        return (
            bool(self.explain)
            or self.aggr not in self.aggregations
            or self.flow != "source_to_target"
            or any(getattr(self, f"_{name}_forward{when}hooks") for name in _HOOKS for when in ("_", "_pre_"))
            or any(getattr(type(self), name, None) is not getattr(self.peer, name, None) for name in _OVERRIDABLE)
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
            or torch.onnx.is_in_onnx_export()
            or any(part is not None and part.dim() != 2 for part in x)  # PyG says what is wrong
        )

    def __prepare_scriptable__(self) -> MessagePassing:
        """What `torch.jit.script` compiles."""
        layer = _bare(self.peer)
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
    the order of the ``edge_index`` that the pattern was built from, or else of its ``col``. PyG's own path runs for
    what `DropIn` says, for attention weights that dropout applies to or that are wanted as a sparse matrix, and for
    what PyG refuses.
    """

    def _steps_back(self, edge_index: Adjacency, features: Tensor | None, weights: bool, *x: Tensor | None) -> bool:
        """Whether PyG's own path must run."""
        dropout = self.dropout if self.training else 0.0
        sparse = not isinstance(edge_index, Neighbors) and is_sparse(edge_index)
        loops = getattr(self, "add_self_loops", False)
        return (
            self._messages_needed(*x)
            or dropout >= 1
            or (weights and (sparse or dropout > 0))
            or (sparse and loops and features is not None)
        )

    def _heads(self, *features: Tensor) -> list[Tensor]:
        """Each as ``[N, H, C]``."""
        return [x.view(-1, self.heads, self.out_channels) for x in features]

    def _edge_features(self, edge_index: Adjacency, edge_attr: Tensor, pattern: Neighbors) -> Tensor:
        """Features ``[E, F]`` in the order of the pattern, those of loops made as ``fill_value`` says."""
        if getattr(self, "add_self_loops", False):
            index, edge_attr = remove_self_loops(as_edge_index(edge_index), edge_attr)
            loops = min(pattern.num_queries, pattern.num_keys)
            _, edge_attr = add_self_loops(index, edge_attr, fill_value=self.fill_value, num_nodes=loops)
        edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
        return edge_attr if pattern.edge_order is None else pattern.reorder_edges(edge_attr)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pattern: Neighbors,
        weights: bool,
        **terms: Any,
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
