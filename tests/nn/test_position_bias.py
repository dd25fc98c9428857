"""Biases made from positions, and `attend` over `Windows` with them."""

import math

import pytest
import torch
from torch import nn

import geoattn
from geoattn import Neighbors, Windows, attend
from geoattn.nn import DistanceBias, RelativePositionTable
from geoattn.ops.backends import windows as engine


@pytest.mark.parametrize(("patch_size", "bound"), [(48, 11), (64, 12), (128, 15), (256, 20), (512, 25), (1024, 31)])
def test_table_has_the_bound_of_the_authors(patch_size, bound):
    table = RelativePositionTable(4, patch_size)
    assert table.bound == bound
    assert {name: x.shape for name, x in table.state_dict().items()} == {"rpe_table": (3 * (2 * bound + 1), 4)}


def test_table_sums_a_number_for_each_axis():
    table = RelativePositionTable(2, 48)
    row, column = torch.tensor([[[0, 5, 100]]]), torch.tensor([[[3, 5, 0], [200, -1, 100]]])
    numbers = table.rpe_table.view(3, 23, 2)
    expected = [
        numbers[0, 11 - 3] + numbers[1, 11] + numbers[2, 22],  # differences are clamped to 11
        numbers[0, 0] + numbers[1, 11 + 6] + numbers[2, 11],
    ]
    torch.testing.assert_close(table(row, column)[0, :, 0], torch.stack(expected, 1))
    with pytest.raises(ValueError, match="integer grid coordinates"):
        table(row.float(), column.float())


@pytest.mark.parametrize("count", [3, 10, 30])
def test_joined_tables_are_the_sum_of_those_of_the_axes(count):
    """One table after the other for few pairs, those of two axes joined, and all three."""
    table = RelativePositionTable(2, 1).double()
    size = 2 * table.bound + 1
    pos = torch.randint(-5, 5, (count, 3), generator=torch.Generator().manual_seed(0))
    place = (pos[:, None] - pos).clamp(-table.bound, table.bound) + table.bound
    expected = sum(table.rpe_table[axis * size + place[..., axis]] for axis in range(3)).movedim(-1, 0)
    found = table(pos, pos)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    grads = (torch.autograd.grad(out, table.rpe_table, upstream)[0] for out in (found, expected))
    torch.testing.assert_close(*grads)


def test_table_has_the_same_gradient_run_after_run_on_several_threads():
    make = torch.Generator().manual_seed(0)
    table = RelativePositionTable(4, 1024)
    pos = torch.randint(40, (1, 400, 3), generator=make)
    upstream = torch.randn(1, 4, 400, 400, generator=make)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (torch.autograd.grad(table(pos, pos), table.rpe_table, upstream)[0] for _ in range(5))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first, other) for other in others)


def test_distance_has_finite_gradients_where_points_coincide():
    bias = DistanceBias(2).double()
    pos = torch.tensor([[[0.0, 0, 0], [3, 4, 0], [0, 0, 0]]], dtype=torch.float64, requires_grad=True)
    found = bias(pos, pos)
    torch.testing.assert_close(found[0, :, 0, 1], 5 * bias.sigma_att.flatten())
    assert not found[0, :, 0, 2].any()
    (grad,) = torch.autograd.grad(found.sum(), pos, create_graph=True)
    assert grad.isfinite().all()
    (again,) = torch.autograd.grad(grad.square().sum(), pos)
    assert again.isfinite().all()


# ---- In attention ----------------------------------------------------------------------------------------------------

PATTERN = Windows.along(4, counts=[10, 3], borrow=True)
CROSS = Windows(torch.tensor([0, 3, 5]), torch.tensor([[0, 4], [2, 7]]), 8)


class Network(nn.Module):
    """A bias by a small network, from positions of any kind; one number for all heads."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, query_position, key_position):
        offset = query_position.unsqueeze(-2) - key_position.unsqueeze(-3)
        return self.net(offset).movedim(-1, -3)


def problem(pattern, bias, dtype=torch.float64):
    make = torch.Generator().manual_seed(0)
    queries, keys = pattern.num_queries, pattern.num_keys
    random = [
        torch.randn(n, h, 3, generator=make, dtype=torch.float64) for n, h in ((queries, 4), (keys, 2), (keys, 2))
    ]
    if isinstance(bias, RelativePositionTable):
        position, key_position = (torch.randint(-9, 9, (n, 3), generator=make) for n in (queries, keys))
    else:
        position, key_position = (
            torch.randn(n, 3, generator=make, dtype=torch.float64).to(dtype).requires_grad_() for n in (queries, keys)
        )
    return [x.to(dtype).requires_grad_() for x in random], position, key_position


def by_pairs(pattern, tensors, bias, position, key_position, **options):
    """With the bias of every pair written out, for the truth."""
    pairs = pattern.to_neighbors()
    made = bias(position[pairs.row].unsqueeze(1), key_position[pairs.col].unsqueeze(1))
    return attend(*tensors, pairs, made.flatten(1), **options)


@pytest.mark.parametrize("pattern", [PATTERN, CROSS])
@pytest.mark.parametrize("make", [lambda: RelativePositionTable(4, 48), lambda: DistanceBias(4), Network])
@pytest.mark.parametrize("backend", [None, "torch", "reference"])
@pytest.mark.parametrize("small", [True, False])
def test_equals_the_bias_of_pairs_written_out(pattern, make, backend, small, monkeypatch):
    if small:
        monkeypatch.setattr(engine, "_SCORES", {"cpu": 24})
        monkeypatch.setattr(engine, "_KEYS", {"cpu": 2})
        monkeypatch.setattr(engine, "_FEWEST_QUERIES", 2)
    bias = make().double()
    tensors, position, key_position = problem(pattern, bias)
    weight = (torch.rand(pattern.num_keys, dtype=torch.float64) + 0.1).requires_grad_()
    wanted = [
        *tensors,
        weight,
        *bias.parameters(),
        *([] if position.is_floating_point() is False else [position, key_position]),
    ]

    def outcome(run):
        torch.manual_seed(0)
        out, lse = run()
        return [out, lse, *torch.autograd.grad([out.square().sum() + lse.cos().sum()], wanted)]

    options = {"key_weight": weight, "dropout": 0.2, "return_lse": True}
    expected = outcome(lambda: by_pairs(pattern, tensors, bias, position, key_position, **options))

    def ours():
        return attend(*tensors, pattern, bias, position=position, key_position=key_position, **options)

    if backend is None:
        found = outcome(ours)
    else:
        with geoattn.backend(backend):
            found = outcome(ours)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_keys_are_where_the_queries_are_by_default():
    bias = DistanceBias(2)
    x, pos = torch.randn(13, 2, 4), torch.rand(13, 3)
    expected = attend(x, x, x, PATTERN, bias, position=pos, key_position=pos)
    assert torch.equal(attend(x, x, x, PATTERN, bias, position=pos), expected)


@pytest.mark.parametrize("make", [lambda: DistanceBias(2), Network])
def test_derivatives(make):
    pattern = Windows(torch.tensor([0, 2, 3]), torch.tensor([[0, 2], [1, 3]]))
    bias = make().double()
    names = [name for name, _ in bias.named_parameters()]
    tensors, position, key_position = problem(pattern, bias)
    tensors = [tensors[0][:, :2], tensors[1], tensors[2]]

    def run(query, key, value, position, key_position, *parameters):
        def body(module_bias):
            return attend(
                query, key, value, pattern, module_bias, position=position, key_position=key_position, return_lse=True
            )

        return call_with(bias, dict(zip(names, parameters, strict=True)), body)

    arguments = [*tensors, position, key_position, *[x.detach().clone().requires_grad_() for x in bias.parameters()]]
    arguments = [x.detach().requires_grad_() for x in arguments]
    assert torch.autograd.gradcheck(run, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, arguments)


class Holder(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def forward(self, body):
        return body(self.bias)


def call_with(bias, parameters, body):
    """What ``body`` makes of the bias with other parameters, as `torch.func.functional_call` does."""
    named = {f"bias.{name}": x for name, x in parameters.items()}
    return torch.func.functional_call(Holder(bias), named, (body,))


def test_function_transforms_reach_the_parameters():
    bias = DistanceBias(2).double()
    x, pos = torch.randn(13, 2, 4, dtype=torch.float64), torch.rand(13, 3, dtype=torch.float64)

    def loss(parameters):
        return call_with(bias, parameters, lambda b: attend(x, x, x, PATTERN, b, position=pos)).square().sum()

    found = torch.func.grad(loss)({"sigma_att": bias.sigma_att.detach()})
    expected = torch.autograd.grad(attend(x, x, x, PATTERN, bias, position=pos).square().sum(), bias.sigma_att)
    torch.testing.assert_close(found["sigma_att"], expected[0])


def test_compiles_whole():
    bias = RelativePositionTable(2, 48)
    x, pos = torch.randn(13, 2, 4, requires_grad=True), torch.randint(0, 9, (13, 3))

    def loss():
        return attend(x, x, x, PATTERN, bias, position=pos).square().sum()

    expected = torch.autograd.grad(loss(), [x, bias.rpe_table])
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), [x, bias.rpe_table])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types(dtype):
    bias = RelativePositionTable(4, 48).double()
    tensors, position, key_position = problem(PATTERN, bias)
    expected = attend(*tensors, PATTERN, bias, position=position, key_position=key_position)
    lower = [x.detach().to(dtype).requires_grad_() for x in tensors]
    out = attend(*lower, PATTERN, bias.to(dtype), position=position, key_position=key_position)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    out.float().sum().backward()
    assert bias.rpe_table.grad.dtype == dtype


def test_gradients_of_half_parameters_are_summed_in_float32():
    count = 3000
    bias = DistanceBias(1).bfloat16()
    pattern = Windows(torch.tensor([0, count]), torch.tensor([0, 2]))
    query, key = torch.zeros(count, 1, 2, dtype=torch.bfloat16), torch.zeros(2, 1, 2, dtype=torch.bfloat16)
    value = torch.tensor([[[0.0, 0]], [[1, 1]]], dtype=torch.bfloat16)
    with torch.no_grad():
        bias.sigma_att.zero_()
    place = torch.tensor([[0.0], [1.0]])
    out = attend(query, key, value, pattern, bias, position=torch.zeros(count, 1), key_position=place)
    (grad,) = torch.autograd.grad(out.float().sum(), bias.sigma_att)
    assert grad.item() == pytest.approx(count * 2 * 0.25, rel=1e-2)  # of 2 channels, with p (1 - p) = 1/4


class Normalizing(nn.Module):
    def forward(self, query_position, key_position):
        distance = torch.cdist(query_position, key_position).unsqueeze(-3)
        return distance / distance.mean()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, query_position, key_position):
        self.calls += 1
        return torch.cdist(query_position, key_position).unsqueeze(-3)


class Dropping(nn.Module):
    def forward(self, query_position, key_position):
        return nn.functional.dropout(torch.cdist(query_position, key_position).unsqueeze(-3))


@pytest.mark.parametrize("module", [Normalizing(), Counting(), Dropping()])
def test_a_module_that_does_not_take_every_pair_by_itself_is_refused(module):
    x, pos = torch.randn(13, 2, 4), torch.rand(13, 3)
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match="every pair of positions by itself"):
        attend(x, x, x, PATTERN, module, position=pos)
    assert torch.equal(random, torch.get_rng_state())
    assert not any(buffer.any() for buffer in module.buffers())


X, POS = torch.randn(13, 2, 4), torch.rand(13, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attend(X, X, X, PATTERN, DistanceBias(2)), "needs position"),
        (lambda: attend(X, X, X, PATTERN, DistanceBias(3), position=POS), r"to \[1, 2, 3, 3\], got \(1, 3, 3, 3\)"),
        (lambda: attend(X, X, X, PATTERN, torch.cdist, position=POS), "a torch.nn.Module"),
        (lambda: attend(X, X, X, PATTERN, torch.zeros(3), position=POS), "write its pairs out"),
        (lambda: attend(X, X, X, PATTERN, position=POS), "positions are for a module"),
        (lambda: attend(X, X, X, PATTERN, DistanceBias(2), position=POS[:5]), "must have a position"),
        (lambda: attend(X, X, X, PATTERN, DistanceBias(2), position=POS[0]), r"expected position \[N, P\]"),
        (lambda: attend(X, X, X, PATTERN, DistanceBias(2), position=POS, key_position=POS.double()), "one type"),
        (
            lambda: attend(X, X, X, Neighbors.knn(POS, 3), DistanceBias(2), position=POS),
            r"a module as bias is for Windows",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_backends_that_take_no_module_say_so():
    with geoattn.backend("cpu"), pytest.raises(RuntimeError, match="runs on torch and reference only"):
        attend(X, X, X, PATTERN, DistanceBias(2), position=POS)


def test_the_ball_attention_of_the_authors():
    """Erwin's ball attention, with weights by formula; figures made by the authors' code (maxxxzdn/erwin @83faaf9)."""
    channels, heads, size = 8, 2, 4

    def weights(name, *shape):
        flat = torch.arange(math.prod(shape), dtype=torch.float64)
        code = sum(ord(c) for c in f"encoder.0.blocks.0.BMSA.{name}")
        return (0.2 * torch.sin(0.37 * flat + 0.01 * code)).view(shape)

    i = torch.arange(8, dtype=torch.float64)
    pos = torch.stack([torch.sin(1.7 * i), torch.sin(2.3 * i + 0.3), torch.sin(3.1 * i + 0.6)], 1)
    x = torch.cos(0.3 * torch.arange(64, dtype=torch.float64)).view(8, channels)
    centre = pos.view(-1, size, 3).mean(1, keepdim=True)
    offset = (pos.view(-1, size, 3) - centre).flatten(0, 1)
    y = x + offset @ weights("pe_proj.weight", channels, 3).T + weights("pe_proj.bias", channels)
    qkv = y @ weights("qkv.weight", 3 * channels, channels).T + weights("qkv.bias", 3 * channels)
    query, key, value = qkv.view(8, heads, channels // heads, 3).unbind(-1)
    bias = DistanceBias(heads).double()
    with torch.no_grad():
        bias.sigma_att.copy_(weights("sigma_att", 1, heads, 1, 1) - 1)
    out = attend(query, key, value, Windows.along(size, counts=[8]), bias, position=pos).flatten(1)
    out = out @ weights("proj.weight", channels, channels).T + weights("proj.bias", channels)
    expected = torch.tensor([-0.147439052, -0.152001837, -0.216650237], dtype=torch.float64)
    torch.testing.assert_close(out[0, :3], expected, rtol=0, atol=1e-8)
    assert out.sum().item() == pytest.approx(-7.9880084415, abs=1e-8)
    assert out.abs().sum().item() == pytest.approx(8.5664183859, abs=1e-8)
