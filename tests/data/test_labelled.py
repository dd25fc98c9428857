"""Parts of labelled data sets, and the weights of their classes."""

import pytest
import torch
from torch_geometric.data import Data

from geoattn.data import class_weights, hold_out


class Samples(list):
    names = ("a", "b", "c")
    labelled = "vertex"


@pytest.fixture
def named():
    return Samples(Data(name=f"{kind}_{i}", y=torch.tensor([i])) for i in range(10) for kind in ("cat", "dog"))


@pytest.mark.parametrize(("spec", "count"), [("0.2", 4), ("dog", 10), ("cat_1, dog_2", 2), (".05", 1)])
def test_hold_out_divides(named, spec, count):
    train, valid = hold_out(named, spec, seed=3)
    of_train, of_valid = [[part[i].name for i in range(len(part))] for part in (train, valid)]
    assert len(of_valid) == count
    assert sorted(of_train + of_valid) == sorted(sample.name for sample in named)
    assert of_train == [sample.name for sample in named if sample.name in of_train]  # in their order
    assert (train.names, valid.labelled) == (named.names, named.labelled)


def test_a_share_depends_on_the_seed_only(named):
    chosen = [hold_out(named, "0.3", seed)[1].chosen for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0.01", "holds out 0 of 20"),
        ("1.0", "holds out 20 of 20"),
        ("cat,dog", "holds out 20 of 20"),
        ("cat,cow", "no name begins with 'cow'; the first names are .'cat_0'"),
        ("cat,", "between commas"),
        ("", "between commas"),
    ],
)
def test_all_or_nothing_is_not_held_out(named, spec, message):
    with pytest.raises(ValueError, match=message):
        hold_out(named, spec)


def test_samples_without_names_are_held_out_by_share_only():
    nameless = Samples(Data(y=torch.tensor([i])) for i in range(4))
    with pytest.raises(ValueError, match="have none; give a share"):
        hold_out(nameless, "a")
    assert len(hold_out(nameless, "0.5")[1]) == 2


def test_class_weights_balance():
    """Every class that occurs weighs as much in sum, whatever else is ignored; the weights have mean 1."""
    y = torch.tensor([0] * 6 + [2] * 2 + [3] + [-1] * 5)
    weight = class_weights([Data(y=y[:4]), Data(y=y[4:]), Data(y=torch.tensor([-1]))], 4)
    occurs, count = torch.tensor([0, 2, 3]), torch.tensor([6.0, 2.0, 1.0])
    torch.testing.assert_close(weight[occurs] * count, (weight[occurs] * count).mean().expand(3))
    torch.testing.assert_close(weight[occurs].mean(), torch.tensor(1.0))
    assert weight[1] == 1
    assert class_weights([Data(y=torch.arange(3))], 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("y", "message"),
    [(None, "sample 1 has no labels"), ([3], "sample 1 has label 3; expected 0 to 2"), ([-2], "label -2")],
)
def test_wrong_labels_have_no_weights(y, message):
    samples = [Data(y=torch.tensor([0])), Data(y=y if y is None else torch.tensor(y))]
    with pytest.raises(ValueError, match=message):
        class_weights(samples, 3)


def test_no_label_at_all_has_no_weights():
    with pytest.raises(ValueError, match="no class occurs"):
        class_weights([Data(y=torch.tensor([-1]))], 3)
