"""Normals of clouds, and which way is up."""

import pytest
import torch

from geoattn.geometry import point_normals, upright


def ball(count=2000, seed=0):
    pos = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return pos / pos.norm(dim=1, keepdim=True)


def rotation(seed):
    return torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]


def test_normals_of_a_ball_point_from_its_middle():
    pos = ball()
    normal = point_normals(pos, viewpoint=[0, 0, 0])
    assert ((normal * pos).sum(1) < -0.98).all()
    assert ((point_normals(pos, viewpoint=3 * pos) * pos).sum(1) > 0.98).all()
    assert (point_normals(pos)[:, 2] >= 0).all()
    assert torch.allclose(normal.norm(dim=1), torch.ones(len(pos)), atol=1e-6)
    assert normal.dtype == torch.float32
    assert point_normals(pos.double()).dtype == torch.float64


def test_normals_turn_and_move_with_the_cloud():
    pos, turn = ball(300).double(), rotation(1)
    eye = torch.tensor([5.0, 4.0, 3.0], dtype=torch.float64)
    here, there = point_normals(pos, viewpoint=eye), point_normals(pos @ turn.T + 7, viewpoint=turn @ eye + 7)
    assert torch.allclose(here @ turn.T, there, atol=1e-9)


def test_small_and_bad_clouds():
    assert point_normals(torch.zeros(0, 3)).shape == (0, 3)
    assert point_normals(torch.zeros(2, 3)).isfinite().all()
    with pytest.raises(ValueError, match="k must be at least 3"):
        point_normals(ball(10), k=2)
    with pytest.raises(ValueError, match=r"pos \[N, 3\]"):
        point_normals(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="viewpoint"):
        point_normals(ball(10), viewpoint=[0.0, 1.0])


@pytest.mark.parametrize("pitch", [-0.3, 0.0, 0.3, 0.7])
def test_a_room_seen_by_a_tilted_camera_is_turned_upright(pitch):
    """Normals of floor, two walls and clutter, in the frame of a camera that looks down by ``pitch`` radians."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.tensor([[0.0, 0, 1]] * 400 + [[1.0, 0, 0]] * 300 + [[0.0, 1, 0]] * 300)
    normal = torch.cat([plane + 0.05 * torch.randn(1000, 3, generator=generator), ball(300)])
    normal = normal / normal.norm(dim=1, keepdim=True)
    about, tilt, roll = (torch.tensor(angle) for angle in (0.5, pitch, 0.1))
    level = torch.tensor([[about.cos(), about.sin(), 0], [0, 0, -1], [-about.sin(), about.cos(), 0]])
    pitched = torch.tensor([[1, 0, 0], [0, tilt.cos(), -tilt.sin()], [0, tilt.sin(), tilt.cos()]])
    rolled = torch.tensor([[roll.cos(), -roll.sin(), 0], [roll.sin(), roll.cos(), 0], [0, 0, 1]])
    camera = rolled @ pitched @ level  # from the room's frame to the camera's
    found = upright(normal @ camera.T)
    assert torch.allclose(found @ found.T, torch.eye(3), atol=1e-5)
    assert torch.det(found) > 0.99
    assert (found @ camera @ torch.tensor([0.0, 0, 1]))[2] > 0.999
    signs = torch.where(torch.rand(len(normal), 1, generator=generator) < 0.5, -1.0, 1.0)
    assert torch.allclose(found, upright(signs * normal @ camera.T), atol=1e-5)


def test_bad_normals_and_guesses():
    with pytest.raises(ValueError, match=r"normals \[N, 3\]"):
        upright(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="guess"):
        upright(ball(10), guess=(0.0, 0.0, 0.0))
