"""Arguments of `attend` for tests of its backends, and how what they give is compared."""

import torch

import geoattn
from geoattn import Neighbors, attend

# The available backends with a backward pass of their own.
FAST = [name for name, state in geoattn.backends().items() if state == "available" and name != "reference"]
TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
    torch.bfloat16: {"rtol": 4e-2, "atol": 4e-2},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
}
# What a score is made of; every name but "additive" is an argument of `attend`.
SCORES = {
    "dot": {},
    "bias": {"bias"},
    "key_weight": {"key_weight"},
    "transformer_conv": {"edge_key", "edge_value"},
    "everything": {"bias", "key_weight", "edge_key", "edge_value"},
    "gatv2": {"att"},
    "gatv2_edges": {"att", "edge_key", "bias"},
    "gat": {"att", "scalar"},
}


def problem(pattern, score="dot", heads=4, groups=2, dim=5, width=3, dtype=torch.float64, seed=0, shared=True):
    """Arguments of `attend` by name; the tensors that take gradients require them."""
    make = torch.Generator().manual_seed(seed)

    def random(*shape, of=dtype):
        return torch.randn(*shape, generator=make, dtype=torch.float64).to(of).requires_grad_()

    terms = SCORES[score]
    dim = 1 if "scalar" in terms else dim
    arguments = {
        "query": random(pattern.num_queries, heads, dim),
        "key": random(pattern.num_keys, groups, dim),
        "value": random(pattern.num_keys, groups, width),
    }
    edges, edge_heads = pattern.num_edges, 1 if shared else heads
    if "bias" in terms:
        arguments["bias"] = random(edges, edge_heads)
    if "key_weight" in terms:
        weight = torch.rand(pattern.num_keys, heads, generator=make, dtype=torch.float64) + 0.1
        arguments["key_weight"] = (weight[:, 0] if shared else weight).to(dtype).clone().requires_grad_()
    if "edge_key" in terms:
        arguments["edge_key"] = random(edges, edge_heads, dim)
    if "edge_value" in terms:
        arguments["edge_value"] = random(edges, edge_heads, width)
    if "att" in terms:
        arguments["att"] = random(heads, dim)
    return arguments


def random_pattern(queries=30, keys=20, edges=150, dtype=torch.int64, seed=0):
    """With duplicate edges and a long row; from five nodes on with empty rows, at both ends too, and an unused key."""
    make = torch.Generator().manual_seed(seed)
    key = torch.randint(keys, (edges,), generator=make)
    query = torch.randint(queries, (edges,), generator=make)
    if keys >= 5:
        key[key == keys - 1] = 0
    if queries >= 5:
        query[query == queries - 1] = 0
        query[query % 5 == 0] += 1
    query[: min(edges // 3, 300)] = queries // 3
    return Neighbors.from_edge_index(torch.stack([key, query]).to(dtype), queries, keys)


def run(name, pattern, arguments, seed=0, **options):
    """Output, log-sum-exp and the gradients of a random function of both."""
    with geoattn.backend(name):
        torch.manual_seed(seed)
        out, lse = attend(pattern=pattern, return_lse=True, **arguments, **options)
        make = torch.Generator().manual_seed(1)
        of_out = torch.randn(out.shape, generator=make, dtype=torch.float64).to(out)
        of_lse = torch.randn(lse.shape, generator=make, dtype=torch.float64).to(lse)
        finite = lse.where(lse.isfinite(), 0)
        grads = torch.autograd.grad([out, finite], list(arguments.values()), [of_out, of_lse], allow_unused=True)
    return {"out": out, "lse": lse, **dict(zip(arguments, grads, strict=True))}


def assert_same(found, expected, dtype=torch.float64):
    """Of tensors by name, None among them: types, and values within `TOLERANCE` of `dtype`."""
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
            continue
        assert found[name].dtype == value.dtype, name
        # Gradients are sums: what a term loses to rounding is measured by the largest sum.
        largest = value.abs().where(value.isfinite(), 0).max().item() if value.numel() else 0
        tolerance = {"rtol": TOLERANCE[dtype]["rtol"], "atol": TOLERANCE[dtype]["atol"] * max(1, largest)}
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


def exact(arguments):
    """The same arguments in float64."""
    return {name: x.detach().double().requires_grad_() for name, x in arguments.items()}
