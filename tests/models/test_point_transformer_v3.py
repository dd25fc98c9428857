"""Point Transformer V3: numbers of the authors' code on given weights, and what must hold of any cloud."""

import re

import pytest
import torch
from torch_geometric.data import Batch, Data

from geoattn.models import create_model, load_official
from geoattn.models.points import PointTransformerV3Config

pytestmark = pytest.mark.filterwarnings("ignore:geoattn is several times slower")

SIX = ("color", "normal")
TINY = {
    "names": ("a", "b"), "channels": (4, 8, 8), "depths": (1, 3, 1), "heads": (1, 2, 2), "strides": (2, 2),
    "decoder_channels": (4, 8), "decoder_depths": (1, 1), "decoder_heads": (1, 2), "patch_size": 8, "drop_path": 0.0,
}  # fmt: skip


def cloud(grid, seed=0):
    x = torch.randn(len(grid), 3, generator=torch.Generator().manual_seed(seed))
    return Data(pos=grid.float(), x=x, grid_coord=grid)


def scattered(count, seed=0, side=20):
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randint(0, side, (count, 3), generator=generator).unique(dim=0)
    return grid[torch.randperm(len(grid), generator=generator)]


def tiny(**options):
    torch.manual_seed(0)
    model = create_model("point_transformer_v3", **{**TINY, **options}).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def run(model, *clouds):
    batch = Batch.from_data_list(list(clouds))
    batch.x = batch.x.to(next(model.parameters()).dtype)
    return model(batch)


def count(parameters):
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize(
    ("options", "with_head", "without"),
    [
        ({"labelled": "vertex"}, 46_167_572, 46_166_272),
        ({"labelled": "whole"}, None, 38_672_640),
        ({"patch_size": 128, "relative_positions": True, "classes": 13}, 46_190_553, None),
    ],
)
def test_parameters_are_as_many_as_the_authors(options, with_head, without):
    names = tuple(map(str, range(options.pop("classes", 20))))
    with torch.device("meta"):
        model = create_model("point_transformer_v3", names=names, features=SIX, **options)
    assert with_head in (None, count(model.parameters()))
    assert without in (None, count(model.parameters()) - count(model.head.parameters()))


# The authors' names of our parameters


def official(key):
    """The name in Pointcept's checkpoints."""
    if key.startswith("head."):
        return f"module.seg_{key}"
    key = key.replace("embedding.", "embedding.stem.").replace(".blocks.", ".block")
    key = re.sub(r"^(enc|dec)\.", r"\1.\1", key)
    key = re.sub(r"\.(norm1|norm2|mlp|down\.norm)\.", r".\1.0.", key)
    return f"module.backbone.{key}"


def given(key, shape):
    """A weight made of the name it has in the authors' network."""
    key = key.removeprefix("module.backbone.")
    x = torch.sin(0.7 * torch.arange(shape.numel(), dtype=torch.float64) + sum(map(ord, key))).view(shape)
    around_one = key.endswith("running_var") or ("norm" in key and key.endswith("weight"))
    return 1 + 0.3 * x if around_one else 0.3 * x


# What Pointcept's PT-v3m1 (d74c646) and the repository PointTransformerV3 gave alike, in float64, without flash
# attention and shuffling, their spconv replaced by a loop over the definition: of features F the first row and the sum
# of sizes; of the gradients of sum(F * cos(0, 1, ...)) the norms, for x and for three weights.
NUMBERS = {
    (False, False): (
        (0.39429944008695417, 0.49771841886495616, 0.34910626279798157, 0.24482606247370367), 89.32113422066064,
        (0.023024269536725723, 0.07614124082572098, 0.03716536309121456, 0.23243260511818856),
    ),
    (False, True): (
        (0.3189585657967295, 0.5056685393206246, 0.5666736604802172, 0.27467339539591407), 101.53686553487225,
        (4.2394445815003925, 10.260278504784967, 0.34232418369756984, 0.8889110088115318),
    ),
    (True, False): (
        (0.3932163614610111, 0.4977423095912876, 0.3492857405723188, 0.2451071209325112), 89.2662200719727,
        (0.023776119875039, 0.07816207659354868, 0.043890649025757206, 0.23324904266756905),
    ),
    (True, True): (
        (0.3551441135486716, 0.5083211981745944, 0.5371025123081308, 0.26982467958157297), 101.48853680919026,
        (7.964059265559002, 24.647285589410764, 0.8378910588948021, 0.8780047916939119),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("relative", "training"), NUMBERS)
def test_numbers_are_those_of_the_authors_code(relative, training, tmp_path):
    model = tiny(relative_positions=relative, shuffle_orders="never")
    weights = {official(key): given(official(key), value.shape) for key, value in model.state_dict().items()
               if value.is_floating_point() and not key.startswith("head.")}  # fmt: skip
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "model_best.pth")
    missing, unexpected = load_official(model, tmp_path / "model_best.pth")
    assert unexpected == []
    assert all(key.startswith("head.") or key.endswith("num_batches_tracked") for key in missing)

    model.train(training).head = torch.nn.Identity()
    i = torch.arange(60)
    grid = torch.stack([i * 7 % 11, i * 5 % 9, i * 3 % 6], 1).unique(dim=0)
    x = torch.cos(torch.arange(180, dtype=torch.float64)).view(-1, 3).requires_grad_()
    out = model(Data(pos=grid.double(), x=x, grid_coord=grid))
    wanted = [
        x, model.embedding.conv.weight, model.enc[1].blocks[2].attn.qkv.weight, model.dec[0].blocks[0].cpe[0].weight,
    ]  # fmt: skip
    grads = torch.autograd.grad((out * torch.cos(torch.arange(out.numel())).view_as(out)).sum(), wanted)
    row, total, norms = NUMBERS[relative, training]
    torch.testing.assert_close(out[0], torch.tensor(row, dtype=torch.float64), rtol=1e-10, atol=0)
    assert float(out.detach().abs().sum()) == pytest.approx(total, rel=1e-10)
    assert [float(g.norm()) for g in grads] == pytest.approx(list(norms), rel=1e-8)


def test_classifiers_load_too_and_what_does_not_fit_is_said():
    model = tiny(labelled="whole")
    keys = [key.removeprefix("module.").replace("seg_head", "cls_head") for key in map(official, model.state_dict())]
    weights = dict(zip(keys, model.state_dict().values(), strict=True))
    assert load_official(model, weights) == ([], [])
    assert load_official(model, {**weights, "backbone.dec.dec0.up.proj.0.bias": torch.zeros(4)}) == (
        [], ["backbone.dec.dec0.up.proj.0.bias"],
    )  # fmt: skip
    before = model.embedding.conv.weight.clone()
    weights["backbone.embedding.stem.conv.weight"] = torch.zeros(4, 5, 5, 5, 6)
    with pytest.raises(ValueError, match=r"stem.conv.weight has the shape \[4, 5, 5, 5, 6\], .*\[4, 5, 5, 5, 3\]"):
        load_official(model, weights)
    assert torch.equal(model.embedding.conv.weight, before)


def test_the_first_convolution_of_the_decoder_may_see_the_sum():
    stale, fresh = tiny(), tiny(stale_skip=False)
    sample = cloud(scattered(100))
    assert not torch.allclose(run(stale, sample), run(fresh, sample))


@pytest.mark.parametrize("relative", [False, True])
def test_the_order_of_points_does_not_matter(relative):
    model, sample = tiny(relative_positions=relative), cloud(scattered(300))
    order = torch.randperm(len(sample.x))
    moved = Data(pos=sample.pos[order], x=sample.x[order], grid_coord=sample.grid_coord[order])
    torch.testing.assert_close(run(model, moved), run(model, sample)[order], rtol=1e-9, atol=1e-9)


ONE = torch.zeros(1, 3, dtype=torch.long)
CLOUDS = [ONE, ONE, torch.tensor([[0, 0, 0], [1, 0, 0]]), ONE + 5, scattered(7), scattered(200, 1, 4), scattered(90, 2)]


@pytest.mark.parametrize("labelled", ["vertex", "whole"])
@pytest.mark.parametrize("strides", [(2, 2), (4, 8)])
def test_clouds_of_any_size_are_the_same_alone_and_together(labelled, strides):
    """Single points, a cloud below the patch, clouds that are not so deep as the strides, and larger ones."""
    model = tiny(labelled=labelled, relative_positions=True, strides=strides)
    clouds = [cloud(grid, seed) for seed, grid in enumerate(CLOUDS)]
    together = run(model, *clouds)
    assert together.isfinite().all()
    torch.testing.assert_close(together, torch.cat([run(model, one) for one in clouds]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("labelled", ["vertex", "whole"])
def test_a_single_point_can_be_trained_on(labelled):
    run(tiny(labelled=labelled).train(), cloud(ONE)).sum().backward()


def test_orders_are_shuffled_in_training_unless_asked():
    sample = cloud(scattered(300))
    for shuffle, differs in (("training", False), ("never", False), ("always", True)):
        model = tiny(shuffle_orders=shuffle)
        outs = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            outs.append(run(model, sample))
        assert torch.equal(*outs) != differs
    model = tiny().train()
    torch.manual_seed(1)
    first = run(model, sample)
    assert not torch.equal(first, run(model, sample))
    torch.manual_seed(1)
    assert torch.equal(first, run(model, sample))


def test_points_skip_branches_by_themselves():
    """In training a share of the points is left as it was, not a share of the clouds."""
    block = tiny(drop_path=0.5).train().enc[2].blocks[0]
    kept = block._dropped(torch.ones(10_000, 8, dtype=torch.float64))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert 0.45 < float((kept > 0).double().mean()) < 0.55
    assert torch.equal(block.eval()._dropped(kept), kept)


def test_shares_of_points_that_skip_grow_with_depth():
    model = create_model("point_transformer_v3", **{**TINY, "drop_path": 0.4})
    rates = [block.drop_path for stage in (*model.enc, *model.dec) for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.0, 0.4])


def test_bfloat16_weights():
    model, sample = tiny(), cloud(scattered(200))
    expected = run(model, sample)
    found = run(model.bfloat16(), sample)
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_size": None}, "works on voxels: grid_size must be a number"),
        ({"heads": (1, 2)}, "heads must have as many numbers as channels, 3"),
        ({"strides": (2, 3)}, "strides must be powers of 2"),
        ({"decoder_depths": (1,)}, "decoder_depths must have one number less than channels, 2"),
        ({"shuffle_orders": "yes"}, "shuffle_orders must be"),
        ({"drop_path": 1.0}, "drop_path must be in"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        PointTransformerV3Config(**{**TINY, **options})


def test_clouds_must_be_made_by_the_transform():
    with pytest.raises(ValueError, match="this has no grid_coord: make it with the network's own input_transform"):
        tiny()(Data(pos=torch.rand(5, 3), x=torch.rand(5, 3).double()))
