"""Everything runs where its inputs are: on a pretended GPU (`pretend.py`), with the numbers of the CPU."""

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch_geometric.data import Batch, Data

import geoattn
from geoattn import Neighbors, Windows, attend, geometry, nn, ops
from geoattn.data import (
    Bodies,
    HopFeatures,
    MeshElements,
    Mix3D,
    ObjectAugment,
    RandomDeform,
    SceneAugment,
    TwoHopLoader,
    TwoHopSampler,
)
from geoattn.models import create_model
from geoattn.models.segmentation import SegmentationTask, segment
from geoattn.nn import graph
from geoattn.patterns import KernelMap, ball_order, ball_tree, dilated, global_nodes, random_edges, union
from geoattn.train import TrainConfig, TrainResult, checkpoint, evaluate
from tests.ops.problems import SCORES, problem, random_pattern
from tests.pretend import OnDevice, pretend_gpu

NODES = 24


def tensors_in(value):
    """All tensors of a result: of tuples, lists, dictionaries, samples and patterns."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Neighbors):
        return [x for x in (value.rowptr, value.col, value.edge_order) if x is not None]
    if isinstance(value, Windows):
        return [value.query_ptr, value.key_begin, value.key_end]
    if isinstance(value, KernelMap):
        return [value.voxel, value.neighbor, value.row, value.place]
    if isinstance(value, Data):
        value = value.to_dict()
    if isinstance(value, dict):
        value = list(value.values())
    return [x for part in value for x in tensors_in(part)] if isinstance(value, tuple | list) else []


def moved(value, device):
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device)  # running statistics begin alike
    if isinstance(value, torch.Tensor):
        return value.detach().to(device).requires_grad_(value.requires_grad)
    return value.to(device) if isinstance(value, Neighbors | Windows | KernelMap | Data) else value


def assert_same_on_both(function, *inputs, results_on_device=True):
    """Results, and the gradients of inputs and parameters that take one, on either device."""

    def run(*inputs):
        torch.manual_seed(1)
        found = function(*inputs)
        outputs = [x for x in tensors_in(found) if x.requires_grad]
        leaves = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
        leaves += [p for x in inputs if isinstance(x, torch.nn.Module) for p in x.parameters() if p.requires_grad]
        if not outputs or not leaves:
            return tensors_in(found), []
        total = sum((x * x).sum() for x in outputs if x.is_floating_point())
        return tensors_in(found), [x for x in torch.autograd.grad(total, leaves, allow_unused=True) if x is not None]

    expected = run(*(moved(x, "cpu") for x in inputs))
    with pretend_gpu() as device:
        found = run(*(moved(x, device) for x in inputs))
        for x in (*found[0], *found[1]) if results_on_device else ():
            assert isinstance(x, OnDevice)
        found = [[x.detach().cpu() for x in part] for part in found]
    expected = [[x.detach() for x in part] for part in expected]
    assert [len(part) for part in found] == [len(part) for part in expected]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def random(*shape, grad=True):
    make = torch.Generator().manual_seed(len(shape) + shape[-1])
    return torch.randn(shape, generator=make, dtype=torch.float64).requires_grad_(grad)


def points():
    return torch.rand(NODES, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def voxels():
    return torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.arange(-1, 1))


def edge_index():
    return random_pattern(NODES, NODES, 80).to_edge_index()


def body():
    mesh = Bodies(1)[0]
    pos, face = geometry.simplify(mesh.pos, mesh.face, 300)
    return Data(pos=pos, face=face, y=torch.arange(face.size(1)) % 3)


def test_a_mixture_of_devices_is_found():
    with pretend_gpu() as device:
        x = torch.ones(3, device=device)
        with pytest.raises(RuntimeError, match="one device"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device=device, generator=torch.Generator())
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()
        assert (2 * x[torch.tensor([0])] + torch.tensor(1.0)).tolist() == [3.0]  # which torch allows


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("score", SCORES)
def test_attend(score, backend):
    pattern = random_pattern()
    arguments = problem(pattern, score, dtype=torch.float64)

    def run(pattern, *tensors):
        with geoattn.backend(backend):
            terms = dict(zip(arguments, tensors, strict=True))
            return attend(pattern=pattern, return_lse=True, dropout=0.2, **terms), attend(pattern=pattern, **terms)

    assert_same_on_both(run, pattern, *arguments.values())


def test_second_derivatives_of_attend():
    pattern = random_pattern(6, 5, 20)
    arguments = problem(pattern, "everything", dtype=torch.float64)

    def run(pattern, *tensors):
        out = attend(pattern=pattern, **dict(zip(arguments, tensors, strict=True)))
        return torch.autograd.grad((out * out).sum(), tensors, create_graph=True)

    assert_same_on_both(run, pattern, *arguments.values())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_attend_over_windows(dropout):
    windows = Windows(torch.tensor([0, 10, 10, NODES]), torch.tensor([0, 5, 9, NODES]))
    qkv = [random(NODES, 4, 8) for _ in range(3)]
    assert_same_on_both(lambda q, k, v, w: attend(q, k, v, w, dropout=dropout), *qkv, windows)
    assert_same_on_both(lambda q, k, v, w: attend(q, k, v, w, return_lse=True), *qkv, windows)
    assert_same_on_both(
        lambda w: (w.to_neighbors(), torch.tensor([w.num_queries, w.num_keys]).to(w.query_ptr)), windows
    )


PATTERN = random_pattern(NODES, NODES, 80)
OPERATORS = {
    "edge_dot": (ops.edge_dot, random(NODES, 2, 8), random(NODES, 2, 8), PATTERN),
    "weighted_sum": (ops.weighted_sum, random(80, 2), random(NODES, 2, 8), PATTERN),
    "attention_weights": (ops.attention_weights, random(NODES, 2, 8), random(NODES, 2, 8), PATTERN),
    "vector_attend": (
        lambda q, k, v, pattern, pos, network: ops.vector_attend(q, k, v, pattern, pos, pos_nn=network),
        *(random(NODES, 8) for _ in range(3)), PATTERN, random(NODES, 3), torch.nn.Linear(3, 8).double(),
    ),
    "knn": (lambda pos, batch: ops.knn(pos, 3, batch), points(), torch.arange(NODES) // 10),
    "radius": (lambda pos, batch: ops.radius(pos, 0.4, batch), points(), torch.arange(NODES) // 10),
    "farthest_point_sample": (lambda pos: ops.farthest_point_sample(pos, ratio=0.3), points()),
    "ball_query": (lambda pos, batch: ops.ball_query(pos, 0.4, 3, batch), points(), torch.arange(NODES) // 10),
    "knn_query": (lambda pos, batch: ops.knn_query(pos, 6, batch), points(), torch.arange(NODES) // 10),
    "knn_interpolate": (
        lambda x, pos: ops.knn_interpolate(x, pos, pos.flip(0) + 0.1), random(NODES, 4), points(),
    ),
    "grid_sample": (lambda pos: ops.grid_sample(pos, 0.3), points()),
    "voxel_pool": (lambda x, pos: ops.voxel_pool(x, pos, 0.3), random(NODES, 4), points()),
}  # fmt: skip
OPERATORS |= {
    name: (lambda x, index, name=name: getattr(ops, name)(x, index, num_segments=9), random(80, 3), PATTERN.col % 7)
    for name in ops.__all__
    if name.startswith("segment_")
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name):
    assert_same_on_both(*OPERATORS[name])


PATTERNS = {
    "from_edge_index": lambda index, pos, mesh: Neighbors.from_edge_index(index, NODES, self_loops=True),
    "from_mesh": lambda index, pos, mesh: [
        Neighbors.from_mesh(mesh.face, element, hops=2) for element in ("vertex", "face", "edge")
    ],
    "k_hop": lambda index, pos, mesh: Neighbors.k_hop(index, 2, NODES),
    "knn": lambda index, pos, mesh: Neighbors.knn(pos, 3, query_pos=pos[:5]),
    "radius": lambda index, pos, mesh: Neighbors.radius(pos, 0.3),
    "transpose": lambda index, pos, mesh: Neighbors.from_edge_index(index, NODES).transpose,
    "with_self_loops": lambda index, pos, mesh: Neighbors.from_edge_index(index, NODES).with_self_loops(),
    "reorder": lambda index, pos, mesh: Neighbors.from_edge_index(index, NODES).reorder(pos),
    "reorder by neighbors": lambda index, pos, mesh: Neighbors.from_edge_index(index, NODES).reorder(),
    "per_head": lambda index, pos, mesh: Neighbors.per_head([Neighbors.from_edge_index(index, NODES)] * 2),
    "properties": lambda index, pos, mesh: [
        getattr(Neighbors.from_edge_index(index, NODES), name) for name in ("row", "degree")
    ],
    "dilated": lambda index, pos, mesh: dilated(Neighbors.from_edge_index(index, NODES), 2),
    "random_edges": lambda index, pos, mesh: random_edges(Neighbors.from_edge_index(index, NODES), 0.5),
    "global_nodes": lambda index, pos, mesh: [
        global_nodes(nodes, NODES, index.new_tensor([0] * 9 + [1] * 15)) for nodes in (index[0, :2], pos[:, 0] > 0.5)
    ],
    "union": lambda index, pos, mesh: union(Neighbors.from_edge_index(index, NODES), Neighbors.k_hop(index, 2, NODES)),
    "windows": lambda index, pos, mesh: Windows.from_batch(
        index.new_tensor([0, 0, 2]), index.new_tensor([0, 1, 1, 1]), 3
    ),
    "ball_tree": lambda index, pos, mesh: [*vars(ball_tree(pos)).values(), ball_tree(pos).balls(4)],
    "ball_order": lambda index, pos, mesh: ball_order(pos, index.new_tensor([8, 16]), 4),
    "kernel_map": lambda index, pos, mesh: KernelMap.from_grid(voxels().to(index), 5, index[0, :NODES] // 12),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name):
    assert_same_on_both(PATTERNS[name], edge_index(), points(), body())


GEOMETRY = {
    "mesh": lambda pos, face: [
        getattr(geometry, name)(pos, face)
        for name in (
            "face_normals", "face_areas", "face_centroids", "vertex_normals", "vertex_areas", "dihedral_angles",
            "edge_features", "normalize",
        )
    ],
    "topology": lambda pos, face: [
        getattr(geometry, name)(face)
        for name in ("edges", "boundary_edges", "nonmanifold_edges", "face_adjacency", "edge_adjacency")
    ],
    "check_mesh": geometry.check_mesh,
    "describe": lambda pos, face: pos.new_ones(3) * geometry.describe(pos, face).euler_number,
    "components": lambda pos, face: geometry.connected_components(face, pos.size(0)),
    "sample_surface": lambda pos, face: geometry.sample_surface(pos, face, 50),
    "simplify": lambda pos, face: geometry.simplify(pos, face, 100),
    "geodesic_distance": lambda pos, face: geometry.geodesic_distance(pos, face, face[:1, 0], "edge"),
    "eigenbasis": lambda pos, face: geometry.eigenbasis(pos, face, 5),
    "descriptors": lambda pos, face: [
        geometry.moment_descriptors(pos, geometry.vertex_normals(pos, face), geometry.vertex_areas(pos, face)),
        geometry.heat_descriptors(
            pos, geometry.vertex_normals(pos, face), geometry.vertex_areas(pos, face),
            *geometry.eigenbasis(pos, face, 5),
        ),
        geometry.heat_kernel_signature(*geometry.eigenbasis(pos, face, 5)),
        geometry.biharmonic_embedding(*geometry.eigenbasis(pos, face, 5), 3),
    ],
    "wigner_d": lambda pos, face: geometry.wigner_d(torch.linalg.qr(pos[:3])[0].unsqueeze(0), 2),
    "curves": lambda pos, face: [curve(pos) for curve in (geometry.curves.z_order, geometry.curves.hilbert)],
    "serialize": lambda pos, face: geometry.serialize(((pos - pos.min(0).values) * 50).long())[:3],
}  # fmt: skip


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry(name):
    mesh = body()
    assert_same_on_both(GEOMETRY[name], mesh.pos.double(), mesh.face)


class PlainGRUCell(torch.nn.GRUCell):
    """By its formula: torch's fused kernel for GPUs is not there on a pretended one."""

    def forward(self, x, hidden):
        of_x = torch.nn.functional.linear(x, self.weight_ih, self.bias_ih).chunk(3, 1)
        of_hidden = torch.nn.functional.linear(hidden, self.weight_hh, self.bias_hh).chunk(3, 1)
        reset, update = ((a + b).sigmoid() for a, b in zip(of_x[:2], of_hidden[:2], strict=True))
        return torch.lerp((of_x[2] + reset * of_hidden[2]).tanh(), hidden, update)


def slot_attention():
    layer = nn.SlotAttention(8, 3, 4, 6)
    layer.gru = PlainGRUCell(4, 4)
    return layer


SETS = Windows(torch.tensor([0, 9, NODES]))
LAYERS = {
    "GATConv": lambda: (nn.GATConv(8, 4, heads=2, edge_dim=3), random(NODES, 8), edge_index(), random(80, 3)),
    "GATv2Conv": lambda: (nn.GATv2Conv(8, 4, heads=2, edge_dim=3), random(NODES, 8), edge_index(), random(80, 3)),
    "TransformerConv": lambda: (
        nn.TransformerConv(8, 4, heads=2, edge_dim=3, dropout=0.2), random(NODES, 8), edge_index(), random(80, 3),
    ),
    "SuperGATConv": lambda: (nn.SuperGATConv(8, 4, heads=2), random(NODES, 8), edge_index()),
    "PointTransformerConv": lambda: (nn.PointTransformerConv(8, 8), random(NODES, 8), points(), edge_index()),
    "GravNetConv": lambda: (nn.GravNetConv(8, 4, 3, 4, 3), random(NODES, 8), torch.arange(NODES) // 12),
    "LatentAttention": lambda: (
        nn.LatentAttention(8, heads=2), random(NODES, 8), random(4, 8), points()[:, 0],
        Windows(torch.tensor([0, 2, 4]), torch.tensor([0, 9, NODES])),
    ),
    "NeighborhoodAttention": lambda: (
        nn.NeighborhoodAttention(12, 2, k=4, position_bias=nn.OffsetMLP(2), rotary=nn.RotaryPositions(6)),
        random(NODES, 12), points(), None, torch.arange(NODES) // 12,
    ),
    "NeighborhoodAttention2d": lambda: (
        nn.NeighborhoodAttention2d(8, 2, 3, stride=2, rel_pos_bias=True), random(2, 5, 4, 8),
    ),
    "BallBlock": lambda: (nn.BallBlock(8, 2), random(NODES, 8), points(), Windows(torch.tensor([0, 16, NODES]))),
    "ISAB": lambda: (nn.ISAB(8, 8, 2, 3, ln=True), random(NODES, 8), SETS),
    "PMA": lambda: (nn.PMA(8, 2, 3), random(NODES, 8), SETS),
    "Sinkhorn": lambda: (
        nn.SAB(8, 8, 2, attention=partial(nn.sinkhorn_attend, steps=4)), random(NODES, 8), SETS,
    ),
    "SlotAttention": lambda: (slot_attention(), random(NODES, 8), SETS, random(2, 3, 4)),
    "PerceiverBlock": lambda: (
        nn.PerceiverBlock(8, 6, heads=2), random(6, 8), SETS.latents(3), random(NODES, 6),
    ),
    "PointTransformerBlock": lambda: (
        nn.PointTransformerBlock(8), random(NODES, 8), points(), ops.knn_query(points(), 4),
    ),
    "TransitionDown": lambda: (nn.TransitionDown(8, 4, 4, 5), random(NODES, 8), points(), torch.arange(NODES) // 10),
    "TransitionUp": lambda: (nn.TransitionUp(8, 4), random(NODES, 4), points(), random(6, 8), points()[:6]),
    "SetAbstraction": lambda: (
        nn.SetAbstraction(8, 3, [0.3, 0.5], [4, 6], [[8, 4], [5]]), random(NODES, 8), points(),
        torch.arange(NODES) // 10,
    ),
    "GlobalSetAbstraction": lambda: (
        nn.GlobalSetAbstraction(8, 4), random(NODES, 8), points(), torch.arange(NODES) // 10,
    ),
    "FeaturePropagation": lambda: (
        nn.FeaturePropagation(12, 4), random(NODES, 4), points(), random(6, 8), points()[:6],
    ),
    "SurfaceAttention": lambda: (
        nn.SurfaceAttention(8, heads=2), random(NODES, 8), points(), random(NODES, 3), random(NODES, 4), PATTERN,
    ),
    "SubMConv3d": lambda: (nn.SubMConv3d(8, 4, 3), random(NODES, 8), KernelMap.from_grid(voxels(), 3)),
    "DepthwiseSubMConv3d": lambda: (
        nn.DepthwiseSubMConv3d(8, (1, 3, 5)), random(NODES, 8), KernelMap.from_grid(voxels(), (1, 3, 5)),
    ),
    "LinearAttention": lambda: (
        nn.LinearAttention(8, 2, "softmax"), random(NODES, 8), Windows(torch.tensor([0, 9, 9, NODES])),
    ),
    "ScatterFormerStage": lambda: (
        nn.ScatterFormerStage(8, 2, layers=1, window=2), random(NODES, 8), voxels(), torch.arange(NODES) // 12,
    ),
    "AEROGNN": lambda: (graph.AEROGNN(8, 4, 3, num_hops=2, heads=2), random(NODES, 8), edge_index()),
    "CoulGATConv": lambda: (
        graph.CoulGATConv(8, 4, NODES), random(2, NODES, 8), torch.rand(2, NODES, NODES).double() + 0.1,
    ),
    "PowerLawGATConv": lambda: (
        graph.PowerLawGATConv(8, 4, heads=2), random(NODES, 8), edge_index(), torch.rand(80).double() + 0.1,
    ),
    "FDGATII": lambda: (graph.FDGATII(8, 4, 3, num_layers=2), random(NODES, 8), edge_index()),
    "FisherInformationEmbedding": lambda: (
        graph.FisherInformationEmbedding(8, 4, 1, 2), random(NODES, 8, grad=False), edge_index(),
    ),
    "GravNetNorm": lambda: (graph.GravNetNorm(8), random(NODES, 8), torch.arange(NODES) // 12),
    "MeshTransformerBlock": lambda: (graph.MeshTransformerBlock(8, 2), random(NODES, 8), PATTERN),
    "SIRGCNConv": lambda: (graph.SIRGCNConv(8, 4, 4), random(NODES, 8), edge_index()),
    "SINCGCNConv": lambda: (graph.SINCGCNConv(8, 4, 4), random(NODES, 8), edge_index()),
}  # fmt: skip


def without_dropout(model):
    """In float64 and training, but for dropout: it draws other numbers on another device."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.double().train()


def equally_on_both(layer, *inputs):
    assert_same_on_both(lambda layer, *inputs: layer(*inputs), without_dropout(layer), *inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    torch.manual_seed(0)
    equally_on_both(*LAYERS[name]())


def test_gta_attention():
    torch.manual_seed(0)
    representation = graph.GTARepresentation(triv=2, se3=4, so3=8, so2=4, t2=3)
    pose = torch.eye(4).double().repeat(NODES, 1, 1)
    pose[:, :3, 3] = points()

    def run(layer, x, pattern, pose, coord):
        return layer(x, pattern, graph.GTATransforms(representation, pose, coord))

    layer = graph.GTAttention(8, 2, representation).double()
    assert_same_on_both(run, layer, random(NODES, 8), PATTERN, pose, points()[:, : representation.axes])


def test_largegt():
    torch.manual_seed(0)
    data = HopFeatures()(
        Data(x=random(NODES, 8, grad=False), pos_enc=random(NODES, 4, grad=False), edge_index=edge_index())
    )
    model = without_dropout(graph.LargeGT(NODES, 8, 16, 3, global_dim=4, num_centroids=6))
    batch = next(iter(TwoHopLoader(data, num_neighbors=4, batch_size=5)))

    def run(model, x, hop_x, edge_index, pos_enc, n_id):
        first = model(x, hop_x, edge_index, batch.batch_size, pos_enc, n_id)
        return first, model(x, hop_x, edge_index, batch.batch_size, pos_enc, n_id)

    assert_same_on_both(run, model, batch.x, batch.hop_x, batch.edge_index, batch.pos_enc, batch.n_id)


def test_fitting_anchors():
    torch.manual_seed(0)
    model = graph.FisherInformationEmbedding(8, 4, 1, num_mixtures=2).double()

    def run(model, x, edge_index):
        model.fit(x, edge_index, generator=torch.Generator().manual_seed(0))
        return [p.detach() for p in model.parameters()]

    assert_same_on_both(run, model, random(NODES, 8, grad=False), edge_index())


def test_graph_transforms():
    index = edge_index()

    def run(x, index):
        return HopFeatures()(Data(x=x, edge_index=index)).hop_x

    assert_same_on_both(run, random(NODES, 8, grad=False), index)
    assert_same_on_both(
        lambda index: TwoHopSampler(index, NODES, 4).lists(index[0, :3]), index, results_on_device=False
    )


def test_accelerated_models():
    from torch_geometric.nn import GAT

    torch.manual_seed(0)
    model = GAT(8, 8, 2, heads=2, v2=True, norm="BatchNorm")
    geoattn.accelerate(model)
    equally_on_both(model, random(NODES, 8), edge_index())


def network(**settings):
    torch.manual_seed(0)
    sizes = {"channels": 16, "heads": 2, "blocks": 1, "latents": 4}
    return create_model("surface_transformer", names=("a", "b", "c"), **sizes, **settings)


TASK = SegmentationTask()


def test_a_training_step_of_the_segmentation_network():
    batch = Batch.from_data_list([MeshElements()(body()), MeshElements()(body())])
    batch.apply(lambda x: x.double() if x.is_floating_point() else x)

    def run(model, batch):
        return TASK.loss(model, batch)

    assert_same_on_both(run, without_dropout(network()), batch)


@pytest.mark.parametrize("labelled", ["face", "edge"])
def test_evaluation_and_segmentation_follow_the_model(labelled):
    """Meshes stay where they are, on either device; the network is where the user put it."""
    mesh = body()
    edges = geometry.edges(mesh.face).edge.size(1)
    mesh.edge_soft = torch.rand(edges, 3, generator=torch.Generator().manual_seed(0))
    if labelled == "edge":
        mesh.y = torch.arange(edges) % 3
    model = network(element="vertex" if labelled == "face" else "edge", labelled=labelled)
    expected, parts = evaluate(TASK, model, [mesh]), segment(mesh, model)
    assert set(expected) == {"accuracy", "mean_iou", "confusion", "soft_edge_accuracy"}
    with pretend_gpu() as device:
        model.to(device)
        for data in (mesh, mesh.clone().to(device)):
            for name, value in evaluate(TASK, model, [data]).items():
                torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
            found = segment(data, model)
            assert not any(isinstance(x, OnDevice) for x in found)
            torch.testing.assert_close(found, parts)


def scan():
    random = torch.Generator().manual_seed(0)
    return Data(
        pos=torch.rand(300, 3, generator=random),
        color=torch.rand(300, 3, generator=random),
        normal=torch.nn.functional.normalize(torch.randn(300, 3, generator=random)),
    )


def test_labels_for_a_cloud_follow_the_model():
    config = {"channels": (16, 32), "depths": (1, 1), "heads": (2, 2), "strides": (2,), "patch_size": 32}
    config |= {"decoder_channels": (16,), "decoder_depths": (1,), "decoder_heads": (2,)}
    features = ("pos", "color", "normal")
    model = create_model("point_transformer_v3", names=("a", "b"), features=features, grid_size=0.1, **config)
    expected = segment(scan(), model, votes=2)
    with pretend_gpu() as device:
        model.to(device)
        for data in (scan(), scan().to(device)):
            found = segment(data, model, votes=2)
            assert not any(isinstance(x, OnDevice) for x in found)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("transform", [SceneAugment(0.05, 0.3), ObjectAugment(), Mix3D([scan()], p=1)])
def test_random_changes_of_clouds(transform):
    assert_same_on_both(transform, scan())


def test_mesh_transforms():
    mesh = body()
    assert_same_on_both(RandomDeform(), mesh)
    assert_same_on_both(MeshElements(), mesh, results_on_device=False)


def test_bodies():
    model = geometry.body.BodyModel.load(dtype=torch.float64)
    pose = torch.eye(4).double().repeat(1, len(model.parents), 1, 1)
    assert_same_on_both(lambda model, x, pose: model(x, pose), model, torch.full((2, 6), 0.4).double(), pose)
    assert_same_on_both(lambda model: model({"age": 0.3}), model)


def test_a_resumed_optimizer_is_where_its_model_is(tmp_path, monkeypatch):
    # safetensors' own asks for addresses, which pretended tensors do not have.
    monkeypatch.setattr(
        checkpoint.safetensors, "load_model", lambda model, path: model.load_state_dict(load_file(path))
    )

    def trained(device, state):
        model = torch.nn.Linear(3, 1).to(device)
        optimizer = torch.optim.AdamW(model.parameters())
        run = checkpoint.describe(TASK, TrainConfig(), model, range(5), None, 1)
        if (tmp_path / "last").exists():
            checkpoint.restore(state, model, optimizer, run)
        model(torch.ones(2, 3, device=device)).sum().backward()
        optimizer.step()
        return model, optimizer, run

    state = TrainResult(tmp_path)
    model, optimizer, run = trained("cpu", state)
    state.add({"loss": 1.0, "minutes": 0.0})
    checkpoint.save(model, optimizer, state, run)
    with pretend_gpu() as device:
        model, optimizer, _ = trained(device, TrainResult(tmp_path))
        assert all(isinstance(x["exp_avg"], OnDevice) for x in optimizer.state.values())
        found = [p.detach().cpu() for p in model.parameters()]
    expected, _, _ = trained("cpu", TrainResult(tmp_path))
    torch.testing.assert_close(found, [p.detach() for p in expected.parameters()])
