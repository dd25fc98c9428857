"""The mesh transformer's block against its formulas on dense matrices."""

import math

import pytest
import torch

from geoattn import Neighbors
from geoattn.nn.graph.mesh_transformer import GatedLinear, MaskedAttention, MeshTransformerBlock, RMSNorm
from geoattn.patterns.augment import dilated, global_nodes, random_edges, union

# A directed graph of 8 nodes: 6 has a loop and nothing else, 7 no edge at all, and no edge leads to 5.
EDGE_INDEX = torch.tensor([[0, 1, 2, 3, 0, 4, 5, 2, 6], [1, 0, 1, 2, 3, 3, 4, 0, 6]])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def mask_of(edge_index, count, self_loops=False):
    mask = torch.zeros(count, count, dtype=torch.bool)
    mask[edge_index[1], edge_index[0]] = True
    return mask | torch.eye(count, dtype=torch.bool) if self_loops else mask


def dense_norm(x, scale, eps=1e-8):
    return torch.stack([row / (math.sqrt(float((row**2).sum()) / len(row)) + eps) * scale for row in x])


def dense_attention(x, mask, weights, heads):
    """One head at a time: head h has the channels h, h + heads, h + 2 * heads, ..."""
    q, k, v = (x @ weights[f"{name}_proj.weight"].T + weights[f"{name}_proj.bias"] for name in "qkv")
    out = torch.zeros_like(x)
    for h in range(heads):
        channels = torch.arange(h, x.size(1), heads)
        score = q[:, channels] @ k[:, channels].T / math.sqrt(len(channels))
        weight = score.masked_fill(~mask, -math.inf).softmax(1).nan_to_num(0.0)  # a row without keys: zeros
        out[:, channels] = weight @ v[:, channels]
    return out @ weights["proj.weight"].T + weights["proj.bias"]


def dense_block(x, mask, weights, heads):
    attention = {name.removeprefix("attention."): w for name, w in weights.items() if name.startswith("attention.")}
    x = x + dense_attention(dense_norm(x, weights["norm1.scale"]), mask, attention, heads)
    y = dense_norm(dense_norm(x, weights["norm2.scale"]), weights["gated_mlp.0.scale"])
    gate = y @ weights["gated_mlp.1.linear1.weight"].T + weights["gated_mlp.1.linear1.bias"]
    gate = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
    y = gate * (y @ weights["gated_mlp.1.linear2.weight"].T + weights["gated_mlp.1.linear2.bias"])
    return x + y @ weights["gated_mlp.2.weight"].T + weights["gated_mlp.2.bias"]


def some_block(channels=12, heads=3, **options):
    """With weights that are all different, in float64."""
    block = MeshTransformerBlock(channels, heads, **options).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) / channels**0.5 + (parameter.dim() == 1))
    return block


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_block_is_its_formula(heads, self_loops):
    block = some_block(12, heads, self_loops=self_loops)
    x = torch.randn(8, 12, dtype=torch.float64)
    expected = dense_block(x, mask_of(EDGE_INDEX, 8, self_loops), block.state_dict(), heads)
    torch.testing.assert_close(block(x, EDGE_INDEX), expected)
    turned = dense_block(x, mask_of(EDGE_INDEX.flip(0), 8, self_loops), block.state_dict(), heads)
    torch.testing.assert_close(block(x, EDGE_INDEX.flip(0)), turned)
    assert not torch.allclose(expected, turned)


def test_gradients_are_those_of_the_formula():
    block = some_block()
    x, towards = torch.randn(2, 8, 12, dtype=torch.float64)

    def formula(y):  # without the floats that the reference norm makes of its rows
        q, k, v, proj = (getattr(block.attention, name) for name in ("q_proj", "k_proj", "v_proj", "proj"))

        def norm(module, t):
            return t / (t.square().mean(1, True).sqrt() + 1e-8) * module.scale

        z = norm(block.norm1, y)
        q, k, v = (linear(z).view(8, 4, 3).permute(2, 0, 1) for linear in (q, k, v))
        weight = (q @ k.mT / 2).masked_fill(~mask_of(EDGE_INDEX, 8), -1e300).softmax(-1)
        weight = weight * mask_of(EDGE_INDEX, 8).any(1, keepdim=True)
        y = y + proj((weight @ v).permute(1, 2, 0).reshape(8, 12))
        z = norm(block.gated_mlp[0], norm(block.norm2, y))
        gated = block.gated_mlp[1]
        return y + block.gated_mlp[2](torch.nn.functional.gelu(gated.linear1(z)) * gated.linear2(z))

    gradients = []
    for function in (formula, lambda y: block(y, EDGE_INDEX)):
        leaf = x.clone().requires_grad_()
        inputs = [leaf, *block.parameters()]
        gradients.append(torch.autograd.grad((function(leaf) * towards).sum(), inputs))
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_parameters_have_the_published_names_and_number():
    for channels, heads in ((64, 4), (128, 2)):
        block = MeshTransformerBlock(channels, heads)
        assert sum(p.numel() for p in block.parameters()) == 13 * channels**2 + 14 * channels
    shapes = {name: tuple(w.shape) for name, w in MeshTransformerBlock(4, 2).state_dict().items()}
    linears = {f"attention.{name}": (4, 4) for name in ("q_proj", "k_proj", "v_proj", "proj")}
    linears |= {"gated_mlp.1.linear1": (12, 4), "gated_mlp.1.linear2": (12, 4), "gated_mlp.2": (4, 12)}
    expected = {name: (4,) for name in ("norm1.scale", "norm2.scale", "gated_mlp.0.scale")}
    expected |= {f"{name}.weight": shape for name, shape in linears.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    assert shapes == expected


def test_interleaved_heads_are_a_permutation_of_rows():
    # Weights of heads that lie one after the other, put into the rows c % heads = head, give what heads of their own
    # give: head 1 reads features 3 to 5 only.
    attention = MaskedAttention(6, 2)
    order = torch.arange(6).view(2, 3).T.flatten()  # row c of the layer is row order[c] of heads one after the other
    with torch.no_grad():
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight.copy_(torch.eye(6)[order])
            linear.bias.zero_()
        attention.proj.weight.copy_(torch.eye(6)[order].T)
        attention.proj.bias.zero_()
    x = torch.randn(8, 6)
    parts = []
    for part in x.split(3, 1):
        score = (part @ part.T / math.sqrt(3)).masked_fill(~mask_of(EDGE_INDEX, 8), -math.inf)
        parts.append(score.softmax(1).nan_to_num(0.0) @ part)
    torch.testing.assert_close(attention(x, EDGE_INDEX), torch.cat(parts, 1))


def test_rms_norm_adds_eps_outside_the_root():
    norm = RMSNorm(3, eps=0.5).double()
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([1.0, 2.0, -1.0]))
    x = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(norm(x), dense_norm(x, norm.scale.detach(), 0.5))
    small = torch.full((1, 3), 1e-8, dtype=torch.float64)
    torch.testing.assert_close(RMSNorm(3).double()(small), torch.full_like(small, 0.5))
    gradient = torch.autograd.functional.jacobian(RMSNorm(2), torch.zeros(2))
    torch.testing.assert_close(gradient, 1e8 * torch.eye(2))  # of x / eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    norm = RMSNorm(4).to(dtype)
    assert torch.equal(norm(torch.zeros(2, 4, dtype=dtype)), torch.zeros(2, 4, dtype=dtype))  # 1e-8 is 0 in float16
    torch.testing.assert_close(norm(torch.full((1, 4), 300.0, dtype=dtype)), torch.ones(1, 4, dtype=dtype))
    block, x = some_block(), torch.randn(8, 12)
    expected = block(x.double(), EDGE_INDEX)
    tolerance = 0.02 if dtype == torch.float16 else 0.15
    assert (block.to(dtype)(x.to(dtype), EDGE_INDEX) - expected).abs().max() < tolerance * expected.abs().max()
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            out = block.float()(x, EDGE_INDEX)
        assert (out - expected).abs().max() < tolerance * expected.abs().max()


def test_first_and_second_derivatives():
    block = some_block(4, 2)
    x = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: block(x, EDGE_INDEX), x)
    assert torch.autograd.gradgradcheck(lambda x: block.attention(x, EDGE_INDEX), x)
    parameters = tuple(block.parameters())
    names = [name for name, _ in block.named_parameters()]

    def of_parameters(*values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x.detach(), EDGE_INDEX))

    assert torch.autograd.gradcheck(of_parameters, parameters, fast_mode=True)


def test_does_not_see_the_numbering():
    block, x = some_block(), torch.randn(8, 12, dtype=torch.float64)
    order = torch.randperm(8)
    shuffled = order.argsort()[EDGE_INDEX][:, torch.randperm(EDGE_INDEX.size(1))]
    torch.testing.assert_close(block(x[order], shuffled), block(x, EDGE_INDEX)[order])


def test_graphs_of_a_batch_do_not_see_each_other():
    block, x = some_block(), torch.randn(13, 12, dtype=torch.float64)
    other = torch.tensor([[0, 1, 4], [1, 2, 0]])
    together = block(x, torch.cat([EDGE_INDEX, other + 8], 1))
    torch.testing.assert_close(together, torch.cat([block(x[:8], EDGE_INDEX), block(x[8:], other)]))


def test_nodes_without_edges_get_the_bias_only():
    attention, x = some_block().attention, torch.randn(8, 12, dtype=torch.float64)
    out = attention(x, EDGE_INDEX)
    assert torch.equal(out[[5, 7]], attention.proj.bias.expand(2, 12))
    alone = attention.proj(attention.v_proj(x[6]))  # attends to itself along its loop
    torch.testing.assert_close(out[6], alone)
    attention.self_loops = True
    out = attention(x, EDGE_INDEX)
    torch.testing.assert_close(out[[5, 6, 7]], attention.proj(attention.v_proj(x[[5, 6, 7]])))
    assert attention(x[:0], EDGE_INDEX[:, :0]).shape == (0, 12)


def test_duplicate_edges_count_twice():
    attention, x = some_block().attention, torch.randn(3, 12, dtype=torch.float64)
    out = attention(x, torch.tensor([[0, 0, 1], [2, 2, 2]]))
    q, k, v = (
        linear(x).view(3, 4, 3).transpose(1, 2) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    weight = ((q[2] * k[:2]).sum(-1) / 2 + torch.tensor([[2.0], [1.0]]).log()).softmax(0)
    torch.testing.assert_close(out[2], attention.proj((weight.unsqueeze(-1) * v[:2]).sum(0).T.flatten()))


def test_any_form_of_a_graph_and_any_pattern():
    block, x = some_block(), torch.randn(8, 12, dtype=torch.float64)
    pattern = Neighbors.from_edge_index(EDGE_INDEX, 8)
    torch.testing.assert_close(block(x, pattern), block(x, EDGE_INDEX))
    batch, generator = torch.tensor([0] * 6 + [1] * 2), torch.Generator().manual_seed(0)
    augmented = union(
        Neighbors.k_hop(EDGE_INDEX, 2, 8, self_loops=False),
        dilated(pattern, 3),
        random_edges(pattern, 0.5, batch, generator),
        global_nodes(torch.tensor([2, 7]), 8, batch),
    )
    expected = dense_block(x, mask_of(augmented.to_edge_index(), 8), block.state_dict(), 3)
    torch.testing.assert_close(block(x, augmented), expected)


def test_state_dict_there_and_back():
    block, x = some_block(), torch.randn(8, 12, dtype=torch.float64)
    other = MeshTransformerBlock(12, 3).double()
    assert not torch.allclose(other(x, EDGE_INDEX), block(x, EDGE_INDEX))
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(x, EDGE_INDEX), block(x, EDGE_INDEX))


def test_parameters_are_drawn_anew():
    block = some_block().float()
    torch.manual_seed(1)
    block.reset_parameters()
    torch.manual_seed(1)
    for got, expected in zip(block.parameters(), MeshTransformerBlock(12, 3).parameters(), strict=True):
        assert torch.equal(got, expected)


def test_compiles_as_one_graph():
    block, x = some_block().float(), torch.randn(8, 12)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    pattern = Neighbors.from_edge_index(EDGE_INDEX, 8)
    torch.testing.assert_close(compiled(x, pattern), block(x, pattern))


def test_gate():
    gate, x = GatedLinear(3, 5), torch.randn(4, 3)
    a, b = gate.linear1(x), gate.linear2(x)
    torch.testing.assert_close(gate(x), 0.5 * a * (1 + torch.erf(a / math.sqrt(2))) * b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeshTransformerBlock(10, 4), "heads must divide channels, got 4 and 10"),
        (lambda: MaskedAttention(10, 0), "heads must divide channels, got 0 and 10"),
        (lambda: MaskedAttention(4, 2)(torch.zeros(2, 4), torch.tensor([[0], [2]])), r"must be in \[0, 2\)"),
        (lambda: MaskedAttention(4, 2)(torch.zeros(2, 4), Neighbors.from_edge_index(EDGE_INDEX)), "2 queries"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
