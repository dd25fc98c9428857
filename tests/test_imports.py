"""`import geoattn` needs torch, torch-geometric, numpy and scipy; what needs more says so when it is asked for."""

import json
import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement

# Run first: every other installed package is as if it were not.
REFUSE = """
import json, sys

class Filtered:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in refused else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

refused = set(json.loads(sys.argv[1]))
sys.meta_path = [Filtered(finder) for finder in sys.meta_path]
"""
LAYERS_AND_OPERATORS = """
import geoattn, torch, torch_geometric
from geoattn import Neighbors, Windows, attend, nn, ops

x, pos = torch.randn(20, 8, requires_grad=True), torch.rand(20, 3)
pattern = Neighbors.knn(pos, 4)
heads = x.view(20, 2, 4)
out = attend(heads, heads, heads, pattern) + attend(heads, heads, heads, Windows(torch.tensor([0, 9, 20])))
out = out.flatten(1)
edge_index = pattern.to_edge_index()
for layer in (nn.GATConv(8, 8), nn.GATv2Conv(8, 8), nn.TransformerConv(8, 8)):
    out = out + layer(x, edge_index)
model = torch_geometric.nn.GAT(8, 8, 2)
geoattn.accelerate(model)
(out + model(x, edge_index)).sum().backward()
assert x.grad.isfinite().all()
ops.segment_sum(x, pattern.col[:20], num_segments=20), ops.radius(pos, 0.2), ops.farthest_point_sample(pos, 3)
Neighbors.k_hop(edge_index, 2), pattern.reorder(), geoattn.patterns.dilated(pattern, 2)
assert geoattn.backends()["torch"] == "available"
"""
# What is asked for, and what the error says of it.
MISSING = {
    "geoattn.load('mesh.ply')": "trimesh is not installed; install it with: pip install trimesh",
    "geoattn.load('scene.dae')": "collada is not installed; install it with: pip install pycollada",
    "geoattn.save('new.glb', mesh)": "trimesh is not installed; install it with: pip install trimesh",
    "geoattn.geometry.simplify(mesh.pos, mesh.face, 1)": "pip install fast-simplification",
    "geoattn.geometry.eigenbasis(mesh.pos, mesh.face, 2, robust=True)": "pip install robust-laplacian",
    "geoattn.geometry.geodesic_distance(mesh.pos, mesh.face, mesh.face[0])": "pip install potpourri3d",
    "geoattn.data.Bodies(1)[0]": "pip install safetensors",
    "__import__('geoattn.models.segmentation')": "is not installed; install it with: pip install ",
    "geoattn.metrics": "torchmetrics is not installed; install it with: pip install torchmetrics",
    "__import__('geoattn.viz').viz.page(mesh, 'page.html')": "pip install 'geoattn[viz]'",
}
READERS = f"""
import geoattn
from pathlib import Path

Path("mesh.obj").write_text("v 0 0 0\\nv 1 0 0\\nv 0 1 0\\nv 1 1 1\\nf 1 2 3\\nf 2 3 4\\n")
header = ["ply", "format ascii 1.0", "element vertex 1", *(f"property float {{x}}" for x in "xyz"), "end_header"]
Path("mesh.ply").write_text("\\n".join([*header, "0 0 0", ""]))
Path("scene.dae").write_text("<COLLADA/>")
mesh = geoattn.load("mesh.obj")  # needs nothing
for call, message in {MISSING!r}.items():
    try:
        eval(call)
    except ImportError as error:
        assert message in str(error), (call, error)
    else:
        raise AssertionError(call)
"""


def needed_by(*names):
    """Distributions and what they depend on here."""
    found, left = set(), list(names)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        left += [r.name for r in map(Requirement, wanted) if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def run(code, folder):
    kept = needed_by("torch", "torch-geometric", "numpy", "scipy") | {"geoattn", "setuptools"}
    refused = [
        module
        for module, owners in metadata.packages_distributions().items()
        if not kept & {owner.lower().replace("_", "-") for owner in owners}
    ]
    assert {"trimesh", "safetensors", "huggingface_hub"} <= set(refused)
    command = [sys.executable, "-c", REFUSE + code, json.dumps(refused)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_layers_and_operators_need_torch_and_pyg_alone(tmp_path):
    run(LAYERS_AND_OPERATORS, tmp_path)


def test_what_is_missing_is_said_where_it_is_asked_for(tmp_path):
    run(READERS, tmp_path)


def test_import_brings_in_nothing_but_torch_and_pyg(tmp_path):
    """Not even scipy's parts, which take longer to import than all of geoattn."""
    code = """
import sys, torch_geometric
before = set(sys.modules)
import geoattn
new = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = {"scipy.sparse", "scipy.spatial", "scipy.special", "geoattn.data", "geoattn.models"} & set(sys.modules)
assert not heavy, heavy
assert not new & refused, new & refused
assert set(geoattn.__all__) <= set(dir(geoattn))
for name in geoattn.__all__:
    if name not in ("metrics", "models"):
        getattr(geoattn, name)
"""
    run(code, tmp_path)


def test_an_install_wins_over_a_folder_named_like_the_package(tmp_path):
    """As a clone in the current folder is, which Python would otherwise take for an empty package."""
    (tmp_path / "geoattn").mkdir()
    code = "import importlib.util as u; print(u.find_spec('geoattn').origin)"
    found = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)
    assert found != "None\n", "installed before pyproject.toml said how? run: pip install -e ."
