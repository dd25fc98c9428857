"""`vector_attend` against attention written out channel by channel, and the properties it promises."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch_geometric.nn import MLP, LayerNorm, PointTransformerConv

from geoattn import Neighbors, native
from geoattn.ops import vector_attend
from geoattn.ops.backends import recompute, vector_reference
from geoattn.ops.backends.choose import backend
from tests.ops.problems import random_pattern

BACKENDS = [
    "reference",
    "torch",
    pytest.param("cpu", marks=pytest.mark.skipif(not native.library(), reason="not built")),
]


def by_hand(query, key, value, pattern, position, key_position, pos_nn, attn_nn):
    """Loops over queries, edges and channels; the truth for small inputs."""
    out = torch.zeros_like(query)
    for i in range(query.size(0)):
        keys = pattern.col[int(pattern.rowptr[i]) : int(pattern.rowptr[i + 1])].tolist()
        delta = [pos_nn((position[i] - key_position[j])[None])[0] for j in keys]
        relation = [query[i] - key[j] + d for j, d in zip(keys, delta, strict=True)]
        score = [r if attn_nn is None else attn_nn(r[None])[0] for r in relation]
        for c in range(query.size(1)):
            weight = torch.stack([s[c * len(s) // query.size(1)] for s in score]).softmax(0) if keys else []
            for w, j, d in zip(weight, keys, delta, strict=True):
                out[i, c] += w * (value[j, c] + d[c])
    return out


def networks(kind, channels, scores, dtype):
    """Chains of linear layers, which the compiled kernels run, and others, which they do not."""
    if kind == "chain":
        pos_nn = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, channels))
        attn_nn = nn.Sequential(nn.Linear(channels, 9), nn.ReLU(inplace=True), nn.Linear(9, scores, bias=False))
    elif kind == "last relu":
        pos_nn = MLP([3, 8, channels], norm=None, plain_last=False)
        attn_nn = MLP([channels, scores], norm=None, plain_last=False)
    elif kind == "batch norm":
        pos_nn, attn_nn = (
            MLP([3, 8, channels]),
            nn.Sequential(nn.Linear(channels, scores, bias=False), nn.BatchNorm1d(scores)),
        )
        for norm in [m for network in (pos_nn, attn_nn) for m in network.modules() if isinstance(m, nn.BatchNorm1d)]:
            for x in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                nn.init.uniform_(x, 0.5, 1.5)
        pos_nn, attn_nn = pos_nn.eval(), attn_nn.eval()
    elif kind == "linear":
        pos_nn, attn_nn = nn.Linear(3, channels, bias=False), None
    else:
        pos_nn = nn.Sequential(nn.Linear(3, channels), nn.LayerNorm(channels))
        attn_nn = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(channels, scores), nn.Sigmoid())
    return pos_nn.to(dtype), None if attn_nn is None else attn_nn.to(dtype)


def inputs(pattern, channels, dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)
    sizes = [(pattern.num_queries, channels), (pattern.num_keys, channels), (pattern.num_keys, channels)]
    sizes += [(pattern.num_queries, 3), (pattern.num_keys, 3)]
    query, key, value, position, key_position = (
        torch.randn(size, generator=make, dtype=dtype).requires_grad_() for size in sizes
    )
    return [query, key, value, pattern, position, key_position]


def gradients(out, tensors, seed=0):
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=out.dtype)
    found = torch.autograd.grad(out, tensors, upstream, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(tensors, found, strict=True)]


def tensors_of(args, *modules):
    return [x for x in args if isinstance(x, torch.Tensor)] + [p for m in modules if m for p in m.parameters()]


@st.composite
def neighbors(draw):
    """Any pattern: empty rows, duplicate edges, no edges, one node."""
    queries, keys = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    pairs = draw(st.lists(st.tuples(st.integers(0, keys - 1), st.integers(0, queries - 1)), max_size=20))
    index = torch.tensor(pairs, dtype=draw(st.sampled_from([torch.int32, torch.int64]))).view(-1, 2).T
    return Neighbors.from_edge_index(index, queries, keys)


KINDS = ["chain", "last relu", "batch norm", "linear", "other"]


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=20)
@given(neighbors(), st.sampled_from(KINDS), st.sampled_from([(6, 6), (6, 3), (8, 1), (17, 17)]), st.integers(0, 99))
def test_equals_vector_attention_written_out(name, pattern, kind, widths, seed):
    torch.manual_seed(seed)
    channels, scores = widths
    pos_nn, attn_nn = networks(kind, channels, scores, torch.float64)
    args = inputs(pattern, channels, seed=seed)
    with backend(name):
        out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
    torch.testing.assert_close(out, by_hand(*args, pos_nn, attn_nn))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BACKENDS[1:])
@pytest.mark.parametrize("edges", [1, 7, 1000])
def test_gradients_equal_the_reference_however_rows_are_cut(name, kind, edges, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", edges)
    torch.manual_seed(0)
    pos_nn, attn_nn = networks(kind, 12, 4, torch.float64)
    # Rows that are longer than a chunk and empty ones, at the ends too; some thousand edges are many compiled tiles.
    rows = torch.cat([torch.zeros(300), torch.full((400,), 5), torch.randint(1, 9, (3000,))]).long()
    index = torch.stack([torch.randint(0, 9, rows.shape), rows])
    args = inputs(Neighbors.from_edge_index(index[:, :300] if edges == 1 else index, 11, 9), 12)
    tensors = tensors_of(args, pos_nn, attn_nn)
    found = {}
    for which in (name, "reference"):
        with backend(which):
            out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
        found[which] = [out, *gradients(out, tensors)]
    torch.testing.assert_close(found[name], found["reference"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BACKENDS[1:])
def test_rows_of_one_length(name, kind, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", 50)
    torch.manual_seed(0)
    pos_nn, attn_nn = networks(kind, 12, 4, torch.float64)
    args = inputs(Neighbors.knn(torch.rand(100, 3), 5), 12)
    tensors = tensors_of(args, pos_nn, attn_nn)
    found = []
    for which in (name, "reference"):
        with backend(which):
            out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
        found.append([out, *gradients(out, tensors)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["chain", "batch norm", "other"])
def test_first_and_second_derivatives(name, kind):
    torch.manual_seed(0)
    pos_nn, attn_nn = networks(kind, 4, 2, torch.float64)
    args = inputs(random_pattern(4, 3, 9), 4)
    tensors = tensors_of(args, pos_nn, attn_nn)

    def call(*_):
        return vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)

    with backend(name):
        assert torch.autograd.gradcheck(call, tensors)
        assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("name", BACKENDS)
def test_one_tensor_as_several_inputs(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def call(*_):
        return vector_attend(x, x, x, random_pattern(5, 5, 12), x, pos_nn=network, attn_nn=network)

    with backend(name):
        assert torch.autograd.gradcheck(call, [x, *network.parameters()])
        assert torch.autograd.gradgradcheck(call, [x, *network.parameters()])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("loops", [False, True])
def test_equals_pyg(name, loops):
    torch.manual_seed(0)
    conv = PointTransformerConv(5, 16, MLP([3, 8, 16], norm=None), MLP([16, 16], norm=None, plain_last=False), loops)
    x, pos = torch.randn(40, 5, requires_grad=True), torch.randn(40, 3, requires_grad=True)
    pattern = Neighbors.knn(pos.detach(), 6)
    edge_index = pattern.to_edge_index()
    with backend(name):
        out = vector_attend(
            conv.lin_dst(x), conv.lin_src(x), conv.lin(x), pattern, pos, pos_nn=conv.pos_nn, attn_nn=conv.attn_nn
        )
    tensors = [x, pos, *conv.parameters()]
    expected = conv(x, pos, edge_index)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, tensors), gradients(expected, tensors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
def test_renumbered_nodes_give_renumbered_results(name):
    torch.manual_seed(0)
    pos_nn, attn_nn = networks("chain", 16, 16, torch.float64)
    pattern = random_pattern(30, 30, 200)
    query, key, value, _, position, _ = inputs(pattern, 16)
    order = torch.randperm(30)
    renumbered = Neighbors.from_edge_index(order.argsort()[pattern.to_edge_index()], 30, 30)
    with backend(name):
        out = vector_attend(query, key, value, pattern, position, pos_nn=pos_nn, attn_nn=attn_nn)
        moved = [x[order] for x in (query, key, value)]
        other = vector_attend(*moved, renumbered, position[order], pos_nn=pos_nn, attn_nn=attn_nn)
    torch.testing.assert_close(other, out[order])


# The products of torch may depend on the number of threads; those of the compiled kernels do not.
@pytest.mark.parametrize(("name", "kind", "threads"), [("torch", "chain", 2), ("cpu", "other", 2), ("cpu", "chain", 1)])
def test_same_bits_run_after_run_and_for_any_number_of_threads(name, kind, threads):
    if name == "cpu" and not native.library():
        pytest.skip("not built")
    torch.manual_seed(0)
    pos_nn, attn_nn = networks(kind, 32, 32, torch.float32)
    args = inputs(random_pattern(2000, 1000, 30_000), 32, torch.float32)
    tensors = tensors_of(args, pos_nn, attn_nn)
    results = []
    for run in range(3):
        torch.set_num_threads(threads if threads > 1 else run + 1)
        try:
            with backend(name):
                out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
                results.append([out, *gradients(out, tensors)])
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", BACKENDS[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_per_edge_is_kept(name, kind, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", 100)
    torch.manual_seed(0)
    pos_nn, attn_nn = networks(kind, 8, 8, torch.float32)
    pattern = random_pattern(50, 60, 700)
    kept = []
    pack = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x)
    with pack, backend(name):
        vector_attend(*inputs(pattern, 8, torch.float32), pos_nn=pos_nn, attn_nn=attn_nn)
    assert kept
    assert all(700 not in shape for shape in kept)


class WithBatchStatistics(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.layer, self.norm = nn.Linear(8, 8), norm

    def forward(self, x):
        return self.norm(self.layer(x))


@pytest.mark.parametrize("name", BACKENDS[1:])
@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False), LayerNorm(8, mode="graph")]
)
def test_statistics_are_of_all_edges_and_taken_once(name, norm, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", 50)
    torch.manual_seed(0)
    args = inputs(random_pattern(20, 20, 300), 8, torch.float32)
    found = {}
    for which in (name, "reference"):
        pos_nn, attn_nn = nn.Linear(3, 8), WithBatchStatistics(copy.deepcopy(norm))
        for p in [*pos_nn.parameters(), *attn_nn.parameters()]:
            nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
        with backend(which):
            out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
        tensors = tensors_of(args, pos_nn, attn_nn)
        found[which] = [out, *gradients(out, tensors), *attn_nn.buffers()]
    torch.testing.assert_close(found[name], found["reference"])


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_batch_norm_in_evaluation_is_recomputed(name, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", 100)
    torch.manual_seed(0)
    attn_nn = WithBatchStatistics(nn.BatchNorm1d(8))
    args, kept = inputs(random_pattern(20, 20, 300), 8, torch.float32), []
    attn_nn.norm.running_mean.normal_()
    attn_nn.eval()
    pos_nn = nn.Linear(3, 8)
    pack = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x)
    with backend(name), pack:
        out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
    assert all(300 not in shape for shape in kept)
    expected = vector_attend(*args, pos_nn=lambda x: pos_nn(x), attn_nn=attn_nn)
    tensors = tensors_of(args, pos_nn, attn_nn)
    expected = gradients(expected, tensors)
    torch.testing.assert_close(gradients(out, tensors), expected, rtol=1e-4, atol=1e-5)
    with backend(name):
        out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
        attn_nn.train()  # after the forward pass
        found = gradients(out, tensors)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("inside", [False, True])
def test_dropout_has_the_right_mean_and_its_own_gradient(name, inside):
    torch.manual_seed(0)
    pattern = random_pattern(6, 6, 40)
    args = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs(pattern, 4)]
    pos_nn = nn.Linear(3, 4, bias=False).double()
    nn.init.zeros_(pos_nn.weight)
    value = args[2].requires_grad_()
    attn_nn = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).double() if inside else None

    def call():
        return vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn, dropout=0.0 if inside else 0.5)

    with backend(name):
        state = torch.get_rng_state()
        out = call()
        assert not torch.equal(state, torch.get_rng_state())
        # Linear in the values, so the gradient of the same draw gives the output back.
        (grad,) = torch.autograd.grad(out.sum(), value)
        torch.testing.assert_close((grad * value).sum(), out.sum())
        if not inside:
            mean = torch.stack([call().detach() for _ in range(800)]).mean(0)
            expected = vector_attend(*args, pos_nn=pos_nn)
            torch.testing.assert_close(mean, expected.detach(), atol=0.25, rtol=0)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_accumulate_in_float32(name, kind, dtype):
    torch.manual_seed(0)
    pos_nn, attn_nn = networks(kind, 8, 8, torch.float32)
    args = inputs(random_pattern(10, 10, 3000), 8, torch.float32)
    exact = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
    half = [x.to(dtype) if isinstance(x, torch.Tensor) else x for x in args]
    pos_nn, attn_nn = pos_nn.to(dtype), None if attn_nn is None else attn_nn.to(dtype)
    with backend(name):
        out = vector_attend(*half, pos_nn=pos_nn, attn_nn=attn_nn)
    assert out.dtype == dtype
    # Rows of 300 edges: their sums, were they made in bfloat16, would be wrong in the first digit.
    torch.testing.assert_close(out.float(), exact, atol=0.05, rtol=0.05)
    assert all(g.dtype == dtype and g.isfinite().all() for g in gradients(out, tensors_of(half, pos_nn, attn_nn)))


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_autocast_equals_the_reference(name):
    torch.manual_seed(0)
    pos_nn, attn_nn = networks("chain", 16, 16, torch.float32)
    args = inputs(random_pattern(20, 20, 100), 16, torch.float32)
    tensors = tensors_of(args, pos_nn, attn_nn)
    found = {}
    for which in (name, "reference"):
        with backend(which), torch.autocast("cpu", torch.bfloat16):
            out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
        found[which] = [out, *gradients(out, tensors)]
    torch.testing.assert_close(found[name], found["reference"], atol=0.05, rtol=0.05)
    assert not torch.equal(found[name][0], vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["chain", "other"])
@pytest.mark.parametrize("frozen", [(), ("pos_nn",), ("attn_nn",), ("pos_nn", "attn_nn")])
@pytest.mark.parametrize("wanted", [range(5), *[(n,) for n in range(5)], (0, 3), (1, 2), (3, 4), ()])
def test_gradients_of_some_inputs(name, kind, frozen, wanted, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", 7)
    torch.manual_seed(0)
    pos_nn, attn_nn = networks(kind, 6, 6, torch.float64)
    args = inputs(random_pattern(5, 5, 20), 6)
    for n, x in enumerate(tensors_of(args)):
        x.requires_grad_(n in wanted)
    pos_nn.requires_grad_("pos_nn" not in frozen)
    attn_nn.requires_grad_("attn_nn" not in frozen)
    ends = [x for x in tensors_of(args, pos_nn, attn_nn) if x.requires_grad]
    with backend(name):
        out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
    expected = vector_reference.formulas(*of_edges(args), (pos_nn, attn_nn))
    torch.testing.assert_close(out, expected)
    if ends:
        twice = [torch.autograd.grad(x.sum(), ends, create_graph=True, allow_unused=True) for x in (out, expected)]
        torch.testing.assert_close(*[[torch.zeros(0) if x is None else x for x in grads] for grads in twice])
        torch.testing.assert_close(gradients(out, ends), gradients(expected, ends))
    else:
        assert not out.requires_grad


def of_edges(args):
    """Queries, keys, nothing and rows, as the formulas take them."""
    query, key, value, pattern, position, key_position = args
    return (query, position), [x[pattern.col] for x in (key, value, key_position)], (), pattern.row.long()


USES = {
    "grad": lambda f, x: grad(lambda x: f(x).square().sum())(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jvp": lambda f, x: jvp(f, (x,), (x.sin(),)),
    "hessian": lambda f, x: hessian(lambda x: f(x).square().sum())(x),
    "vmap": lambda f, x: vmap(f)(torch.stack([x, x.sin()])),
    "batched gradients": lambda f, x: batched_gradients(f, x),
}


def batched_gradients(call, x):
    x = x.clone().requires_grad_()
    out = call(x)
    return torch.autograd.grad(out, x, torch.eye(out.numel()).view(-1, *out.shape).to(out), is_grads_batched=True)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["chain", "other"])
@pytest.mark.parametrize("use", USES)
def test_torch_func_and_batched_gradients(name, kind, use, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", 7)
    torch.manual_seed(0)
    pos_nn, attn_nn = networks(kind, 4, 2, torch.float64)
    attn_nn = attn_nn if kind == "chain" else nn.Sequential(nn.Linear(4, 2), nn.Sigmoid()).double()
    args = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs(random_pattern(4, 3, 9), 4)]
    rest = (), args[3].row.long()

    def call(run, which):
        return USES[use](lambda x: run(*args[:which], x, *args[which + 1 :]), args[which])

    def formulas(query, key, value, pattern, position, key_position):
        keys = [x.index_select(0, pattern.col) for x in (key, value, key_position)]
        return vector_reference.formulas((query, position), keys, *rest, (pos_nn, attn_nn))

    with backend(name):
        for which in (0, 1, 2, 4, 5):
            found = call(lambda *args: vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn), which)
            torch.testing.assert_close(found, call(formulas, which))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["chain", "other"])
def test_torch_func_of_parameters(name, kind):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.pos_nn, self.attn_nn = networks(kind, 8, 8, torch.float64)

        def forward(self, args):
            return vector_attend(*args, pos_nn=self.pos_nn, attn_nn=self.attn_nn)

    layer, args = Layer(), inputs(random_pattern(5, 5, 20), 8)
    parameters = dict(layer.named_parameters())
    with backend(name):
        found = grad(lambda p: functional_call(layer, p, (args,)).square().sum())(parameters)
        expected = torch.autograd.grad(layer(args).square().sum(), list(parameters.values()))
    torch.testing.assert_close(tuple(found.values()), expected)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["chain", "other"])
def test_forward_mode(name, kind):
    torch.manual_seed(0)
    pos_nn, attn_nn = networks(kind, 4, 2, torch.float64)
    args = inputs(random_pattern(4, 3, 9), 4)

    def call(*_):
        return vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)

    with backend(name):
        tangent = torch.randn_like(args[0])
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(args[0].detach(), tangent)
            out = vector_attend(dual, *args[1:], pos_nn=pos_nn, attn_nn=attn_nn)
            found = torch.autograd.forward_ad.unpack_dual(out).tangent
        step = 1e-6 * tangent
        ahead, behind = (
            vector_attend(args[0] + sign * step, *args[1:], pos_nn=pos_nn, attn_nn=attn_nn) for sign in (1, -1)
        )
    torch.testing.assert_close(found, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_before_training(name, kind, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", 7)
    torch.manual_seed(0)
    pos_nn, attn_nn = networks(kind, 8, 8, torch.float64)
    args = inputs(random_pattern(5, 5, 20), 8)
    with backend(name):
        with torch.inference_mode():
            before = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
        out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
        out.sum().backward()
    torch.testing.assert_close(out, before)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["chain", "other"])
def test_fake_tensors(name, kind):
    pattern = random_pattern(5, 5, 20)
    pos_nn, attn_nn = networks(kind, 8, 4, torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True), backend(name):
        query, position = torch.randn(5, 8, requires_grad=True), torch.randn(5, 3)
        out = vector_attend(query, query, query, pattern, position, pos_nn=pos_nn, attn_nn=attn_nn)
        out.sum().backward()
        assert out.shape == query.grad.shape == (5, 8)


def lora(network):
    """The first layer's forward replaced, as adapters do; the parameters of the adapter."""
    layer = network[0]
    old, delta = layer.forward, nn.Linear(layer.in_features, layer.out_features).double()
    layer.forward = lambda x: old(x) + delta(x)
    return list(delta.parameters())


def doubled(network):
    network[0].register_forward_hook(lambda module, args, out: out * 2)
    return []


def parametrized(network):
    nn.utils.parametrizations.weight_norm(network[0])
    network[0].parametrizations.weight.original0.data *= 2
    return []


@pytest.mark.parametrize("name", BACKENDS[1:])
@pytest.mark.parametrize("change", [lora, doubled, parametrized])
def test_changed_layers_are_called(name, change, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", 7)
    torch.manual_seed(0)
    pos_nn, attn_nn = networks("chain", 8, 8, torch.float64)
    args = inputs(random_pattern(5, 5, 20), 8)
    with backend(name):
        unchanged = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
    ends = [*change(pos_nn), *change(attn_nn)]
    ends += tensors_of(args, pos_nn, attn_nn)
    with backend(name):
        out = vector_attend(*args, pos_nn=pos_nn, attn_nn=attn_nn)
    expected = vector_reference.formulas(*of_edges(args), (pos_nn, attn_nn))
    assert not torch.allclose(out, unchanged)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, ends), gradients(expected, ends))


def test_a_global_hook_sees_all_layers_of_a_chain():
    pos_nn, attn_nn = networks("chain", 8, 8, torch.float64)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(type(module)))
    try:
        vector_attend(*inputs(random_pattern(5, 5, 20), 8), pos_nn=pos_nn, attn_nn=attn_nn)
    finally:
        handle.remove()
    assert seen.count(nn.Linear) == 4


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_gradients_are_summed_in_float32(name, twice, dtype):
    """One key seen by all queries with weight 1, one query whose keys all have the same weight."""
    count = 3000
    pos_nn = nn.Linear(3, 4).to(dtype).requires_grad_(False)
    nn.init.zeros_(pos_nn.weight)
    nn.init.zeros_(pos_nn.bias)
    many, none = torch.arange(count + 1, dtype=torch.int32), torch.zeros(count, dtype=torch.int32)
    pattern = Neighbors(many, none, 1)
    args = [x.to(dtype).detach() if isinstance(x, torch.Tensor) else x for x in inputs(pattern, 4, torch.float32)]
    value = args[2].requires_grad_()
    with backend(name):
        out = vector_attend(*args, pos_nn=pos_nn)
        (found,) = torch.autograd.grad(out.sum(), value, create_graph=twice)
    torch.testing.assert_close(found.float(), torch.full((1, 4), float(count)), rtol=0.01, atol=0)
    # The gradient of the only query is the sum of small ones: o = sum_j w_j (v_j - o) (q - k_j).
    pattern = Neighbors(torch.tensor([0, count], dtype=torch.int32), many[:-1], count)
    args = [x.to(dtype).detach() if isinstance(x, torch.Tensor) else x for x in inputs(pattern, 4, torch.float32)]
    args[0].requires_grad_()

    class Square(nn.Module):
        def forward(self, x):
            return x * x / 8

    with backend(name):
        out = vector_attend(*args, pos_nn=pos_nn, attn_nn=Square())
        (found,) = torch.autograd.grad(out.sum(), args[0], create_graph=twice)
    exact = [x.detach().double() if isinstance(x, torch.Tensor) else x for x in args]
    exact[0].requires_grad_()
    out = vector_attend(*exact, pos_nn=copy.deepcopy(pos_nn).double(), attn_nn=Square())
    (expected,) = torch.autograd.grad(out.sum(), exact[0])
    torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("name", BACKENDS)
def test_infinite_scores(name):
    """A key whose scores are all -inf is hidden, a row of such keys gives zeros."""

    class Hide(nn.Module):
        def forward(self, x):
            return x.where(x[:, :1] > 0, -torch.inf)

    query = torch.tensor([[2.0, 1.0], [-9.0, 1.0]], requires_grad=True)
    key = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]], requires_grad=True)
    value = torch.randn(3, 2, requires_grad=True)
    pattern = Neighbors(torch.tensor([0, 3, 6]), torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    pos_nn = nn.Linear(1, 2)
    nn.init.zeros_(pos_nn.weight)
    nn.init.zeros_(pos_nn.bias)
    with backend(name):
        out = vector_attend(
            query, key, value, pattern, torch.zeros(2, 1), torch.zeros(3, 1), pos_nn=pos_nn, attn_nn=Hide()
        )
    expected = (query[0] - key[[0, 2]]).softmax(0).mul(value[[0, 2]]).sum(0)
    torch.testing.assert_close(out, torch.stack([expected, torch.zeros(2)]))
    assert all(g.isfinite().all() for g in gradients(out, [query, key, value]))


def test_compiles_without_breaks_and_exports():
    torch.manual_seed(0)
    pattern = random_pattern(12, 12, 40)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos_nn, self.attn_nn = networks("chain", 8, 8, torch.float32)

        def forward(self, x, pos):
            return vector_attend(x, x, x, pattern, pos, pos_nn=self.pos_nn, attn_nn=self.attn_nn)

    layer, x, pos = Layer(), torch.randn(12, 8), torch.randn(12, 3)
    expected = layer(x, pos)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, pos), expected)
    torch.testing.assert_close(torch.export.export(layer, (x, pos)).module()(x, pos), expected)


def test_bad_input_is_named():
    pattern = random_pattern(4, 5, 9)
    query, key, value, _, position, key_position = inputs(pattern, 6)
    good = {"query": query, "key": key, "value": value, "pattern": pattern, "position": position}
    good |= {"key_position": key_position, "pos_nn": nn.Linear(3, 6).double()}
    vector_attend(**good)
    for change, message in [
        ({"query": query[:, :5]}, r"query \[N, C\]"),
        ({"key": key[:4], "value": value[:4]}, "does not fit"),
        ({"key": key.float()}, "one floating type"),
        ({"key_position": None}, "every key must have a position"),
        ({"position": position[:, :2]}, r"position \[N, P\]"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"pos_nn": nn.Linear(3, 5).double()}, r"pos_nn must map \[e, P\] to \[e, 6\]"),
        ({"attn_nn": nn.Linear(6, 4).double()}, "a divisor of 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            vector_attend(**{**good, **change})
    with backend("triton"), pytest.raises(RuntimeError, match="no vector attention"):
        vector_attend(**good)
