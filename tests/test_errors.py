"""Errors that teach: what was given, and what to give instead."""

# ruff: noqa: F401  (calls are written as text, which says what was tried)

import warnings

import numpy as np
import pytest
import torch
import trimesh
from torch_geometric.data import Data

import geoattn
from geoattn import Neighbors, Windows, _arguments, attend, geometry, native, nn, ops, patterns, viz
from geoattn.data import Bodies, MeshElements, check_labels
from geoattn.geometry.curves import z_order
from geoattn.models.segmentation import SurfaceTransformer, SurfaceTransformerConfig, segment
from geoattn.nn import GATConv, GATv2Conv, TransformerConv
from geoattn.train import TrainConfig

N, EDGES = 20, 60
POS, X, QUERY = torch.rand(N, 3), torch.randn(N, 8), torch.randn(N, 2, 4)
EDGE_INDEX, EDGE_ATTR = torch.arange(2 * EDGES).view(2, EDGES) % N, torch.rand(EDGES, 3)
PATTERN, WINDOWS = Neighbors.from_edge_index(EDGE_INDEX, N), Windows(torch.tensor([0, N]))
FACE, BATCH = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]), torch.zeros(N, dtype=torch.int64)
META = torch.device("meta")
LABELS = torch.tensor([0, 2, -1])

USE_FROM_EDGE_INDEX = "of an edge_index [2, E], make one with Neighbors.from_edge_index(edge_index, num_nodes)"
ERRORS = {
    # a graph that is no pattern
    "attend(QUERY, QUERY, QUERY, EDGE_INDEX)": (
        TypeError,
        f"expected Neighbors or Windows as pattern, got a tensor [2, 60]; {USE_FROM_EDGE_INDEX}",
    ),
    "attend(QUERY, QUERY, QUERY, EDGE_INDEX.numpy())": (
        TypeError,
        "a numpy array [2, 60]; of an edge_index [2, E], make one with Neighbors.from_edge_index(torch.from_numpy(",
    ),
    "attend(QUERY, QUERY, QUERY, torch.eye(N).to_sparse())": (
        TypeError,
        "patterns.as_neighbors(matrix, num_queries, num_keys)",
    ),
    "attend(QUERY, QUERY, QUERY, None)": (TypeError, "got NoneType; make one with Neighbors.from_edge_index, Neigh"),
    "ops.attention_weights(QUERY, QUERY, EDGE_INDEX)": (TypeError, USE_FROM_EDGE_INDEX),
    "ops.attention_weights(QUERY, QUERY, WINDOWS)": (TypeError, "runs=1); write its pairs out with pattern.to_neighb"),
    "ops.edge_dot(QUERY, QUERY, EDGE_INDEX)": (TypeError, USE_FROM_EDGE_INDEX),
    "ops.weighted_sum(torch.rand(EDGES, 2), QUERY, EDGE_INDEX)": (TypeError, USE_FROM_EDGE_INDEX),
    "ops.weighted_max(torch.rand(EDGES, 2), QUERY, WINDOWS)": (TypeError, "pattern.to_neighbors()"),
    "ops.vector_attend(X, X, X, EDGE_INDEX, POS, pos_nn=torch.nn.Linear(3, 8))": (TypeError, USE_FROM_EDGE_INDEX),
    "patterns.union(PATTERN, EDGE_INDEX)": (TypeError, "expected Neighbors as patterns[1], got a tensor [2, 60]"),
    "patterns.dilated(EDGE_INDEX, 2)": (TypeError, USE_FROM_EDGE_INDEX),
    "patterns.random_edges(EDGE_INDEX, 0.5)": (TypeError, USE_FROM_EDGE_INDEX),
    "Neighbors.per_head([EDGE_INDEX])": (TypeError, "expected Neighbors as patterns[0]"),
    "Neighbors.per_head(PATTERN)": (TypeError, "expected a list of patterns, one for each head"),
    "Neighbors.from_edge_index(PATTERN)": (TypeError, "pass pattern.to_edge_index()"),
    # arrays and lists that are no tensors, and tensors of another shape
    "attend(QUERY.numpy(), QUERY, QUERY, PATTERN)": (
        TypeError,
        "query must be a tensor, got a numpy array (20, 2, 4); pass torch.from_numpy(query)",
    ),
    "attend(QUERY, QUERY, QUERY, PATTERN, bias=EDGE_ATTR.numpy())": (TypeError, "pass torch.from_numpy(bias)"),
    "attend(QUERY, QUERY, QUERY, PATTERN, key_weight=[1.0] * N)": (TypeError, "pass torch.tensor(key_weight)"),
    "attend(QUERY, QUERY.to(META), QUERY, PATTERN)": (ValueError, "must be on one device, got cpu, meta, cpu and cpu"),
    "Neighbors.knn(POS.numpy(), 4)": (TypeError, "pos must be a tensor, got a numpy array (20, 3); pass torch.from_"),
    "ops.knn(POS.tolist(), 4)": (TypeError, "pos must be a tensor, got a list of 20; pass torch.tensor(pos)"),
    "ops.knn([POS, POS], 4)": (TypeError, "got a list of 2 tensors; join them with torch.cat"),
    "ops.knn(Data(pos=POS), 4)": (TypeError, "pos must be a tensor, got a Data; pass data.pos"),
    "ops.knn('cloud.ply', 4)": (TypeError, "pos must be a tensor, got str 'cloud.ply'"),
    "ops.knn(POS[0], 4)": (ValueError, "expected pos [N, D] with D at least 1, got (3,)"),
    "ops.knn(POS.T, 4, BATCH)": (ValueError, "the sample of each of 3 points [3, 20], got [20]; are the positions tr"),
    "ops.knn(POS, 4, BATCH[1:])": (
        ValueError,
        "expected batch [20], the sample of each of 20 points [20, 3], got [19]",
    ),
    "ops.knn(POS, 4, BATCH.numpy())": (TypeError, "pass torch.from_numpy(batch)"),
    "ops.knn(POS, 4, BATCH.to(META))": (ValueError, "batch must have integers on cpu, got torch.int64 on meta"),
    "ops.knn(POS, 4, query_pos=POS.numpy())": (TypeError, "pass torch.from_numpy(query_pos)"),
    "ops.radius(POS.numpy(), 0.1)": (TypeError, "pass torch.from_numpy(pos)"),
    "ops.farthest_point_sample(POS.numpy(), 4)": (TypeError, "pass torch.from_numpy(pos)"),
    "ops.ball_query(POS.numpy(), 0.1, 4)": (TypeError, "pass torch.from_numpy(pos)"),
    "ops.knn_query(POS.tolist(), 4)": (TypeError, "pass torch.tensor(pos)"),
    "ops.knn_interpolate(X.numpy(), POS, POS)": (TypeError, "pass torch.from_numpy(x)"),
    "nn.PointTransformerLayer(8)(X, POS, PATTERN)": (TypeError, "neighbors must be a tensor, got"),
    "ops.grid_sample(POS.numpy(), 0.1)": (TypeError, "pass torch.from_numpy(pos)"),
    "ops.voxel_pool(X.numpy(), POS, 0.1)": (TypeError, "pass torch.from_numpy(x)"),
    "ops.segment_sum(X.numpy(), BATCH)": (TypeError, "pass torch.from_numpy(src)"),
    "ops.segment_softmax(X, BATCH.tolist())": (TypeError, "pass torch.tensor(index)"),
    "z_order(POS.numpy())": (TypeError, "pass torch.from_numpy(pos)"),
    "geometry.serialize(POS.numpy())": (TypeError, "pass torch.from_numpy(grid)"),
    "geometry.serialize(POS)": (ValueError, "expected grid [N, 3] of int64, got torch.float32 [20, 3]"),
    "PATTERN.reorder(POS.numpy())": (TypeError, "pass torch.from_numpy(pos)"),
    "patterns.ball_tree(POS.numpy())": (TypeError, "pass torch.from_numpy(pos)"),
    "PATTERN.permute([1, 0])": (TypeError, "pass torch.tensor(order)"),
    "PATTERN.reorder_edges(EDGE_ATTR.numpy())": (TypeError, "pass torch.from_numpy(edge_value)"),
    "Neighbors.from_edge_index(EDGE_INDEX.numpy())": (TypeError, "pass torch.from_numpy(edge_index)"),
    "Neighbors.from_edge_index(EDGE_INDEX.T)": (ValueError, "got (60, 2); pass edge_index.t()"),
    "Neighbors.k_hop(EDGE_INDEX.T, 2)": (ValueError, "got (60, 2); pass edge_index.t()"),
    "Windows([0, 20])": (TypeError, "pass torch.tensor(query_ptr)"),
    "Windows.from_batch(BATCH.numpy())": (TypeError, "pass torch.from_numpy(query_batch)"),
    "Windows.from_batch(BATCH.float())": (ValueError, "expected query_batch as integers [N], got torch.float32 [20]"),
    "Windows.along(4, BATCH.float())": (ValueError, "expected batch as integers [N], got torch.float32 [20]"),
    "patterns.global_nodes([0], N)": (TypeError, "pass torch.tensor(nodes)"),
    "patterns.as_neighbors(EDGE_INDEX.numpy(), N)": (TypeError, "pass torch.from_numpy(edge_index)"),
    # meshes
    "Neighbors.from_mesh(FACE.T)": (
        ValueError,
        "face must be int64 or int32 of shape [3, F], got torch.int64 [4, 3] (pass fac",
    ),
    "Neighbors.from_mesh(FACE.numpy())": (TypeError, "pass torch.from_numpy(face)"),
    "geometry.face_normals(POS, FACE.T)": (ValueError, "(pass face.t())"),
    "geometry.face_areas(POS.T, FACE)": (
        ValueError,
        "pos must be floating point of shape [V, 3], got torch.float32 [3,",
    ),
    "geometry.vertex_normals(POS.numpy(), FACE)": (TypeError, "pass torch.from_numpy(pos)"),
    "geometry.vertex_normals((9 * POS).long(), FACE)": (ValueError, "got torch.int64 [20, 3] (pass pos.float())"),
    "geometry.edges(FACE.T)": (ValueError, "(pass face.t())"),
    "geometry.face_adjacency(FACE.T)": (ValueError, "(pass face.t())"),
    "geometry.connected_components(FACE.T, N)": (ValueError, "(pass face.t())"),
    "geometry.laplacian(POS.numpy(), FACE)": (TypeError, "pass torch.from_numpy(pos)"),
    "geometry.geodesic_distance(POS, FACE, [0])": (TypeError, "pass torch.tensor(source)"),
    # numbers that are no integers
    "Neighbors.knn(POS, 4.0)": (TypeError, "k must be an integer, got float 4.0; pass 4"),
    "ops.knn(POS, 4.5)": (TypeError, "k must be an integer, got float 4.5"),
    "ops.knn(POS, True)": (TypeError, "k must be an integer, got bool True"),
    "ops.knn(POS, '4')": (TypeError, "k must be an integer, got str '4'"),
    "ops.knn(POS, np.float32(4))": (TypeError, "k must be an integer, got float 4.0; pass 4"),
    "ops.knn(POS, 0)": (ValueError, "k must be at least 1, got 0"),
    "ops.radius(POS, 0.1, max_neighbors=4.0)": (TypeError, "max_neighbors must be an integer, got float 4.0; pass 4"),
    "ops.farthest_point_sample(POS, 0.5)": (TypeError, "num_samples must be an integer, got float 0.5"),
    "ops.farthest_point_sample(POS, 4, start=1.0)": (TypeError, "start must be an integer, got float 1.0; pass 1"),
    "ops.farthest_point_sample(POS, 4, start=POS.numpy())": (TypeError, "start must be an integer, got ndarray"),
    "ops.segment_sum(X, BATCH, num_segments=4.0)": (TypeError, "num_segments must be an integer"),
    "z_order(POS, bits=4.0)": (TypeError, "bits must be an integer"),
    "Neighbors(PATTERN.rowptr, PATTERN.col, 20.0)": (TypeError, "num_keys must be an integer, got float 20.0; pass 20"),
    "Neighbors.from_edge_index(EDGE_INDEX, 20.0)": (TypeError, "num_queries must be an integer"),
    "Neighbors.from_edge_index(EDGE_INDEX, 20, 20.0)": (TypeError, "num_keys must be an integer"),
    "Neighbors.k_hop(EDGE_INDEX, 2.0)": (TypeError, "hops must be an integer"),
    "Neighbors.from_mesh(FACE, hops=2.0)": (TypeError, "hops must be an integer"),
    "Neighbors.from_mesh(FACE, num_nodes=20.0)": (TypeError, "num_nodes must be an integer"),
    "PATTERN.repeat(2.0)": (TypeError, "samples must be an integer"),
    "Windows(torch.tensor([0, N]), num_keys=20.0)": (TypeError, "num_keys must be an integer"),
    "Windows.along(4.0, counts=[20])": (TypeError, "size must be an integer"),
    "Windows.from_batch(BATCH, num_samples=1.0)": (TypeError, "num_samples must be an integer"),
    "patterns.dilated(PATTERN, 2.0)": (TypeError, "dilation must be an integer"),
    "patterns.global_nodes(BATCH, 20.0)": (TypeError, "num_nodes must be an integer"),
    "geometry.eigenbasis(POS, FACE, 4.0)": (TypeError, "k must be an integer"),
    "geometry.simplify(POS, FACE, 4.0)": (TypeError, "faces must be an integer"),
    "geometry.sample_surface(POS, FACE, 10.0)": (TypeError, "count must be an integer"),
    "MeshElements(hops=1.0)": (TypeError, "hops must be an integer"),
    # layers
    "GATv2Conv(8, 4)(X, EDGE_INDEX, EDGE_ATTR)": (
        ValueError,
        "GATv2Conv was made without edge_dim, so that it has no weights for edge_attr [60, 3]: make it with "
        "edge_dim=3, or leave edge_attr out",
    ),
    "TransformerConv(8, 4)(X, EDGE_INDEX, EDGE_ATTR)": (ValueError, "made without edge_dim"),
    "TransformerConv(8, 4, edge_dim=3)(X, EDGE_INDEX)": (ValueError, "was made with edge_dim=3: pass edge_attr [E, 3]"),
    "GATConv(8, 4, edge_dim=3)(X, EDGE_INDEX, EDGE_ATTR[1:])": (ValueError, "expected edge_attr [60, 3], a row for ev"),
    "GATv2Conv(8, 4, edge_dim=2)(X, EDGE_INDEX, EDGE_ATTR)": (ValueError, "expected edge_attr [60, 2], a row for eve"),
    "GATv2Conv(8, 4, edge_dim=3)(X, EDGE_INDEX, EDGE_ATTR.numpy())": (TypeError, "pass torch.from_numpy(edge_attr)"),
    "GATv2Conv(8, 4)(X.numpy(), EDGE_INDEX)": (TypeError, "x must be a tensor [N, F], or those of sources and target"),
    "GATv2Conv(8, 4)(X, EDGE_INDEX.numpy())": (TypeError, "pass torch.from_numpy(edge_index)"),
    "nn.PointTransformerConv(8, 4)(X, POS.numpy(), EDGE_INDEX)": (TypeError, "pos must be a tensor [N, F], or those"),
    "nn.GravNetConv(8, 4, 2, 2, 4.0)(X)": (TypeError, "k must be an integer, got float 4.0; pass 4"),
    # what networks are given
    "segment('mesh.obj')": (
        TypeError,
        "expected a mesh or a point cloud as torch_geometric.data.Data, got a path; read the file first: "
        "geoattn.load('mesh.obj')",
    ),
    "MeshElements()('mesh.obj')": (TypeError, "geoattn.load('mesh.obj')"),
    "MeshElements()(trimesh.creation.box())": (
        TypeError,
        "got trimesh's Trimesh; convert it with torch_geometric.util",
    ),
    "MeshElements()(POS.numpy())": (TypeError, "got ndarray; pass Data(pos=..., face=...)"),
    "MeshElements()(Data(pos=POS, face=FACE, y=[0] * 4))": (TypeError, "pass torch.tensor(y)"),
    "NETWORK(Data(pos=POS, face=FACE))": (
        ValueError,
        "have no x, normal, area, spectral, neighbor_index, corner_index: make them with geoattn.data.MeshElements",
    ),
    "geoattn.save('new.ply', 'mesh.obj')": (TypeError, "geoattn.load('mesh.obj')"),
    "viz.page('mesh.obj', 'page.html')": (TypeError, "geoattn.load('mesh.obj')"),
    "viz.picture('mesh.obj', 'picture.png')": (TypeError, "geoattn.load('mesh.obj')"),
    "geometry.describe(Data(pos=POS))": (TypeError, "pos must be a tensor, got a Data; pass data.pos"),
    "Bodies(8.0)": (TypeError, "count must be an integer, got float 8.0; pass 8"),
    "TrainConfig(epochs=2.5)": (TypeError, "epochs must be an integer, got float 2.5"),
    "NETWORK('mesh.obj')": (TypeError, "geoattn.load('mesh.obj')"),
    # labels
    "check_labels(None, 3, name='shrec__1')": (ValueError, "shrec__1 has no labels: expected y, integers from 0 to 2"),
    "check_labels(LABELS, 2, name='shrec__1')": (ValueError, "shrec__1 has label 2; expected 0 to 1, or -1 (ignored)"),
    "check_labels(LABELS - 1, 3)": (ValueError, "the sample has label -2; expected 0 to 2, or -1 (ignored)"),
    "check_labels(LABELS, 3, 4)": (ValueError, "the sample has labels y [3]; expected [4]"),
    "check_labels(LABELS.float(), 3)": (ValueError, "labels y of torch.float32 [3]; expected integers, as of y.long()"),
    "check_labels(LABELS.numpy(), 3)": (TypeError, "pass torch.from_numpy(y)"),
}


NETWORK = SurfaceTransformer(SurfaceTransformerConfig(names=("a", "b"), channels=8, heads=2, blocks=1, latents=2))


@pytest.mark.parametrize("call", ERRORS)
def test_errors_say_what_to_give_instead(call):
    kind, words = ERRORS[call]
    with pytest.raises(kind) as caught:
        eval(call)
    assert words in str(caught.value)


def test_what_is_an_integer():
    expected = ops.knn(POS, 4)
    for four in (np.int32(4), torch.tensor(4), np.array(4)):
        torch.testing.assert_close(ops.knn(POS, four), expected)
    assert type(Neighbors(PATTERN.rowptr, PATTERN.col, np.int64(N)).num_keys) is int


def test_positions_of_integers_are_searched():
    cells = torch.tensor([[0, 0, 0], [9, 0, 0], [1, 0, 0]])
    assert ops.knn(cells, 2)[1].tolist() == [0, 2, 1, 2, 2, 0]


def test_labels_that_are_right():
    assert check_labels(LABELS, 3, 3) is not None
    assert check_labels(torch.tensor(1), 3, 1).tolist() == [1]


def test_gat_says_once_that_it_passes_over_edge_features():
    """Numbers are PyG's, which takes them without a word."""
    layer = GATConv(8, 4)
    _arguments.warn_once.cache_clear()
    with pytest.warns(
        UserWarning, match=r"GATConv was made without edge_dim, so that edge_attr \[60, 3\] changes noth"
    ):
        out = layer(X, EDGE_INDEX, EDGE_ATTR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(layer(X, EDGE_INDEX, EDGE_ATTR), out)
        assert torch.equal(layer(X, EDGE_INDEX), out)


def test_transformer_adds_edge_features_as_they_are_where_pyg_does():
    """Of the shape of values, without ``edge_dim``."""
    torch.manual_seed(0)
    layer, features = TransformerConv(8, 4, heads=2), torch.randn(EDGES, 2, 4)
    expected = layer.pyg_layer.forward(layer, X, EDGE_INDEX, features)
    torch.testing.assert_close(layer(X, EDGE_INDEX, features), expected)


@pytest.fixture
def without_kernels(monkeypatch):
    monkeypatch.setattr(native, "_LIBRARY", None)
    for function in (_arguments.warn_once, native.missing):
        function.cache_clear()
    yield
    for function in (_arguments.warn_once, native.missing):
        function.cache_clear()


USES_OF_KERNELS = [
    "attend(QUERY, QUERY, QUERY, PATTERN)",
    "attend(QUERY, QUERY, QUERY, Windows.along(2, counts=[N]))",
    "ops.edge_dot(QUERY, QUERY, PATTERN)",
    "ops.vector_attend(X, X, X, PATTERN, POS, pos_nn=torch.nn.Linear(3, 8))",
    "ops.submanifold_conv(X[:2], torch.ones(1, 3, 3, 3, 8), patterns.KernelMap.from_grid(torch.eye(3)[:2].long(), 3))",
    "ops.knn(POS, 4)",
    "ops.farthest_point_sample(POS, 4)",
    "GATv2Conv(8, 4)(X, EDGE_INDEX)",
]


@pytest.mark.parametrize("call", USES_OF_KERNELS)
def test_missing_kernels_are_said_once(call, without_kernels):
    with pytest.warns(UserWarning, match="several times slower .* not built; install a C\\+\\+ compiler"):
        eval(call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in USES_OF_KERNELS:
            eval(again)


@pytest.mark.parametrize("call", USES_OF_KERNELS)
@pytest.mark.parametrize("reason", ["forced", "windows"])
def test_kernels_that_would_not_run_are_not_missed(call, reason, without_kernels, monkeypatch):
    if reason == "windows":
        monkeypatch.setattr(native.sys, "platform", "win32")
        assert geoattn.backends()["cpu"] == "the CPU kernels are not built on Windows"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if reason == "forced":
            with geoattn.backend("torch"):
                eval(call)
        else:
            eval(call)


@pytest.mark.parametrize(
    ("source", "command"),
    [
        (None, "--no-deps --no-binary geoattn geoattn`"),
        ('{"url": "file:///a%20b/geoattn", "dir_info": {}}', "--no-deps '/a b/geoattn'`"),
        (
            '{"url": "https://github.com/geoattn/geoattn", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            "--no-deps git+https://github.com/geoattn/geoattn@abc`",
        ),
        ('{"url": "file:///x/geoattn-0.1.0.tar.gz", "archive_info": {}}', "--no-deps file:///x/geoattn-0.1.0.tar.gz`"),
        ('{"url": "file:///x/geoattn-0.1.0-py3-none-any.whl", "archive_info": {}}', "--no-binary geoattn geoattn`"),
    ],
)
def test_the_command_that_builds_kernels_is_that_of_the_install(
    source, command, without_kernels, monkeypatch, tmp_path
):
    assert f"`pip install -e {native._PACKAGE.parent}`" in native.missing()  # of a clone

    class Distribution:
        def read_text(self, name):
            assert name == "direct_url.json"
            return source

    native.missing.cache_clear()
    monkeypatch.setattr(native, "_PACKAGE", tmp_path / "site-packages" / "geoattn")
    monkeypatch.setattr(native.metadata, "distribution", lambda name: Distribution())
    assert native.missing().endswith(command)


def test_kernels_of_another_machine_are_not_loaded(monkeypatch, tmp_path, without_kernels):
    folder = tmp_path / "ops" / "backends"
    folder.mkdir(parents=True)
    (folder / "_cpu.abi3.so").write_bytes(b"\x7fELF of another machine")
    monkeypatch.setattr(native, "_PACKAGE", tmp_path)
    library, reason = native._load()
    assert library is None
    monkeypatch.setattr(native, "_NOT_LOADED", reason)
    assert "the CPU kernels cannot be loaded" in geoattn.backends()["cpu"]
    assert attend(QUERY, QUERY, QUERY, PATTERN).shape == QUERY.shape
