"""`attend` over `Windows`: equal to the pairs written out, whatever the runs are and however they are processed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import geoattn
from geoattn import Windows, attend
from geoattn.ops.backends import windows as engine

TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
    torch.bfloat16: {"rtol": 4e-2, "atol": 4e-2},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
}


def runs(queries, keys, num_keys=None):
    """Windows of given numbers of queries and given ``(begin, end)`` of keys."""
    ptr = torch.tensor([0, *queries]).cumsum(0)
    return Windows(ptr, torch.tensor(keys, dtype=torch.int64).view(-1, 2), num_keys)


PATTERNS = {
    "equal": Windows(torch.arange(0, 25, 6)),
    "ragged": Windows(torch.tensor([0, 5, 6, 6, 13, 15])),
    "overlapping": runs([4, 3, 4, 4], [(0, 6), (2, 8), (3, 9), (0, 9)], 12),
    "repeated": runs([3, 3, 3, 2], [(1, 6), (1, 6), (1, 6), (1, 6)]),
    "empty": runs([2, 0, 3, 3], [(0, 0), (0, 4), (2, 5), (5, 5)], 7),
    "last patch borrows": Windows.along(4, counts=[11, 3, 8], borrow=True),
    "one long run": runs([17, 2], [(0, 23), (20, 23)]),
    "no keys": runs([2, 1], [(0, 0), (0, 0)]),
    "no queries": runs([0, 0], [(0, 2), (1, 3)]),
    "no runs": Windows(torch.zeros(1, dtype=torch.int64), num_keys=3),
    "int32": Windows(torch.tensor([0, 3, 7], dtype=torch.int32), torch.tensor([0, 2, 8], dtype=torch.int32)),
}


@pytest.fixture(autouse=True)
def short_runs_are_no_reason(monkeypatch):
    """Here, patterns of tests run on the engine although they are small."""
    monkeypatch.setattr(engine, "_SHORT_RUN", 0)


@st.composite
def patterns(draw):
    lengths = draw(st.lists(st.integers(0, 5), max_size=6))
    num_keys = draw(st.integers(0, 12))
    keys = [sorted(draw(st.tuples(st.integers(0, num_keys), st.integers(0, num_keys)))) for _ in lengths]
    return runs(lengths, keys, num_keys)


@pytest.fixture(params=["as it is", "small tiles"])
def tiles(request, monkeypatch):
    """The engine cuts what is processed at a time, also where the inputs of tests are small."""
    if request.param == "small tiles":
        cut_everything(monkeypatch)


def cut_everything(monkeypatch):
    monkeypatch.setattr(engine, "_SCORES", {"cpu": 24})
    monkeypatch.setattr(engine, "_KEYS", {"cpu": 2})
    monkeypatch.setattr(engine, "_FEWEST_QUERIES", 2)
    monkeypatch.setattr(engine, "_GATHERED", 64)


def inputs(pattern, weight=None, heads=4, groups=2, dim=3, width=3, dtype=torch.float64, seed=0):
    """Arguments of `attend` by name, which take gradients."""
    make = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype).requires_grad_()

    found = {
        "query": random(pattern.num_queries, heads, dim),
        "key": random(pattern.num_keys, groups, dim),
        "value": random(pattern.num_keys, groups, width),
    }
    if weight is not None:
        size = (pattern.num_keys, heads) if weight == "per head" else (pattern.num_keys,)
        of_key = torch.rand(size, generator=make, dtype=torch.float64) + 0.1
        if weight == "hiding":
            of_key[::2] = 0
        found["key_weight"] = of_key.to(dtype).requires_grad_()
    return found


def outcome(pattern, arguments, with_lse=True, **options):
    """Output, log-sum-exp and the gradients of a random function of them."""
    torch.manual_seed(7)
    out, lse = attend(pattern=pattern, **arguments, return_lse=True, **options)
    make = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=make, dtype=torch.float64).to(x.dtype) for x in (out, lse)]
    found = {"out": out, "lse": lse}
    wanted = [x for x in arguments.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    outputs = [out, lse.where(lse.isfinite(), 0)] if with_lse else [out]
    if out.requires_grad:
        grads = torch.autograd.grad(outputs, wanted, upstream[: len(outputs)], allow_unused=True)
        found |= {f"gradient {i}": x for i, x in enumerate(grads)}
    return found


def assert_same(found, expected, dtype):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None or found[name] is None:  # unused is zero
            assert all(x is None or not x.any() for x in (value, found[name])), name
            continue
        largest = value.abs().where(value.isfinite(), 0).max().item() if value.numel() else 0
        tolerance = {"rtol": TOLERANCE[dtype]["rtol"], "atol": TOLERANCE[dtype]["atol"] * max(1, largest)}
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


def exact(arguments):
    return {name: x.detach().double().requires_grad_() for name, x in arguments.items()}


# ---- Equal to pairs written out --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("weight", [None, "per key", "per head", "hiding"])
@pytest.mark.parametrize("with_lse", [True, False])
def test_equals_the_pairs_written_out(name, weight, with_lse, tiles):
    pattern = PATTERNS[name]
    arguments = inputs(pattern, weight)
    expected = outcome(pattern.to_neighbors(), arguments, with_lse)
    assert_same(outcome(pattern, arguments, with_lse), expected, torch.float64)
    for backend in ("torch", "reference"):
        with geoattn.backend(backend):
            assert_same(outcome(pattern, arguments, with_lse), expected, torch.float64)


@settings(max_examples=60)
@given(patterns(), st.sampled_from([None, "hiding"]), st.booleans(), st.booleans(), st.sampled_from([3, 5]))
def test_equals_the_pairs_of_any_runs(pattern, weight, with_lse, small, width):
    arguments = inputs(pattern, weight, width=width)
    with pytest.MonkeyPatch.context() as patch:
        if small:
            cut_everything(patch)
        found = outcome(pattern, arguments, with_lse)
    assert_same(found, outcome(pattern.to_neighbors(), arguments, with_lse), torch.float64)


@pytest.mark.parametrize("name", ["equal", "overlapping", "empty"])
@pytest.mark.parametrize("sizes", [(1, 1, 3, 3), (4, 4, 8, 8), (6, 2, 5, 5), (4, 1, 3, 7), (2, 2, 4, 0), (2, 2, 0, 4)])
def test_equals_the_pairs_for_all_sizes(name, sizes, tiles):
    pattern = PATTERNS[name]
    arguments = inputs(pattern, None, *sizes)
    options = {"scale": 0.7}
    assert_same(
        outcome(pattern, arguments, **options), outcome(pattern.to_neighbors(), arguments, **options), torch.float64
    )


@pytest.mark.parametrize("name", ["ragged", "overlapping", "empty", "one long run"])
@pytest.mark.parametrize("weight", [None, "hiding"])
def test_dropout_is_that_of_the_pairs_written_out(name, weight, tiles):
    pattern = PATTERNS[name]
    arguments = inputs(pattern, weight, heads=6, groups=3)
    expected = outcome(pattern.to_neighbors(), arguments, dropout=0.4)
    assert_same(outcome(pattern, arguments, dropout=0.4), expected, torch.float64)
    with geoattn.backend("reference"):
        assert_same(outcome(pattern, arguments, dropout=0.4), expected, torch.float64)
    differs = outcome(pattern, arguments, dropout=0.0)["out"]
    assert not torch.allclose(differs, expected["out"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["equal", "ragged", "overlapping"])
@pytest.mark.parametrize("weight", [None, "per head"])
@pytest.mark.parametrize("with_lse", [True, False])
def test_types(dtype, name, weight, with_lse):
    pattern = PATTERNS[name]
    arguments = inputs(pattern, weight, dtype=dtype)
    found = outcome(pattern, arguments, with_lse)
    assert found["out"].dtype == dtype
    assert found["lse"].dtype == torch.float32
    expected = outcome(pattern, exact(arguments), with_lse)
    assert_same({name: x.double() for name, x in found.items()}, expected, dtype)


@pytest.mark.parametrize("name", ["one run", "overlapping runs"])
def test_gradients_of_halves_are_summed_in_float32(name):
    count, key_runs = 40_000, [(0, 1)] if name == "one run" else [(0, 2), (1, 3)]
    pattern = runs([count // len(key_runs)] * len(key_runs), key_runs)
    query = torch.zeros(count, 1, 4, dtype=torch.bfloat16)
    key = torch.zeros(pattern.num_keys, 1, 4, dtype=torch.bfloat16, requires_grad=True)
    value = torch.zeros(pattern.num_keys, 1, 4, dtype=torch.bfloat16, requires_grad=True)
    for again in (False, True):
        out = attend(query, key, value, pattern)
        upstream = torch.full_like(out, 0.7)  # in halves, sums of it would stop
        (grad,) = torch.autograd.grad(out, value, upstream, create_graph=again)
        exact_sum = upstream[0, 0, 0].double() * count / pattern.num_keys
        if name == "overlapping runs":
            exact_sum = exact_sum * torch.tensor([0.75, 1.5, 0.75], dtype=torch.float64)
        torch.testing.assert_close(grad[:, 0, 0].double(), exact_sum.expand(pattern.num_keys), rtol=5e-3, atol=0)


# ---- Derivatives -----------------------------------------------------------------------------------------------------

DERIVED = {
    "ragged": Windows(torch.tensor([0, 2, 3])),
    "overlapping": runs([2, 1, 0], [(0, 2), (1, 3), (0, 3)], 4),
    "empty": runs([1, 1], [(0, 0), (0, 2)]),
}


@pytest.mark.parametrize("name", DERIVED)
@pytest.mark.parametrize("weight", ["per key", "hiding"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_derivatives(name, weight, dropout):
    pattern = DERIVED[name]
    arguments = inputs(pattern, weight, 2, 1, 2, 2)
    hidden = arguments.pop("key_weight").detach()
    free = (hidden > 0).nonzero().squeeze(1)
    shown = hidden[free].requires_grad_()

    def run(query, key, value, of_shown):
        torch.manual_seed(3)
        key_weight = torch.zeros_like(hidden).index_copy(0, free, of_shown)
        out, lse = attend(query, key, value, pattern, dropout=dropout, key_weight=key_weight, return_lse=True)
        return out, lse.where(lse.isfinite(), 0)

    tensors = [*arguments.values(), shown]
    assert torch.autograd.gradcheck(run, tensors, check_forward_ad=True, check_batched_grad=not dropout)
    assert torch.autograd.gradgradcheck(run, tensors)


def test_gradients_of_some_inputs_only():
    pattern = PATTERNS["overlapping"]
    arguments = inputs(pattern, "per key")
    everything = dict(zip(arguments, list(outcome(pattern, arguments).values())[2:], strict=True))
    for name in arguments:
        alone = {other: x.detach() for other, x in arguments.items()}
        alone[name].requires_grad_()
        assert_same({name: outcome(pattern, alone)["gradient 0"]}, {name: everything[name]}, torch.float64)


def test_function_transforms():
    pattern = PATTERNS["last patch borrows"]
    query, key, value = (x.detach() for x in inputs(pattern).values())

    def loss(query):
        return attend(query, key, value, pattern).square().sum()

    leaf = query.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(query), expected)
    several = torch.stack([query, -query])
    found = torch.func.vmap(lambda x: attend(x, key, value, pattern))(several)
    torch.testing.assert_close(found, torch.stack([attend(x, key, value, pattern) for x in several]))
    tangent = torch.ones_like(query)
    _, directional = torch.func.jvp(loss, (query,), (tangent,))
    torch.testing.assert_close(directional, (expected * tangent).sum())


def test_hidden_and_empty_runs_give_zeros():
    pattern = runs([2, 2, 1], [(0, 2), (1, 1), (2, 4)])
    arguments = inputs(pattern)
    arguments["key_weight"] = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    found = outcome(pattern, arguments)
    assert not found["out"][:4].any()
    assert (found["lse"][:4] == -torch.inf).all()
    assert found["lse"][4].isfinite().all()
    assert all(x.isfinite().all() for name, x in found.items() if name.startswith("gradient"))


# ---- Modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("return_lse", [True, False])
def test_compiles_whole(dropout, return_lse):
    pattern = PATTERNS["overlapping"]
    arguments = inputs(pattern, "per key")

    def loss(**tensors):
        out = attend(pattern=pattern, dropout=dropout, return_lse=return_lse, **tensors)
        return sum(x.square().sum() for x in out) if return_lse else out.square().sum()

    torch.manual_seed(0)
    expected = torch.autograd.grad(loss(**arguments), list(arguments.values()))
    torch.manual_seed(0)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(**arguments), list(arguments.values()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_compiles_with_a_pattern_made_inside():
    def layer(x, query_ptr):
        pattern = Windows(query_ptr)
        return attend(x, x, x, pattern) + attend(x, x, x, pattern.transpose) + attend(x, x, x, pattern.among_queries)

    x, ptr = torch.randn(9, 2, 4), torch.tensor([0, 4, 9])
    found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, ptr)
    torch.testing.assert_close(found, layer(x, ptr))


@pytest.mark.parametrize("strict", [True, False])
def test_exports_with_any_number_of_elements(strict):
    class Layer(nn.Module):
        def forward(self, x, query_ptr):
            return attend(x, x, x, Windows(query_ptr))

    def arguments(count):
        return torch.randn(count, 2, 4), torch.tensor([0, 3, count])

    elements = torch.export.Dim("elements", min=2)
    program = torch.export.export(Layer(), arguments(20), dynamic_shapes=({0: elements}, None), strict=strict)
    for count in (20, 33):
        given = arguments(count)
        torch.testing.assert_close(program.module()(*given), Layer()(*given))


def test_exports_with_a_fixed_pattern():
    pattern = PATTERNS["ragged"]

    class Layer(nn.Module):
        def forward(self, x):
            return attend(x, x, x, pattern)

    x = torch.randn(pattern.num_queries, 2, 4)
    torch.testing.assert_close(torch.export.export(Layer(), (x,)).module()(x), Layer()(x))


def test_fake_tensors_have_the_right_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    pattern = PATTERNS["equal"]
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.randn(pattern.num_queries, 2, 4, requires_grad=True)
        out, lse = attend(x, x, x, pattern, return_lse=True)
        (out.sum() + lse.sum()).backward()
        assert (out.shape, lse.shape, x.grad.shape) == (x.shape, x.shape[:2], x.shape)
    x = torch.randn(pattern.num_queries, 2, 4, requires_grad=True)
    attend(x, x, x, pattern).sum().backward()
    assert type(x.grad) is torch.Tensor


def test_inference_mode_first_then_training():
    ptr = torch.tensor([0, 3, 7])
    pattern = Windows(ptr)
    x = torch.randn(7, 2, 4)
    with torch.inference_mode():
        made_there = Windows(ptr.clone())
        for p in (pattern, made_there):
            attend(x, x, x, p)
            attend(x, x, x, p.to_neighbors())
            attend(x, x, x, p.transpose)
    x.requires_grad_()
    for p in (pattern, made_there):
        for again in (p, p.transpose, p.among_queries, p.to_neighbors()):
            (grad,) = torch.autograd.grad(attend(x, x, x, again).sum(), x, create_graph=True)
            grad.square().sum().backward()
        torch.compile(lambda x, p=p: attend(x, x, x, p), fullgraph=True, backend="aot_eager")(x).sum().backward()


def test_autocast():
    pattern = PATTERNS["ragged"]
    arguments = inputs(pattern, "per key", dtype=torch.float32)
    halves = {name: x.bfloat16() if name != "key_weight" else x for name, x in arguments.items()}
    expected = attend(pattern=pattern, **halves)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(pattern=pattern, **arguments)
        (grad,) = torch.autograd.grad(found.float().sum(), arguments["value"])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.float().sum(), arguments["value"])[0])


def test_the_same_bits_run_after_run():
    pattern = Windows.along(100, counts=[1000, 333], borrow=True)
    arguments = inputs(pattern, "per head", dtype=torch.float32)
    first, second = (outcome(pattern, arguments, dropout=0.2) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backend", [name for name, state in geoattn.backends().items() if state == "available"])
def test_every_backend_can_be_forced(backend):
    pattern = PATTERNS["last patch borrows"]
    arguments = inputs(pattern, "per key")
    expected = outcome(pattern, arguments)
    with geoattn.backend(backend):
        assert_same(outcome(pattern, arguments), expected, torch.float64)


def test_a_backend_that_cannot_run_says_why():
    x = torch.randn(3, 1, 4)
    with geoattn.backend("triton"), pytest.raises(RuntimeError, match="backend 'triton' was asked for, but"):
        attend(x, x, x, Windows(torch.tensor([0, 3])))


def test_short_runs_are_written_out_for_the_kernels_of_the_cpu(monkeypatch):
    pattern = PATTERNS["last patch borrows"]
    arguments = inputs(pattern, "per key")
    expected = outcome(pattern, arguments)
    monkeypatch.setattr(engine, "_SHORT_RUN", 100)
    assert_same(outcome(pattern, arguments), expected, torch.float64)
    written_out = geoattn.backends()["cpu"] == "available"
    assert engine.pairs_written_out(None, pattern, arguments["query"], None) == written_out
    long = Windows(torch.tensor([0, 100]))
    assert not engine.pairs_written_out(None, long, torch.zeros(100, 4, 3), None)


def test_memory_is_linear_in_the_longest_run():
    """Scores are never there all at once: what a pass allocates at a time is bounded."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(found):
                largest = max(largest, x.numel() if isinstance(x, torch.Tensor) else 0)
            return found

    count = 1200
    plan = Windows(torch.tensor([0, count])).plan
    x = torch.randn(count, 4, 8)
    arguments = engine.Inputs(x, x, x, None, None, None)
    call = engine.Settings(plan, 0.3, 0.1, 5)
    with Watch():
        out, lse = engine.forward(call, arguments, [])
        engine.backward(call, arguments, [], [True] * 3 + [False] * 3, out, lse, x, lse)
    assert largest <= 8 * (1 << 18)  # Philox has four words of 64 bits; all scores are 5.8 million


def test_a_bias_in_inference_mode_and_compiled_with_its_pattern_inside():
    module = geoattn.nn.DistanceBias(2)
    query, key, value = torch.randn(3, 10, 2, 4).unbind()
    position = torch.rand(10, 3)
    expected = attend(query, key, value, Windows.along(4, counts=[10]), bias=module, position=position)

    def function(ptr, *tensors):
        return attend(*tensors, Windows(ptr, num_keys=10), bias=module, position=position)

    ptr = torch.tensor([0, 4, 8, 10])
    with torch.inference_mode():
        torch.testing.assert_close(function(ptr, query, key, value), expected)
    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(compiled(ptr, query, key, value), expected)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="counts as integers"):
        Windows.along(2, counts=[1.9])
    with pytest.raises(TypeError, match="size must be an integer"):
        Windows.along(2.5, counts=[3])
    with pytest.raises(TypeError, match=r"Neighbors.from_edge_index"):
        attend(*torch.randn(3, 4, 1, 2).unbind(), torch.zeros(2, 3, dtype=torch.int64))


def test_latents_read_from_every_run():
    sets = Windows(torch.tensor([0, 5, 6, 9]))
    reading = sets.latents(2)
    assert (reading.query_ptr.tolist(), reading.key_run.tolist()) == ([0, 2, 4, 6], [[0, 5], [5, 6], [6, 9]])
    assert (reading.num_queries, reading.num_keys) == (6, 9)
    assert reading is sets.latents(2)
    assert torch.equal(reading.transpose.query_ptr, sets.query_ptr)
    qkv = inputs(reading)
    torch.testing.assert_close(attend(pattern=reading, **qkv), attend(pattern=reading.to_neighbors(), **qkv))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        sets.latents(0)
