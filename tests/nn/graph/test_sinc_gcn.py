import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.utils import to_torch_csr_tensor

from geoattn.nn.graph.sinc_gcn import AGGREGATIONS, SINCGCNConv, SIRGCNConv
from geoattn.ops.backends import recompute
from geoattn.patterns import Neighbors

# Node 5 has no incoming edge, node 6 no edge; one loop, one edge twice; directed.
EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 5, 1, 3], [1, 0, 1, 2, 3, 4, 0, 3, 4, 3]])

# Of the authors' SIRConv and SINCConv (commit c12984e, float64; DGL's calls written out in torch), LeakyReLU of slope
# 0.2, with the parameters of `published`, by aggr and neigh_aggr.
PUBLISHED = {
    ("sum", None): [
        [-1.4159409241, -1.3067705303],
        [-0.1736726731, -1.0618339257],
        [-1.0069667601, -1.0537306948],
        [-1.2030121588, -0.6867477916],
        [-0.9439787234, -1.2609937612],
        [-0.3784012477, -0.4999616288],
        [-0.3784012477, -0.4999616288],
    ],
    ("mean", None): [
        [-0.8971710859, -0.9033660795],
        [-0.2760369604, -0.7808977772],
        [-1.0069667601, -1.0537306948],
        [-0.6532715514, -0.5622236830],
        [-0.6611899855, -0.8804776950],
        [-0.3784012477, -0.4999616288],
        [-0.3784012477, -0.4999616288],
    ],
    ("max", None): [
        [-0.4722650993, -0.7246056207],
        [-0.2740230460, -0.7547220778],
        [-1.0069667601, -1.0537306948],
        [-0.4167166119, -0.4354792452],
        [-0.3232257585, -0.6620102594],
        [0, 0],
        [0, 0],
    ],
    ("sym", None): [
        [-0.8971710859, -0.9033660795],
        [-0.2760369604, -0.7808977772],
        [-0.8228641839, -0.8915354906],
        [-0.7661885978, -0.6042895376],
        [-0.6611899855, -0.8804776950],
        [-0.3784012477, -0.4999616288],
        [-0.3784012477, -0.4999616288],
    ],
    ("sum", "max"): [
        [-1.5701398168, 0.3922193163],
        [-0.4681909011, -0.5832745129],
        [-1.9269559565, 0.3358603729],
        [-0.8567962989, 0.1245109610],
        [-1.2462256295, -0.1046544516],
        [-0.4794621373, -0.2753427713],
        [-0.4794621373, -0.2753427713],
    ],
    ("mean", "sym"): [
        [-1.4284255638, 0.2384747635],
        [-0.5331500591, -0.4195851781],
        [-1.8511793412, 0.3284964811],
        [-0.7910011780, -0.0530694874],
        [-1.1937029045, -0.0178080898],
        [-0.4794621373, -0.2753427713],
        [-0.4794621373, -0.2753427713],
    ],
    ("max", "mean"): [
        [-1.1478420023, 0.6705737716],
        [-0.5055543126, -0.4188828600],
        [-1.9269559565, 0.3358603729],
        [-0.6903282753, 0.2113901534],
        [-1.0641220915, 0.3144250912],
        [0, 0],
        [0, 0],
    ],
    ("sym", "sum"): [
        [-1.4485475418, 0.2660186796],
        [-0.4186611551, -0.4505085079],
        [-1.5029948326, 0.1568431166],
        [-0.9938173558, -0.0148233342],
        [-1.2450492967, -0.0176112179],
        [-0.4794621373, -0.2753427713],
        [-0.4794621373, -0.2753427713],
    ],
}
PAIRS = [(aggr, neigh) for aggr in AGGREGATIONS for neigh in (None, *AGGREGATIONS)]


def make(aggr, neigh_aggr, sizes=(5, 6, 4), act="leaky_relu", act_kwargs=None, **settings):
    if act == "leaky_relu":
        act_kwargs = {"negative_slope": 0.2}
    if neigh_aggr is None:
        return SIRGCNConv(*sizes, act, act_kwargs, aggr, **settings).double()
    return SINCGCNConv(*sizes, act, act_kwargs, aggr, neigh_aggr, **settings).double()


def aggregate(aggr, messages, sources, target, edge_index):
    """Of the messages ``[e, C]`` to one node."""
    if not len(messages):
        return torch.zeros(messages.size(1), dtype=messages.dtype)
    if aggr == "max":
        return messages.amax(0)
    if aggr == "sym":
        out_degree = torch.tensor([(edge_index[0] == j).sum() for j in sources], dtype=messages.dtype)
        messages = messages / (out_degree * (edge_index[1] == target).sum()).sqrt().unsqueeze(1)
    total = messages.sum(0)
    return total / len(messages) if aggr == "mean" else total


def plain(conv, x, edge_index):
    """The formulas, node by node."""
    out = []
    for u in range(x.size(0)):
        sources = edge_index[0, edge_index[1] == u]
        query = conv.linear_query(x[u])
        if isinstance(conv, SINCGCNConv):
            query = query + conv.linear_neigh(aggregate(conv.neigh_aggr, x[sources], sources, u, edge_index))
        messages = conv.act(query + conv.linear_key(x[sources]))
        if conv.aggr == "max":
            messages = conv.linear_relation(messages)
        found = aggregate(conv.aggr, messages, sources, u, edge_index)
        out.append(found if conv.aggr == "max" else conv.linear_relation(found))
    return torch.stack(out)


@pytest.fixture(params=[1 << 14, 7], ids=["one chunk", "chunks"])
def edges_per_chunk(request, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", request.param)


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 5, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, 10, (2, 40), generator=generator)


@pytest.mark.parametrize(("aggr", "neigh_aggr"), list(PUBLISHED))
@pytest.mark.usefixtures("edges_per_chunk")
def test_published(aggr, neigh_aggr):
    conv = make(aggr, neigh_aggr, (2, 3, 2))
    names = ["query.weight", "query.bias", "key.weight", *["neigh.weight"][: neigh_aggr is not None]]
    names += ["relation.weight", "relation.bias"]
    sizes = {name: p.shape for name, p in conv.state_dict().items()}
    state = {}
    for i, name in enumerate(f"linear_{name}" for name in names):
        values = 0.7 * torch.arange(sizes[name].numel(), dtype=torch.float64) + i
        state[name] = (0.5 * values.sin()).view(sizes[name])
    conv.load_state_dict(state)
    x = (1.3 * torch.arange(14, dtype=torch.float64)).cos().view(7, 2)
    expected = torch.tensor(PUBLISHED[aggr, neigh_aggr], dtype=torch.float64)
    torch.testing.assert_close(conv(x, EDGES), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("aggr", "neigh_aggr"), PAIRS)
@pytest.mark.usefixtures("edges_per_chunk")
def test_formulas_and_their_gradients(graph, aggr, neigh_aggr):
    x, edge_index = graph
    torch.manual_seed(0)
    conv = make(aggr, neigh_aggr)
    x.requires_grad_()
    out, expected = conv(x, edge_index), plain(conv, x, edge_index)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    inputs = [x, *conv.parameters()]
    for a, b in zip(
        torch.autograd.grad(out, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("aggr", "neigh_aggr"), [("sym", None), ("mean", "sym"), ("sum", "max"), ("max", "sum")])
@pytest.mark.usefixtures("edges_per_chunk")
def test_derivatives(aggr, neigh_aggr):
    torch.manual_seed(0)
    edge_index = torch.randint(0, 4, (2, 9))
    conv = make(aggr, neigh_aggr, (2, 3, 2), act=nn.Tanh())
    names = list(dict(conv.named_parameters()))

    def run(x, *values):
        return torch.func.functional_call(conv, dict(zip(names, values, strict=True)), (x, edge_index))

    inputs = [torch.randn(5, 2, dtype=torch.float64, requires_grad=True), *conv.parameters()]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("aggr", ["sum", "max"])
@pytest.mark.usefixtures("edges_per_chunk")
def test_parameters_of_the_activation(graph, aggr):
    x, edge_index = graph
    conv = make(aggr, "mean", act=nn.PReLU(6))
    out, expected = conv(x, edge_index), plain(conv, x, edge_index)
    torch.testing.assert_close(out, expected)
    (grad,) = torch.autograd.grad(out.square().sum(), conv.act.weight)
    assert grad.shape == (6,)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), conv.act.weight)[0])

    # A forward pass with other parameters than the module has when the backward pass runs.
    other = {"act.weight": torch.full((6,), -2.0, dtype=torch.float64, requires_grad=True)}
    out = torch.func.functional_call(conv, other, (x, edge_index))
    (grad,) = torch.autograd.grad(out.square().sum(), other["act.weight"])
    with torch.no_grad():
        conv.act.weight.fill_(-2)
    expected = plain(conv, x, edge_index)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), conv.act.weight)[0])


@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_no_vectors_per_edge_are_kept(aggr, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", 100)
    torch.manual_seed(0)
    x, edge_index = torch.randn(20, 8), torch.randint(0, 20, (2, 600))
    for neigh_aggr in AGGREGATIONS:
        conv = make(aggr, neigh_aggr, (8, 8, 8)).float()
        kept = []

        def pack(tensor, kept=kept):
            kept.append(tensor.untyped_storage().nbytes() // 4)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            conv(x, edge_index)
        assert max(kept) <= 600


@pytest.mark.parametrize(("aggr", "neigh_aggr"), PAIRS)
def test_permuted_and_batched(graph, aggr, neigh_aggr):
    x, edge_index = graph
    conv = make(aggr, neigh_aggr)
    out = conv(x, edge_index)
    order = torch.randperm(12)
    torch.testing.assert_close(conv(x[order], order.argsort()[edge_index]), out[order])
    other = torch.randn(4, 5, dtype=torch.float64)
    both = conv(torch.cat([x, other]), torch.cat([edge_index, torch.tensor([[12, 13], [13, 15]])], 1))
    torch.testing.assert_close(both[:12], out)
    bias = torch.zeros(4, dtype=torch.float64) if aggr == "max" else conv.linear_relation.bias
    torch.testing.assert_close(out[10:], bias.expand(2, -1))
    torch.testing.assert_close(conv(x, edge_index[:, :0]), bias.expand(12, -1))


def test_messages_know_the_neighborhood(graph):
    """A third neighbor changes what two others say, in SINC-GCN only."""
    x = graph[0][:4]
    edge_index = torch.tensor([[1, 2, 3], [0, 0, 0]])
    for conv, additive in ((make("sum", None), True), (make("sum", "sum"), False)):
        parts = [conv(x, edge_index[:, [*kept]])[0] for kept in ((0, 1), (0, 2), (1, 2), (0, 1, 2))]
        bias = conv.linear_relation.bias
        # A sum of messages which know one neighbor each: every pair of them, and of all three.
        assert torch.allclose(sum(parts[:3]) - 3 * bias, 2 * (parts[3] - bias)) == additive


def test_every_form_of_graph(graph):
    x, edge_index = graph
    edge_index = torch.unique(edge_index, dim=1)
    conv = make("sym", "max")
    out = conv(x, edge_index)
    torch.testing.assert_close(conv(x, Neighbors.from_edge_index(edge_index, 12)), out)
    torch.testing.assert_close(conv(x, to_torch_csr_tensor(edge_index.flip(0), size=(12, 12))), out)


def test_dropout(graph):
    x, edge_index = graph
    conv = make("sum", "sum", dropout=0.5)
    torch.manual_seed(0)
    first = conv(x, edge_index)
    torch.manual_seed(0)
    assert torch.equal(conv(x, edge_index), first)
    assert not torch.allclose(conv(x, edge_index), first)
    torch.testing.assert_close(conv.eval()(x, edge_index), plain(conv, x, edge_index))
    dropped = make("sum", "sum", dropout=1.0)
    out = dropped(x, edge_index)
    nothing = dropped.linear_relation(F.leaky_relu(torch.zeros(1, 6, dtype=torch.float64), 0.2))
    torch.testing.assert_close(out, nothing.expand(12, -1))


@pytest.mark.usefixtures("edges_per_chunk")
def test_the_gradient_of_a_random_activation_is_of_the_numbers_drawn(graph):
    conv = SIRGCNConv(5, 6, 4, act=nn.Dropout(), aggr="sum", outer_bias=False).double()
    out = conv(*graph)
    # Linear in the weight after the messages: the gradient of the same draw gives the output back.
    weight = conv.linear_relation.weight
    (grad,) = torch.autograd.grad(out.sum(), weight)
    torch.testing.assert_close((grad * weight).sum(), out.sum())
    assert not torch.allclose(conv(*graph), out)


@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_half_types(graph, aggr):
    x, edge_index = graph
    torch.manual_seed(0)
    conv = make(aggr, aggr).float()
    x = x.float().requires_grad_()
    out = conv(x, edge_index)
    grad = torch.autograd.grad(out.square().sum(), conv.linear_relation.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = conv(x, edge_index)
    torch.testing.assert_close(half.float(), out, atol=0.1, rtol=0.05)
    found = torch.autograd.grad(half.float().square().sum(), conv.linear_relation.weight)[0]
    torch.testing.assert_close(found, grad, atol=0.05 * float(grad.abs().max()), rtol=0.1)
    half = conv.bfloat16()(x.bfloat16(), edge_index)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), out, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("aggr", ["sym", "max"])
def test_compiled(graph, aggr):
    conv = make(aggr, aggr)
    torch.testing.assert_close(torch.compile(conv, backend="eager")(*graph), conv(*graph))


def test_state_dict_and_lazy_channels(graph):
    conv, lazy = make("sum", "mean"), make("sum", "mean", (-1, 6, 4))
    lazy.load_state_dict(conv.state_dict())
    assert torch.equal(lazy(*graph), conv(*graph))
    assert set(conv.state_dict()) == {
        f"linear_{name}"
        for name in ("query.weight", "query.bias", "key.weight", "neigh.weight", "relation.weight", "relation.bias")
    }
    lazy.reset_parameters()
    assert not torch.equal(lazy(*graph), conv(*graph))
    bare = make("max", "mean", inner_bias=False, outer_bias=False)
    assert not any("bias" in name for name in bare.state_dict())
    torch.testing.assert_close(bare(*graph), plain(bare, *graph))
    assert repr(conv) == "SINCGCNConv(5, 6, 4, aggr=sum, neigh_aggr=mean)"
    assert repr(make("max", None)) == "SIRGCNConv(5, 6, 4, aggr=max)"


def test_sizes_of_the_published_models():
    """Numbers of parameters in the authors' table for UniqueSignature, with a classifier of 16 weights."""
    for layer, count in ((SINCGCNConv(1, 16, 16), 352), (SIRGCNConv(1, 16, 16), 336)):
        assert sum(p.numel() for p in layer.parameters()) + 16 == count


def test_errors(graph):
    with pytest.raises(ValueError, match="aggr must be one of sum, mean, max, sym, got 'min'"):
        SIRGCNConv(5, 6, 4, aggr="min")
    with pytest.raises(ValueError, match="neigh_aggr must be one of sum, mean, max, sym, got 'add'"):
        SINCGCNConv(5, 6, 4, neigh_aggr="add")
    with pytest.raises(ValueError, match="in \\[0, 3\\)"):
        SIRGCNConv(5, 6, 4).double()(graph[0][:3], graph[1])
