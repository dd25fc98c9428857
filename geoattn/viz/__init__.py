"""Pictures and interactive pages of labelled meshes and point clouds (extra ``viz``)."""

from geoattn.viz.page import page
from geoattn.viz.picture import picture

__all__ = ["page", "picture"]
