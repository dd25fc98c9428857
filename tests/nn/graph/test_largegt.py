import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch_geometric.data import Data

from geoattn.data import HopFeatures, TwoHopLoader
from geoattn.nn.graph.largegt import CodebookAttention, EMACodebook, LargeGT, LargeGTLayer, LargeGTLocal

NODES, CHANNELS, G, K = 60, 5, 4, 7


def without_dropout(module):
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


def far_from_start(module):
    """Weights as large as after training, so that attention is not uniform."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return module


def graph():
    torch.manual_seed(0)
    edge_index = torch.randint(0, NODES - 5, (2, 150))  # the last nodes have no edge
    return HopFeatures()(
        Data(
            x=torch.randn(NODES, CHANNELS), pos_enc=torch.randn(NODES, G), edge_index=edge_index, y=torch.arange(NODES)
        )
    )


def model(conv_type="full", seed=0, nodes=NODES):
    torch.manual_seed(seed)
    return LargeGT(nodes, CHANNELS, 6, 3, G, num_centroids=K, conv_type=conv_type)


def run(network, batch):
    return network(batch.x, batch.hop_x, batch.edge_index, batch.batch_size, batch.pos_enc, batch.n_id)


def trained(conv_type="full"):
    """A model whose codebook has followed two epochs, so that no centroid is far out."""
    network = far_from_start(model(conv_type))
    if conv_type == "full":
        network.conv.codebook.codebook.cluster_size.fill_(2.0)
    network.train()
    for batch in list(TwoHopLoader(graph(), 4, batch_size=30)) * 2:
        run(network, batch)
    return network


def waves(*shape, phase):
    return torch.sin(1.7 * torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64) + phase).view(shape)


def test_published_code():
    """Outputs, codebook and assignment of snap-research/LargeGT @5323269 for the same weights and inputs."""
    network = without_dropout(LargeGT(10, 3, 4, 2, 2, 2, 3).double())
    for i, (name, value) in enumerate(network.state_dict().items()):
        if name.endswith("c_idx"):
            value.copy_(torch.arange(10) % 2 * 2)  # centroid 1 has no nodes
        elif not name.endswith("num_batches_tracked"):
            value.copy_(waves(*value.shape, phase=i) + 2 * name.endswith(("running_var", "cluster_size")))
    x, hop_x, pos_enc = waves(6, 3, phase=1), waves(6, 2, 3, phase=2), waves(6, 2, phase=3)
    edge_index = torch.tensor([[0, 5, 1, 0, 2, 4, 3, 3], [0, 0, 1, 1, 2, 2, 3, 3]])
    inputs = x, hop_x, edge_index, 4, pos_enc, torch.tensor([7, 2, 9, 0, 5, 1])

    def same(actual, expected):
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-11)

    same(
        network.eval()(*inputs),
        [
            [-2.205377533790, -1.037033116163],
            [-2.170306491164, -0.999296681837],
            [-2.239919504143, -1.076467115830],
            [-2.226878590142, -1.059529835216],
        ],
    )
    same(
        network.train()(*inputs),
        [
            [-1.845150897600, 0.090065407082],
            [-1.310396984543, 0.465918783737],
            [-1.068993018609, 0.344811576779],
            [-2.133090067738, 0.074936158988],
        ],
    )
    same(
        network.conv.codebook.codebook.centroids(),
        [
            [-1.270091072189, 1.430228469727, 0.728860462208, -1.481492333890],
            [-0.846519255155, 1.779415934592, 0.377924272854, -1.672753168455],
            [-0.241831093584, 1.441582357545, 0.020752374046, -1.319242709182],
        ],
    )
    assert network.conv.codebook.c_idx.tolist() == [2, 2, 2, 2, 0, 2, 0, 0, 0, 0]


def test_local_formula():
    torch.manual_seed(0)
    module = far_from_start(LargeGTLocal(CHANNELS, 6, heads=3)).double().eval()
    tokens = torch.randn(4, 9, CHANNELS, dtype=torch.float64)
    for of_node, out in zip(tokens, module(tokens), strict=True):
        u = module.lin_in(of_node)
        normed = module.norm(u)
        heads = []
        for h in range(3):
            part = slice(6 * h, 6 * h + 6)
            query, key, value = (lin(normed)[:, part] for lin in (module.lin_query, module.lin_key, module.lin_value))
            heads.append((query @ key.T / 6**0.5).softmax(1) @ value)
        z = module.final_norm(module.lin_skip(u) + module.lin_out(torch.cat(heads, 1)))
        # The score of the paper's readout; what reads z_0, and the constant, make no difference.
        score = z[1:] @ module.lin_readout.weight[0] + z[0] @ torch.randn(18, dtype=torch.float64) + 3
        torch.testing.assert_close(out, z[0] + score.softmax(0) @ z[1:])


def test_local_reads_a_set():
    module = far_from_start(LargeGTLocal(CHANNELS, 6)).eval()
    tokens = torch.randn(3, 7, CHANNELS)
    shuffled = tokens[:, [0, 5, 3, 1, 6, 2, 4]]
    torch.testing.assert_close(module(shuffled), module(tokens))
    assert not torch.allclose(module(tokens.flip(1)), module(tokens), atol=1e-3)


def test_local_gradients():
    module = far_from_start(LargeGTLocal(2, 3)).double().eval()
    tokens = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(module, tokens)
    assert gradgradcheck(module, tokens)


def test_codebook_follows_the_formula():
    torch.manual_seed(0)
    book = EMACodebook(K, G).double()
    book.cluster_size.uniform_(0, 3)
    before = copy.deepcopy(book)
    x = 2 + 3 * torch.randn(20, G, dtype=torch.float64)
    assigned = book.update(x)

    normed = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    distance = (normed[:, None] - before.embedding).norm(dim=2)
    assert torch.equal(assigned, distance.argmin(1))
    size = torch.stack([0.99 * before.cluster_size[k] + 0.01 * (assigned == k).sum() for k in range(K)])
    size = (size + 1e-5) / (size.sum() + K * 1e-5) * size.sum()
    total = torch.stack([0.99 * before.cluster_sum[k] + 0.01 * normed[assigned == k].sum(0) for k in range(K)])
    torch.testing.assert_close(book.cluster_size, size)
    torch.testing.assert_close(book.cluster_sum, total)
    torch.testing.assert_close(book.embedding, total / size[:, None])
    mean, variance = 0.1 * x.mean(0), 0.9 + 0.1 * x.var(0)
    torch.testing.assert_close(book.centroids(), total / size[:, None] * (variance + 1e-5).sqrt() + mean)


def test_codebook_finds_clusters():
    torch.manual_seed(0)
    centers = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, 6.0]])
    book = EMACodebook(3, 2, decay=0.9)
    book.embedding.copy_(centers / 10 + 0.1)
    for _ in range(200):
        label = torch.arange(90) % 3
        assigned = book.update(centers[label] + 0.1 * torch.randn(90, 2))
    assert torch.equal(assigned, label)
    torch.testing.assert_close(book.centroids(), centers, atol=0.15, rtol=0)


def test_global_attention_is_over_all_nodes():
    """Each node of the graph stands there with the centroid it is assigned to; centroid 2 has none."""
    torch.manual_seed(0)
    module = far_from_start(CodebookAttention(CHANNELS, 6, NODES, G, heads=2, num_centroids=K)).double().eval()
    module.c_idx[module.c_idx == 2] = 3
    x, pos_enc = torch.randn(8, CHANNELS, dtype=torch.float64), torch.randn(8, G, dtype=torch.float64)
    of_node = module.codebook.centroids()[module.c_idx.long()]
    query = module.lin_query(torch.cat([module.lin_in(x), pos_enc], 1)).view(8, 2, 6)
    key, value = module.lin_key(of_node).view(-1, 2, 6), module.lin_value(of_node[:, :G]).view(-1, 2, 6)
    weight = (torch.einsum("ihd,jhd->hij", query, key) / 6**0.5).softmax(2)
    expected = torch.einsum("hij,jhd->ihd", weight, value).flatten(1)
    torch.testing.assert_close(module(x, pos_enc, torch.arange(8)), expected)


def test_global_training_assigns_the_batch():
    torch.manual_seed(0)
    module = CodebookAttention(CHANNELS, 6, NODES, G, num_centroids=K)
    x, pos_enc, n_id = torch.randn(8, CHANNELS), torch.randn(8, G), torch.arange(8) * 5
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.eval()(x, pos_enc, n_id)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    expected = copy.deepcopy(module.codebook).train().update(torch.cat([module.lin_in(x), pos_enc], 1))
    module.train()(x, pos_enc, n_id)
    assert torch.equal(module.c_idx[n_id].long(), expected)
    others = torch.ones(NODES, dtype=torch.bool).index_fill(0, n_id, False)
    assert torch.equal(module.c_idx[others], before["c_idx"][others])
    assert not torch.equal(module.codebook.embedding, before["codebook.embedding"])


def test_global_gradients_are_of_the_codebook_that_was_read():
    torch.manual_seed(0)
    module = far_from_start(CodebookAttention(CHANNELS, 6, NODES, G, num_centroids=K)).double()
    x, pos_enc = torch.randn(8, CHANNELS, dtype=torch.float64), torch.randn(8, G, dtype=torch.float64)
    gradients = []
    for training in (False, True):  # training moves the codebook between the two passes
        out = module.train(training)(x, pos_enc, torch.arange(8))
        gradients.append(torch.autograd.grad(out.square().sum(), list(module.parameters())))
    for in_evaluation, in_training in zip(*gradients, strict=True):
        torch.testing.assert_close(in_training, in_evaluation)
    x.requires_grad_()
    assert gradcheck(lambda x: module.eval()(x, pos_enc, torch.arange(8)), x)


def test_layer_is_both_side_by_side():
    torch.manual_seed(0)
    layer = LargeGTLayer(CHANNELS, 6, NODES, G, num_centroids=K).eval()
    tokens, x, pos_enc, n_id = torch.randn(8, 9, CHANNELS), torch.randn(8, CHANNELS), torch.randn(8, G), torch.arange(8)
    out = layer(tokens, x, pos_enc, n_id)
    assert torch.equal(out, torch.cat([layer.local(tokens), layer.codebook(x, pos_enc, n_id)], 1))


@pytest.mark.parametrize("conv_type", ["full", "local"])
def test_outputs_do_not_depend_on_the_batch(conv_type):
    data, network = graph(), trained(conv_type).eval()
    together = run(network, next(iter(TwoHopLoader(data, 4, batch_size=NODES))))
    for batch_size in (1, 7):
        loader = TwoHopLoader(data, 4, batch_size=batch_size)
        torch.testing.assert_close(torch.cat([run(network, batch) for batch in loader]), together)
    assert together.std(0).min() > 1e-3


def test_order_of_a_batch():
    """Other numbers for the nodes behind the seeds, another order inside lists: the same outputs."""
    data, network = graph(), trained().eval()
    batch = next(iter(TwoHopLoader(data, 4, batch_size=10)))
    expected = run(network, batch)
    order = torch.cat([torch.arange(10), 10 + torch.randperm(batch.num_nodes - 10)])
    new = torch.empty_like(order).index_copy(0, order, torch.arange(len(order)))
    for name in ("x", "hop_x", "pos_enc", "n_id"):
        batch[name] = batch[name][order]
    batch.edge_index = torch.stack([new[batch.edge_index[0]], batch.edge_index[1]]).view(2, 10, 5)
    batch.edge_index = batch.edge_index[:, :, [0, 3, 1, 4, 2]].flatten(1)
    torch.testing.assert_close(run(network, batch), expected)


def test_state_dict_carries_what_was_learned():
    batch = next(iter(TwoHopLoader(graph(), 4, batch_size=20)))
    learned, other = trained().eval(), model(seed=1).eval()
    assert not torch.allclose(run(other, batch), run(learned, batch))
    other.load_state_dict(learned.state_dict())
    assert torch.equal(run(other, batch), run(learned, batch))
    # Training goes on as it would have.
    assert torch.equal(run(without_dropout(other).train(), batch), run(without_dropout(learned).train(), batch))
    for name, value in other.state_dict().items():
        assert torch.equal(value, learned.state_dict()[name]), name


def test_reset_parameters():
    network = trained()
    torch.manual_seed(7)
    network.reset_parameters()
    fresh = model(seed=3).state_dict()
    for name, value in network.state_dict().items():
        if "running" in name or name.endswith(("cluster_size", "num_batches_tracked", "norm.weight", "norm.bias")):
            assert torch.equal(value, fresh[name]), name
        elif value.is_floating_point() and value.numel() > 20:
            assert value.std() < 2 * fresh[name].std(), name
    assert 0 <= network.conv.codebook.c_idx.min() <= network.conv.codebook.c_idx.max() == K - 1


@pytest.mark.parametrize("conv_type", ["full", "local"])
def test_every_parameter_learns(conv_type):
    data, network = graph(), without_dropout(trained(conv_type))
    before = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    y = (data.x[:, 0] > 0).long()
    losses = []
    for _ in range(15):
        for batch in TwoHopLoader(data, 4, batch_size=30):
            loss = F.cross_entropy(run(network, batch), y[batch.n_id[:30]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
    for name, parameter in network.named_parameters():
        assert not torch.equal(parameter, before.get_parameter(name)), name
    assert sum(p.numel() for p in model("local").parameters()) < sum(p.numel() for p in model().parameters())


def test_local_takes_another_graph():
    network = trained("local").eval()
    data = HopFeatures()(Data(x=torch.randn(9, CHANNELS), edge_index=torch.randint(0, 9, (2, 20))))
    batch = next(iter(TwoHopLoader(data, 3, batch_size=9)))
    assert network(batch.x, batch.hop_x, batch.edge_index, batch.batch_size).isfinite().all()


def test_errors():
    batch = next(iter(TwoHopLoader(graph(), 4, batch_size=10)))
    network = model()
    with pytest.raises(ValueError, match="conv_type must be"):
        model("global")
    with pytest.raises(ValueError, match=r"hop_x \[n, 2, F\]"):
        network(batch.x, batch.x, batch.edge_index, 10)
    with pytest.raises(ValueError, match="lists of 7 seeds"):
        network(batch.x, batch.hop_x, batch.edge_index, 7)
    with pytest.raises(ValueError, match="lists of 0 seeds"):
        network(batch.x, batch.hop_x, batch.edge_index, 0)
    with pytest.raises(ValueError, match="as TwoHopLoader has it"):
        network(batch.x, batch.hop_x, batch.edge_index.flip(1), 10)
    with pytest.raises(ValueError, match="needs pos_enc and n_id"):
        network(batch.x, batch.hop_x, batch.edge_index, 10)
    with pytest.raises(ValueError, match=r"expected pos_enc \[10, 4\]"):
        network(batch.x, batch.hop_x, batch.edge_index, 10, batch.x, batch.n_id)
    with pytest.raises(ValueError, match="T at least 2"):
        LargeGTLocal(CHANNELS, 4)(torch.randn(3, 1, CHANNELS))
