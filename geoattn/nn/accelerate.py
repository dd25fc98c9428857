"""`accelerate` and `restore`: geoattn's layers inside models that were written with PyG's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch_geometric.nn.conv import MessagePassing

from geoattn import native
from geoattn.nn.graph import (
    GATConv,
    GATv2Conv,
    GravNetConv,
    PointTransformerConv,
    SuperGATConv,
    TransformerConv,
)
from geoattn.nn.graph._drop_in import DropIn

_LAYERS: tuple[type[DropIn], ...] = (
    GATConv,
    GATv2Conv,
    SuperGATConv,
    TransformerConv,
    PointTransformerConv,
    GravNetConv,
)


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` or `restore` did to a model; print it.

    Attributes:
        changed: Names of the layers that were exchanged, and of what kind they are.
        left: Names of the other layers that pass messages, and why they were left as they are.
    """

    changed: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.changed)} layers changed, {len(self.left)} left"]
        lines += [f"  changed  {name}: {kind}" for name, kind in self.changed.items()]
        lines += [f"  left     {name}: {reason}" for name, reason in self.left.items()]
        if self.changed and native.library() is None:
            lines.append(f"  On CPUs most calls run PyG's own code: {native.missing()}")
        return "\n".join(lines)


def accelerate(model: nn.Module) -> Acceleration:
    """Exchange, in place, every layer of PyG that geoattn also has for geoattn's.

    The layers stay the objects they are, with their weights, buffers, hooks and modes, so optimizers and references go
    on working; only what they run is exchanged. Results are the same but for rounding.

    No layer gets slower. Without compiled kernels (see `geoattn.backends`), what plain torch would compute more slowly
    is left to PyG's own code, call by call: ``GATConv`` and ``GATv2Conv``, edge features, attention dropout, and graphs
    with few messages. The report then says so.

    Args:
        model: Any module, or a layer.

    Returns:
        What was changed, and what was not and why.

    Example:
        >>> import geoattn
        >>> from torch_geometric.nn import GAT
        >>> print(geoattn.accelerate(GAT(16, 32, num_layers=2, v2=True)))
        2 layers changed, 0 left
          changed  convs.0: GATv2Conv
          changed  convs.1: GATv2Conv
    """
    changed, left = {}, {}
    for name, layer in _layers(model):
        kind = type(layer)
        ours = next((ours for ours in _LAYERS if ours.pyg_layer is kind), None)
        if ours is not None:
            layer.__class__ = ours
            changed[name] = kind.__name__
        elif isinstance(layer, DropIn):
            left[name] = "is geoattn's already"
        else:
            parent = next((ours.pyg_layer.__name__ for ours in _LAYERS if isinstance(layer, ours.pyg_layer)), None)
            subclass = f"{kind.__name__} is a subclass of {parent}, which may compute something else"
            left[name] = f"geoattn has no {kind.__name__}" if parent is None else subclass
    return Acceleration(changed, left)


def restore(model: nn.Module) -> Acceleration:
    """Undo `accelerate`: every layer of geoattn that stands in for one of PyG's becomes PyG's, in place.

    Args:
        model: Any module, or a layer; layers that were geoattn's from the start are exchanged, too.

    Returns:
        What was changed, and what was not and why.
    """
    changed, left = {}, {}
    for name, layer in _layers(model):
        kind = type(layer)
        if kind in _LAYERS:
            layer.__class__ = kind.pyg_layer
            changed[name] = kind.__name__
        else:
            left[name] = f"{kind.__name__} is not one of geoattn's"
    return Acceleration(changed, left)


def _layers(model: nn.Module) -> list[tuple[str, MessagePassing]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, MessagePassing)]
