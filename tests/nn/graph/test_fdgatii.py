import copy
import math

import pytest
import torch
from torch.nn import functional as F
from torch_geometric.utils import to_torch_csc_tensor, to_torch_csr_tensor

from geoattn.nn.graph.fdgatii import FDGATII, FDGATIIConv
from geoattn.patterns import Neighbors

EDGES = torch.tensor([[1, 0, 2, 1, 0, 4, 3], [0, 1, 1, 2, 3, 3, 4]])  # directed: 0 -> 3 has no way back

# Of the authors' GCNII_BASE (float64, evaluation) with the parameters of `published`: log-softmax by support.
PUBLISHED = {
    0: [
        [-1.2582252855078233, -0.3342956368600718],
        [-1.1898702906000498, -0.36278029656580707],
        [-1.1475139897749798, -0.3818827372911279],
        [-1.0282627384719074, -0.4425872587442074],
        [-0.9419598572736536, -0.4940717737045057],
    ],
    1: [
        [-1.3027645138252113, -0.31715127610731897],
        [-0.8101412413696746, -0.588418293272669],
        [-1.322718130742053, -0.3098052338517235],
        [-0.8510176588354224, -0.5568349915098899],
        [-1.2731436632555442, -0.32843485818775137],
    ],
    2: [
        [-0.9154453150422187, -0.5113896323205673],
        [-1.8076070918073799, -0.17918194857854042],
        [-1.1540581252305602, -0.3788539781819867],
        [-1.8977180311230941, -0.16241342904375425],
        [-1.3811652354694814, -0.28939764391455347],
    ],
}


def wave(phase: int, *shape: int) -> torch.Tensor:
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) + phase).view(shape)


def published(support: int) -> FDGATII:
    model = FDGATII(3, 4, 2, num_layers=2, alpha=0.3, theta=0.6, support=support).double().eval()
    with torch.no_grad():
        model.lin_in.weight.copy_(wave(1, 4, 3))
        model.lin_in.bias.copy_(wave(2, 4))
        model.lin_out.weight.copy_(wave(3, 2, 4))
        model.lin_out.bias.copy_(wave(4, 2))
        for i, conv in enumerate(model.convs):
            conv.lin.weight.copy_(wave(5 + i, 4, 4).t())
            conv.att.copy_(wave(7 + i, 8)[4:])
            if conv.weight is not None:
                conv.weight.copy_(wave(9 + i, *conv.weight.shape))
    return model


@pytest.fixture
def graph() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, first features and edges; node 0 has no neighbor, nodes 1 and 2 are joined by two edges."""
    generator = torch.Generator().manual_seed(0)
    x, x_0 = torch.randn(2, 9, 4, dtype=torch.float64, generator=generator).unbind()
    edge_index = torch.randint(1, 9, (2, 20), generator=generator)
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    return x, x_0, torch.cat([edge_index, torch.tensor([[1, 1], [2, 2]])], 1)


def conv(support: int = 1, **options) -> FDGATIIConv:
    torch.manual_seed(1)
    return FDGATIIConv(4, alpha=0.3, theta=0.7, layer=2, support=support, **options).double()


def slow(layer: FDGATIIConv, x, x_0, edge_index) -> torch.Tensor:
    """The layer as published: exponentials of the score of [h_i || h_j], with some half of ``a`` for queries."""
    h = x @ layer.lin.weight.t()
    a = torch.cat([torch.linspace(-1, 1, h.size(1), dtype=h.dtype), layer.att])
    found = []
    for i in range(len(x)):
        keys = edge_index[0][edge_index[1] == i]
        pair = torch.cat([h[i].expand(len(keys), -1), h[keys]], 1)
        weight = torch.exp(-F.leaky_relu(pair, 0.2) @ a)
        found.append(F.elu((weight @ h[keys]) / weight.sum()) if len(keys) else torch.zeros_like(h[i]))
    found = torch.stack(found)
    if layer.support == 0:
        return found
    beta, mixed = math.log(0.7 / 2 + 1), 0.7 * found + 0.3 * x_0
    mapped = mixed if layer.support == 1 else torch.cat([found, x_0], 1)
    return beta * mapped @ layer.weight + (1 - beta) * mixed


@pytest.mark.parametrize("support", [0, 1, 2])
def test_network_gives_what_the_published_code_gives(support):
    out = published(support)(wave(11, 5, 3), EDGES).log_softmax(1)
    torch.testing.assert_close(out, torch.tensor(PUBLISHED[support], dtype=torch.float64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("support", [0, 1, 2])
@pytest.mark.parametrize("loops", [False, True])
def test_layer_is_the_slow_formula(graph, support, loops):
    x, x_0, edge_index = graph
    layer = conv(support, add_self_loops=loops).eval()
    edges = torch.cat([edge_index, torch.arange(9).repeat(2, 1)], 1) if loops else edge_index
    inputs = [x.requires_grad_(), x_0.requires_grad_(), *layer.parameters()]
    out, expected = layer(x, x_0, edge_index), slow(layer, x, x_0, edges)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    unused = support == 0
    ours = torch.autograd.grad(out, inputs, grad, allow_unused=unused)
    theirs = torch.autograd.grad(expected, inputs, grad, allow_unused=unused)
    torch.testing.assert_close(ours, theirs)


def test_all_queries_rank_keys_alike():
    """The attention is static, as the docstring says: on a complete graph all nodes gather the same."""
    layer = conv(0).eval()
    edge_index = torch.ones(9, 9).nonzero().t()
    out = layer(torch.randn(9, 4, dtype=torch.float64), torch.zeros(9, 4, dtype=torch.float64), edge_index)
    torch.testing.assert_close(out, out[:1].expand_as(out))


def test_isolated_node_keeps_its_initial_features(graph):
    x, x_0, edge_index = graph
    layer = conv(add_self_loops=False).eval()
    mixed = 0.3 * x_0[0]
    out = layer(x, x_0, edge_index)
    torch.testing.assert_close(out[0], layer.beta * mixed @ layer.weight + (1 - layer.beta) * mixed)


def test_large_scores_do_not_overflow(graph):
    x, x_0, edge_index = graph
    layer = conv(0).eval()
    layer.att.data *= 1e5
    out = layer(x, x_0, edge_index)
    h = layer.lin(x)
    score = -(F.leaky_relu(h, 0.2) @ layer.att)
    assert score.abs().max() > 1e4  # exp of it is infinite
    for i in range(9):
        keys = torch.cat([edge_index[0][edge_index[1] == i], torch.tensor([i])])
        torch.testing.assert_close(out[i], F.elu(h[keys[score[keys].argmax()]]))


def test_self_loops_are_added_once():
    model = published(1)
    x = wave(11, 5, 3)
    with_loops = torch.cat([EDGES, torch.tensor([[0, 3], [0, 3]])], 1)
    torch.testing.assert_close(model(x, with_loops), model(x, EDGES))


def test_any_form_of_graph():
    model, x = published(2), wave(11, 5, 3)
    expected = model(x, EDGES)
    order = EDGES[0].argsort()  # rows of the transposed adjacency matrix are sorted by target
    for form in (
        to_torch_csr_tensor(EDGES[:, order].flip(0), size=(5, 5)),
        to_torch_csc_tensor(EDGES[:, order].flip(0), size=(5, 5)),
        Neighbors.from_edge_index(EDGES, 5),
        EDGES[:, torch.randperm(7)],
    ):
        torch.testing.assert_close(model(x, form), expected)


def test_permutation_equivariance():
    model, x = published(1), wave(11, 5, 3)
    order = torch.tensor([3, 0, 4, 1, 2])
    place = order.argsort()
    torch.testing.assert_close(model(x[order], place[EDGES]), model(x, EDGES)[order])


def test_disjoint_graphs_do_not_meet():
    model, x, y = published(2), wave(11, 5, 3), wave(20, 5, 3)
    both = model(torch.cat([x, y]), torch.cat([EDGES, EDGES + 5], 1))
    torch.testing.assert_close(both, torch.cat([model(x, EDGES), model(y, EDGES)]))


@pytest.mark.parametrize("support", [0, 1, 2])
def test_derivatives(graph, support):
    x, x_0, edge_index = graph
    layer = conv(support).eval()

    def f(x, x_0, *parameters):
        values = dict(zip([name for name, _ in layer.named_parameters()], parameters, strict=True))
        return torch.func.functional_call(layer, values, (x, x_0, edge_index))

    inputs = [x.requires_grad_(), x_0.requires_grad_(), *layer.parameters()]
    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


def test_every_parameter_is_trained():
    model = published(2).train()
    model.dropout = 0.0
    model(wave(11, 5, 3), EDGES).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_attention_dropout_comes_after_the_softmax():
    """Weights that remain are not normalised again: their sum is 1 in the mean only."""
    layer = FDGATIIConv(1, alpha=0.0, theta=1.0, layer=1, support=0, att_dropout=0.5)
    torch.nn.init.ones_(layer.lin.weight)
    edge_index = torch.ones(100, 100).nonzero().t()
    torch.manual_seed(2)
    total = layer(torch.ones(100, 1), torch.ones(100, 1), edge_index)
    torch.testing.assert_close((total * 50).round() / 50, total)
    assert 0.05 < total.std() < 0.2
    assert abs(total.mean() - 1) < 0.05
    torch.testing.assert_close(layer.eval()(torch.ones(100, 1), torch.ones(100, 1), edge_index), torch.ones(100, 1))


def test_dropout_is_for_training_only():
    model, x = published(1), wave(11, 5, 3)
    torch.testing.assert_close(model(x, EDGES), model(x, EDGES), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(x, EDGES), model(x, EDGES))
    calm = FDGATII(3, 4, 2, num_layers=2, alpha=0.3, theta=0.6, dropout=0.0, att_dropout=0.0).double()
    calm.load_state_dict(model.state_dict())
    torch.testing.assert_close(calm.train()(x, EDGES), model.eval()(x, EDGES))


def test_initial_values():
    torch.manual_seed(3)
    layer = FDGATIIConv(400, alpha=0.1, theta=0.5, layer=3, support=2)
    assert layer.beta == pytest.approx(math.log(0.5 / 3 + 1))
    assert layer.lin.weight.std().item() == pytest.approx(1.414 / 20, rel=0.02)
    assert layer.att.std().item() == pytest.approx(1.414 * math.sqrt(2 / 801), rel=0.15)
    assert layer.weight.shape == (800, 400)
    assert layer.weight.abs().max().item() == pytest.approx(1 / 20, rel=1e-3)
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert all(not torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_checkpoint_round_trip_and_lazy_channels():
    torch.manual_seed(4)
    model = FDGATII(-1, 4, 2, num_layers=3, support=2).eval()
    x = torch.randn(5, 3)
    out = model(x, EDGES)
    again = FDGATII(3, 4, 2, num_layers=3, support=2).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x, EDGES), out, rtol=0, atol=0)
    model.reset_parameters()
    assert not torch.equal(model(x, EDGES), out)


def test_errors():
    with pytest.raises(ValueError, match="support must be 0, 1 or 2, got 3"):
        FDGATIIConv(4, 0.1, 0.5, 1, support=3)
    with pytest.raises(ValueError, match="layer must be at least 1, got 0"):
        FDGATIIConv(4, 0.1, 0.5, 0)
    assert repr(FDGATIIConv(4, 0.1, 0.5, 1)) == "FDGATIIConv(4, alpha=0.1, beta=0.4055, support=1)"
