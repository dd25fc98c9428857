"""Functions of edges that are computed again in the backward pass: the same as of all edges at once, in every mode."""

import threading

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from geoattn import Neighbors
from geoattn.ops.backends import recompute
from geoattn.ops.backends.recompute import of_all_rows

EDGES = 40


@pytest.fixture(autouse=True)
def few_edges_per_chunk(monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", 7)


def pattern(queries=6, keys=5, edges=EDGES):
    make = torch.Generator().manual_seed(0)
    index = torch.stack([torch.randint(0, n, (edges,), generator=make) for n in (keys, queries - 1)])
    return Neighbors.from_edge_index(index, queries, keys)  # the last query has no keys


PATTERN = pattern()


def messages(queries, keys, edges, row, shared):
    """Sums of ``network(q_i + k_j) * w_ij * factor``."""
    (query,), (key,), (weight,), (network, factor) = queries, keys, edges, shared
    message = network(recompute.gather(query, row) + key) * weight * factor
    return message.new_zeros(query.size(0), message.size(1)).index_add(0, row, message)


def inputs(dtype=torch.float64):
    make = torch.Generator().manual_seed(1)
    sizes = [(6, 4), (5, 4), (EDGES, 1), (3,)]
    return [torch.randn(size, generator=make, dtype=dtype).requires_grad_() for size in sizes]


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def run(how, module, query, key, weight, factor):
    return how(messages, PATTERN, [query], [key], [weight], [module, factor])


def recomputed(*args):
    return run(recompute.recompute, *args)


def plainly(*args):
    return run(of_all_rows, *args)


def kept_by(call):
    """Shapes of what autograd keeps, and the result."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        out = call()
    return kept, out


@pytest.mark.parametrize("edges", [0, 1, 3, 40])
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_slices_are_all_rows_and_all_edges_in_order(edges, size):
    rowptr = pattern(edges=edges).rowptr
    found = list(recompute.slices(rowptr, edges, size))
    rows = [r for rows, _ in found for r in range(rows.start, rows.stop)]
    assert rows == list(range(6))
    assert [e for _, part in found for e in range(part.start, part.stop)] == list(range(edges))
    longest = int(rowptr.diff().max())
    for rows, part in found:
        assert (part.start, part.stop) == (int(rowptr[rows.start]), int(rowptr[rows.stop]))
        assert part.stop - part.start <= size + longest


@pytest.mark.parametrize("wanted", range(1, 32))
def test_gradients_of_any_of_the_inputs(wanted):
    module, tensors = network(), inputs()
    module.requires_grad_(wanted >= 16)
    for n, x in enumerate(tensors):
        x.requires_grad_(bool(wanted >> n & 1))
    ends = [x for x in [*tensors, *module.parameters()] if x.requires_grad]
    kept, out = kept_by(lambda: recomputed(module, *tensors))
    assert kept
    assert all(EDGES not in shape for shape in kept if shape != (EDGES, 1))
    expected = plainly(module, *tensors)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, ends, upstream, retain_graph=True), torch.autograd.grad(expected, ends, upstream)
    )


def test_derivatives():
    module, tensors = network(), inputs()
    ends = [*tensors, *module.parameters()]
    assert torch.autograd.gradcheck(lambda *_: recomputed(module, *tensors), ends, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda *_: recomputed(module, *tensors), ends, fast_mode=True)


def test_without_gradients_and_in_inference_mode_before_training():
    module, tensors = network(), inputs()
    expected = plainly(module, *tensors)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(recomputed(module, *tensors), expected)
    recomputed(module, *tensors).sum().backward()
    with torch.inference_mode():
        made_there = network()
        torch.testing.assert_close(recomputed(made_there, *tensors), expected)


USES = {
    "grad": lambda f, x: grad(lambda x: f(x).square().sum())(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jvp": lambda f, x: jvp(f, (x,), (x.sin(),)),
    "hessian": lambda f, x: hessian(lambda x: f(x).square().sum())(x),
    "vmap": lambda f, x: vmap(f)(torch.stack([x, x.sin()])),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("which", range(4))
def test_torch_func(use, which):
    module, tensors = network(), [x.detach() for x in inputs()]

    def call(run):
        return USES[use](lambda x: run(module, *tensors[:which], x, *tensors[which + 1 :]), tensors[which])

    torch.testing.assert_close(call(recomputed), call(plainly))


def test_torch_func_of_parameters():
    class Layer(nn.Module):
        def __init__(self, run):
            super().__init__()
            self.network, self.run = network(), run

        def forward(self, *tensors):
            return self.run(self.network, *tensors)

    tensors = [x.detach() for x in inputs()]
    found = []
    for how in (recomputed, plainly):
        layer = Layer(how)
        parameters = dict(layer.named_parameters())
        found.append(grad(lambda p, layer=layer: functional_call(layer, p, tuple(tensors)).square().sum())(parameters))
    torch.testing.assert_close(*found)


def test_forward_mode():
    module, tensors = network(), inputs()
    tangent = torch.randn_like(tensors[0])
    found = []
    for how in (recomputed, plainly):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(tensors[0].detach(), tangent)
            found.append(torch.autograd.forward_ad.unpack_dual(how(module, dual, *tensors[1:])).tangent)
    torch.testing.assert_close(*found)


class Remembers(nn.Linear):
    def forward(self, x):
        self.seen = super().forward(x)
        return self.seen


class Counts(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Zeroed(nn.Module):
    """Statistics of all edges behind a weight that is zero at first."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, x):
        return self.last(self.norm(x))


class Own(nn.Module):
    """Uses a tensor that it does not register."""

    def __init__(self):
        super().__init__()
        self.hidden = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True)]

    def forward(self, x):
        return x @ self.hidden[0]


def with_hook():
    module = network()
    module[0].register_forward_hook(lambda module, args, out: out * 2)
    return module


def patched():
    module = network()
    old, delta = module[0].forward, nn.Linear(4, 5).double()
    module[0].forward = lambda x: old(x) + delta(x)
    module.delta = [delta]
    return module


WHOLE = {
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
    "statistics behind zeros": Zeroed,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
    "remembers": lambda: Remembers(4, 3),
    "counts": lambda: Counts(4, 3),
    "tensor of its own": Own,
    "hook": with_hook,
    "patched forward": patched,
    "parameters of weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_cannot_be_cut_runs_once_on_all_edges(kind):
    found = []
    for how in (recomputed, plainly):
        torch.manual_seed(0)
        module, tensors = WHOLE[kind]().double(), inputs()
        ends = [*tensors, *module.parameters(), *getattr(module, "hidden", [])]
        ends += [p for m in getattr(module, "delta", []) for p in m.parameters()]
        out = how(module, *tensors)
        found.append([out, *torch.autograd.grad(out.sin().sum(), ends), *module.buffers()])
        assert not hasattr(module, "seen") or module.seen.size(0) == EDGES
    torch.testing.assert_close(*found)


def test_a_global_hook_sees_every_module_once():
    module, tensors, seen = network(), inputs(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(type(module)))
    try:
        recomputed(module, *tensors)
    finally:
        handle.remove()
    assert seen == [nn.Linear, nn.Tanh, nn.Linear, nn.Sequential]


def test_hooks_of_parameters_run_once():
    module, tensors, seen = network(), inputs(), []
    module[0].weight.register_hook(seen.append)
    recomputed(module, *tensors).sum().backward()
    assert len(seen) == 1


class Noise(nn.Module):
    def forward(self, x):
        return x[:, :3] * torch.rand(x.size(0), 1, dtype=x.dtype)


@pytest.mark.parametrize("random", [nn.Dropout(), nn.RReLU(), nn.AlphaDropout(), Noise()])
def test_random_numbers_are_drawn_once(random):
    module, tensors = nn.Sequential(nn.Linear(4, 3), random).double(), inputs()
    state = torch.get_rng_state()
    out = recomputed(module, *tensors)
    torch.set_rng_state(state)
    expected = plainly(module, *tensors)
    assert torch.equal(out, expected)
    for a, b in zip(*(torch.autograd.grad(x.sum(), tensors) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_other_threads_may_draw_random_numbers_and_run_the_same_module():
    module, tensors = network(), inputs()
    expected = torch.autograd.grad(plainly(module, *tensors).sum(), list(module.parameters()))
    drawn, wrong, stop = [], [], threading.Event()

    def draw():
        while not stop.is_set():
            drawn.append(float(torch.rand(2, dtype=torch.float64).sum()))

    def train():
        for _ in range(20):
            found = torch.autograd.grad(recomputed(module, *tensors).sum(), list(module.parameters()))
            wrong.extend(x for x, y in zip(found, expected, strict=True) if not torch.allclose(x, y))

    drawing, training = threading.Thread(target=draw), [threading.Thread(target=train) for _ in range(3)]
    for thread in (drawing, *training):
        thread.start()
    for thread in training:
        thread.join()
    stop.set()
    drawing.join()
    assert not wrong
    assert len(set(drawn)) == len(drawn)
    assert all(isinstance(p, nn.Parameter) for p in module.parameters())


def test_the_backward_pass_runs_modules_as_the_forward_pass_did():
    module, tensors = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).double().eval(), inputs()
    expected = torch.autograd.grad(plainly(module, *tensors).sum(), tensors)
    out = recomputed(module, *tensors)
    module.train()
    torch.testing.assert_close(torch.autograd.grad(out.sum(), tensors), expected)
    out = recomputed(module.eval(), *tensors)
    with torch.no_grad():
        module[0].weight.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [512, 10**6])
def test_half_gradients_are_summed_in_float32(dtype, size, monkeypatch):
    """One key seen by all queries, one query that sees all keys: the gradients are numbers of edges."""
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", size)
    count = 3000
    many, none = torch.arange(count + 1, dtype=torch.int32), torch.zeros(count, dtype=torch.int32)
    weight = torch.ones(count, 1, dtype=dtype)
    for graph, queries, keys in (
        (Neighbors(many, none, 1), count, 1),
        (Neighbors(torch.tensor([0, count], dtype=torch.int32), many[:-1], count), 1, count),
    ):
        query, key = (torch.zeros(n, 1, dtype=dtype, requires_grad=True) for n in (queries, keys))
        factor = torch.ones(1, dtype=dtype)
        for twice in (False, True):
            out = recompute.recompute(messages, graph, [query], [key], [weight], [nn.Identity(), factor])
            for found in torch.autograd.grad(out.sum(), [query, key], create_graph=twice):
                torch.testing.assert_close(found.float().sum(), torch.tensor(float(count)), rtol=0.01, atol=0)


def test_same_bits_run_after_run():
    module, tensors = network(torch.float32), inputs(torch.float32)
    ends = [*tensors, *module.parameters()]
    first, second = (torch.autograd.grad(recomputed(module, *tensors).sin().sum(), ends) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
