"""Find the parts of objects with PointNet++, in ShapeNetPart's format; three minutes on two cores for its caps.

python examples/points/part_segmentation.py --data ../shared/data/points/shapenetpart_cap
"""

import argparse
from pathlib import Path

import torch

from geoattn.data import load_dataset
from geoattn.models.segmentation import SegmentationTask
from geoattn.train import TrainConfig, evaluate, fit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", required=True, help="folder of ShapeNetPart, or of its caps (datasets/README.md)")
parser.add_argument("--output", type=Path, default=Path("runs/parts"), help="folder for the checkpoint")
parser.add_argument("--points", type=int, default=1024, help="how many of an object's points the network reads")
parser.add_argument("--epochs", type=int, default=120, help="how often to go through the objects")
parser.add_argument("--seed", type=int, default=0, help="of the network and of the order of the objects")
arguments = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(arguments.seed)
train, test = load_dataset(arguments.data), load_dataset(arguments.data, "test")
task = SegmentationTask(label_smoothing=0.0, attribute_dropout=0.0)
# Half as wide as the paper's: for five objects that is enough.
model = task.model(train, "pointnet2_msg", unit_sphere=True, max_points=arguments.points, width=0.5, neighbors=0.5)
config = TrainConfig(epochs=arguments.epochs, batch_size=5, lr=3e-3, seed=arguments.seed, workers=0)
fit(task, model, train, arguments.output, config, resume=True)  # goes on where it was stopped

figures = evaluate(task, model, test)  # all points count, not only those that the network reads
print(f"{len(test)} objects: part IoU {figures['instance_iou']:.1%}, of categories {figures['class_iou']:.1%}")
