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
parser.add_argument("--epochs", type=int, default=6, help="how often to go through them")
parser.add_argument("--seed", type=int, default=0, help="of the network and of the order of the bodies")
arguments = parser.parse_args()

report = arguments.output / "report.txt"
if report.exists():
    print(f"{arguments.output} holds a finished run; delete it to train again. It found:\n{report.read_text()}", end="")
    parser.exit()

torch.set_num_threads(1)  # nearly as fast as two on meshes of this size, and on a busy machine much faster
torch.manual_seed(arguments.seed)
task, bodies, held_out = SegmentationTask(copies=1), Bodies(arguments.bodies), Bodies(20, seed=1)
model = task.model(bodies, channels=64, blocks=3)
config = TrainConfig(epochs=arguments.epochs, batch_size=4, lr=3e-3, seed=arguments.seed, cache=True)
fit(task, model, bodies, arguments.output, config, resume=True)  # goes on where it was stopped

figures = evaluate(task, model, held_out)
person = held_out[0]
del person.y  # a file like a user's, without labels
geoattn.save(arguments.output / "person.obj", person)
report.write_text(
    f"accuracy on bodies it has not seen: {figures['accuracy']:.1%}, mean IoU {figures['mean_iou']:.1%}\n"
    f"one of them: {arguments.output / 'person.obj'}\n"
)
print(report.read_text(), end="")
