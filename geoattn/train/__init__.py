"""Training: one loop with progress, checkpoints, resuming, and several processes."""

from geoattn.train.config import Samples, TrainConfig, TrainResult
from geoattn.train.loop import fit
from geoattn.train.plot import plot_curves
from geoattn.train.prepare import Prepared

__all__ = ["Prepared", "Samples", "TrainConfig", "TrainResult", "fit", "plot_curves"]
