import pytest
import torch
from torch.nn import functional as F

from geoattn.nn import dropout
from geoattn.nn.graph import AEROGNN, FDGATII


@pytest.fixture
def x() -> torch.Tensor:
    x = torch.rand(300, 40, generator=torch.Generator().manual_seed(0))
    return x * (x > 0.9)


def test_of_sparse_features_keeps_and_scales_what_is_stored(x):
    torch.manual_seed(0)
    found = dropout(x.to_sparse_csr(), 0.25).to_dense()
    kept = found != 0
    torch.testing.assert_close(found[kept], x[kept] / 0.75)
    assert abs(kept.sum() / (x != 0).sum() - 0.75) < 0.05


def test_does_nothing_in_evaluation(x):
    assert torch.equal(dropout(x.to_sparse_csr(), 0.5, training=False).to_dense(), x)


def test_of_dense_features_is_that_of_torch(x):
    torch.manual_seed(0)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.3), expected)


@pytest.mark.parametrize("network", [FDGATII, AEROGNN])
def test_networks_take_sparse_features(network, x):
    torch.manual_seed(0)
    edge_index = torch.randint(len(x), (2, 900))
    model = network(40, 8, 3, num_layers=2).eval()
    outputs = [model(features, edge_index) for features in (x, x.to_sparse_csr())]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in outputs]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)
    model.train()
    assert not torch.equal(model(x.to_sparse_csr(), edge_index), outputs[1])
