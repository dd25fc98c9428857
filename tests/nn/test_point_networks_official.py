"""Layers of Point Transformer and PointNet++ give what the authors' code gives, on weights made by a formula.

The numbers are from the first author's code of Point Transformer (POSTECH-CVLab/point-transformer, its CUDA kernels
replaced by plain torch that follows them) and from yanx27/Pointnet_Pointnet2_pytorch (with the first center at the
first point), in float64 and with their weights in our layers' places.
"""

import pytest
import torch

from geoattn import nn
from geoattn.ops import knn_query

BATCH = torch.tensor([0] * 25 + [1] * 15)
HALVES = torch.arange(2).repeat_interleave(20)
FEW = torch.tensor([0, 5, 9, 14, 25, 30, 33])
FIVE = torch.cat([torch.arange(1, 6), torch.arange(21, 26)])


def waves(*shape):
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(i * 0.7 + 0.3 * i**2 % 5).view(shape)


def filled(layer):
    layer = layer.double()
    for i, (name, tensor) in enumerate(layer.state_dict().items()):
        if tensor.is_floating_point():
            value = 0.5 * torch.sin(1.3 * torch.arange(tensor.numel(), dtype=torch.float64) + i).view(tensor.shape)
            tensor.copy_(1 + value if name.endswith("var") else value)
    return layer


POS, X = waves(40, 3), waves(40, 8).flip(0)
LAYERS = {
    "PointTransformerBlock": (
        lambda: nn.PointTransformerBlock(8, share=4), lambda layer: layer(X, POS, knn_query(POS, 6, BATCH)),
    ),
    "TransitionDown": (lambda: nn.TransitionDown(8, 6, stride=4, k=6), lambda layer: layer(X, POS, BATCH)[0]),
    "TransitionUp": (
        lambda: nn.TransitionUp(8, 8), lambda layer: layer(X, POS, X[FEW], POS[FEW], BATCH, BATCH[FEW]),
    ),
    "SetAbstraction, one scale": (
        lambda: nn.SetAbstraction(8, 6, [1.0], [5], [[7, 6]]), lambda layer: layer(X, POS, HALVES)[0],
    ),
    "SetAbstraction, two scales": (
        lambda: nn.SetAbstraction(8, 6, [0.8, 1.3], [4, 7], [[7, 6], [5]]), lambda layer: layer(X, POS, HALVES)[0],
    ),
    "FeaturePropagation": (
        lambda: nn.FeaturePropagation(16, 6),
        lambda layer: layer(X, POS, X[FIVE], POS[FIVE] + 0.1, HALVES, HALVES[FIVE]),
    ),
}  # fmt: skip
NUMBERS = {
    ("PointTransformerBlock", "eval"): (105.16291338058804, [0.534911025, 0.482753646, 0.247501486, 0.0]),
    ("PointTransformerBlock", "train"): (103.9960011351556, [0.566232534, 0.358009916, 0.186652547, 0.0]),
    ("TransitionDown", "eval"): (26.296839333212876, [0.954586825, 0.299269514, 0.0, 0.202220674]),
    ("TransitionDown", "train"): (29.036956849331478, [1.060810987, 0.187038847, 0.152660438, 0.415539705]),
    ("TransitionUp", "eval"): (140.5640507576365, [0.124273651, 1.361869901, 1.18286629, 0.322654596]),
    ("TransitionUp", "train"): (106.31120905397785, [0.0, 0.85816107, 0.737750726, 0.0]),
    ("SetAbstraction, one scale", "eval"): (15.623527619022378, [0.0, 0.0, 0.0, 0.0]),
    ("SetAbstraction, one scale", "train"): (19.973000555386214, [0.179993893, 0.0, 0.152932627, 0.0]),
    ("SetAbstraction, two scales", "eval"): (49.65712969417874, [0.04294709, 0.047141679, 0.067787957, 0.057839998]),
    ("SetAbstraction, two scales", "train"): (41.22937545247363, [0.0, 0.0, 0.330241864, 0.025691504]),
    ("FeaturePropagation", "eval"): (78.24912580309882, [0.176279679, 1.501824719, 1.218552095, 0.041316714]),
    ("FeaturePropagation", "train"): (49.82752978498765, [0.0, 0.877540482, 0.64103261, 0.0]),
}


@pytest.mark.parametrize(("name", "mode"), NUMBERS)
def test_layers_are_the_authors(name, mode):
    make, run = LAYERS[name]
    layer = filled(make())
    total, some = NUMBERS[name, mode]
    out = run(layer.train(mode == "train")).detach()
    assert float(out.sum()) == pytest.approx(total, rel=1e-12)  # nothing is negative behind ReLU
    assert out.flatten()[:: out.numel() // 4][:4].tolist() == pytest.approx(some, abs=1e-9)
