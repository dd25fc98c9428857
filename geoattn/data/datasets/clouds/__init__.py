"""Published sets of point clouds, each read in the layout it is published in."""

from geoattn.data.datasets.clouds.bimnet10 import BIMNet10
from geoattn.data.datasets.clouds.cloud_set import CloudSet
from geoattn.data.datasets.clouds.dales import DALES
from geoattn.data.datasets.clouds.dales_objects import DALESObjects
from geoattn.data.datasets.clouds.modelnet40 import ModelNet40
from geoattn.data.datasets.clouds.nuscenes import NuScenes
from geoattn.data.datasets.clouds.s3dis import S3DIS
from geoattn.data.datasets.clouds.scannet import ScanNet
from geoattn.data.datasets.clouds.scanobjectnn import ScanObjectNN
from geoattn.data.datasets.clouds.semantic_kitti import SemanticKITTI
from geoattn.data.datasets.clouds.shapenet_part import ShapeNetPart, ShapeNetPartCap

__all__ = [
    "DALES",
    "S3DIS",
    "BIMNet10",
    "CloudSet",
    "DALESObjects",
    "ModelNet40",
    "NuScenes",
    "ScanNet",
    "ScanObjectNN",
    "SemanticKITTI",
    "ShapeNetPart",
    "ShapeNetPartCap",
]
