"""Labels for clouds of any size: every point gets one, and cutting a cloud changes little of what a network says."""

import math
from dataclasses import dataclass

import laspy
import pytest
import torch
from torch import nn
from torch_geometric.data import Data

import geoattn
from geoattn.cli import main
from geoattn.geometry import point_normals
from geoattn.models import list_models, register_model, registry
from geoattn.models.points import PointConfig, PointNetwork, missing_features, point_probabilities
from geoattn.models.points.segment_cloud import VIEWS, _tiles
from geoattn.models.segmentation import segment

NAMES = ("ground", "wall", "roof")


@dataclass(frozen=True)
class PointwiseConfig(PointConfig):
    """What a `Pointwise` is made of."""


class Pointwise(PointNetwork):
    """A perceptron on the features of each point, which remembers what it was given."""

    def __init__(self, config: PointwiseConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.in_channels, len(config.names))
        self.given: list[Data] = []

    def forward(self, data: Data) -> torch.Tensor:
        self.given.append(data)
        return self.head(data.x)


@pytest.fixture(autouse=True)
def pointwise_is_known(monkeypatch):
    list_models()
    monkeypatch.setattr(registry, "_NETWORKS", dict(registry._NETWORKS))
    register_model("pointwise", PointwiseConfig, "segmentation")(Pointwise)


def network(**config) -> Pointwise:
    torch.manual_seed(0)
    return Pointwise(PointwiseConfig(NAMES, **config)).eval()


def cloud(count: int = 4000, seed: int = 0) -> Data:
    random = torch.Generator().manual_seed(seed)
    size = torch.tensor([9.0, 6, 0.5])
    pos = torch.rand(count, 3, generator=random) * size + torch.tensor([100.0, -50, 7])
    return Data(pos=pos, color=torch.rand(count, 3, generator=random), intensity=torch.rand(count, generator=random))


def test_a_cloud_in_one_tile_gets_what_the_network_says_of_its_input_transform():
    for config in (
        {"features": ("pos", "height", "color"), "grid_size": 0.3},
        {"features": ("pos", "color")},
        {"features": ("pos", "color"), "unit_sphere": True, "grid_size": 0.05},
    ):
        model, data = network(**config), cloud()
        inputs = model.input_transform()(data)
        expected = model(inputs).softmax(-1)[inputs.voxel_index]
        given = model.given[-1]
        found = point_probabilities(data, model)
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.equal(model.given[-1].x, given.x)
        if "grid_size" in config:
            assert torch.equal(model.given[-1].grid_coord, given.grid_coord)


def test_every_point_of_every_voxel_is_read_in_the_published_test_mode():
    data = cloud()
    model = network(features=("color",), grid_size=0.5)
    found = point_probabilities(data, model, fragments=None)
    assert torch.allclose(found, model.head(data.color).softmax(-1), atol=1e-6)  # of each point itself
    voxels = {tuple(c) for c in model.given[0].grid_coord.tolist()}
    fullest = max(torch.unique(model.input_transform()(data).voxel_index, return_counts=True)[1])
    assert len(model.given) == fullest
    for given in model.given:
        assert {tuple(c) for c in given.grid_coord.tolist()} == voxels
        assert given.grid_coord.size(0) == len(voxels)
    read = torch.cat([given.x for given in model.given]).unique(dim=0)
    assert read.size(0) == data.color.unique(dim=0).size(0)


def test_points_that_are_not_read_get_the_average_of_their_voxel():
    data = Data(pos=torch.zeros(5, 3), color=torch.rand(5, 3))
    data.pos[4] = 1
    model = network(features=("color",), grid_size=0.1)
    own = model.head(data.color).softmax(-1)
    found = point_probabilities(data, model, fragments=2)
    assert torch.allclose(found[[0, 1, 4]], own[[0, 1, 4]])
    assert torch.allclose(found[2:4], own[:2].mean(0).expand(2, 3))


@pytest.mark.parametrize("config", [{"grid_size": 0.2}, {}, {"max_points": 100}, {"grid_size": 0.2, "max_points": 70}])
def test_no_more_is_read_at_once_than_allowed(config):
    data = cloud()
    model = network(features=("color",), **config)
    found = point_probabilities(data, model, tile_points=500, votes=2)
    most = config.get("max_points", 500)
    assert all(given.x.size(0) <= most for given in model.given)
    assert found.shape == (4000, 3)
    assert torch.allclose(found.sum(1), torch.ones(4000), atol=1e-5)
    assert not model.training
    if "grid_size" not in config:  # every point was read, itself, as often as there are views and tiles
        assert torch.allclose(found, model.head(data.color).softmax(-1), atol=1e-5)


@pytest.mark.parametrize("shape", ["plane", "line", "tower", "one place", "dense spot"])
def test_tiles_are_small_overlap_and_leave_nothing_out(shape):
    random = torch.Generator().manual_seed(0)
    pos = torch.rand(3000, 3, generator=random) * torch.tensor([10.0, 6, 1])
    pos *= {"line": torch.tensor([1.0, 0, 0]), "tower": torch.tensor([0.0, 0, 9]), "one place": 0}.get(shape, 1)
    if shape == "dense spot":
        pos[:2000] = pos[:2000] * 1e-3
    tiles = _tiles(pos, 400)
    assert all(tile.numel() <= 400 and (tile.diff() > 0).all() for tile in tiles)
    times = torch.cat(tiles).bincount(minlength=3000)
    assert times.min() == 1 or shape != "plane"
    assert times.min() >= 1
    assert times.float().mean() < 4
    if shape in ("plane", "line"):
        assert (times > 1).float().mean() > 0.3
        for tile in tiles:
            extent = pos[tile].amax(0) - pos[tile].amin(0)
            assert extent[0] < 5
    small = torch.arange(400)
    assert torch.equal(_tiles(pos[:400], 400)[0], small)


def test_views_are_turned_scaled_and_mirrored():
    data = cloud(300)
    data.normal = nn.functional.normalize(data.pos - data.pos.mean(0))
    model = network(features=("pos", "normal"))
    point_probabilities(data, model, votes=VIEWS)
    pairs = [torch.pdist(given.pos) for given in model.given]
    scales = [float(pair.max() / pairs[0].max()) for pair in pairs]
    assert scales == pytest.approx([s for _ in range(2) for s in (1, 0.95, 1.05) for _ in range(4)], rel=1e-5)
    corner = {
        tuple((given.pos[given.x[:, 5].argmax()] / scale).round(decimals=2).tolist())
        for given, scale in zip(model.given, scales, strict=True)
    }
    assert len(corner) == 8
    with pytest.raises(ValueError, match="votes is 25; there are 24 views"):
        point_probabilities(data, model, votes=25)
    # the average over a group of turns does not know how the cloud is turned
    turned = geoattn.data.point_augment.rotated(data, math.pi / 2)
    found, expected = (point_probabilities(x, model, votes=4) for x in (turned, data))
    assert torch.allclose(found, expected, atol=1e-4)


def test_what_a_cloud_lacks():
    data = Data(pos=cloud().pos)
    model = network(features=("pos", "color", "normal", "intensity"))
    assert missing_features(data, model.config) == ("color", "normal", "intensity")
    point_probabilities(data, model)
    x, pos = model.given[0].x, model.given[0].pos
    assert (x[:, 3:6] == 0).all()
    assert (x[:, 9] == 0).all()
    assert torch.allclose(x[:, 6:9], point_normals(pos), atol=1e-3)


@pytest.mark.parametrize("pos", [torch.zeros(1, 3), torch.ones(7, 3), torch.tensor([[0.0, 0, 0], [1, 0, 0]])])
@pytest.mark.parametrize("grid_size", [None, 0.1])
def test_the_smallest_clouds(pos, grid_size):
    found = segment(Data(pos=pos), network(features=("pos", "normal"), grid_size=grid_size))
    assert found.label.shape == found.score.shape == (len(pos),)
    assert found.score.min() >= 1 / 3 - 1e-6
    assert found.probability.shape == (len(pos), 3)


@pytest.mark.parametrize(
    ("data", "config", "message"),
    [
        (
            Data(pos=torch.tensor([[0.0, 0, 0], [math.nan, 0, 0]])),
            {},
            "point 1 has the coordinates .nan, 0.0, 0.0., which",
        ),
        (Data(pos=torch.zeros(0, 3)), {}, "at least one point"),
        (Data(pos=torch.eye(3) * 1e6), {"grid_size": 0.01}, "Is the cloud in the unit the network was trained on"),
        (Data(pos=torch.eye(3), color=torch.eye(2)), {}, "color has 2 rows for 3 points"),
        (Data(pos=torch.eye(3)), {"labelled": "whole"}, "one label to a whole cloud"),
    ],
)
def test_what_cannot_be_labelled_is_refused(data, config, message):
    with pytest.raises(ValueError, match=message):
        segment(data, network(**config))
    with pytest.raises(TypeError, match="read the file first"):
        segment("scan.laz", network())


def test_the_vertices_of_a_mesh():
    data = Data(pos=torch.rand(30, 3), face=torch.randint(30, (3, 50)))
    assert segment(data, network()).label.shape == (30,)


def test_a_scan_goes_in_and_labelled_points_come_out(tmp_path, capsys):
    header = laspy.LasHeader(point_format=7, version="1.4")
    header.scales, header.offsets = [0.01] * 3, [3e5, 5e6, 0]
    las = laspy.LasData(header)
    data = cloud(500)
    las.x, las.y, las.z = (data.pos + torch.tensor([3e5, 5e6, 0])).double().numpy().T
    las.gps_time = torch.arange(500).numpy()
    las.write(str(tmp_path / "scan.laz"))
    network(features=("pos", "color", "normal"), grid_size=0.5).save_pretrained(tmp_path / "model")
    scan = ["segment", str(tmp_path / "scan.laz"), "--model", str(tmp_path / "model")]
    assert main([*scan, "-o", str(tmp_path / "out.laz"), "--votes", "2"]) == 0
    printed = capsys.readouterr().out
    assert "scan.laz has no normal: estimated" in printed
    assert "color" not in printed  # black, but there
    expected = segment(geoattn.load(tmp_path / "scan.laz"), geoattn.models.load_model(tmp_path / "model"), votes=2)
    out = laspy.read(tmp_path / "out.laz")
    assert out.classification.tolist() == expected.label.tolist()
    assert torch.allclose(torch.from_numpy(out.score.copy()), expected.score)
    assert out.gps_time.tolist() == list(range(500))
    assert sum(int(line.split()[1]) for line in printed.splitlines() if "%" in line) == 500
    for extension in ("ply", "pcd"):
        with pytest.warns(UserWarning, match="gps_time of scan.laz are kept by las and laz only"):
            assert main([*scan, "-o", str(tmp_path / f"out.{extension}")]) == 0
        loaded = geoattn.load(tmp_path / f"out.{extension}")
        assert loaded.label.shape == loaded.score.shape == (500,)
    capsys.readouterr()
    assert main([*scan, "-o", str(tmp_path / "out.laz"), "--votes", "0"]) == 2
    assert "votes must be at least 1, got 0" in capsys.readouterr().err


def test_votes_are_of_clouds(tmp_path, capsys):
    geoattn.save(tmp_path / "m.ply", Data(pos=torch.rand(3, 3), face=torch.tensor([[0], [1], [2]])))
    assert main(["segment", str(tmp_path / "m.ply"), "-o", str(tmp_path / "n.ply"), "--votes", "3"]) == 2
    assert "--votes is of networks of point clouds; this holds a surface_transformer" in capsys.readouterr().err
