"""One training loop with progress, checkpoints, resuming and several processes; one evaluation; the tasks they get."""

from geoattn.train.config import TrainConfig, TrainResult
from geoattn.train.evaluate import evaluate
from geoattn.train.fabric import find_device, make_fabric
from geoattn.train.loop import fit
from geoattn.train.plot import plot_curves
from geoattn.train.prepare import Prepared
from geoattn.train.task import Samples, Task

__all__ = [
    "Prepared",
    "Samples",
    "Task",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "find_device",
    "fit",
    "make_fabric",
    "plot_curves",
]
