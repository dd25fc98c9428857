"""Pictures and interactive pages of labelled meshes and point clouds (extra ``viz``)."""

from geoattn.viz.page import PAGE_FORMATS, page
from geoattn.viz.picture import PICTURE_FORMATS, picture

__all__ = ["PAGE_FORMATS", "PICTURE_FORMATS", "page", "picture"]
