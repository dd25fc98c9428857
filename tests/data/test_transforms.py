"""Elements of a mesh: their shapes, what they do not depend on, and deformations."""

import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from geoattn.data import MeshElements, RandomDeform
from geoattn.data.transforms import CHANNELS, ELEMENTS
from geoattn.geometry import edges


def mesh(subdivisions=2):
    ball = trimesh.creation.icosphere(subdivisions)
    data = Data(pos=torch.tensor(ball.vertices).float(), face=torch.tensor(ball.faces.T.copy()))
    return RandomDeform(torch.Generator().manual_seed(1))(data)


@pytest.mark.parametrize(("element", "labelled"), [("vertex", e) for e in ELEMENTS] + [(e, e) for e in ELEMENTS])
def test_shapes(element, labelled):
    data = mesh()
    counts = {"vertex": data.pos.size(0), "face": data.face.size(1), "edge": edges(data.face).edge.size(1)}
    data.y = torch.arange(counts[labelled])
    out = MeshElements(element, labelled)(data)
    count = counts[element]
    assert out.num_nodes == count
    assert out.pos.shape == out.normal.shape == (count, 3)
    assert out.x.shape == (count, CHANNELS)
    assert out.spectral.shape == (count, 8)
    assert out.corner_index.size(1) == counts[labelled]
    assert torch.equal(out.y, data.y)
    assert out.area.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(out.normal.norm(dim=1), torch.ones(count))
    assert (out.neighbor_index[0] == out.neighbor_index[1]).sum() == count  # each attends to itself
    batch = next(iter(DataLoader([out, out], batch_size=2)))
    assert batch.neighbor_index.max() == 2 * count - 1
    assert batch.corner_index.max() == 2 * count - 1


@pytest.mark.parametrize("element", ELEMENTS)
def test_descriptors_ignore_how_the_mesh_lies(element):
    data = mesh()
    turn = torch.from_numpy(Rotation.random(rng=3).as_matrix()).float()
    moved = Data(pos=5 * data.pos @ turn.T + 7, face=data.face)
    expected, found = (MeshElements(element, element)(d) for d in (data, moved))
    torch.testing.assert_close(found.x, expected.x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.pos, expected.pos @ turn.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cdist(found.spectral, found.spectral), torch.cdist(expected.spectral, expected.spectral), rtol=1e-2, atol=1e-2)  # fmt: skip  # noqa: E501


def test_faces_may_be_int32():
    data = mesh()
    expected, found = MeshElements()(data), MeshElements()(Data(pos=data.pos, face=data.face.int()))
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.neighbor_index, expected.neighbor_index)


def test_descriptors_converge_as_the_mesh_is_refined():
    """Of a smooth surface, what a descriptor says depends little on how finely it is meshed."""
    coarse, fine = (MeshElements()(Data(pos=p, face=f)) for p, f in (ellipsoid(3), ellipsoid(4)))
    shared = coarse.num_nodes  # subdividing keeps the vertices there were, first
    difference = (fine.x[:shared] - coarse.x).abs()
    assert difference.median() < 0.02
    assert fine.x.std() > 0.3


def ellipsoid(subdivisions):
    ball = trimesh.creation.icosphere(subdivisions)
    pos = torch.tensor(ball.vertices).float()
    return pos * torch.tensor([1.0, 1.5, 2.5]), torch.tensor(ball.faces.T.copy())


def test_deforming_is_slight_random_and_repeatable():
    data = mesh()
    first, second = (RandomDeform(torch.Generator().manual_seed(5))(data) for _ in range(2))
    other = RandomDeform(torch.Generator().manual_seed(6))(data)
    assert torch.equal(first.pos, second.pos)
    assert not torch.equal(first.pos, other.pos)
    moved = (first.pos - (data.pos - data.pos.mean(0))).norm(dim=1)
    assert 0.01 < moved.mean() < 0.4
    assert torch.equal(first.face, data.face)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeshElements("corner"), "element must be one of"),
        (lambda: MeshElements("face", "vertex"), "each face is labelled, not each vertex"),
        (lambda: MeshElements()(Data(pos=torch.rand(4, 3))), "a point cloud has no faces"),
        (lambda: MeshElements()(Data(pos=mesh().pos, face=mesh().face, y=torch.zeros(7))), "y has 7 labels"),
        (
            lambda: MeshElements()(Data(pos=mesh().pos, face=mesh().face + 1)),
            r"face \d+ refers to vertex 162; pos has 162",
        ),
        (lambda: MeshElements()(Data(pos=mesh().pos / 0, face=mesh().face)), r"pos\[0\] is .*inf"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
