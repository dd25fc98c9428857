"""Train a network that finds the parts of a human body, on bodies made at random; two minutes on two cores.

python examples/segment_bodies.py --output demo
geoattn segment demo/person.obj --model demo --picture parts.png --page parts.html
"""

import argparse
from pathlib import Path

import torch

import geoattn
from geoattn.data import Bodies
from geoattn.models.segmentation import SegmentationTask
from geoattn.train import TrainConfig, evaluate, fit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the checkpoint and a mesh to try")
parser.add_argument("--bodies", type=int, default=300, help="how many bodies to train on")
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

torch.manual_seed(arguments.seed)
task, bodies = SegmentationTask(copies=1), Bodies(arguments.bodies)
model = task.model(bodies, channels=64, blocks=3)
config = TrainConfig(epochs=arguments.epochs, batch_size=4, lr=2e-3, seed=arguments.seed, cache=True)
fit(task, model, bodies, arguments.output, config, resume=True)

held_out = Bodies(20, seed=1)
figures = evaluate(task, model, held_out)
print(f"accuracy on bodies it has not seen: {figures['accuracy']:.1%}, mean IoU {figures['mean_iou']:.1%}")
geoattn.save(arguments.output / "person.obj", held_out[0])
print(f"a body it has not seen: {arguments.output / 'person.obj'}")
