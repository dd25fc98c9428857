"""The example of classification runs, on a few small clouds; what it reaches is in its README."""

import runpy
import sys

import torch
from torch_geometric.data import Data

import geoattn


def test_classification(monkeypatch, tmp_path, capsys):
    for kind, scale in (("long", 5.0), ("round", 1.0)):
        for split, count in (("train", 4), ("test", 1)):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                make = torch.Generator().manual_seed(i)
                pos = torch.randn(60, 3, generator=make) * torch.tensor([scale, 1.0, 1.0])
                geoattn.save(folder / f"{i}.ply", Data(pos=pos))
    options = ["--data", str(tmp_path), "--output", str(tmp_path / "run"), "--epochs", "1", "--points", "32"]
    several = ["--networks", "pointnet2_ssg", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["classification.py", *options, *several])
    for _ in range(2):  # the second time, what is there
        runpy.run_path("examples/points/classification.py", run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in lines] == [
            "  pointnet2_ssg, seed 0",
            "  pointnet2_ssg, seed 1",
            "pointnet2_ssg",
        ]
    assert (tmp_path / "run" / "pointnet2_ssg-1" / "report.json").exists()
