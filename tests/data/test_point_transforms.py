"""What networks of clouds are given."""

from dataclasses import replace

import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

from geoattn.data import PointInputs, check_points, crop_to_sphere


def cloud(points=2000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.rand(points, 3, generator=generator) * torch.tensor([4.0, 3.0, 2.0]) + 100
    color, y = torch.rand(points, 3, generator=generator), torch.randint(0, 4, (points,), generator=generator)
    return Data(pos=pos, color=color, y=y)


@given(
    points=st.integers(1, 60),
    size=st.floats(0.05, 5),
    most=st.none() | st.integers(1, 30),
    sphere=st.booleans(),
    random=st.booleans(),
)
def test_every_point_is_stood_for_by_one_of_its_voxel(points, size, most, sphere, random):
    given, generator = cloud(points), torch.Generator().manual_seed(1) if random else None
    out = PointInputs(("pos", "color"), size, most, sphere, generator)(given)
    assert out.grid_coord.unique(dim=0).size(0) == out.pos.size(0)
    assert int(out.grid_coord.min()) >= 0
    pos = given.pos.double()
    if sphere:
        pos = pos - pos.mean(0)
        pos = pos / pos.norm(dim=1).max().clamp_min(1e-12)
    cell = (pos / size).floor() if sphere else ((pos - out_shift(pos)) / size).floor()
    cell = (cell - cell.amin(0)).long()
    if most is None:
        assert torch.equal(out.grid_coord[out.voxel_index], cell)
    else:
        assert out.pos.size(0) <= most
    assert torch.equal(out.point_y, given.y)
    # Features and labels are those of the same point.
    row = (given.color[:, None] == out.x[None, :, 3:]).all(2).float().argmax(0)
    assert torch.equal(given.y[row], out.y)
    torch.testing.assert_close(out.x[:, :3], out.pos)


def out_shift(pos):
    low, high = pos.amin(0), pos.amax(0)
    return torch.stack([*((low + high) / 2)[:2], low[2]])


def test_what_a_cloud_lacks_is_zeros_and_what_it_has_beyond_is_left():
    given = cloud()
    given.color = torch.cat([given.color, torch.ones(2000, 1)], 1)  # alpha
    given.normal = torch.full((2000, 3), float("nan"))
    out = PointInputs(("height", "color", "normal", "intensity"))(given)
    assert out.x.shape == (2000, 8)
    assert not out.x[:, 4:].any()
    assert float(out.x[:, 0].min()) == 0
    assert "grid_coord" not in out


def test_intensities_have_no_unit():
    given = cloud()
    given.intensity = torch.rand(2000) * 65535
    given.intensity[3] = float("nan")
    out = PointInputs(("intensity",))(given)
    assert float(out.x.max()) == 1
    again = given.clone()
    again.intensity = given.intensity / 255
    torch.testing.assert_close(PointInputs(("intensity",))(again).x, out.x)


def test_batches_refer_to_their_own_points():
    samples = [PointInputs(grid_size=0.5)(cloud(100, seed)) for seed in (0, 1)]
    batch = Batch.from_data_list(samples)
    assert int(batch.voxel_index[100:].min()) == samples[0].pos.size(0)
    torch.testing.assert_close(batch.pos[batch.voxel_index[100:]], samples[1].pos[samples[1].voxel_index])


def test_variants_differ_and_follow_from_the_generator():
    transform = PointInputs(("color",), grid_size=0.5)

    def variant(seed):
        return replace(transform, generator=torch.Generator().manual_seed(seed))(cloud()).x

    assert torch.equal(variant(0), variant(0))
    assert not torch.equal(variant(0), variant(1))
    assert torch.equal(transform(cloud()).x, transform(cloud()).x)


def test_a_mesh_is_sampled_where_it_has_one_label():
    ball = trimesh.creation.icosphere(2)
    mesh = Data(pos=torch.tensor(ball.vertices).float(), face=torch.tensor(ball.faces.T.copy()), y=torch.tensor([1]))
    out = PointInputs(("normal",), max_points=512, unit_sphere=True)(mesh)
    assert out.pos.shape == (512, 3)
    assert out.y.tolist() == [1]
    assert float((torch.nn.functional.normalize(out.pos) * out.x).sum(1).min()) > 0.9


def test_a_crop_is_a_ball_of_so_many_points():
    out = PointInputs(grid_size=0.01)(cloud())
    part = crop_to_sphere(out, 500, torch.Generator().manual_seed(0))
    assert part.pos.shape == part.x.shape == part.grid_coord.shape == (500, 3)
    assert part.y.shape == (500,)
    assert set(part.keys()) == {"pos", "x", "grid_coord", "y"}
    assert crop_to_sphere(out, 5000).pos.size(0) == out.pos.size(0)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="features must be some of pos, height, color"):
        PointInputs(("pos", "rgb"))
    with pytest.raises(ValueError, match="grid_size must be positive, got 0"):
        PointInputs(grid_size=0)
    with pytest.raises(ValueError, match="color has 3 rows for 2000 points"):
        PointInputs()(Data(pos=cloud().pos, color=torch.rand(3, 3)))
    with pytest.raises(ValueError, match=r"grid_size 1e-09 is too small for a cloud of extent"):
        PointInputs(grid_size=1e-9)(cloud())
    broken = cloud()
    broken.pos[7, 1] = float("nan")
    with pytest.raises(ValueError, match=r"point 7 has the coordinates .* not finite"):
        PointInputs()(broken)
    with pytest.raises(ValueError, match=r"expected a cloud with pos \[N, 3\] of at least one point, got \[0, 3\]"):
        PointInputs()(Data(pos=torch.zeros(0, 3)))
    with pytest.raises(ValueError, match=r"and this has no x, grid_coord: make it with .*input_transform"):
        check_points(cloud(), grid=True)
