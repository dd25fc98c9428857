"""The example of scene segmentation runs, on fewer and smaller rooms; what it reaches is in its README."""

import runpy
import sys

import geoattn
from geoattn import data, viz

picture = viz.picture


class Few(data.Rooms):
    def __init__(self, count: int, seed: int = 0, points: int = 0) -> None:
        super().__init__(2, seed, points=200)

    def __getitem__(self, index):
        return self.get(index % 2)


def test_scene_segmentation(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(data, "Rooms", Few)
    monkeypatch.setattr(viz, "picture", lambda *args, size, **kwargs: picture(*args, size=(200, 100), **kwargs))
    monkeypatch.setattr(sys, "argv", ["scene_segmentation.py", "--output", str(tmp_path / "run"), "--epochs", "1"])
    script = "examples/points/scene_segmentation.py"
    runpy.run_path(script)
    assert "on rooms it has not seen: mean IoU" in capsys.readouterr().out
    for name in ("found.png", "true.png", "last/config.json"):
        assert (tmp_path / "run" / name).exists()
    room = geoattn.load(tmp_path / "run" / "room.ply")
    assert {"color", "normal"} <= set(room.keys())
    assert "y" not in room
    runpy.run_path(script)  # a finished run is left as it is
