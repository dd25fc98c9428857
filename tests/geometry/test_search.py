"""`knn` and `radius`, by every implementation, against sorting all distances."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoattn import native
from geoattn.geometry import search
from geoattn.geometry.search import brute_force, compiled, scipy_tree, torch_tree
from geoattn.ops import farthest_point_sample, knn, radius

IMPLEMENTATIONS = [scipy_tree, torch_tree, brute_force] + ([compiled] if native.library() is not None else [])


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda module: module.__name__.rsplit(".")[-1], scope="module")
def implementation(request):
    """Each in turn does what `knn` and `radius` are asked for, on CPU tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_implementation", lambda points: request.param)
        yield request.param


def rows(found):
    rowptr, col = found
    return [col[a:b].tolist() for a, b in pairwise(rowptr)]


def squares(pos, query):
    """The squared distances, summed from the first dimension to the last, ``[N, M]``."""
    key, query = pos.double(), query.double()
    return sum((query[:, None, d] - key[None, :, d]) ** 2 for d in range(pos.size(1)))


def sorted_keys(pos, query):
    """All keys of every query by squared distance, then index."""
    return [sorted((d, i) for i, d in enumerate(row)) for row in squares(pos, query).tolist()]


def lattice(dim, most=25):
    """Points with small integer coordinates: many ties, many points in one place."""
    point = st.tuples(*[st.integers(-1, 2)] * dim)
    return st.lists(point, min_size=1, max_size=most).map(lambda p: torch.tensor(p, dtype=torch.float32))


dimensions = st.one_of(st.integers(1, 6), st.sampled_from([9, 16, 33]))
clouds = dimensions.flatmap(lambda dim: st.tuples(lattice(dim), lattice(dim)))
batches = st.lists(st.tuples(st.integers(-3, 3), lattice(2, 5)), min_size=1, max_size=6)


@given(clouds, st.integers(1, 30))
def test_knn_equals_sorting(implementation, cloud, k):
    pos, query = cloud
    expected = [[i for _, i in row[:k]] for row in sorted_keys(pos, query)]
    assert rows(knn(pos, k, query_pos=query)) == expected
    assert rows(knn(pos, k)) == [[i for _, i in row[:k]] for row in sorted_keys(pos, pos)]


@given(clouds, st.sampled_from([0.0, 1.0, 2**0.5, 3**0.5, 2.0, 10.0, math.inf]), st.sampled_from([None, 1, 3]))
def test_radius_equals_sorting(implementation, cloud, r, most):
    pos, query = cloud
    expected = [[i for d, i in row if math.sqrt(d) <= r][:most] for row in sorted_keys(pos, query)]
    assert rows(radius(pos, r, query_pos=query, max_neighbors=most)) == expected


@given(batches, batches, st.integers(1, 6))
def test_a_batch_is_its_samples_side_by_side(implementation, keys, queries, k):
    def joined(parts):
        parts = sorted(parts, key=lambda part: part[0])
        batch = torch.tensor([sample for sample, pos in parts for _ in pos])
        return torch.cat([pos for _, pos in parts]), batch

    (pos, batch), (query, query_batch) = joined(keys), joined(queries)
    for function, argument in ((knn, k), (radius, 1.0)):
        expected = []
        for sample in query_batch.unique():
            mine = (batch == sample).nonzero().squeeze(1)
            if len(mine):
                found = rows(function(pos[mine], argument, query_pos=query[query_batch == sample]))
            else:
                found = [[]] * int((query_batch == sample).sum())
            expected += [mine[row].tolist() for row in found]
        assert rows(function(pos, argument, batch, query, query_batch)) == expected


@pytest.mark.parametrize("dim", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_many_points_of_any_type(implementation, dim, dtype):
    generator = torch.Generator().manual_seed(dim)
    pos, query = (torch.randn(n, dim, generator=generator).to(dtype) for n in (700, 90))
    keys = sorted_keys(pos, query)
    assert rows(knn(pos, 70, query_pos=query)) == [[i for _, i in row[:70]] for row in keys]
    assert rows(radius(pos, 0.7, query_pos=query)) == [[i for d, i in row if math.sqrt(d) <= 0.7] for row in keys]


def degenerate(name, n):
    generator = torch.Generator().manual_seed(0)
    if name == "one place":
        return torch.full((n, 3), 0.1)
    if name == "a line":
        return torch.rand(n, 1, generator=generator) * torch.tensor([1.0, 2.0, 3.0])
    if name == "clusters":
        return torch.randn(n, 3, generator=generator) * 10.0 ** torch.randint(-9, 1, (n, 1), generator=generator)
    if name == "a far point":
        return torch.rand(n, 3, generator=generator).index_fill(0, torch.tensor([n // 2]), 1e30)
    if name == "a lattice":
        return torch.cartesian_prod(*[torch.arange(float(int(n ** (1 / 3))))] * 3)
    if name == "three of each":
        return torch.rand(n // 3, 3, generator=generator).repeat(3, 1)
    raise ValueError(name)


DEGENERATE = ["one place", "a line", "clusters", "a far point", "a lattice", "three of each"]


@pytest.mark.parametrize("name", DEGENERATE)
def test_no_arrangement_is_quadratic(implementation, name):
    """It would take minutes, but for brute force, whose time no arrangement changes."""
    pos = degenerate(name, {torch_tree: 10_000, brute_force: 4_000}.get(implementation, 20_000))
    _, col = knn(pos, 8)
    some = torch.arange(0, len(pos), 997)
    expected = [[i for _, i in row[:8]] for row in sorted_keys(pos, pos[some])]
    assert col.view(-1, 8)[some].tolist() == expected
    # A radius that is some point's distance to its last neighbor, so that it stands on the rim.
    r = float((pos[some[3]].double() - pos[expected[3][-1]].double()).square().sum().sqrt())
    capped = rows(radius(pos, r, max_neighbors=5))
    assert all(row == full[: len(row)] for row, full in zip(capped, col.view(-1, 8).tolist(), strict=True))
    assert capped[int(some[3])] == expected[3][:5]


WIDE = {
    "normal": lambda x: x,
    "far from the origin": lambda x: x + 1e6,
    "tiny": lambda x: x * 1e-22,  # squares are less than float32 can hold
    "denormal": lambda x: x * 1e-40,
    "huge": lambda x: x * 1e30,  # more than it can
    "of many scales": lambda x: x * 10.0 ** torch.arange(-30.0, 10.0)[torch.arange(len(x)) % 40, None],
    "on a line": lambda x: x[:, :1] * torch.arange(1.0, x.size(1) + 1),
    "on a lattice": lambda x: x.round(),
    "mostly at one place": lambda x: (x - 2.5).relu(),
    "one far away": lambda x: x.index_fill(0, torch.tensor([7]), 1e30),
    "three of each": lambda x: x[torch.arange(len(x)) % (len(x) // 3)],
}


def check_wide(x):
    """Against the definition: neighbors among themselves, of others, and within a radius that a key lies on."""
    pos, query = x[:-60], x[-60:]
    for queries in (pos, query):
        square = squares(pos, queries)
        order = square.sort(dim=1, stable=True).indices
        given = None if queries is pos else queries
        assert torch.equal(knn(pos, 20, query_pos=given)[1].view(-1, 20), order[:, :20])
        r = math.sqrt(square[5, order[5, 11]])
        degree = torch.tensor([[math.sqrt(d) <= r for d in row] for row in square.tolist()]).sum(1)
        for most in (None, 7):
            count = degree.clamp(max=most or len(pos))
            rowptr, col = radius(pos, r, query_pos=given, max_neighbors=most)
            assert torch.equal(rowptr.diff(), count)
            assert torch.equal(col, order[torch.arange(len(pos)) < count.unsqueeze(1)])


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_features(implementation, name, dtype):
    """As DGCNN and GravNet search among; what is found fast and roughly is decided exactly."""
    x = WIDE[name](torch.randn(360, 40, generator=torch.Generator().manual_seed(0)))
    check_wide(x.to(dtype))


@pytest.mark.skipif(native.library() is None, reason="needs the compiled kernels")
@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_features_with_every_instruction_set(instructions, dtype, monkeypatch):
    best = {"AVX512": 2, "AVX2": 1}.get(torch.backends.cpu.get_cpu_capability(), 0)
    if ["base", "avx2", "avx512"].index(instructions) > best:
        pytest.skip(f"this machine has no {instructions}")
    monkeypatch.setattr(search, "_implementation", lambda points: compiled)
    monkeypatch.setattr(native, "function", lambda name: getattr(native.library(), f"{name}_{instructions}"))
    for dim in (5, 8, 33):
        check_wide(torch.randn(360, dim, generator=torch.Generator().manual_seed(0)).to(dtype))


def test_thousands_of_samples(implementation):
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 4000, (20_000,), generator=generator).sort().values
    pos = torch.rand(20_000, 3, generator=generator)
    rowptr, col = knn(pos, 4, batch)
    assert torch.equal(rowptr.diff(), torch.bincount(batch)[batch].clamp(max=4))
    row = torch.arange(20_000).repeat_interleave(rowptr.diff())
    assert torch.equal(batch[row], batch[col])
    assert torch.equal(col[rowptr[:-1]], torch.arange(20_000))
    mine = (batch == 1234).nonzero().squeeze(1)
    expected = [mine[[i for _, i in keys[:4]]].tolist() for keys in sorted_keys(pos[mine], pos[mine])]
    found = rows((rowptr, col))
    assert [found[i] for i in mine] == expected


@given(lattice(3), st.randoms(use_true_random=False))
def test_neighbors_do_not_depend_on_the_order_of_queries(implementation, pos, random):
    order = list(range(len(pos)))
    random.shuffle(order)
    found = rows(knn(pos, 3))
    assert rows(knn(pos, 3, query_pos=pos[order])) == [found[i] for i in order]


@pytest.mark.parametrize("dim", [3, 16])
def test_results_do_not_depend_on_the_number_of_threads(dim):
    pos = torch.randint(0, 12, (5000, dim), generator=torch.Generator().manual_seed(0)).float()
    one = knn(pos, 9)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = knn(pos, 9)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_half_types_are_searched_as_they_are():
    pos = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)).half().requires_grad_()
    assert all(torch.equal(a, b) for a, b in zip(knn(pos, 5), knn(pos.double(), 5), strict=True))


def test_compiled_code_may_search():
    pos = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))

    def scaled(pos):
        return knn(pos * 2, 3)[1] + farthest_point_sample(pos, 1)

    assert torch.equal(torch.compile(scaled, backend="eager")(pos), scaled(pos))


def test_nothing_to_search(implementation):
    empty, two = torch.zeros(0, 3), torch.zeros(2, 3)
    assert rows(knn(empty, 2)) == []
    assert rows(knn(empty, 2, query_pos=two)) == [[], []]
    assert rows(radius(two, 1.0, query_pos=empty)) == []
    assert rows(knn(two, 1, torch.tensor([0, 0]), two, torch.tensor([1, 1]))) == [[], []]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn(torch.zeros(3, 3), 0), "k must be at least 1, got 0"),
        (lambda: radius(torch.zeros(3, 3), -1.0), "r must not be negative, got -1"),
        (lambda: radius(torch.zeros(3, 3), math.nan), "r must not be negative, got nan"),
        (lambda: radius(torch.zeros(3, 3), 1.0, max_neighbors=0), "max_neighbors"),
        (lambda: knn(torch.full((3, 3), torch.nan), 1), "pos has NaN"),
        (lambda: knn(torch.zeros(3, 3), 1, query_pos=torch.full((3, 3), torch.inf)), "query_pos has NaN"),
        (lambda: knn(torch.full((3, 3), 1e200, dtype=torch.float64), 1), "beyond 1e150"),
        (lambda: knn(torch.zeros(3), 1), r"expected pos \[N, D\]"),
        (lambda: knn(torch.zeros(3, 0), 1), r"expected pos \[N, D\]"),
        (lambda: knn(torch.zeros(3, 3), 1, query_pos=torch.zeros(3, 2)), r"\(3, 3\).*\(3, 2\)"),
        (lambda: knn(torch.zeros(3, 3), 1, torch.tensor([1, 0, 0])), "batch must be ascending"),
        (lambda: knn(torch.zeros(3, 3), 1, torch.tensor([0])), r"expected batch \[3\]"),
        (lambda: knn(torch.zeros(3, 3), 1, torch.tensor([0.0, 1.0, 2.0])), "batch must have integers"),
        (lambda: knn(torch.zeros(3, 3), 1, query_batch=torch.zeros(3).long()), "without query_pos"),
        (
            lambda: knn(torch.zeros(3, 3), 1, query_pos=torch.zeros(1, 3), query_batch=torch.tensor([0])),
            "both",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
