"""The segmentation network: what it does not depend on, any mesh, checkpoints, any size."""

import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch_geometric.data import Data

from geoattn.data import Bodies, MeshElements, RandomDeform
from geoattn.data.transforms import ELEMENTS
from geoattn.models import create_model, load_model
from geoattn.models.segmentation import SegmentationTask, SurfaceTransformerConfig, segment
from geoattn.models.segmentation.segment import HUMAN
from geoattn.train import TrainConfig, evaluate, fit

SMALL = {"channels": 16, "heads": 2, "blocks": 2, "latents": 4}


def network(name="surface_transformer", **change):
    """A small network none of whose parameters is at its start."""
    torch.manual_seed(0)
    model = create_model(name, names=("a", "b", "c"), **{**SMALL, **change})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def mesh(seed=0):
    """A closed mesh without symmetry: a deformed sphere of 320 faces."""
    ball = trimesh.creation.icosphere(2)
    data = Data(pos=torch.tensor(ball.vertices).float(), face=torch.tensor(ball.faces.T.copy()))
    deform = RandomDeform(torch.Generator().manual_seed(seed))
    return deform(deform(data))


def logits(model, data):
    with torch.no_grad():
        return model(model.input_transform()(data))


NETWORKS = ["surface_transformer", "surface_classifier"]


@pytest.mark.parametrize(("element", "labelled"), [("vertex", e) for e in ELEMENTS] + [(e, e) for e in ELEMENTS[1:]])
def test_permuting_vertices_and_faces_permutes_the_output(element, labelled):
    model, data = network(element=element, labelled=labelled), mesh()
    vertices, faces = torch.randperm(data.pos.size(0)), torch.randperm(data.face.size(1))
    shuffled = Data(pos=data.pos[vertices], face=vertices.argsort()[data.face][:, faces])
    expected, found = logits(model, data), logits(model, shuffled)
    if labelled == "edge":  # edges have an order of their own: match them by their middles
        middles = [MeshElements("edge", "edge")(d).pos for d in (shuffled, data)]
        order = torch.cdist(*middles).argmin(1)
    else:
        order = vertices if labelled == "vertex" else faces
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected[order], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_turning_moving_scaling_and_mirroring_change_nothing(name):
    model, data = network(name), mesh()
    turn = torch.from_numpy(Rotation.random(rng=1).as_matrix()).float()
    mirror = torch.diag(torch.tensor([-1.0, 1, 1]))
    expected = logits(model, data)
    for pos, face in (
        (3 * data.pos @ turn.T + 5, data.face),
        (data.pos @ mirror, data.face.flip(0)),  # flipped, as a mirrored mesh is inside out
    ):
        torch.testing.assert_close(logits(model, Data(pos=pos, face=face)), expected, rtol=1e-3, atol=1e-3)


@given(st.data())
@settings(max_examples=10)
def test_any_triangles_give_finite_logits(data):
    """Open, non-manifold, degenerate, in pieces, with unused and doubled vertices."""
    points = data.draw(st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=3, max_size=12))
    index = st.integers(0, len(points) - 1)
    faces = data.draw(st.lists(st.tuples(index, index, index), min_size=1, max_size=12))
    soup = Data(pos=torch.tensor(points).float(), face=torch.tensor(faces).T)
    for element in ELEMENTS:
        model = network(element=element, labelled=element)
        assert logits(model, soup).isfinite().all()
    for labelled in ELEMENTS:
        assert segment(soup, network(labelled=labelled)).score.isfinite().all()


def test_every_parameter_learns():
    model = network().train()
    out = model(MeshElements()(mesh()))
    out.square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The first latents are the same for every query, and a shift of all keys' scores changes no softmax.
    assert [name for name in unused if not name.endswith("bias")] == []


def test_segment_treats_vertices_at_one_place_as_one():
    data = mesh()
    loose = Data(pos=data.pos[data.face.T.flatten()], face=torch.arange(3 * data.face.size(1)).view(-1, 3).T)
    found, expected = segment(loose, network()), segment(data, network())
    torch.testing.assert_close(found.probability, expected.probability, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("labelled", ELEMENTS)
def test_segment_carries_labels_back_to_a_fine_mesh(labelled):
    coarse = mesh()
    fine = trimesh.Trimesh(coarse.pos, coarse.face.T).subdivide().subdivide()
    data = Data(pos=torch.tensor(fine.vertices).float(), face=torch.tensor(fine.faces.T.copy()))
    model = network(labelled=labelled, faces=320)
    found = segment(data, model)
    count = {"vertex": len(fine.vertices), "face": len(fine.faces), "edge": len(fine.edges_unique)}[labelled]
    assert found.label.shape == found.score.shape == (count,)
    assert found.probability.shape == (count, 3)
    assert torch.equal(found.label, found.probability.argmax(1))


def test_segment_leaves_its_input_and_the_model_as_they_were():
    data, model = mesh(), network().train()
    before = data.pos.clone()
    segment(data, model)
    assert torch.equal(data.pos, before)
    assert model.training
    assert sorted(data.keys()) == ["face", "pos"]


def test_what_cannot_be_segmented_is_named():
    with pytest.raises(ValueError, match="for a point cloud give a network of clouds"):
        segment(Data(pos=torch.rand(5, 3)), network())
    with pytest.raises(TypeError, match="expected a SurfaceTransformer or a PointNetwork, got a SurfaceClassifier"):
        segment(mesh(), network("surface_classifier"))
    with pytest.raises(ValueError, match="those of at least 2 different classes"):
        SurfaceTransformerConfig(names=("one",))
    with pytest.raises(ValueError, match="element must be one of"):
        SurfaceTransformerConfig(names=("a", "b"), element="corner")


def test_training_learns_parts_it_has_not_seen(tmp_path):
    """An invariant network cannot know up from down, but it can tell a pointed end from a blunt one."""

    def labelled(seed):
        data = mesh(seed)
        data.pos[:, 2] *= 1.2 + 0.05 * seed
        top = data.pos[:, 2].clamp_min(0)
        data.pos[:, :2] /= (1 + top).unsqueeze(1)  # one end is pointed
        data.y = (data.pos[data.face].mean(0)[:, 2] > 0).long()
        return data

    torch.manual_seed(0)
    task, model = SegmentationTask(copies=2), create_model("surface_transformer", names=("blunt", "pointed"), **SMALL)
    meshes = [labelled(i) for i in range(12)]
    result = fit(task, model, meshes, tmp_path, TrainConfig(epochs=12, batch_size=2, lr=3e-3))
    assert evaluate(task, model, [labelled(20), labelled(21)])["accuracy"] > 0.9
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    again = load_model(result.checkpoint)
    assert torch.equal(logits(again, meshes[0]), logits(model.eval(), meshes[0]))


def test_the_checkpoint_in_the_package_finds_parts_of_bodies():
    bodies = Bodies(3, seed=2)
    model = load_model(HUMAN)
    assert evaluate(SegmentationTask(), model, bodies)["accuracy"] > 0.85
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
