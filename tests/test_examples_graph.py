"""The examples of graph attention run, and choose and count as they say; what they reach is in their README."""

import csv
import dataclasses
import shutil
from functools import partial

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures

from examples.graph import dictionary_lookup, node_classification
from examples.graph.node_classification import RECIPES, Epoch, train

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch: CSR tensors are in beta, and not checked
FEW = {key: dataclasses.replace(recipe, epochs=60) for key, recipe in RECIPES.items()}
for aero_gnn in (("aero-gnn", "cora"), ("aero-gnn", "citeseer")):  # 32 hops take seconds
    FEW[aero_gnn] = dataclasses.replace(FEW[aero_gnn], network=partial(FEW[aero_gnn].network, num_hops=4))


@pytest.fixture(scope="module")
def citations() -> Data:
    """Papers that mostly cite their own class and mostly use its words."""
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    source, target = torch.randint(90, (2, 700))
    cited = (y[source] == y[target]) | (torch.rand(700) < 0.1)
    words = torch.rand(90, 60) < 0.03 + 0.2 * (torch.arange(60) % 3 == y[:, None])
    part = torch.randperm(90) % 3
    masks = {f"{name}_mask": part == i for i, name in enumerate(("train", "val", "test"))}
    return Data(x=words.float(), edge_index=torch.stack([source[cited], target[cited]]), y=y, **masks)


@pytest.mark.parametrize("key", RECIPES, ids="-".join)
def test_every_recipe_learns(key, citations):
    data = NormalizeFeatures()(citations.clone()) if FEW[key].normalize else citations
    assert train(data, FEW[key], seed=0).test > 60  # a third is chance


def test_the_same_seed_gives_the_same_network(citations):
    recipe = dataclasses.replace(FEW["supergat", "cora"], epochs=5)
    first, second, other = (train(citations, recipe, seed) for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize(
    ("watch", "best", "last"),
    [(("loss",), 4, 6), (("accuracy",), 5, 7), (("loss", "accuracy"), 2, 7)],
)
def test_what_is_watched_chooses_the_epoch_and_the_end(watch, best, last, citations, monkeypatch):
    losses = [1.0, 0.8, 0.9, 0.7, 0.8, 0.8, 0.9, 0.1]
    accuracies = [50.0, 60.0, 60.0, 55.0, 60.0, 55.0, 55.0, 90.0]
    found = [Epoch(i + 1, *pair, test=i) for i, pair in enumerate(zip(losses, accuracies, strict=True))]
    seen = []

    def scripted(model, data, recipe):
        for epoch in found:
            seen.append(epoch.number)
            yield epoch

    monkeypatch.setattr(node_classification, "epochs", scripted)
    recipe = dataclasses.replace(RECIPES["gat", "cora"], watch=watch, patience=2)
    assert train(citations, recipe, 0).number == best
    assert seen[-1] == last


def test_dropout_of_sparse_features_is_dropout():
    x = (torch.rand(400, 50) < 0.2) * torch.rand(400, 50)
    sparse = x.to_sparse_csr()
    assert torch.equal(node_classification.dropout(sparse, 0.6, training=False).to_dense(), x)
    dropped = node_classification.dropout(sparse, 0.6, training=True).to_dense()
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.4)
    assert kept[x != 0].float().mean() == pytest.approx(0.4, abs=0.05)


def test_cora_is_read_and_the_seeds_are_written(shared_data, tmp_path, monkeypatch, capsys):
    if not (shared_data / "graph" / "planetoid").is_dir():
        pytest.skip("no Cora")
    shutil.copytree(shared_data / "graph" / "planetoid" / "Cora", tmp_path / "Cora")
    monkeypatch.setitem(RECIPES, ("gat", "cora"), dataclasses.replace(RECIPES["gat", "cora"], epochs=30))
    output = tmp_path / "found.csv"
    node_classification.main(["--root", str(tmp_path), "--seeds", "2", "--device", "cpu", "--output", str(output)])
    rows = list(csv.DictReader(output.open()))
    assert [row["seed"] for row in rows] == ["0", "1"]
    mean = sum(float(row["test"]) for row in rows) / 2
    assert mean > 75
    assert f"gat on cora, 2 seeds: test {mean:.1f} ±" in capsys.readouterr().out


def test_graphs_for_testing_have_what_is_never_in_training():
    training, testing = dictionary_lookup.deal(6, graphs=300)
    assert len(training) + len(testing) == 300
    assert all(values.sort().values.tolist() == list(range(6)) for values in torch.cat([training, testing]))
    seen = {pair for values in training.tolist() for pair in enumerate(values)}
    assert all(set(enumerate(values)) - seen for values in testing.tolist())


def test_queries_see_all_pairs_of_their_graph_only():
    pair, query = dictionary_lookup.complete(3, 4)
    assert len(pair) == 3 * 4 * 4
    assert torch.equal(pair // 4, query // 4)
    assert len(set(zip(pair.tolist(), query.tolist(), strict=True))) == len(pair)


def test_gatv2_solves_what_gat_cannot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "lookup.png"
    sizes = ["--sizes", "4", "--heads", "1", "--seeds", "2", "--steps", "120"]
    dictionary_lookup.main([*sizes, "--plot", str(picture)])
    table = {line.split()[0]: float(line.split()[3]) for line in capsys.readouterr().out.splitlines()[1:]}
    assert table["GATv2"] == 100
    assert table["GAT"] < 60
    assert picture.stat().st_size > 10_000
