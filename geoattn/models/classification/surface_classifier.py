"""SurfaceClassifier: what a whole mesh is."""

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from geoattn.data.transforms import MeshElements
from geoattn.models.registry import register_model
from geoattn.models.segmentation.surface_transformer import SurfaceConfig, SurfaceNetwork, mesh_ptr


@register_model("surface_classifier", SurfaceConfig, "classification")
class SurfaceClassifier(SurfaceNetwork):
    """A transformer that gives a whole triangle mesh one label: `SurfaceNetwork`, averaged over the area.

    Args:
        config: What it is made of.

    Shapes:
        Input: a `Data` or `Batch` of ``B`` meshes, made by `geoattn.data.MeshElements`. Output: logits ``[B, K]``.
    """

    def input_transform(self) -> BaseTransform:  # noqa: D102
        return MeshElements(self.config.element, self.config.element)

    def forward(self, data: Data) -> Tensor:
        """Logits of the classes."""
        ptr = mesh_ptr(data)
        x = self.features(data, ptr)
        batch = torch.arange(ptr.numel() - 1, device=ptr.device).repeat_interleave(ptr.diff())
        weighted = x * data.area.unsqueeze(1)
        return self.head(weighted.new_zeros(ptr.numel() - 1, x.size(1)).index_add(0, batch, weighted))
