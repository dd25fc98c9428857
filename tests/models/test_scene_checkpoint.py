"""The checkpoint of rooms that comes with the package: on scans of rooms and tables it has not seen, in any frame."""

import pytest
import torch
from torch_geometric.data import Data

from geoattn.data import Rooms
from geoattn.geometry import point_normals, upright
from geoattn.models import load_model, load_task
from geoattn.models.segmentation import segment
from geoattn.models.segmentation.segment import SCENE


@pytest.fixture(scope="module")
def rooms():
    samples = Rooms(100, seed=2, points=20_000)
    return {"room": samples[10], "table": samples[2]}


def test_it_is_small_and_of_the_classes_of_rooms():
    model = load_model(SCENE)
    assert model.config.names == Rooms.names
    assert sum(file.stat().st_size for file in SCENE.iterdir()) < 6e6
    assert load_task(SCENE).name == "segmentation"


def test_it_knows_rooms_and_tables(rooms):
    for room in rooms.values():
        found = segment(room)
        assert (found.label == room.y).float().mean() > 0.75
        assert found.score.min() > 0
        assert torch.allclose(found.probability.sum(1), torch.ones(len(room.y)), atol=1e-4)


def test_it_knows_a_table_that_a_camera_saw_without_normals(rooms):
    """In the frame of a camera (x right, y down, z forward) that looks down by 35 degrees."""
    table, angle = rooms["table"], torch.tensor(0.6)
    right, down, forward = [1.0, 0, 0], [0, -angle.sin(), -angle.cos()], [0, angle.cos(), -angle.sin()]
    pos = table.pos @ torch.tensor([right, down, forward]).T
    turn = upright(point_normals(pos))
    found = segment(Data(pos=pos @ turn.T)).label
    clutter = Rooms.names.index("clutter")
    assert ((found == clutter) == (table.y == clutter)).float().mean() > 0.8
