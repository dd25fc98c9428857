"""Train a network that says what each point of a scanned room is, on rooms made at random; two minutes of one core.

python examples/points/scene_segmentation.py --output scene
geoattn segment scene/room.ply --model scene -o labelled.ply --page room.html
"""

import argparse
from pathlib import Path

import torch

import geoattn
from geoattn.data import Rooms
from geoattn.models.segmentation import SegmentationTask, segment
from geoattn.train import TrainConfig, evaluate, fit
from geoattn.viz import picture

# A small one, of 1.3 million parameters; the published one has 46 million.
ENCODER = {"channels": (16, 32, 64, 128), "depths": (1, 1, 2, 1), "heads": (1, 2, 4, 8), "strides": (2, 2, 2)}
DECODER = {"decoder_channels": (16, 32, 64), "decoder_depths": (1, 1, 1), "decoder_heads": (1, 2, 4)}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, default=Path("scene"), help="folder for the checkpoint and what it found")
parser.add_argument("--rooms", type=int, default=100, help="how many rooms to train on")
parser.add_argument("--epochs", type=int, default=4, help="how often to go through them")
parser.add_argument("--seed", type=int, default=0, help="of the network and of the order of the rooms")
arguments = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(arguments.seed)
task, rooms, held_out = SegmentationTask(copies=1), Rooms(arguments.rooms, points=12_000), Rooms(20, 2, points=12_000)
small = {**ENCODER, **DECODER, "patch_size": 256, "drop_path": 0.0}
model = task.model(rooms, "point_transformer_v3", grid_size=0.06, **small)
config = TrainConfig(epochs=arguments.epochs, batch_size=2, lr=4e-3, seed=arguments.seed)
fit(task, model, rooms, arguments.output, config, resume=True)  # goes on where it was stopped

figures = evaluate(task, model, held_out)
print(f"on rooms it has not seen: mean IoU {figures['mean_iou']:.1%}, accuracy {figures['accuracy']:.1%}")

room = held_out[10]  # one without a ceiling, to look in from above
for name, label in (("found", segment(room, model).label), ("true", room.y)):
    path, views = arguments.output / f"{name}.png", ("oblique", "top")
    picture(room, path, label=label, names=rooms.names, up="z", views=views, size=(1000, 500))
del room.y, room.name  # a file like a user's, without labels
geoattn.save(arguments.output / "room.ply", room)
print(f"one of them, as found and as it is: {arguments.output / 'found.png'}, true.png; its points: room.ply")
