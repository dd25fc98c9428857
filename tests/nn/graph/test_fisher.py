"""Fisher information embedding: against its formulas, the numbers of the authors' code, and what must not matter."""

import copy

import pytest
import torch
from torch.nn import functional as F

from geoattn import Neighbors
from geoattn.nn.graph.fisher import (
    FisherInformationConv,
    FisherInformationEmbedding,
    FisherInformationPooling,
    KernelLayer,
    _InverseSquareRoot,
    spherical_kmeans,
)

EDGES = torch.tensor([[0, 1, 2, 1, 1, 3, 3, 0, 5, 4], [1, 0, 1, 2, 2, 3, 1, 2, 4, 1]])  # duplicates, a loop; 5: none


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def randomized(layer):
    """With biases away from 0, and mixtures away from length 1, where training leads them."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
            elif parameter.dim() == 3:
                parameter.mul_(torch.rand(parameter.shape[:2]).unsqueeze(2) + 0.5)
    return layer


def sines(module):
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.sin(torch.arange(parameter.numel()) * 1.3 + k).view_as(parameter))
    return module


def kernel_formula(x, weight, sigma):
    """Row by row, with the inverse root by way of the singular values."""
    w = weight / weight.norm(dim=1, keepdim=True)
    vector, value, _ = torch.linalg.svd(((w @ w.T - 1) / sigma**2).exp())
    inverse = sum(torch.outer(v, v) / (e.sqrt() + 1e-2) for e, v in zip(value, vector.T, strict=True))
    rows = []
    for row in x:
        length = row.norm()
        cosine = torch.stack([row @ anchor / length for anchor in w])
        rows.append(inverse @ (length * ((cosine - 1) / sigma**2).exp()))
    return torch.stack(rows)


def embedding_formula(neighborhoods, x, weight, bias, temperature):
    """Edge by edge: what the mixtures assign, its softmax over neighbors, the means."""
    mixtures, heads, _ = weight.shape
    rows = []
    for keys in neighborhoods:
        parts = torch.zeros_like(weight)
        for h in range(heads):
            alpha = [((weight[:, h] @ x[j] / x[j].norm() + bias[:, h]) / temperature).softmax(0) for j in keys]
            for m in range(mixtures):
                if keys:
                    beta = torch.stack([a[m] for a in alpha]).softmax(0)
                    parts[m, h] = sum(b * x[j] for b, j in zip(beta, keys, strict=True))
        rows.append((parts - weight).flatten())
    return torch.stack(rows)


def neighborhoods(edge_index, count):
    return [edge_index[0][edge_index[1] == i].tolist() for i in range(count)]


def test_kernel_layer_equals_its_formula():
    layer, x = KernelLayer(4, 6, sigma=0.7), torch.randn(9, 4)
    with torch.no_grad():
        layer.weight.mul_(3)
    torch.testing.assert_close(layer(x), kernel_formula(x, layer.weight, 0.7), rtol=1e-9, atol=1e-9)


def test_kernel_layer_gives_the_kernel_of_its_anchors():
    layer = KernelLayer(40, 5)
    phi = layer(layer.weight)
    kernel = (layer.weight @ layer.weight.T - 1).exp()
    torch.testing.assert_close(phi @ phi.T, kernel, rtol=0, atol=0.04)  # 0.01 is added to roots of eigenvalues
    assert kernel.tril(-1).max() > 0.2


def test_kernel_layer_of_zeros():
    layer, x = KernelLayer(3, 4), torch.zeros(2, 3, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert not out.any()
    assert not layer.weight.grad.any()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("mode", [True, False])
def test_anchors_return_to_length_one_in_training_only(mode):
    layer, x = KernelLayer(4, 3).train(mode), torch.randn(5, 4)
    expected = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    given = layer.weight.detach().clone()
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.full((3,), 1.0 if mode else 2.0))
    assert mode or torch.equal(layer.weight, given)
    first, second = layer(x), layer(x)  # the anchors of the first are not overwritten
    torch.testing.assert_close(
        torch.autograd.grad(first.square().sum(), layer.weight),
        torch.autograd.grad(second.square().sum(), layer.weight),
    )


def test_gradient_is_that_at_the_unit_anchors():
    layer, x = KernelLayer(4, 3).eval(), torch.randn(5, 4)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), layer.weight)[0], expected)


def spd(*eigenvalues):
    vector, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues)))
    return vector @ torch.diag(torch.tensor(eigenvalues)) @ vector.T


def test_inverse_root():
    matrix = spd(4.0, 0.25, 1.0, 9.0)
    root = _InverseSquareRoot.apply(matrix, 0.0)
    torch.testing.assert_close(root @ matrix @ root, torch.eye(4))
    assert torch.autograd.gradcheck(lambda a: _InverseSquareRoot.apply((a + a.T) / 2, 0.0), matrix.requires_grad_())


def test_inverse_root_has_the_derivative_its_page_promises():
    matrix, grad = spd(4.0, 0.25, 1.0, 1e-3).requires_grad_(), torch.randn(4, 4)
    (found,) = torch.autograd.grad(_InverseSquareRoot.apply(matrix), matrix, grad)
    value, vector = torch.linalg.eigh(matrix.detach())
    lifted = (vector @ torch.diag((value.sqrt() + 0.01).square()) @ vector.T).requires_grad_()
    e, v = torch.linalg.eigh(lifted)
    (expected,) = torch.autograd.grad((v / e.sqrt()) @ v.T, lifted, (grad + grad.T) / 2)
    torch.testing.assert_close((found + found.T) / 2, expected)


def test_equal_anchors_have_finite_gradients():
    layer, x = KernelLayer(4, 6), torch.randn(5, 4)
    with torch.no_grad():
        layer.weight[3:] = layer.weight[:3]
    layer(x).square().sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.abs().max() < 1e4


def test_second_derivatives_of_anchors_raise():
    layer, x = KernelLayer(4, 3), torch.randn(5, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()
    layer.weight.requires_grad_(False)
    assert torch.autograd.gradgradcheck(layer.eval(), x)


def test_inverse_root_is_kept_until_the_anchors_change(monkeypatch):
    made = []
    inverse_root = _InverseSquareRoot.apply
    monkeypatch.setattr(_InverseSquareRoot, "apply", lambda *args: made.append(1) or inverse_root(*args))
    layer, x = KernelLayer(4, 3), torch.randn(5, 4)
    expected = layer(x)
    layer.eval()
    made.clear()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    assert len(made) == 1
    layer(x)  # wants gradients
    assert len(made) == 2

    other = KernelLayer(4, 3)
    changes = [
        lambda: layer.weight.mul_(-1),
        lambda: layer.load_state_dict(other.state_dict()),
        lambda: layer.load_state_dict(copy.deepcopy(other.state_dict()), assign=True),
    ]
    for change in changes:
        with torch.no_grad():
            change()
            torch.testing.assert_close(layer(x), kernel_formula(x, layer.weight, 1.0))
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    with torch.no_grad():
        assert layer.float()(x.float()).dtype == torch.float32

    layer.requires_grad_(False).double()
    with torch.inference_mode():
        layer(x)
    x.requires_grad_()
    layer(x).sum().backward()  # by what was kept in inference mode
    assert x.grad.any()


@pytest.mark.parametrize(("mixtures", "heads", "out_channels"), [(1, 1, None), (3, 2, None), (3, 2, 5)])
def test_conv_equals_its_formula(mixtures, heads, out_channels):
    conv = randomized(FisherInformationConv(4, out_channels, mixtures, heads, 0.7, add_self_loops=False))
    x = torch.randn(6, 4)
    expected = embedding_formula(neighborhoods(EDGES, 6), x, conv.weight, conv.bias, temperature=4)
    torch.testing.assert_close(conv.embed(x, EDGES), expected)
    torch.testing.assert_close(conv.embed(x, EDGES)[5], -conv.weight.flatten())  # node 5 has no neighbors
    if out_channels is not None:
        expected = kernel_formula(expected, conv.out_proj.weight, 0.7)
    torch.testing.assert_close(conv(x, EDGES), expected, rtol=1e-9, atol=1e-9)


def test_relu_output():
    conv = randomized(FisherInformationConv(4, 5, out_proj="relu")).eval()
    linear, norm, _ = conv.out_proj
    x = torch.randn(6, 4)
    torch.testing.assert_close(conv(x, EDGES), norm(linear(conv.embed(x, EDGES))).relu())
    conv.reset_parameters()
    assert not norm.bias.any()


def test_self_loops():
    x, conv = torch.randn(6, 4), randomized(FisherInformationConv(4, 5, 3))
    loops = torch.arange(6).expand(2, -1)
    looped = torch.cat([EDGES[:, EDGES[0] != EDGES[1]], loops], 1)
    without = FisherInformationConv(4, 5, 3, add_self_loops=False)
    without.load_state_dict(conv.state_dict())
    torch.testing.assert_close(conv(x, EDGES), without(x, looped))
    assert not torch.allclose(conv(x, EDGES), without(x, EDGES))


def test_bipartite():
    conv = randomized(FisherInformationConv(4, 5, 3, add_self_loops=False))
    x, target = torch.randn(6, 4), torch.randn(3, 7)
    edge_index = EDGES[:, EDGES[1] < 3]
    torch.testing.assert_close(conv((x, target), edge_index), conv(x, EDGES)[:3])


def test_forms_of_the_graph():
    conv, x = randomized(FisherInformationConv(4, 5, 3)), torch.randn(6, 4)
    expected = conv(x, EDGES)
    torch.testing.assert_close(conv(x, Neighbors.from_edge_index(EDGES, 6)), expected)
    matrix = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(EDGES.size(1)), (6, 6), check_invariants=True)
    torch.testing.assert_close(conv(x, matrix), expected)


@pytest.mark.parametrize("out_channels", [None, 5])
def test_derivatives(out_channels):
    conv = randomized(FisherInformationConv(4, out_channels, 3, 2)).eval()
    x = torch.randn(6, 4, requires_grad=True)
    conv.requires_grad_(False)

    def run(x, weight, bias):
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (x, EDGES))

    inputs = x, conv.weight.clone().requires_grad_(), conv.bias.clone().requires_grad_()
    assert torch.autograd.gradcheck(run, inputs)
    if out_channels is None:
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_numbers_of_the_authors_code():
    """Computed with `fie` at b16f17c, whose parameters have these names and this order."""
    x, edge_index = torch.cos(torch.arange(12.0)).view(4, 3), EDGES[:, :8]
    model = sines(FisherInformationEmbedding(3, 2, 2, num_mixtures=2, add_self_loops=False)).eval()
    expected = [
        [0.546057350043, 0.123068884994, 0.945837253387, 0.202595875251],
        [0.195567896390, 1.133454701362, 0.790162372076, 0.108068762309],
        [0.721075539006, 0.097619090595, 0.853842084013, 0.142829963527],
        [0.129878992317, 1.182352710955, 0.969448629672, 0.210945982053],
    ]
    last = [
        [1.546964867384, 0.940336204533, 0.478621008563, -0.890872579531],
        [1.679688261422, 1.017628536771, 0.611657843931, -0.813388099348],
        [1.598477453787, 0.971615085441, 0.530893065786, -0.859132541477],
        [1.726251124980, 1.043213424277, 0.657907266159, -0.787995359787],
    ]
    expected = torch.cat([torch.tensor(expected), torch.tensor(last)], 1)
    torch.testing.assert_close(model(x, edge_index), expected, rtol=0, atol=2e-12)

    model = sines(FisherInformationEmbedding(3, 2, 2, 2, num_mixtures=2, heads=2, add_self_loops=False))
    out = model(x, edge_index)
    expected = [
        [0.526858764575, 0.953616930869],
        [1.436690491040, 0.651713882581],
        [0.763683964539, 1.289722118917],
        [1.175369453528, 0.427481531110],
    ]
    torch.testing.assert_close(out, torch.tensor(expected), rtol=0, atol=2e-12)
    (out * torch.sin(torch.arange(8.0)).view(4, 2)).sum().backward()
    expected = [[-0.641172098088, -0.151555217057, 0.227790264690], [-0.239480926432, -0.102117718315, 0.115508041101]]
    torch.testing.assert_close(model.in_head.weight.grad, torch.tensor(expected), rtol=0, atol=2e-12)
    norms = {
        "layers.0.weight": 0.108166404908,
        "layers.0.bias": 0.000557995220,
        "layers.0.out_proj.weight": 0.720750551511,
        "layers.1.bias": 2.175194698653e-05,
        "classifier.weight": 1.938578634603,
    }
    for name, norm in norms.items():
        assert float(model.get_parameter(name).grad.norm()) == pytest.approx(norm, abs=2e-12), name

    pooling = sines(FisherInformationPooling(3, 2, 2, sigma=0.5))
    expected = [[0.247308728418, 0.494378692202], [0.032040814090, 0.459718879541]]
    torch.testing.assert_close(pooling(x, torch.tensor([0, 0, 0, 1])), torch.tensor(expected), rtol=0, atol=2e-12)


def test_pooling_equals_its_formula_in_any_order():
    pooling = randomized(FisherInformationPooling(4, 3, num_mixtures=5, heads=2))
    x, batch = torch.randn(7, 4), torch.tensor([2, 0, 2, 0, 0, 2, 2])  # graph 1 is empty, and so is the last
    nodes = [(batch == graph).nonzero().flatten().tolist() for graph in range(4)]
    expected = embedding_formula(nodes, x, pooling.weight, pooling.bias, temperature=1)
    torch.testing.assert_close(pooling.embed(x, batch, 4), expected)
    expected = kernel_formula(expected, pooling.out_proj.weight, 1.0)
    torch.testing.assert_close(pooling(x, batch, 4), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pooling(x, batch), expected[:3], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pooling(x), pooling(x, torch.zeros(7, dtype=torch.int64)))


@pytest.mark.parametrize("pool_mixtures", [None, 4])
@pytest.mark.parametrize("out_channels", [None, 3])
@pytest.mark.parametrize("concat", [True, False])
def test_network(out_channels, concat, pool_mixtures):
    model = FisherInformationEmbedding(
        4, 5, 2, out_channels, num_mixtures=3, concat=concat, pool_mixtures=pool_mixtures
    )
    randomized(model).eval()
    x, order = torch.randn(6, 4), torch.tensor([3, 0, 5, 1, 4, 2])
    out = model(x, EDGES)
    width = model.embedding_channels if out_channels is None else out_channels
    assert out.shape == (1 if pool_mixtures else 6, width)
    last = 5 if out_channels else 15
    assert model.embedding_channels == (5 if pool_mixtures else 5 + 5 + last if concat else last)

    permuted = model(x[order], order.argsort()[EDGES])
    torch.testing.assert_close(permuted, out if pool_mixtures else out[order])

    other, others = torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]])
    batch = torch.tensor([0] * 6 + [1] * 3)
    both = model(torch.cat([x, other]), torch.cat([EDGES, others + 6], 1), batch)
    torch.testing.assert_close(both, torch.cat([out, model(other, others)]))


def test_supervised_training():
    model = FisherInformationEmbedding(4, 6, 2, 2, num_mixtures=3)
    x = torch.randn(6, 4)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    model.fit(x, EDGES)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x, EDGES), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    model(x, EDGES)
    torch.testing.assert_close(model.layers[0].out_proj.weight.norm(dim=1), torch.ones(6))


def test_kmeans_finds_bunches():
    bunch = F.normalize(torch.randn(4, 8), dim=1)
    label = torch.arange(4).repeat(25)
    x = (bunch[label] + 0.05 * torch.randn(100, 8)) * (torch.rand(100, 1) + 0.1)
    generator = torch.Generator().manual_seed(3)  # one of the starts that reach the global optimum
    center = spherical_kmeans(x, 4, generator=generator)
    torch.testing.assert_close(center.norm(dim=1), torch.ones(4))
    assert ((center @ bunch.T) > 0.97).sum(0).eq(1).all()


@pytest.mark.parametrize("repeated", [0, 40])
def test_kmeans_equals_its_steps(repeated):
    """With the first samples all alike, centers begin equal, and all but one of them have no samples."""
    x = F.normalize(torch.randn(80, 5), dim=1)
    x[:repeated] = x[:1]
    for iters in (1, 2, 100):
        found = spherical_kmeans(x, 9, iters, torch.Generator().manual_seed(1))
        center = x[torch.randperm(80, generator=torch.Generator().manual_seed(1))[:9]]
        before = torch.inf
        for _ in range(iters):
            cosine, nearest = (x @ center.T).max(1)
            objective = cosine.mean().item()
            for k in range(9):
                if (nearest == k).any():
                    center[k] = F.normalize(x[nearest == k].mean(0), dim=0)
                else:
                    center[k] = x[cosine.argmin()]
                    cosine[cosine.argmin()] = 1
            if abs(objective - before) < 1e-6 * objective:
                break
            before = objective
        torch.testing.assert_close(found, center)


def test_fit_of_a_conv_clusters_neighbors():
    """Nodes that are nobody's neighbors do not matter."""
    x = torch.tensor([[2.0, 0, 0], [1, 0.1, 0], [0, 3, 0], [0, 1, 0.1], [0, 0, 1], [0, 0, -1]])
    edge_index = torch.tensor([[0, 1, 2, 3, 3], [4, 4, 5, 5, 0]])
    conv = FisherInformationConv(3, 2, num_mixtures=2, heads=2, add_self_loops=False)
    conv.fit(x, edge_index, generator=torch.Generator().manual_seed(0))
    assert conv.weight.detach()[..., 2].abs().max() < 0.1
    torch.testing.assert_close(conv.weight.detach().norm(dim=2), torch.ones(2, 2))
    for head in range(2):
        assert sorted(conv.weight[:, head].argmax(1).tolist()) == [0, 1]
    expected = spherical_kmeans(conv.embed(x, edge_index), 2, generator=torch.Generator().manual_seed(0))
    cosine = conv.out_proj.weight.detach() @ expected.T
    assert cosine.max(1).values.min() > 0.8


@pytest.mark.parametrize("num_samples", [1000, 12])
def test_fit_is_deterministic_and_sets_all_anchors(num_samples):
    x, edge_index = torch.randn(30, 4), torch.randint(30, (2, 90))
    batch = torch.arange(30) // 3

    def fitted(seed):
        model = FisherInformationEmbedding(4, 5, 2, num_mixtures=3, heads=2, pool_mixtures=4).eval()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        model.fit(x, edge_index, batch, num_samples, torch.Generator().manual_seed(seed))
        for name, parameter in model.named_parameters():
            assert name.endswith("bias") or not (parameter == before[name]).all(-1).any(), name
        return model(x, edge_index, batch)

    first = fitted(0)
    assert torch.equal(first, fitted(0))
    assert not torch.allclose(first, fitted(1))
    assert first.requires_grad


def test_state_dict():
    model = randomized(FisherInformationEmbedding(4, 5, 2, 3, num_mixtures=3))
    state = model.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "in_head.weight": (5, 4),
        "layers.0.weight": (3, 1, 5),
        "layers.0.bias": (3, 1),
        "layers.0.out_proj.weight": (5, 15),
        "layers.1.weight": (3, 1, 5),
        "layers.1.bias": (3, 1),
        "layers.1.out_proj.weight": (5, 15),
        "classifier.weight": (3, 5 * 3),
        "classifier.bias": (3,),
    }
    x, other = torch.randn(6, 4), FisherInformationEmbedding(4, 5, 2, 3, num_mixtures=3)
    published = {**state, "in_head.lintrans": torch.zeros(5, 5), "layers.0.out_proj.lintrans": torch.zeros(5, 5)}
    other.load_state_dict(published)
    torch.testing.assert_close(other(x, EDGES), model(x, EDGES))
    other.reset_parameters()
    assert not torch.allclose(other(x, EDGES), model(x, EDGES))
    assert not other.layers[0].bias.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_and_autocast(dtype):
    model = FisherInformationEmbedding(8, 6, 2, num_mixtures=3).float().eval()
    x = torch.randn(6, 8, dtype=torch.float32)
    expected = model(x, EDGES)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(model(x, EDGES).float(), expected, rtol=0.05, atol=0.05)
    half = copy.deepcopy(model).to(dtype)(x.to(dtype), EDGES)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_wrong_input():
    x = torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"x \[N, 5\], got \(6, 4\)"):
        FisherInformationConv(5, 3)(x, EDGES)
    with pytest.raises(ValueError, match=r"x \[N, 5\], got \(6, 4\)"):
        KernelLayer(5, 3)(x)
    with pytest.raises(ValueError, match=r"x \[N, 5\], got \(6, 4\)"):
        FisherInformationPooling(5, 3, 2)(x)
    with pytest.raises(ValueError, match=r"batch \[6\], got \(5,\)"):
        FisherInformationPooling(4, 3, 2)(x, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_mixtures must be positive, got 0"):
        FisherInformationConv(4, 3, num_mixtures=0)
    with pytest.raises(ValueError, match="num_layers must be positive, got 0"):
        FisherInformationEmbedding(4, 3, num_layers=0)
    with pytest.raises(ValueError, match="sigma must be positive, got -1"):
        KernelLayer(4, 3, sigma=-1)
    with pytest.raises(ValueError, match="'elu'"):
        FisherInformationConv(4, 3, out_proj="elu")
    with pytest.raises(ValueError, match=r"at least 7 samples, got \(6, 4\)"):
        KernelLayer(4, 7).fit(x)
    with pytest.raises(ValueError, match=r"6 queries and 6 keys, got .*queries=3"):
        FisherInformationConv(4, 3)(x, Neighbors.from_edge_index(EDGES[:, :2], 3))
