"""MeshCNN's accuracy of labels on edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geoattn._optional import require
from geoattn.geometry import edges, face_areas

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = require("torchmetrics").Metric


class SoftEdgeAccuracy(Metric):
    """MeshCNN's segmentation accuracy (Hanocka et al. 2019): generous at the borders of parts.

    An edge counts as right if the predicted label is one of its admissible ones. It is weighted by its area, a third of
    that of each of its faces, over the mesh's; the sums are averaged over meshes. An edge without an admissible label
    is not counted, nor a mesh in which the area of the others is 0.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    total: Tensor
    meshes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("meshes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, edge_soft: Tensor, pos: Tensor, face: Tensor, batch: Tensor | None = None) -> None:
        """Count one mesh, or a batch of meshes.

        Args:
            preds: Predicted label of each edge ``[E]``, edges numbered as in `geoattn.geometry.edges`.
            edge_soft: Weight of each label on each edge ``[E, K]``; labels with a weight above 0 are admissible.
            pos: ``[V, 3]``.
            face: ``[3, F]``.
            batch: The mesh of each vertex ``[V]``; all in one if not given.

        Raises:
            ValueError: If there is not one label and one row of weights for each edge, or a label is no class.
        """
        topology = edges(face)
        count = topology.edge.size(1)
        if preds.shape != (count,) or edge_soft.dim() != 2 or edge_soft.size(0) != count:
            raise ValueError(
                f"expected predicted labels [{count}] and edge_soft [{count}, K], for as many edges as the mesh has; "
                f"got {list(preds.shape)} and {list(edge_soft.shape)}"
            )
        wrong = preds[(preds < 0) | (preds >= edge_soft.size(1))]
        if wrong.numel():
            raise ValueError(f"predicted label {int(wrong[0])} is none of the {edge_soft.size(1)} classes of edge_soft")
        admissible = edge_soft > 0
        right = admissible.gather(1, preds.unsqueeze(1)).squeeze(1)
        third = face_areas(pos.double(), face) / 3
        area = third.new_zeros(count).index_add(0, topology.face_edge.flatten(), third.repeat(3))
        area = area * admissible.any(1)
        mesh = torch.zeros_like(preds) if batch is None else batch[topology.edge[0]]
        size = int(mesh.max()) + 1 if count else 0
        whole = area.new_zeros(size).index_add(0, mesh, area)
        found = area.new_zeros(size).index_add(0, mesh, area * right)
        self.total += (found / whole)[whole > 0].sum()
        self.meshes += (whole > 0).sum()

    def compute(self) -> Tensor:
        """The value so far, in [0, 1], float64; NaN if nothing was counted."""
        return self.total / self.meshes


def edge_labels(probability: Tensor, face: Tensor) -> Tensor:
    """Label each edge with what its faces together find most probable.

    Args:
        probability: Of each class at each face ``[F, K]``.
        face: ``[3, F]``.

    Returns:
        ``[E]``, edges numbered as in `geoattn.geometry.edges`.
    """
    topology = edges(face)
    summed = probability.new_zeros(topology.edge.size(1), probability.size(1))
    return summed.index_add(0, topology.face_edge.flatten(), probability.repeat(3, 1)).argmax(1)
