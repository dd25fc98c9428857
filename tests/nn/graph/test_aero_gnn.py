import math

import pytest
import torch
from torch.nn import functional as F
from torch_geometric.utils import to_torch_csr_tensor

from geoattn.nn.graph.aero_gnn import AEROGNN
from geoattn.ops.backends import recompute
from geoattn.patterns import Neighbors

# Node 5 has no incoming edge, node 6 no edge; one loop, one edge twice; directed.
EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 5, 1, 3], [1, 0, 1, 2, 3, 4, 0, 3, 4, 3]])

# Of the authors' AERO_GNN_Model (commit 4abbaa6, float64, evaluation) with the parameters of `published`.
PUBLISHED = {
    True: [
        [-0.6674149333, 0.1082522526],
        [-0.5482391403, -0.0745477334],
        [-0.6279275210, 0.1155431358],
        [-0.6685407184, -0.2154925941],
        [-0.5797271996, 0.0191436774],
        [-0.6785134941, 0.0114435153],
        [-0.4112261962, -0.0402121462],
    ],
    False: [
        [-0.6984126490, 0.2409396839],
        [-0.6351099349, 0.1576644899],
        [-0.5813273890, 0.1955550724],
        [-0.4931858405, -0.0196783849],
        [-0.6213908325, 0.0086380072],
        [-0.5664452438, 0.0880103488],
        [-0.4353706841, -0.1083388666],
    ],
}


def published(add_self_loops: bool) -> tuple[AEROGNN, torch.Tensor]:
    model = AEROGNN(2, 3, 2, num_layers=2, num_hops=3, heads=2, lambd=0.5, add_self_loops=add_self_loops)
    model = model.double().eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_((0.5 * (0.7 * torch.arange(p.numel(), dtype=torch.float64) + i).sin()).view_as(p))
    return model, (1.3 * torch.arange(14, dtype=torch.float64)).cos().view(7, 2)


def plain(model: AEROGNN, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
    """The formulas with dense matrices ``[N, N, H]``, where edges that are there twice count twice."""
    n, heads = x.size(0), model.heads
    count = torch.zeros(n, n, dtype=x.dtype)
    for j, i in edge_index.t().tolist():
        count[i, j] += 1
    if model.add_self_loops:
        count.fill_diagonal_(1)
    for layer, lin in enumerate(model.dense_lins[:-1]):
        x = lin(F.elu(x) if layer else x)
    h = x.view(n, heads, -1)
    z = h * ((F.elu(h) * model.hop_atts[0]).sum(-1) + model.hop_biases[0]).unsqueeze(-1)
    for k in range(1, model.num_hops + 1):
        seen = z * math.log(model.lambd / k + 1 + 1e-6)
        mixed = F.elu(seen.unsqueeze(1) + seen.unsqueeze(0))
        e = count.unsqueeze(-1) * (F.softplus((mixed * model.atts[k - 1]).sum(-1)) + 1e-6)
        total = e.sum(1)
        root = torch.where(total > 0, total.clamp(min=1e-12) ** -0.5, 0)
        h = torch.einsum("ih,ijh,jh,jhd->ihd", root, e, root, h)
        g = (F.elu(torch.cat([h, seen], -1)) * model.hop_atts[k]).sum(-1) + model.hop_biases[k]
        z = z + h * g.unsqueeze(-1)
    return model.dense_lins[-1](F.elu(z.flatten(1)))


@pytest.fixture(params=[1 << 14, 7], ids=["one chunk", "chunks"])
def edges_per_chunk(request, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", request.param)


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 5, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, 10, (2, 40), generator=generator)


@pytest.mark.parametrize("add_self_loops", [True, False])
@pytest.mark.usefixtures("edges_per_chunk")
def test_published(add_self_loops):
    model, x = published(add_self_loops)
    expected = torch.tensor(PUBLISHED[add_self_loops], dtype=torch.float64)
    torch.testing.assert_close(model(x, EDGES), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("add_self_loops", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.usefixtures("edges_per_chunk")
def test_formulas_and_their_gradients(graph, heads, add_self_loops):
    x, edge_index = graph
    torch.manual_seed(0)
    model = AEROGNN(5, 4, 3, num_layers=2, num_hops=6, heads=heads, add_self_loops=add_self_loops).double().eval()
    x.requires_grad_()
    out, expected = model(x, edge_index), plain(model, x, edge_index)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-10)
    upstream = torch.randn_like(out)
    inputs = [x, *model.parameters()]
    for a, b in zip(
        torch.autograd.grad(out, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.usefixtures("edges_per_chunk")
def test_derivatives(frozen):
    torch.manual_seed(0)
    edge_index = torch.randint(0, 4, (2, 9))
    model = AEROGNN(2, 2, 2, num_hops=2, heads=2).double().eval()
    model.atts.requires_grad_(not frozen)
    names = [name for name, p in model.named_parameters() if p.requires_grad and name != "dense_lins.1.bias"]

    def run(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x, edge_index))

    parameters = dict(model.named_parameters())
    inputs = [torch.randn(5, 2, dtype=torch.float64, requires_grad=True), *[parameters[name] for name in names]]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_no_vectors_per_edge_are_kept():
    torch.manual_seed(0)
    x, edge_index = torch.randn(20, 4), torch.randint(0, 20, (2, 600))
    model = AEROGNN(4, 16, 3, num_hops=4)
    kept = []

    def pack(tensor):
        kept.append(tensor.untyped_storage().nbytes() // 8)  # numbers, of at most 8 bytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x, edge_index)
    assert 500 < max(kept) < 2 * 600


def test_permuted_and_batched(graph):
    x, edge_index = graph
    torch.manual_seed(0)
    model = AEROGNN(5, 4, 3, num_hops=5, heads=2).double().eval()
    out = model(x, edge_index)
    order = torch.randperm(12)
    place = order.argsort()
    torch.testing.assert_close(model(x[order], place[edge_index]), out[order])
    shuffled = edge_index[:, torch.randperm(edge_index.size(1))]
    torch.testing.assert_close(model(x, shuffled), out)
    other = torch.randn(4, 5, dtype=torch.float64)
    both = model(torch.cat([x, other]), torch.cat([edge_index, torch.tensor([[12, 13], [13, 15]])], 1))
    torch.testing.assert_close(both[:12], out)
    alone = model(x[:1], edge_index.new_empty(2, 0))
    torch.testing.assert_close(model(x, edge_index.new_empty(2, 0))[:1], alone)


def test_every_form_of_graph(graph):
    x, edge_index = graph
    edge_index = torch.unique(edge_index, dim=1)
    torch.manual_seed(0)
    model = AEROGNN(5, 4, 3).double().eval()
    out = model(x, edge_index)
    torch.testing.assert_close(model(x, Neighbors.from_edge_index(edge_index, 12)), out)
    torch.testing.assert_close(model(x, to_torch_csr_tensor(edge_index.flip(0), size=(12, 12))), out)


def test_a_hop_is_two_steps(graph):
    """One to the neighbors, and one to what their normalisation depends on; without hops there is none."""
    path = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    torch.manual_seed(0)
    model = AEROGNN(5, 4, 3, num_hops=1).double().eval()
    x = graph[0][:5].requires_grad_()
    (grad,) = torch.autograd.grad(model(x, path)[4].sum(), x)
    assert (grad[:2] == 0).all()
    assert (grad[2:] != 0).all()
    linear = AEROGNN(5, 4, 3, num_hops=0).double().eval()
    torch.testing.assert_close(linear(x, path)[:1], linear(x[:1], path[:, :0]))


def test_dropout(graph):
    x, edge_index = graph
    kept = AEROGNN(5, 4, 3, dropout=0.5, num_hops=2).double()
    with torch.no_grad():
        kept.dense_lins[0].weight.zero_()
    # Nothing of x is left but the bias: dropout of the input has no effect, that of the last layer has.
    torch.testing.assert_close(kept(x, edge_index), kept.eval()(x, edge_index))
    kept.final_dropout = True
    torch.testing.assert_close(kept(x, edge_index), kept(x, edge_index))
    kept.train()
    assert not torch.allclose(kept(x, edge_index), kept(x, edge_index))


def test_half_types(graph):
    x, edge_index = graph
    x = x.float()
    torch.manual_seed(0)
    model = AEROGNN(5, 16, 3, num_hops=8).eval()
    out = model(x, edge_index)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, edge_index)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), out, atol=0.05, rtol=0.05)
    half.float().sum().backward()
    half = model.bfloat16()(x.bfloat16(), edge_index)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), out, atol=0.05, rtol=0.05)


def test_compiled(graph):
    x, edge_index = graph
    model = AEROGNN(5, 4, 3, num_hops=2).double().eval()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x, edge_index), model(x, edge_index))


def test_state_dict_and_lazy_channels(graph):
    x, edge_index = graph
    model = AEROGNN(5, 4, 3, num_layers=2, num_hops=3).double().eval()
    lazy = AEROGNN(-1, 4, 3, num_layers=2, num_hops=3).double().eval()
    lazy.load_state_dict(model.state_dict())
    assert torch.equal(lazy(x, edge_index), model(x, edge_index))
    assert {name.split(".")[0] for name in model.state_dict()} == {"dense_lins", "atts", "hop_atts", "hop_biases"}
    lazy.reset_parameters()
    assert not torch.equal(lazy(x, edge_index), model(x, edge_index))
    assert all((bias == 1).all() for bias in lazy.hop_biases)
    assert repr(model) == "AEROGNN(5, 4, 3, num_layers=2, num_hops=3, heads=1)"


def test_errors(graph):
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        AEROGNN(5, 4, 3, num_layers=0)
    with pytest.raises(ValueError, match="num_hops must be at least 0, got -1"):
        AEROGNN(5, 4, 3, num_hops=-1)
    with pytest.raises(ValueError, match="in \\[0, 3\\)"):
        AEROGNN(5, 4, 3).double()(graph[0][:3], graph[1])
