"""Pictures and interactive pages of labelled meshes and point clouds, confusion matrices (extra ``viz``)."""

from geoattn.viz.confusion import confusion_picture, confusion_text
from geoattn.viz.page import PAGE_FORMATS, page
from geoattn.viz.picture import PICTURE_FORMATS, picture

__all__ = ["PAGE_FORMATS", "PICTURE_FORMATS", "confusion_picture", "confusion_text", "page", "picture"]
