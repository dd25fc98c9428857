"""Point Transformer and PointNet++: the sizes of the authors' networks, their checkpoints' keys, small clouds."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from geoattn.models import create_model, load_official
from geoattn.models.points import PointTransformer

NAMES = tuple(f"class {i}" for i in range(50))
PARTS = tuple((i,) for i in range(16))
SMALL_V1 = {"channels": (8, 16), "blocks": (1, 1), "neighbors": (4, 4), "share": 4}
SMALL_POINTNET2 = {"centers": (20, 6), "width": 0.1, "neighbors": 0.1, "unit_sphere": True}


def size(network, classes, **config):
    with torch.device("meta"):
        model = create_model(network, names=NAMES[:classes], **config)
    return sum(p.numel() for p in model.parameters())


# Counted in the authors' own code, or given in the sheets of facts.
SIZES = {
    "Seg50": ("point_transformer", 13, {"features": ("pos", "color")}, 7_767_729),
    "Seg38": ("point_transformer", 13, {"features": ("pos", "color"), "blocks": (1, 2, 2, 2, 2)}, 6_658_857),
    "Seg26": ("point_transformer", 13, {"features": ("pos", "color"), "blocks": (1, 1, 1, 1, 1)}, 4_854_145),
    "Cls50": ("point_transformer", 40, {"features": ("pos", "color"), "labelled": "whole"}, 3_262_872),
    "PartSeg50": ("point_transformer", 13, {"features": ("pos", "color"), "parts_of_category": PARTS}, 8_309_425),
    "cls ssg": ("pointnet2_ssg", 40, {"labelled": "whole"}, 1_475_688),
    "cls ssg, normals": ("pointnet2_ssg", 40, {"labelled": "whole", "features": ("pos", "normal")}, 1_475_880),
    "part ssg": ("pointnet2_ssg", 13, {"unit_sphere": True, "parts_of_category": PARTS}, 1_406_477),
    "part msg": ("pointnet2_msg", 13, {"unit_sphere": True, "parts_of_category": PARTS}, 1_736_185),
    "part msg, normals": (
        "pointnet2_msg", 50, {"unit_sphere": True, "parts_of_category": PARTS, "features": ("pos", "normal")},
        1_741_822,
    ),
    "scene ssg": ("pointnet2_ssg", 13, {"features": ("pos", "color", "normal")}, 968_269),
    "scene msg": ("pointnet2_msg", 13, {"features": ("pos", "color", "normal")}, 1_883_269),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_the_authors_sizes(name):
    network, classes, config, expected = SIZES[name]
    assert size(network, classes, **config) == expected


def small(network, labelled, **config):
    torch.manual_seed(0)
    options = SMALL_V1 if network == "point_transformer" else SMALL_POINTNET2
    return create_model(network, names=("a", "b", "c"), labelled=labelled, **{**options, **config})


def clouds(model, sizes, **attributes):
    make = torch.Generator().manual_seed(0)
    transform = model.input_transform()
    return [transform(Data(pos=torch.randn(n, 3, generator=make), **attributes)) for n in sizes]


@pytest.mark.parametrize("network", ["point_transformer", "pointnet2_ssg", "pointnet2_msg"])
@pytest.mark.parametrize("labelled", ["vertex", "whole"])
@pytest.mark.parametrize("train", [False, True])
def test_small_clouds_are_no_special_case(network, labelled, train):
    model = small(network, labelled).train(train)
    for sizes in ((1,), (2, 1, 3, 5), (40, 1)):
        samples = clouds(model, sizes)
        out = model(Batch.from_data_list(samples))
        assert out.shape == (sum(sizes) if labelled == "vertex" else len(sizes), 3)
        assert out.isfinite().all()
        if not train:
            torch.testing.assert_close(out, torch.cat([model(sample) for sample in samples]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["point_transformer", "pointnet2_ssg", "pointnet2_msg"])
def test_the_category_of_an_object_matters(network):
    model = small(network, "vertex", parts_of_category=((0,), (1, 2))).eval()
    [first], [second] = (clouds(model, (30,), category=torch.tensor([c])) for c in (0, 1))
    assert not torch.allclose(model(first), model(second))
    del first.category
    with pytest.raises(ValueError, match="the network knows 2 categories: give each of 1 clouds one, got none"):
        model(first)
    second.category = torch.tensor([2])
    with pytest.raises(ValueError, match=r"category must be from 0 to 1, got \[2\]"):
        model(second)


V1_KEYS = {
    "enc1.0.linear.weight": "stem.0.weight",
    "enc1.0.bn.running_mean": "stem.1.running_mean",
    "backbone.enc3.0.linear.weight": "down.1.linear.weight",
    "enc3.0.bn.bias": "down.1.norm.bias",
    "enc3.2.linear1.weight": "encoder.2.1.before.0.weight",
    "enc3.2.transformer.linear_q.bias": "encoder.2.1.attention.query.bias",
    "enc3.2.transformer2.linear_w.3.weight": "encoder.2.1.attention.attn_nn.3.weight",
    "enc3.2.transformer2.linear_p.0.weight": "encoder.2.1.attention.pos_nn.0.weight",
    "enc3.2.bn3.num_batches_tracked": "encoder.2.1.after.1.num_batches_tracked",
    "dec5.0.linear2.0.bias": "whole.mean.0.bias",
    "dec5.0.linear3.0.weight": "whole.category.0.weight",
    "dec2.0.linear1.1.weight": "up.1.skip.1.weight",
    "dec2.1.linear3.weight": "decoder.1.0.after.0.weight",
    "cls.3.weight": "head.3.weight",
    "other.weight": None,
    "enc9.0.linear.weight": None,
}
POINTNET2_KEYS = {
    "sa1.mlp_convs.0.weight": "levels.0.first.0.weight",
    "sa1.mlp_bns.0.weight": "levels.0.rest.0.0.weight",
    "sa1.conv_blocks.2.1.bias": "levels.0.rest.2.2.bias",
    "sa2.bn_blocks.1.2.running_var": "levels.1.rest.1.6.running_var",
    "sa3.mlp_convs.2.weight": "whole.perceptron.6.weight",
    "fp1.mlp_bns.1.bias": "up.0.perceptron.4.bias",
    "conv2.weight": "head.4.weight",
    "fc3.bias": "head.8.bias",
    "other.weight": None,
}


def test_names_of_the_authors():
    assert {key: PointTransformer.official_key(key) for key in V1_KEYS} == V1_KEYS
    model = small("pointnet2_ssg", "whole")
    assert {key: model.official_key(key) for key in POINTNET2_KEYS} == POINTNET2_KEYS


def test_convolutions_of_size_one_are_linear_layers():
    model = small("pointnet2_ssg", "whole")
    weight = torch.rand(*model.levels[0].first[0].weight.shape, 1, 1)
    report = load_official(model, {"model_state_dict": {"sa1.mlp_convs.0.weight": weight}, "epoch": 3})
    assert torch.equal(model.levels[0].first[0].weight, weight[..., 0, 0])
    assert "levels.0.first.0.weight" not in report.missing
    with pytest.raises(ValueError, match=r"sa1.mlp_convs.0.weight has the shape \[2, 3, 1, 1\]"):
        load_official(model, {"sa1.mlp_convs.0.weight": torch.rand(2, 3, 1, 1)})


@pytest.mark.parametrize(
    ("network", "config", "message"),
    [
        ("point_transformer", {"neighbors": (4,)}, "channels, blocks and neighbors must have a number for each resolu"),
        ("point_transformer", {"stride": 1}, "stride at least 2"),
        ("point_transformer", {"share": 3}, "share must divide channels, got 3 and 32"),
        ("pointnet2_ssg", {"centers": (5,)}, r"centers must be 4 numbers, one for each level, got \(5,\)"),
        ("pointnet2_ssg", {"centers": (5, 0)}, "centers must be at least 1"),
        ("pointnet2_msg", {"width": 0.0}, r"width must be positive, got 0\.0"),
    ],
)
def test_what_is_wrong_with_a_config_is_said(network, config, message):
    with pytest.raises(ValueError, match=message):
        create_model(network, names=("a", "b"), **config)
