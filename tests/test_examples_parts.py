"""The example of part segmentation runs, on two small caps; what it reaches is in its README."""

import runpy
import sys

import numpy as np


def test_part_segmentation(monkeypatch, tmp_path, capsys):
    pos = np.random.default_rng(0).random((80, 3)).astype(np.float32)
    arrays = {"pos": pos, "normal": pos / np.linalg.norm(pos, axis=1, keepdims=True), "offset": np.array([0, 40, 80])}
    for split in ("val", "test"):
        np.savez(tmp_path / f"cap_{split}.npz", part_label=6 + (pos[:, 2] > 0.5), **arrays)
    options = ["--data", str(tmp_path), "--output", str(tmp_path / "run"), "--epochs", "1", "--points", "32"]
    monkeypatch.setattr(sys, "argv", ["part_segmentation.py", *options])
    runpy.run_path("examples/points/part_segmentation.py")
    assert capsys.readouterr().out.startswith("2 objects: part IoU ")
    assert (tmp_path / "run" / "last" / "config.json").exists()
