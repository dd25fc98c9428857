"""The body model: equal to the package it comes from, differentiable, each sample on its own."""

import pytest
import torch
from scipy.spatial.transform import Rotation

from geoattn.geometry.body import BodyModel, _NearestRotation


@pytest.fixture(scope="module")
def model() -> BodyModel:
    return BodyModel.load(dtype=torch.float64)


def random_input(model: BodyModel, count: int, angle: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    phenotype = torch.rand(count, 6, generator=generator, dtype=torch.float64)
    phenotype[:, 1] = phenotype[:, 1] * 4 / 3 - 1 / 3
    axes = torch.randn(count * len(model.parents), 3, generator=generator, dtype=torch.float64)
    angles = torch.rand(len(axes), 1, generator=generator, dtype=torch.float64) * angle
    turns = Rotation.from_rotvec((axes / axes.norm(dim=1, keepdim=True) * angles).numpy()).as_matrix()
    pose = torch.eye(4, dtype=torch.float64).repeat(count, len(model.parents), 1, 1)
    pose[..., :3, :3] = torch.from_numpy(turns).view(count, -1, 3, 3)
    pose[..., :3, 3] = 0.1 * torch.randn(count, len(model.parents), 3, generator=generator, dtype=torch.float64)
    return phenotype, pose


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_package(dtype):
    anny = pytest.importorskip("anny", reason="compares with the anny package")
    reference = anny.Anny(topology="notoes", skinning_method="lbs")
    model = BodyModel.load(dtype=dtype)
    assert model.bone_names == list(reference.bone_labels)
    assert model.phenotypes == list(reference.phenotype_labels)
    phenotype, pose = random_input(model, 32)
    phenotype[0] = 1.4  # both clamp
    for given in (pose, None):
        expected = reference(pose_parameters=given, phenotype_kwargs=phenotype)
        ours = model(phenotype.to(dtype), None if given is None else given.to(dtype))
        error = (expected["vertices"][:, model.source_vertices] - ours.vertices).norm(dim=-1)
        assert error.max() < 1e-4
        assert (expected["bone_poses"][..., :3, 3] - ours.joints).norm(dim=-1).max() < 1e-5


def test_keeps_the_numbers_of_the_package(model):
    """A few values of the package, so that something is checked where it is not installed."""
    pose = torch.eye(4, dtype=torch.float64).repeat(1, len(model.parents), 1, 1)
    quarter = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    pose[0, model.bone_names.index("upperarm01.L"), :3, :3] = quarter
    body = model({"gender": 1.0, "age": 0.2, "weight": 0.9}, pose)
    vertices = [
        [-0.00829, -0.11189, 0.41587],
        [-0.0129, -0.09148, 0.16868],
        [-0.13745, -0.08684, -0.56227],
        [0.02103, -0.08868, 0.13574],
        [0.06757, -0.09253, -0.13461],
    ]
    error = body.vertices[0, [0, 900, 1800, 2700, 3599]] - torch.tensor(vertices, dtype=torch.float64)
    assert error.abs().max() < 1e-4
    joints = [[0.09383, -0.00927, -0.39606], [0.30197, 0.18868, 0.16464], [0.00107, -0.03297, 0.3877]]
    error = body.joints[0, [5, 52, 101]] - torch.tensor(joints, dtype=torch.float64)
    assert error.abs().max() < 2e-5


def test_identity_is_the_reference_pose(model):
    """Without rotations each bone keeps its reference orientation, whatever the shape of the body."""
    phenotype, _ = random_input(model, 4)
    identity = torch.eye(4, dtype=torch.float64).repeat(4, len(model.parents), 1, 1)
    body = model(phenotype)
    torch.testing.assert_close(body.vertices, model(phenotype, identity).vertices)
    rest = model._rest_orientations(model.coefficients(phenotype))
    kept = body.bones[..., :3, :3] @ rest - model.reference_orientations
    assert kept.abs().max() < 1e-6  # the stored orientations are rounded to single precision
    assert body.joints[:, 0].abs().max() == 0


def test_bones_pose_that_undoes_the_reference_gives_the_rest_shape(model):
    """Bones told to keep the orientations that this body has at rest leave the blended shape as it is."""
    phenotype, _ = random_input(model, 3)
    shape = model.coefficients(phenotype)
    rest = model._rest_orientations(shape)
    heads = model.heads + torch.einsum("bk,kji->bji", shape, model.head_blendshapes)
    turn = rest @ model.reference_orientations.transpose(-1, -2)
    pose = torch.eye(4, dtype=torch.float64).repeat(3, len(model.parents), 1, 1)
    for bone, parent in enumerate(model.parents[1:], start=1):
        pose[:, bone, :3, :3] = turn[:, parent].transpose(-1, -2) @ turn[:, bone]
        offset = (heads[:, bone] - heads[:, parent])[..., None]
        straight = turn[:, parent].transpose(-1, -2) @ offset
        # The kinematics turn offsets with the parent to its reference orientation, the root's excepted.
        pose[:, bone, :3, 3] = (straight - (straight if parent else offset))[..., 0]
    pose[:, 0, :3, 3] = heads[:, 0]
    expected = model.template + torch.einsum("bk,kvi->bvi", shape, model.blendshapes)
    torch.testing.assert_close(model(phenotype, pose).vertices, expected)


def test_moving_the_root_moves_the_body(model):
    phenotype, pose = random_input(model, 2)
    body = model(phenotype, pose)
    motion = torch.eye(4, dtype=torch.float64)
    motion[:3, :3] = torch.from_numpy(Rotation.from_rotvec([0.3, -1.0, 0.5]).as_matrix())
    motion[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    moved = pose.clone()
    moved[:, 0] = motion @ pose[:, 0]
    after = model(phenotype, moved)
    torch.testing.assert_close(after.vertices, body.vertices @ motion[:3, :3].t() + motion[:3, 3])
    torch.testing.assert_close(after.joints, body.joints @ motion[:3, :3].t() + motion[:3, 3])


def test_each_body_is_computed_on_its_own(model):
    phenotype, pose = random_input(model, 5)
    together = model(phenotype, pose).vertices
    alone = torch.cat([model(phenotype[[i]], pose[[i]]).vertices for i in range(5)])
    torch.testing.assert_close(together, alone)
    one_pose = model(phenotype, pose[:1]).vertices
    torch.testing.assert_close(one_pose, model(phenotype, pose[:1].expand(5, -1, -1, -1)).vertices)


def test_names_and_numbers_give_the_same_body(model):
    by_name = model({"age": torch.tensor([0.1, 0.9]), "weight": 0.8}).vertices
    phenotype = torch.full((2, 6), 0.5, dtype=torch.float64)
    phenotype[:, 1], phenotype[:, 3] = torch.tensor([0.1, 0.9]), 0.8
    torch.testing.assert_close(by_name, model(phenotype).vertices)


def test_gradients(model):
    phenotype, pose = random_input(model, 1)
    some = torch.arange(0, 3600, 400)

    def vertices(phenotype, elbow):
        turned = pose.clone()
        turned[:, model.bone_names.index("lowerarm01.L")] = elbow
        return model(phenotype, turned).vertices[:, some]

    elbow = pose[:, model.bone_names.index("lowerarm01.L")].clone().requires_grad_()
    assert torch.autograd.gradcheck(vertices, (phenotype.requires_grad_(), elbow), atol=1e-5)


def test_nearest_rotation():
    matrix = torch.randn(5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix[0] = torch.eye(3)  # equal singular values, where the derivative of an SVD is undefined
    rotation = _NearestRotation.apply(matrix)
    torch.testing.assert_close(rotation @ rotation.transpose(-1, -2), torch.eye(3).double().expand(5, 3, 3))
    assert (torch.linalg.det(rotation) > 0).all()
    matrix.requires_grad_()
    assert torch.autograd.gradcheck(_NearestRotation.apply, matrix)
    assert torch.autograd.gradgradcheck(_NearestRotation.apply, matrix)


def test_surface_is_closed(model):
    face = model.face
    edges = torch.cat([face[[0, 1]], face[[1, 2]], face[[2, 0]]], dim=1)
    forwards = edges[0] * 3600 + edges[1]
    assert forwards.unique().numel() == forwards.numel()
    assert set(forwards.tolist()) == set((edges[1] * 3600 + edges[0]).tolist())
    corners = model.template[face]
    volume = (corners[0] * torch.linalg.cross(corners[1], corners[2])).sum() / 6
    assert 0.01 < volume < 0.2


def test_says_what_is_wrong(model):
    with pytest.raises(ValueError, match="hieght"):
        model({"hieght": 1.0})
    with pytest.raises(ValueError, match=r"\[B, 6\].*\[2, 5\]"):
        model(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="104"):
        model(torch.zeros(2, 6), torch.eye(4).expand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="2 and 3"):
        model(torch.zeros(3, 6), torch.eye(4).expand(2, 104, 4, 4))
