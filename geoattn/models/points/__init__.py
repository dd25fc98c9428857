"""Networks of point clouds: a label for each point, or for the whole cloud."""

from geoattn.models.points.inputs import PointConfig, PointNetwork

__all__ = ["PointConfig", "PointNetwork"]
