"""Published sets of point clouds, each read in the layout it is published in."""

from geoattn.data.datasets.clouds.bimnet10 import BIMNet10
from geoattn.data.datasets.clouds.cloud_set import CloudSet
from geoattn.data.datasets.clouds.dales_objects import DALESObjects
from geoattn.data.datasets.clouds.shapenet_part import ShapeNetPart, ShapeNetPartCap

__all__ = ["BIMNet10", "CloudSet", "DALESObjects", "ShapeNetPart", "ShapeNetPartCap"]
