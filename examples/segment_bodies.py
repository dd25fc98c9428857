"""Train a network that finds the parts of a human body, on bodies made at random; two minutes on two cores.

python examples/segment_bodies.py --output demo
geoattn segment demo/person.obj --model demo/last --picture parts.png --page parts.html
"""

import argparse
from pathlib import Path

import torch

import geoattn
from geoattn.data import Bodies
from geoattn.models.segmentation import SurfaceTransformer, SurfaceTransformerConfig, evaluate, train
from geoattn.train import TrainConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the checkpoint and a mesh to try")
parser.add_argument("--meshes", type=int, default=300, help="how many bodies to train on")
parser.add_argument("--minutes", type=float, default=0.9, help="how long to train, after the bodies are prepared")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

torch.manual_seed(arguments.seed)
model = SurfaceTransformer(SurfaceTransformerConfig(names=Bodies.names, channels=64, blocks=3))
config = TrainConfig(epochs=20, batch_size=4, lr=2e-3, minutes=arguments.minutes, seed=arguments.seed)
train(model, Bodies(arguments.meshes), arguments.output, config, copies=1, resume=True)

held_out = Bodies(20, seed=1)
for name, value in evaluate(model, held_out).items():
    print(f"held-out {name.replace('_', ' ')}: {value:.1%}")
geoattn.save(arguments.output / "person.obj", held_out[0])
print(f"a body it has not seen: {arguments.output / 'person.obj'}")
