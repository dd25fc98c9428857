import copy
import math

import pytest
import torch
from torch.nn import functional as F
from torch_geometric.utils import dense_to_sparse

from geoattn.nn.graph.coulgat import CoulGATConv, PowerLawGATConv
from geoattn.patterns import Neighbors

# Of the author's TensorFlow code (K_hidden_out, float64) with the parameters of `published`.
PUBLISHED_CONCAT = [
    [
        [0.018227374298552035, 0.052848186839543565, 0.0, 0.04879301728575744],
        [0.0807930494827262, 0.10171982500568366, 0.0, 0.06810071535320997],
        [0.01672187205217346, 0.0416308022746425, 0.0, 0.025809427054785672],
    ],
    [
        [0.06374389018326859, 0.11927270366576703, 0.0, 0.04574609832271925],
        [0.0, 0.0, 0.0, 0.08601157620558336],
        [0.022718619541437057, 0.04459856517454558, 0.0, 0.04425897868967915],
    ],
]
PUBLISHED_MEAN = [
    [
        [-0.02366956099969636, 0.0508206020626505],
        [-0.008108307233073375, 0.08491027017944681],
        [0.004756141099262673, 0.033720114664714085],
    ],
    [
        [0.010968581214032255, 0.08250940099424314],
        [-0.1554524677902715, -0.11459665867246557],
        [-0.008869128355527903, 0.044428771932112365],
    ],
]


def wave(phase: int, *shape: int) -> torch.Tensor:
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) + phase).view(shape)


def published(**options) -> CoulGATConv:
    layer = CoulGATConv(2, 2, num_nodes=3, heads=2, **options).double()
    with torch.no_grad():
        layer.weight.copy_(wave(3, 2, 2, 2))
        layer.bias.copy_(wave(4, 2, 3, 2))
        layer.att.copy_(wave(5, 2, 3, 2))
        layer.power.copy_(wave(6, 2, 3, 3))
    return layer


def dense(**options) -> tuple[CoulGATConv, torch.Tensor, torch.Tensor]:
    """A layer for 5 slots, features and couplings of 2 graphs."""
    torch.manual_seed(0)
    layer = CoulGATConv(3, 4, num_nodes=5, heads=2, **options).double()
    torch.nn.init.normal_(layer.bias)
    return layer, torch.randn(2, 5, 3, dtype=torch.float64), torch.rand(2, 5, 5, dtype=torch.float64) + 0.2


def slow_dense(layer: CoulGATConv, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
    """One graph, heads concatenated, node by node."""
    count, heads = len(x), []
    for weight, bias, att, power in zip(layer.weight, layer.bias, layer.att, layer.power, strict=True):
        h = [weight @ x[n] + bias[n] for n in range(count)]
        mean = []
        for i in range(count):
            near = torch.stack([adj[i, j] ** power[i, j] for j in range(count)]).exp()
            mean.append(sum(near[j] / near.sum() * h[j] for j in range(count)))
        rows = []
        for k in range(count):
            score = torch.stack([F.leaky_relu(att[k] @ m, 0.2) for m in mean]).exp()
            rows.append(sum(score[i] / score.sum() * h[i] for i in range(count)))
        heads.append(torch.stack(rows))
    return torch.cat(heads, 1).relu()


def test_layer_gives_what_the_published_code_gives():
    # TensorFlow has the slope of the LeakyReLU in float32.
    x, adj = wave(1, 2, 3, 2), 1.5 + wave(2, 2, 3, 3)
    expected = torch.tensor(PUBLISHED_CONCAT, dtype=torch.float64)
    torch.testing.assert_close(published()(x, adj), expected, rtol=0, atol=1e-8)
    expected = torch.tensor(PUBLISHED_MEAN, dtype=torch.float64)
    torch.testing.assert_close(published(concat=False, act=None)(x, adj), expected, rtol=0, atol=1e-8)


def test_layer_is_the_slow_formula():
    layer, x, adj = dense()
    expected = torch.stack([slow_dense(layer, *graph) for graph in zip(x, adj, strict=True)])
    torch.testing.assert_close(layer(x, adj), expected)


def test_heads_averaged_and_activation():
    layer, x, adj = dense(act=None)
    heads = layer(x, adj).view(2, 5, 2, 4)
    layer.concat = False
    torch.testing.assert_close(layer(x, adj), heads.mean(2))
    layer.act = torch.tanh
    torch.testing.assert_close(layer(x, adj), heads.mean(2).tanh())


def test_without_powers_they_are_1():
    layer, x, adj = dense()
    torch.nn.init.ones_(layer.power)
    plain = CoulGATConv(3, 4, num_nodes=5, heads=2, learn_power=False).double()
    assert "power" not in plain.state_dict()
    plain.load_state_dict(layer.state_dict(), strict=False)
    torch.testing.assert_close(plain(x, adj), layer(x, adj))


def test_leading_dimensions():
    layer, x, adj = dense()
    torch.testing.assert_close(layer(x[0], adj[0]), layer(x, adj)[0])
    torch.testing.assert_close(layer(x, adj[0])[1], layer(x[1], adj[0]))
    assert layer(x.expand(3, 2, 5, 3), adj).shape == (3, 2, 5, 8)


def test_slots_and_their_parameters_permute_together():
    layer, x, adj = dense()
    order = torch.tensor([2, 0, 4, 3, 1])
    expected = layer(x, adj)[:, order]
    x, adj = x[:, order], adj[:, order][:, :, order]
    assert not torch.allclose(layer(x, adj), expected)  # the nodes alone do not
    for name in ("bias", "att", "power"):
        parameter = getattr(layer, name)
        parameter.data = parameter.data[:, order]
    layer.power.data = layer.power.data[:, :, order]
    torch.testing.assert_close(layer(x, adj), expected)


def test_dense_derivatives():
    layer, x, adj = dense(act=torch.tanh)
    names = [name for name, _ in layer.named_parameters()]

    def f(x, adj, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, adj))

    inputs = [x.requires_grad_(), adj.requires_grad_(), *layer.parameters()]
    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("build", [CoulGATConv, PowerLawGATConv])
def test_both_dropouts(build):
    """Of a node alone, with weight 1, dropout of features zeroes some of them, dropout of attention whole heads."""
    slots = (1,) if build is CoulGATConv else ()
    graph = (torch.ones(1, 1),) if slots else (torch.zeros(2, 1, dtype=torch.int64), torch.ones(1))
    layer = build(3, 50, *slots, heads=50, act=None)
    x = torch.randn(1, 3)
    h = layer.eval()(x, *graph).view(50, 50)
    for features, attention in ((0.5, 0.0), (0.0, 0.5)):
        layer.dropout, layer.att_dropout = features, attention
        torch.testing.assert_close(layer.eval()(x, *graph).view(50, 50), h)
        kept = layer.train()(x, *graph).view(50, 50) / (2 * h)
        torch.testing.assert_close(kept, kept.round())
        assert set(kept.round().unique().tolist()) == {0.0, 1.0}
        assert bool((kept.std(1) < 1e-3).all()) == (attention > 0)


def test_scores_do_not_see_dropped_features():
    """Of two nodes, each is kept or not: there are four sums with the weights of evaluation, and no other."""
    torch.manual_seed(1)
    layer = CoulGATConv(3, 1, num_nodes=2, act=None)
    x, adj = torch.randn(2, 3), torch.rand(2, 2) + 0.2
    h = x @ layer.weight[0].t()
    mean = (adj**layer.power).softmax(-1)[0] @ h
    weight = F.leaky_relu(layer.att[0] @ mean.t(), 0.2).softmax(1)
    torch.testing.assert_close(layer.eval()(x, adj), weight @ h)
    layer.dropout = 0.5
    out = layer.train()(x.expand(200, 2, 3), adj)
    kept = torch.tensor([[0.0, 0], [0, 2], [2, 0], [2, 2]]).unsqueeze(2)
    distance = (out.unsqueeze(1) - weight @ (kept * h)).abs().amax((2, 3))  # [200, 4]
    assert distance.amin(1).max() < 1e-6
    assert distance.amin(0).max() < 1e-6


def test_initial_values_are_of_each_head():
    layer = CoulGATConv(20, 30, num_nodes=40, heads=8)
    assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 50), rel=0.01)
    assert layer.att.abs().max().item() == pytest.approx(math.sqrt(6 / 70), rel=0.01)
    assert layer.power.abs().max().item() == pytest.approx(math.sqrt(6 / 80), rel=0.01)
    assert not layer.bias.any()


def test_dense_checkpoint_and_errors():
    layer, x, adj = dense()
    again = CoulGATConv(3, 4, num_nodes=5, heads=2).double()
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(x, adj), layer(x, adj), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"expected x \[..., 5, 3\], got \(2, 4, 3\)"):
        layer(x[:, :4], adj)
    with pytest.raises(ValueError, match=r"expected adj \[..., 5, 5\], got \(2, 4, 5\)"):
        layer(x, adj[:, :4])
    assert repr(layer) == "CoulGATConv(3, 4, num_nodes=5, heads=2)"


@pytest.fixture
def graph() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, edges and couplings; node 0 has no neighbor, node 2 has node 1 twice."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    edge_index = torch.cat([torch.randint(1, 8, (2, 20), generator=generator), torch.tensor([[1, 1], [2, 2]])], 1)
    return x, edge_index, torch.rand(22, dtype=torch.float64, generator=generator) + 0.2


def sparse(**options) -> PowerLawGATConv:
    torch.manual_seed(2)
    layer = PowerLawGATConv(3, 4, heads=2, **options).double()
    torch.nn.init.normal_(layer.lin.bias)
    torch.nn.init.normal_(layer.power)
    return layer


def test_on_complete_graphs_it_is_coulgat_with_shared_slots():
    layer, x, adj = dense()
    free = sparse()
    with torch.no_grad():
        layer.bias.copy_(free.lin.bias.view(2, 1, 4).expand(-1, 5, -1))
        layer.att.copy_(free.att_key.unsqueeze(1).expand(-1, 5, -1))
        layer.power.copy_(free.power.view(2, 1, 1).expand(-1, 5, 5))
        free.lin.weight.copy_(layer.weight.flatten(0, 1))
        free.att_query.zero_()
    edge_index, edge_weight = dense_to_sparse(adj.transpose(1, 2).contiguous())  # from column to row
    torch.testing.assert_close(free(x.flatten(0, 1), edge_index, edge_weight).view(2, 5, 8), layer(x, adj))


def test_power_law_is_the_slow_formula(graph):
    x, edge_index, edge_weight = graph
    layer = sparse()
    h = layer.lin(x).view(8, 2, 4)
    rows = [(edge_index[1] == i).nonzero().flatten() for i in range(8)]

    def mean_of(i, values, scores):  # [C, 2], [degree, 2]
        return torch.einsum("eh,ehc->hc", scores.softmax(0), values[edge_index[0][rows[i]]])

    mean = torch.stack([mean_of(i, h, edge_weight[rows[i]].unsqueeze(1) ** layer.power) for i in range(8)])
    query, key = (mean * layer.att_query).sum(-1), (mean * layer.att_key).sum(-1)
    scores = [F.leaky_relu(query[i] + key[edge_index[0][rows[i]]], 0.2) for i in range(8)]
    expected = torch.stack([mean_of(i, h, scores[i]) for i in range(8)])
    out = layer(x, edge_index, edge_weight)
    torch.testing.assert_close(out, expected.flatten(1).relu())
    assert not out[0].any()
    layer.concat, layer.act = False, None
    torch.testing.assert_close(layer(x, edge_index, edge_weight), expected.mean(1))


def test_power_law_permutations(graph):
    x, edge_index, edge_weight = graph
    layer = sparse()
    expected = layer(x, edge_index, edge_weight)
    order, edges = torch.randperm(8), torch.randperm(22)
    out = layer(x[order], order.argsort()[edge_index][:, edges], edge_weight[edges])
    torch.testing.assert_close(out, expected[order])


def test_power_law_disjoint_graphs_and_patterns(graph):
    x, edge_index, edge_weight = graph
    layer = sparse()
    both = layer(torch.cat([x, -x]), torch.cat([edge_index, edge_index + 8], 1), edge_weight.repeat(2))
    parts = [layer(x, edge_index, edge_weight), layer(-x, edge_index, edge_weight)]
    torch.testing.assert_close(both, torch.cat(parts))
    pattern = Neighbors.from_edge_index(edge_index, 8)
    torch.testing.assert_close(layer(x, pattern, edge_weight), parts[0])
    plain = Neighbors(pattern.rowptr, pattern.col, 8)  # edges are counted as in its rows
    torch.testing.assert_close(layer(x, plain, pattern.reorder_edges(edge_weight)), parts[0])


def test_power_law_derivatives(graph):
    x, edge_index, edge_weight = graph
    layer = sparse(act=torch.tanh)
    names = [name for name, _ in layer.named_parameters()]

    def f(x, edge_weight, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, values, (x, edge_index, edge_weight))

    inputs = [x.requires_grad_(), edge_weight.requires_grad_(), *layer.parameters()]
    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


def test_power_law_checkpoint_and_errors(graph):
    x, edge_index, edge_weight = graph
    layer = PowerLawGATConv(-1, 4, heads=2).double()
    out = layer(x, edge_index, edge_weight)
    assert (layer.power == 1).all()
    again = PowerLawGATConv(3, 4, heads=2).double()
    again.load_state_dict(copy.deepcopy(layer.state_dict()))
    torch.testing.assert_close(again(x, edge_index, edge_weight), out, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"expected edge_weight \[22\], got \(21,\)"):
        layer(x, edge_index, edge_weight[1:])
    assert repr(layer) == "PowerLawGATConv(-1, 4, heads=2)"
