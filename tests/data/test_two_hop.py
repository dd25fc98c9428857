from collections import Counter
from itertools import combinations

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from geoattn.data import HopFeatures, TwoHopLoader, TwoHopSampler
from geoattn.patterns import as_neighbors

NODES = 24


def random_graph(seed=0):
    """Directed, with edges that occur twice, loops, and nodes 20 to 23 without edges."""
    edge_index = torch.randint(0, 20, (2, 45), generator=torch.Generator().manual_seed(seed))
    return torch.cat([edge_index, edge_index[:, :9], torch.tensor([[3, 4], [3, 4]])], 1)


def candidates(edge_index, nodes=NODES):
    """What each node may draw: its one-hop list, then its two-hop list, each ascending."""
    before = [sorted({int(s) for s, t in edge_index.T.tolist() if t == i}) for i in range(nodes)]
    return [near + sorted({k for j in near for k in before[j]}) for near in before]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lists(seed):
    edge_index, size = random_graph(seed), 7
    lists = TwoHopSampler(edge_index, NODES, size, seed).lists(torch.arange(NODES)).tolist()
    kinds = Counter()
    for i, (own, *drawn) in enumerate(lists):
        found = candidates(edge_index)[i]
        assert own == i
        assert len(drawn) == size
        if not found:
            assert len(set(drawn)) == size
        elif len(found) < size:
            assert drawn == (found * size)[:size]
        else:
            assert not Counter(drawn) - Counter(found)
        kinds[not found, len(found) >= size] += 1
    assert len(kinds) == 3  # all three cases occurred


def test_every_subset_is_as_likely_as_the_others():
    # Node 0 has near {1, 2} and far {0, 2, 3}: five places, in two of which stands node 2.
    edge_index = torch.tensor([[1, 2, 2, 3, 0], [0, 0, 1, 2, 2]])
    places = [1, 2, 0, 2, 3]
    assert candidates(edge_index, 4)[0] == places
    copies = 8000
    first = 4 * torch.arange(copies)
    many = (edge_index.unsqueeze(2) + first).flatten(1)
    lists = TwoHopSampler(many, 4 * copies, 3).lists(first) - first[:, None]
    found = Counter(tuple(drawn) for drawn in lists[:, 1:].sort(1)[0].tolist())
    expected = Counter(tuple(sorted(places[p] for p in chosen)) for chosen in combinations(range(5), 3))
    assert found.keys() == expected.keys()
    chi2 = sum((found[k] - copies * n / 10) ** 2 / (copies * n / 10) for k, n in expected.items())
    assert chi2 < 27.9  # 99.9 % quantile with 9 degrees of freedom (an upper bound: outcomes coincide)


def test_alone_draws_from_all_nodes():
    nodes = 10_000
    lists = TwoHopSampler(torch.empty(2, 0, dtype=torch.long), nodes, 4).lists(torch.arange(nodes))
    share = torch.histc(lists[:, 1:].float(), 10, 0, nodes) / (4 * nodes)
    assert ((share - 0.1).abs() < 0.006).all()  # four standard deviations
    assert TwoHopSampler(torch.empty(2, 0, dtype=torch.long), 2, 5).lists(torch.tensor([1])).tolist() == [
        [1, 0, 1, 0, 1, 0]
    ]


def test_a_list_belongs_to_seed_and_node():
    edge_index, nodes = random_graph(), torch.tensor([5, 20, 3, 5, 17])
    lists = TwoHopSampler(edge_index, NODES, 4, seed=3).lists(torch.arange(NODES))
    assert torch.equal(TwoHopSampler(edge_index.flip(1), NODES, 4, seed=3).lists(nodes), lists[nodes])
    assert not torch.equal(TwoHopSampler(edge_index, NODES, 4, seed=4).lists(nodes), lists[nodes])
    assert TwoHopSampler(edge_index, NODES, 4, seed=-1).lists(nodes).shape == (5, 5)


def test_a_hub_costs_what_the_batch_costs():
    leaves = torch.arange(1, 60_001)  # two-hop lists of all: 3.6e9 entries
    edge_index = torch.cat([torch.stack([leaves, 0 * leaves]), torch.stack([0 * leaves, leaves])], 1)
    lists = TwoHopSampler(edge_index, 60_001, 20).lists(torch.tensor([0, 7, 60_000]))
    assert lists[:, 1:].unique().numel() > 50
    assert lists[:, 0].tolist() == [0, 7, 60_000]


def test_the_graph_stays_as_it_is():
    edge_index = random_graph()
    TwoHopSampler(edge_index, NODES, 4)
    pattern = as_neighbors(edge_index, NODES)
    assert torch.equal(pattern.to_edge_index()[:, pattern.edge_order.argsort()].long(), edge_index)


def graph():
    generator = torch.Generator().manual_seed(5)
    return Data(
        x=torch.randn(NODES, 3, generator=generator),
        y=torch.arange(NODES),
        edge_index=random_graph(),
        edge_attr=torch.rand(56),
        train_mask=torch.rand(NODES, generator=generator) < 0.5,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(workers):
    data, sampler = graph(), TwoHopSampler(random_graph(), NODES, 5, seed=2)

    def mark(batch):
        batch.marked = True
        return batch

    def batches():
        loader = TwoHopLoader(
            data,
            5,
            input_nodes=data.train_mask,
            batch_size=4,
            shuffle=True,
            num_workers=workers,
            transform=mark,
            seed=2,
            generator=torch.Generator().manual_seed(1),
        )
        assert len(loader) == -(-int(data.train_mask.sum()) // 4)
        return list(loader)

    seen = []
    for batch, again in zip(batches(), batches(), strict=True):
        seeds = batch.n_id[: batch.batch_size]
        assert torch.equal(batch.edge_index, again.edge_index)
        assert torch.equal(batch.n_id, again.n_id)
        assert batch.n_id.unique().numel() == batch.num_nodes
        assert torch.equal(batch.n_id[batch.edge_index[0]].view(-1, 6), sampler.lists(seeds))
        assert torch.equal(batch.edge_index[1], torch.arange(len(seeds)).repeat_interleave(6))
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.y, batch.n_id)
        assert torch.equal(batch.input_id, seeds)
        assert batch.edge_attr is None
        assert batch.marked
        seen += seeds.tolist()
    assert sorted(seen) == data.train_mask.nonzero().squeeze(1).tolist()


def test_seeds_given_twice():
    batch = next(iter(TwoHopLoader(graph(), 4, input_nodes=torch.tensor([9, 2, 9]), batch_size=3)))
    assert batch.n_id[:3].tolist() == [9, 2, 9]
    assert batch.input_id.tolist() == [0, 1, 2]
    lists = batch.edge_index[0].view(3, 5)
    assert lists[:, 0].tolist() == [0, 1, 2]
    assert torch.equal(batch.n_id[lists[0]], batch.n_id[lists[2]])


def test_hop_features_formula():
    data = graph()
    data.x = data.x.double()
    adjacency = torch.eye(NODES, dtype=torch.float64)
    for s, t in data.edge_index.T.tolist():
        adjacency[t, s] += 1
    normal = adjacency / (adjacency.sum(0)[:, None] * adjacency.sum(1)[None]).sqrt()
    expected = torch.stack([normal @ data.x, normal @ normal @ data.x], 1)
    torch.testing.assert_close(HopFeatures()(data).hop_x, expected)
    assert "hop_x" not in data
    data.x = data.x.float()
    torch.testing.assert_close(HopFeatures()(data).hop_x, expected.float())


def test_hop_features_of_an_undirected_graph_are_those_of_gcn():
    one_way = random_graph()
    one_way = one_way[:, one_way[0] != one_way[1]]
    edge_index, x = torch.cat([one_way, one_way.flip(0)], 1), torch.randn(NODES, 3)
    index, weight = gcn_norm(edge_index, num_nodes=NODES)
    once = torch.zeros_like(x).index_add(0, index[1], weight[:, None] * x[index[0]])
    torch.testing.assert_close(HopFeatures()(Data(x=x, edge_index=edge_index)).hop_x[:, 0], once)


def test_hop_features_follow_the_nodes():
    data, order = graph(), torch.randperm(NODES)
    new = torch.empty_like(order).index_copy(0, order, torch.arange(NODES))
    renumbered = HopFeatures()(Data(x=data.x[order], edge_index=new[data.edge_index]))
    torch.testing.assert_close(renumbered.hop_x, HopFeatures()(data).hop_x[order])


def test_errors():
    with pytest.raises(ValueError, match="num_neighbors must be at least 1, got 0"):
        TwoHopSampler(random_graph(), NODES, 0)
    with pytest.raises(ValueError, match="edge_index"):
        TwoHopSampler(random_graph(), 10, 3)
    with pytest.raises(ValueError, match="with edge_index"):
        TwoHopLoader(Data(x=torch.ones(3, 1)), 3)
    with pytest.raises(ValueError, match="x and edge_index"):
        HopFeatures()(Data(edge_index=random_graph(), num_nodes=NODES))
    with pytest.raises(NotImplementedError, match="samples from nodes"):
        TwoHopSampler(random_graph(), NODES, 3).sample_from_edges(None)
