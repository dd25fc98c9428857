"""The classifiers of clouds as sets: Set Transformer and Perceiver."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from geoattn.models import create_model, load_official
from geoattn.models.points import SetTransformer

NAMES = tuple(f"class {i}" for i in range(40))


def clouds(*sizes):
    make = torch.Generator().manual_seed(0)
    return [Data(pos=pos, x=pos) for pos in (torch.rand(size, 3, generator=make) for size in sizes)]


def test_set_transformer_is_as_large_as_the_public_one_and_has_its_names():
    model = create_model("set_transformer", names=NAMES, labelled="whole")
    assert sum(p.numel() for p in model.parameters()) == 1_140_264
    assert {name.rpartition(".")[0] for name in model.state_dict() if "mab" not in name} == {
        "enc.0", "enc.1", "dec.1", "dec.3",
    }  # fmt: skip
    assert load_official(model, {f"module.{key}": x for key, x in model.state_dict().items()}) == ([], [])


@pytest.mark.parametrize("name", ["set_transformer", "perceiver"])
def test_the_order_of_points_does_not_matter(name):
    torch.manual_seed(0)
    model = create_model(name, names=("a", "b"), labelled="whole", channels=16, heads=2).eval()
    [cloud] = clouds(50)
    turned = Data(pos=cloud.pos.flip(0), x=cloud.x.flip(0))
    torch.testing.assert_close(model(turned), model(cloud), rtol=1e-4, atol=1e-5)


def test_clouds_may_come_with_their_numbers_only():
    model = create_model("set_transformer", names=("a", "b"), labelled="whole", channels=16, heads=2).eval()
    batch = Batch.from_data_list(clouds(5, 8))
    bare = Data(pos=batch.pos, x=batch.x, batch=batch.batch)
    assert torch.equal(model(bare), model(batch))


def test_perceiver_shares_the_weights_of_its_repeats():
    small = {"names": ("a", "b"), "labelled": "whole", "channels": 16, "latents": 4, "layers": 2}
    sizes = {r: sum(p.numel() for p in create_model("perceiver", **small, repeats=r).parameters()) for r in (1, 8)}
    assert sizes[1] == sizes[8]


@pytest.mark.parametrize("name", ["set_transformer", "perceiver"])
def test_they_label_whole_clouds(name):
    with pytest.raises(ValueError, match="one label to a whole cloud: labelled must be \"whole\", got 'vertex'"):
        create_model(name, names=("a", "b"))
    assert SetTransformer.tasks == ("classification",)
