"""Linear attention against quadratic formulas, and ScatterFormer's layers against numbers of the authors' code."""

import math

import pytest
import torch
from torch.nn import functional as F

from geoattn import Windows
from geoattn.nn import LinearAttention, ScatteredLinearAttention, ScatterFormerStage, linear_attend
from geoattn.ops import grid_sample

MAPS = ["elu", "relu", "softmax"]
PATTERNS = {
    "following": Windows(torch.tensor([0, 3, 3, 40])),
    "one": Windows(torch.tensor([0, 40])),
    "overlapping": Windows(torch.tensor([0, 1, 20, 40]), torch.tensor([[5, 30], [0, 25], [7, 7]]), num_keys=33),
}


def tensors(pattern, dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)
    shapes = (pattern.num_queries, 2, 3), (pattern.num_keys, 2, 3), (pattern.num_keys, 2, 5), (pattern.num_keys,)
    query, key, value, weight = (torch.randn(s, generator=make, dtype=torch.float64).to(dtype) for s in shapes)
    return query, key, value, weight.exp()


def quadratic(query, key, value, weight, pattern, feature_map, eps=1e-6):
    """Of every pair of query and key."""
    out = torch.zeros(len(query), *value.shape[1:], dtype=value.dtype)
    for (begin, end), (first, last) in zip(
        zip(pattern.query_ptr[:-1].tolist(), pattern.query_ptr[1:].tolist(), strict=True),
        pattern.key_run.tolist(),
        strict=True,
    ):
        q, k, v, w = query[begin:end], key[first:last], value[first:last], weight[first:last].view(-1, 1, 1)
        if last == first:
            continue
        if feature_map == "softmax":
            q, k, eps = q.softmax(-1), (k + w.log()).softmax(0), None
        else:
            q, k = (F.elu(x) + 1 if feature_map == "elu" else F.relu(x) for x in (q, k))
            k = k * w
        scores = torch.einsum("nhd,mhd->nhm", q, k)
        if eps is not None:
            scores = scores / (scores.sum(-1, keepdim=True) + eps)
        out[begin:end] = torch.einsum("nhm,mhe->nhe", scores, v)
    return out


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("feature_map", MAPS)
def test_equals_the_quadratic_formula(feature_map, name):
    pattern, results = PATTERNS[name], []
    for compute in (
        lambda q, k, v, w: linear_attend(q, k, v, pattern, feature_map, w),
        lambda q, k, v, w: quadratic(q, k, v, w, pattern, feature_map),
    ):
        leaves = [x.requires_grad_() for x in tensors(pattern)]
        out = compute(*leaves)
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("feature_map", MAPS)
def test_derivatives(feature_map):
    pattern = Windows(torch.tensor([0, 2, 5]), torch.tensor([[0, 3], [2, 4]]))
    leaves = [x.requires_grad_() for x in tensors(pattern)]
    run = lambda q, k, v, w: linear_attend(q, k, v, pattern, feature_map, w)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("feature_map", MAPS)
def test_runs_are_independent_and_blocks_do_not_show(feature_map):
    """A run gives the same beside runs of other lengths, for which it is cut into other blocks."""
    long, short = (Windows(torch.tensor([0, n])) for n in (2000, 7))
    first, second = tensors(long), tensors(short, seed=1)
    together = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    found = linear_attend(*together[:3], Windows(torch.tensor([0, 2000, 2007])), feature_map, together[3])
    for run, pattern, part in ((first, long, found[:2000]), (second, short, found[2000:])):
        torch.testing.assert_close(linear_attend(*run[:3], pattern, feature_map, run[3]), part)


@pytest.mark.parametrize("feature_map", MAPS)
def test_a_key_twice_at_half_weight_is_one(feature_map):
    query, key, value, weight = tensors(PATTERNS["one"])
    expected = linear_attend(query, key, value, PATTERNS["one"], feature_map, weight)
    key, value, weight = torch.cat([key, key]), torch.cat([value, value]), torch.cat([weight, weight]) / 2
    twice = Windows(torch.tensor([0, 40]), torch.tensor([0, 80]))
    torch.testing.assert_close(linear_attend(query, key, value, twice, feature_map, weight), expected)


def test_values_all_alike_come_out():
    """With softmax and elu, whose rows sum to one; large keys do not overflow."""
    query, key, value, _ = tensors(PATTERNS["following"])
    for feature_map in ("elu", "softmax"):
        out = linear_attend(query, 1000 * key, torch.ones_like(value), PATTERNS["following"], feature_map)
        torch.testing.assert_close(out, torch.ones_like(out), rtol=1e-5, atol=0)


@pytest.mark.parametrize("feature_map", MAPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(dtype, feature_map):
    """Of 70,000 keys: float16 has no number as large as their sum."""
    count = 70_000
    query, key = torch.ones(2, 1, 4, dtype=dtype), torch.ones(count, 1, 4, dtype=dtype)
    value = torch.linspace(0, 1, count).to(dtype).view(-1, 1, 1)
    out = linear_attend(query, key, value, Windows(torch.tensor([0, 2]), torch.tensor([0, count])), feature_map)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), torch.full((2, 1, 1), 0.5), rtol=2**-7, atol=0)


def test_the_same_input_gives_the_same_bits():
    layer, x = LinearAttention(32), torch.randn(500, 32)
    pattern = Windows(torch.tensor([0, 100, 101, 500]))
    runs = [torch.autograd.grad(layer(x, pattern).square().sum(), list(layer.parameters())) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def numbers(*shape, of=0.7):
    """Without a generator, so that other code can make the same."""
    return torch.sin(of * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)).view(shape).float()


def stage():
    """A stage in evaluation, voxels sorted by sample and coordinates, and features."""
    model = ScatterFormerStage(16, heads=4, layers=2, window=2).eval()
    for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
        start = 1.0 if "norm" in name or "bn" in name else 0.0
        parameter.data = start * (parameter.dim() == 1) + 0.3 * numbers(*parameter.shape, of=0.7 + 0.1 * i)
    place = (numbers(2, 2, 5, 5, of=1.3) > 0.4).nonzero()
    return model, place, numbers(len(place), 16, of=0.9)


COUNT = 38
OUT = [
    [9.284326, 3.444226, 1.415559, 16.72755],
    [1.330536, 3.031673, 2.852375, 15.55754],
    [7.879116, 3.050943, 0.4051655, 14.40497],
    [7.694479, 2.171199, -1.767515, 17.08097],
    [3.134368, 2.476397, -4.609692, 15.24805],
    [5.3337, 2.751926, -2.736421, 11.28278],
]
GRAD = [
    [160.4971, -29.92376, -43.96252, 258.3455],
    [118.0731, 71.49395, -113.1074, 150.674],
    [75.53383, 16.38824, -57.18773, 162.9548],
    [183.7416, 0.9517555, -94.42625, 242.8869],
    [124.0075, 38.6294, -89.32076, 184.1568],
    [56.33267, 47.22208, -64.92036, 138.2051],
]


def test_scatterformer_equals_the_authors_code():
    """Numbers of skyhehe123/ScatterFormer a23f434 (its Triton kernels interpreted) on these inputs and parameters."""
    model, place, x = stage()
    x.requires_grad_()
    out = model(x, place[:, 1:], place[:, 0])
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    assert len(x) == COUNT
    torch.testing.assert_close(out[::7, ::5], torch.tensor(OUT), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad[::7, ::5], torch.tensor(GRAD), rtol=1e-5, atol=1e-4)


def test_scatterformer_does_not_depend_on_the_order_of_voxels():
    model, place, x = stage()
    out = model(x, place[:, 1:], place[:, 0])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x[order], place[order, 1:], place[order, 0]), out[order])
    one = place[:, 0] == 1
    torch.testing.assert_close(model(x[one], place[one, 1:]), out[one])
    moved = place[:, 1:] + torch.tensor([3, -4, 2])  # by whole windows
    torch.testing.assert_close(model(x, moved, place[:, 0]), out)


def test_scattered_linear_attention_attends_within_windows():
    torch.manual_seed(0)
    layer = ScatteredLinearAttention(16, 2).double()
    x = torch.randn(9, 16, dtype=torch.float64)
    changed = x.clone()
    changed[4:] += 1
    pattern = Windows(torch.tensor([0, 4, 9]))
    torch.testing.assert_close(layer(x, pattern)[:4], layer(changed, pattern)[:4])
    assert list(layer.state_dict()) == ["qkv.weight", "proj.weight", "proj.bias"]


def test_a_stage_learns_on_voxels_of_points():
    torch.manual_seed(0)
    pos = torch.rand(300, 3)
    index, _ = grid_sample(pos, 0.2)
    grid = (pos[index] / 0.2).floor().long()
    model = ScatterFormerStage(16, layers=1, window=2)
    model(torch.randn(len(grid), 16), grid.flip(1)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


Q, K, V = torch.ones(3, 2, 4), torch.ones(3, 2, 4), torch.ones(3, 2, 5)
RUN = Windows(torch.tensor([0, 3]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linear_attend(Q, K[:2], V, RUN), ValueError, r"query \[3, H, D\] and key \[3, H, D\]"),
        (lambda: linear_attend(Q, K, V[:, :1], RUN), ValueError, r"value \[3, 2, E\], got \[3, 1, 5\]"),
        (lambda: linear_attend(Q, K, V, RUN, "cosine"), ValueError, "one of elu, relu, softmax, got 'cosine'"),
        (lambda: linear_attend(Q, K, V, RUN, key_weight=torch.ones(2)), ValueError, r"key_weight \[3\]"),
        (lambda: linear_attend(Q, K, V, RUN.to_neighbors()), TypeError, "Windows as pattern, got Neighbors"),
        (lambda: LinearAttention(6, 4), ValueError, "heads must divide channels, got 4 and 6"),
        (lambda: ScatterFormerStage(18, 2), ValueError, "multiple of 4, got 18"),
        (lambda: ScatterFormerStage(16, window=3), ValueError, "window must be even"),
    ],
)
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()
