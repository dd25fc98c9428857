"""Erwin against numbers of the authors' code, which we ran on given weights and points."""

import pytest
import torch
from torch_geometric.data import Batch

from geoattn.models import create_model, load_official
from geoattn.models.points import Erwin, ErwinBackbone, ErwinConfig
from geoattn.patterns import Neighbors
from tests.patterns.test_ball_tree import points

SMALL = {
    "names": ("a", "b"), "features": ("pos", "height"), "channels": (8, 16), "strides": (2,), "ball_sizes": (4, 4),
    "encoder_depths": (2, 2), "encoder_heads": (2, 4), "decoder_depths": (2,), "decoder_heads": (2,), "expansion": 2,
}  # fmt: skip
LINEAR = ("weight", "bias")
BLOCK = [
    "norm1.weight", "norm2.weight", "BMSA.sigma_att",
    *(f"BMSA.{n}.{p}" for n in ("qkv", "proj", "pe_proj") for p in LINEAR),
    *(f"swiglu.{n}.{p}" for n in ("w1", "w2", "w3") for p in LINEAR),
]  # fmt: skip


def official_keys(message_steps):
    """Of the parameters in the authors' code."""
    yield from (f"embed.embed_fn.{p}" for p in LINEAR)
    for t in range(message_steps):
        for name in (f"message_fns.{t}.0", f"message_fns.{t}.2", f"update_fns.{t}.0", f"update_fns.{t}.1"):
            yield from (f"embed.mpnn.{name}.{p}" for p in LINEAR)
    for name in ("encoder.0", "bottleneck", "decoder.0"):
        yield from (f"{name}.blocks.{b}.{key}" for b in range(2) for key in BLOCK)
    for name in ("encoder.0.pool", "decoder.0.unpool"):
        yield from (f"{name}.{part}.{p}" for part in ("proj", "norm") for p in LINEAR)


def given(key, shape):
    """A weight made of its name."""
    k = torch.arange(shape.numel(), dtype=torch.float64)
    one = -1 if key.endswith("sigma_att") else len(shape) == 1 and key.endswith("weight")
    return (0.2 * (0.37 * k + 0.01 * sum(map(ord, key))).sin() + one).view(shape)


def small(rotate, message_steps):
    model = Erwin(ErwinConfig(**SMALL, rotate=rotate, message_steps=message_steps)).double()
    own = model.state_dict()
    keys = list(official_keys(message_steps))
    report = load_official(model, {key: given(key, own[model.official_key(key)].shape) for key in keys})
    assert report.unexpected == []
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert all(key.startswith("head.") or key.endswith(buffers) for key in report.missing)
    return model.backbone


def cloud():
    """Two clouds, of 5 and of 11 points."""
    pos, batch = points(16), (torch.arange(16) > 4).long()
    near = ((pos[:, None] - pos[None]).norm(dim=2) <= 0.8) & (batch[:, None] == batch[None])
    x = (0.5 * torch.arange(64, dtype=torch.float64)).cos().view(16, 4)
    return x, pos, batch, Neighbors.from_edge_index(near.nonzero().T, 16)


OUTPUTS = {
    (0, 0): (9480, (-119.083929311, 177.641884359, -0.88906696), (-27.895550737, 121.568842238, 0.36119207)),
    (0, 1): (9808, (-87.174667922, 176.305034980, 0.50443726), (-32.197075760, 125.831476821, 0.40323102)),
    (45, 0): (9480, (-119.082953085, 177.641586733, -0.88474226), (-27.898474265, 121.699821646, 0.36854289)),
    (45, 1): (9808, (-87.172198293, 176.297529806, 0.50422452), (-32.220189426, 125.988859635, 0.40434653)),
}


@pytest.mark.parametrize(("rotate", "message_steps"), OUTPUTS)
def test_outputs_are_those_of_the_authors_code(rotate, message_steps):
    model = small(rotate, message_steps)
    parameters, *expected = OUTPUTS[rotate, message_steps]
    assert sum(p.numel() for p in model.parameters()) == parameters
    for training, (total, magnitude, first) in zip((False, True), expected, strict=True):
        out = model.train(training)(*cloud())
        found = [out.sum().item(), out.abs().sum().item(), out[0, 0].item()]
        assert found == pytest.approx([total, magnitude, first], rel=0, abs=6e-9)


def test_gradients_are_those_of_the_authors_code():
    model = small(45, 1).eval()
    coarsest = []
    model.bottleneck.register_forward_hook(lambda module, args, out: coarsest.append(out))
    model(*cloud()).square().mean().backward()
    assert coarsest[0].shape == (12, 16)
    assert coarsest[0].sum().item() == pytest.approx(-34.315593382, rel=1e-9)
    expected = {
        "embed.weight": 44.2577256399,
        "pooling.0.proj.weight": 56.5006492861,
        "encoder.0.blocks.1.attention.bias.sigma_att": 0.0012012397,
    }
    found = {name: p.grad.abs().sum().item() for name, p in model.named_parameters()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-7)


COSMOLOGY = {"names": ("a", "b")}
MOLECULES = {
    **COSMOLOGY, "channels": (16, 32, 64, 128, 256), "strides": (2,) * 4, "ball_sizes": (128, 128, 128, 64, 32),
    "encoder_depths": (2, 2, 2, 6, 2), "encoder_heads": (2, 4, 8, 16, 32), "decoder_depths": (2,) * 4,
    "decoder_heads": (4, 4, 8, 16), "rotate": 45,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "in_channels", "parameters"),
    [
        (COSMOLOGY, 32, 4_752_440),
        ({**COSMOLOGY, "channels": (64, 128, 256, 512)}, 64, 18_919_416),
        (MOLECULES, 16, 4_762_332),
    ],
)
def test_published_sizes(config, in_channels, parameters):
    with torch.device("meta"):
        model = ErwinBackbone(in_channels, ErwinConfig(**config))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_moving_a_cloud_changes_nothing_and_points_may_come_in_any_order():
    model = small(45, 1).eval()
    x, pos, batch, neighbors = cloud()
    expected = model(x, pos, batch, neighbors)
    torch.testing.assert_close(model(x, pos + 3, batch, neighbors), expected)
    alone = slice(0, 5)  # whose tree has no node of four, in which the order matters
    order = torch.tensor([3, 1, 4, 0, 2])
    few = Neighbors.knn(pos[alone], 3)
    moved = Neighbors.knn(pos[order], 3)
    torch.testing.assert_close(model(x[order], pos[order], None, moved), model(x[alone], pos[alone], None, few)[order])


@pytest.mark.parametrize("labelled", ["vertex", "whole"])
def test_clouds_of_a_few_points(labelled):
    model = create_model("erwin", names=("a", "b"), labelled=labelled, channels=(8, 16, 16, 16)).eval()
    clouds = [model.input_transform()(Batch(pos=torch.rand(n, 3))) for n in (1, 2, 7)]
    together = model(Batch.from_data_list(clouds))
    assert together.shape == ((10, 2) if labelled == "vertex" else (3, 2))
    torch.testing.assert_close(together, torch.cat([model(c) for c in clouds]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (2, 2)}, "strides must be 3 numbers from 1 on, one of each level but the coarsest"),
        ({"strides": (2, 3, 2)}, r"strides must be powers of two from 2 on, got \(2, 3, 2\)"),
        ({"ball_sizes": (1, 2, 2, 2)}, "ball_sizes must be powers of two from 2 on"),
        ({"encoder_depths": (2, 2, 0, 2)}, "encoder_depths must be 4 numbers from 1 on"),
        ({"neighbors": 0}, "neighbors and expansion at least 1"),
        ({"encoder_heads": (3, 4, 8, 16)}, "heads must divide channels, got 3 and 32"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Erwin(ErwinConfig(("a", "b"), **options))
