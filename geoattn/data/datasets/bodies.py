"""Synthetic human bodies with eight body-part labels, made on the fly without any download.

Each sample is a random shape and pose of `geoattn.geometry.body.BodyModel`, dressed by a little thickness,
roughened like a scan, and simplified to about 1,500 faces. The labels and where they meet follow the
human-body benchmark of Maron et al. (SIGGRAPH 2017), so a network trained here can be judged there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch_geometric.data import Data, Dataset

from geoattn._arguments import checked_integer
from geoattn._optional import require
from geoattn.data.datasets.body_poses import Skeleton, random_angles
from geoattn.data.labelled import Labelled
from geoattn.data.registry import MissingSplitError, register_dataset
from geoattn.geometry import vertex_normals
from geoattn.geometry.body import BodyModel
from geoattn.geometry.threads import one_thread

Array = NDArray[Any]

LABELS = ("head", "hand", "lower arm", "upper arm", "body", "upper leg", "lower leg", "foot")

# The parts that a bone moves, found by the first prefix its name starts with, and their shares. The shares
# put the borders where the benchmark's training meshes have them: halfway up the neck, below the shoulder
# cap, and across the groin to the hip bone.
BONE_PARTS: tuple[tuple[str, dict[str, float]], ...] = (
    ("neck01", {"body": 1.0}),
    ("neck", {"head": 1.0}),
    ("head", {"head": 1.0}),
    ("eye", {"head": 1.0}),
    ("wrist", {"hand": 1.0}),
    ("metacarpal", {"hand": 1.0}),
    ("finger", {"hand": 1.0}),
    ("lowerarm", {"lower arm": 1.0}),
    ("upperarm01", {"upper arm": 0.6, "body": 0.4}),
    ("upperarm", {"upper arm": 1.0}),
    ("upperleg01", {"upper leg": 0.7, "body": 0.3}),
    ("upperleg", {"upper leg": 1.0}),
    ("lowerleg", {"lower leg": 1.0}),
    ("foot", {"foot": 1.0}),
    ("toe", {"foot": 1.0}),
    ("root", {"body": 1.0}),
    ("pelvis", {"body": 1.0}),
    ("spine", {"body": 1.0}),
    ("clavicle", {"body": 1.0}),
    ("shoulder", {"body": 1.0}),
)


def bone_parts(name: str) -> Array:
    """The share of each part of `LABELS` in what a bone of the body model moves: [8], sums to 1.

    Raises:
        ValueError: if the bone is unknown.

    """
    for prefix, shares in BONE_PARTS:
        if name.startswith(prefix):
            return np.array([shares.get(label, 0.0) for label in LABELS])
    raise ValueError(f"bone {name!r}: no body part is known for it.")


# The most that clothes, shoes or hair add to each part, in metres, in the order of LABELS.
THICKNESS = np.array([0.025, 0.004, 0.012, 0.018, 0.025, 0.02, 0.025, 0.012])


class Bodies(Dataset):
    """Random labelled human meshes, a new one for each index.

    Sample `i` depends only on `seed`, `faces` and `i` (to the bit on one machine). Give training and validation
    different seeds.

    Args:
        count: how many samples.
        seed: the stream of samples.
        faces: about how many triangles each mesh has, 1300 to 4000; a sample's own number is up to 15 % away.
        transform: applied to each sample.

    Each sample is a `Data` with `pos` [V, 3] float32 (metres, z up), `face` [3, F] int64 (a closed,
    connected, outward oriented surface) and `y` [F] int64, the part of each face as an index in `LABELS`.

    Raises:
        ValueError: if `count` or `faces` is out of range.

    """

    names: tuple[str, ...] = LABELS
    labelled: Labelled = "face"

    def __init__(
        self, count: int, seed: int = 0, faces: int = 1500, transform: Callable[[Data], Data] | None = None
    ) -> None:
        count, seed, faces = (
            checked_integer("count", count),
            checked_integer("seed", seed),
            checked_integer("faces", faces),
        )
        if count < 0 or not 1300 <= faces <= 4000:  # fewer do not hold the fingers of every hand
            raise ValueError(f"count must be at least 0 and faces 1300 to 4000, got {count} and {faces}.")
        super().__init__(transform=transform)
        self.count = count
        self.seed = seed
        self.faces = faces
        self.body = BodyModel.load()
        self.skeleton = Skeleton(self.body)
        self.surface = self.body.face.t().numpy().astype(np.int32)
        self.part_weights = part_weights(self.body)
        self.parts = self.part_weights.argmax(1)
        self.neighbor_mean = _neighbor_mean(self.surface)
        template = self.body.template.double().numpy()
        lengths = _edge_lengths(template, self.surface)
        spacing = np.bincount(self.surface.ravel(), lengths.ravel()) / np.bincount(self.surface.ravel())
        self.spacing = spacing / spacing.mean()

    def len(self) -> int:
        """How many samples."""
        return self.count

    @one_thread()
    def get(self, idx: int) -> Data:
        """Make sample `idx`."""
        rng = np.random.default_rng([self.seed, idx])
        phenotype = torch.from_numpy(random_phenotype(rng)).float()[None]
        for _ in range(8):
            pose = torch.from_numpy(self.skeleton.pose(*random_angles(rng))).float()[None]
            with torch.no_grad():
                vertices = self.body(phenotype, pose).vertices[0].double().numpy()
            if self._buried(vertices) < 0.03:
                break
        vertices = self._dress(self._smooth(vertices, rng), rng)
        pos, face, parts = self._simplify(vertices, rng)
        y = parts[face].sum(1).argmax(1)
        return Data(
            pos=torch.from_numpy(pos).float(),
            face=torch.from_numpy(face).long().t().contiguous(),
            y=torch.from_numpy(y),
        )

    def _normals(self, vertices: Array) -> Array:
        return vertex_normals(torch.from_numpy(vertices), self.body.face).numpy()

    def _buried(self, vertices: Array) -> float:
        """The share of the forearms and hands that is over a centimetre inside head, body or thighs."""
        normals = self._normals(vertices)
        core = np.flatnonzero(np.isin(self.parts, [LABELS.index(p) for p in ("head", "body", "upper leg")]))
        ends = np.flatnonzero(np.isin(self.parts, [LABELS.index(p) for p in ("hand", "lower arm")]))
        _, nearest = cKDTree(vertices[core]).query(vertices[ends])
        height = ((vertices[ends] - vertices[core][nearest]) * normals[core][nearest]).sum(1)
        return float((height < -0.01).mean())

    def _smooth(self, vertices: Array, rng: np.random.Generator) -> Array:
        """Sometimes blur the hands into mittens, the face, and everything a little, as scans do."""
        hand = self.part_weights[:, [LABELS.index("hand")]]
        head = self.part_weights[:, [LABELS.index("head")]]
        for amount, chance, most in ((hand, 0.5, 25), (head, 0.8, 12), (1.0, 0.5, 3)):
            steps = rng.integers(1, most + 1) if rng.random() < chance else 0
            for _ in range(steps):
                vertices = vertices + 0.7 * amount * (self.neighbor_mean @ vertices - vertices)
        return vertices

    def _dress(self, vertices: Array, rng: np.random.Generator) -> Array:
        """Move the surface outwards by a thickness per part and by slow waves along it."""
        thickness = self.part_weights @ (THICKNESS * rng.random(8) * rng.choice([0.0, 0.5, 1.0]))
        waves = rng.normal(size=(8, 3)) * 2 * np.pi / rng.uniform(0.1, 0.6, size=(8, 1))
        heights = np.sin(vertices @ waves.T + rng.uniform(0, 2 * np.pi, 8)) @ rng.normal(size=8)
        # Waves as high as a fold of cloth on the trunk would swallow a finger.
        calm = 1 - 0.9 * self.part_weights[:, LABELS.index("hand")]
        return vertices + self._normals(vertices) * (thickness + heights * calm * rng.uniform(0, 0.003))[:, None]

    def _simplify(self, vertices: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """Simplify to a random number of faces near `faces`.

        Roughness of a millimetre or two, as a scanner leaves, also keeps the quadric error from preferring
        long thin triangles. Where the simplifier pinches a finger off, the finger tip is dropped; when that
        does not give a closed surface, as for one sample in fifteen, we try again, less rough.

        Returns:
            Positions [V, 3], faces [F, 3] and the share of each body part in each vertex [V, 8].

        """
        fast_simplification = require("fast_simplification")
        target = round(self.faces * rng.uniform(0.85, 1.15))
        # The simplifier's tolerances are absolute, so children and giants are brought to one size first.
        scale = 0.024 / _edge_lengths(vertices, self.surface).mean()
        normals = self._normals(vertices)
        # Less roughness where vertices are dense, lest the head and the hands attract the triangles.
        rough = self.spacing**2 * rng.uniform(0.0012, 0.0026)
        for _ in range(40):
            points = (vertices * scale + normals * (rng.normal(size=len(vertices)) * rough)[:, None]).astype(np.float32)
            _, _, collapses = fast_simplification.simplify(
                points, self.surface, target_count=target, agg=3, return_collapses=True
            )
            pos, face, merged = fast_simplification.replay_simplification(points, self.surface, collapses)
            source, face = _cut_pinches(face)
            if abs(len(face) - target) < 0.05 * target and is_closed_surface(pos[source], face):
                parts = np.zeros((len(pos), len(LABELS)))
                np.add.at(parts, merged, self.part_weights)
                return pos[source] / scale, face, (parts / parts.sum(1, keepdims=True))[source]
            rough *= 0.9
        raise RuntimeError(f"no closed surface of {target} faces found; please report seed {self.seed}.")


@register_dataset("bodies")
def _bodies(split: str, samples: int | None) -> Bodies:
    """Bodies of the two splits never share a seed."""
    count = 1000 if samples is None else samples
    if split == "train":
        return Bodies(count, seed=0)
    if split == "test":
        return Bodies(max(count // 10, 1), seed=1)
    raise MissingSplitError(f"bodies: no {split} split; hold some of the training samples out")


def random_phenotype(rng: np.random.Generator) -> Array:
    """Six phenotypes in the order of `BodyModel.phenotypes`: mostly adults, some children and old people."""
    gender = abs(float(rng.random() < 0.5) - rng.beta(1, 5))
    low, high = [(0.55, 0.85), (0.85, 1.0), (0.25, 0.55), (0.0, 0.25)][rng.choice(4, p=[0.74, 0.12, 0.11, 0.03])]
    muscle, weight = rng.beta(1.6, 1.6, size=2)
    height, proportions = np.clip(rng.normal(0.5, [0.18, 0.3]), 0, 1)
    return np.array([gender, rng.uniform(low, high), muscle, weight, height, proportions])


def part_weights(body: BodyModel) -> Array:
    """How much each vertex follows each body part: [V, 8], rows sum to 1."""
    return body.weights.double().numpy() @ np.stack([bone_parts(name) for name in body.bone_names])


def is_closed_surface(pos: Array, face: Array) -> bool:
    """Whether faces [F, 3] are one oriented surface, closed like a sphere, with no degenerate face."""
    count = len(pos)
    edges = np.concatenate([face[:, [0, 1]], face[:, [1, 2]], face[:, [2, 0]]])
    forwards, backwards = edges @ [count, 1], edges @ [1, count]
    forwards.sort()
    backwards.sort()
    if (forwards[1:] == forwards[:-1]).any() or (forwards != backwards).any():
        return False
    graph = csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    corners = pos[face]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    sphere = count - len(edges) // 2 + len(face) == 2
    return bool(sphere and connected_components(graph)[0] == 1 and areas.min() > 1e-6 * areas.mean())


def _cut_pinches(face: Array) -> tuple[Array, Array]:
    """Cut a surface apart along the edges that four triangles share, and keep the largest piece.

    At a vertex, triangles that meet over ordinary edges stay together; each such group gets its own vertex.

    Returns:
        For each new vertex the old one, and the faces [F, 3].

    """
    count = int(face.max()) + 1
    corner = np.arange(face.size).reshape(face.shape)
    starts, ends = face[:, [0, 1, 2]].ravel(), face[:, [1, 2, 0]].ravel()
    order = np.argsort(np.minimum(starts, ends) * count + np.maximum(starts, ends), kind="stable")
    key = np.minimum(starts, ends)[order] * count + np.maximum(starts, ends)[order]
    _, first, uses = np.unique(key, return_index=True, return_counts=True)
    one, other = order[first[uses == 2]], order[first[uses == 2] + 1]
    start_corner, end_corner = corner.ravel(), np.roll(corner, -1, axis=1).ravel()
    # The two triangles run along their common edge in opposite directions.
    rows = np.concatenate([start_corner[one], end_corner[one]])
    columns = np.concatenate([end_corner[other], start_corner[other]])
    graph = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(face.size, face.size))
    groups, group = connected_components(graph, directed=False)
    split = group[corner]
    old = np.zeros(groups, dtype=np.int64)
    old[split] = face

    links = csr_matrix(
        (np.ones(face.size), (split.ravel(), np.roll(split, -1, axis=1).ravel())), shape=(groups, groups)
    )
    _, piece = connected_components(links, directed=False)
    kept = split[piece[split[:, 0]] == np.bincount(piece).argmax()]
    used, kept = np.unique(kept, return_inverse=True)
    return old[used], kept.reshape(-1, 3)


def _neighbor_mean(face: Array) -> csr_matrix:
    """The sparse matrix [V, V] that averages over the neighbors of each vertex."""
    edges = np.concatenate([face[:, [0, 1]], face[:, [1, 2]], face[:, [2, 0]]])
    count = int(face.max()) + 1
    adjacency = csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return csr_matrix(adjacency.multiply(1 / adjacency.sum(axis=1)))


def _edge_lengths(pos: Array, face: Array) -> Array:
    """The lengths [F, 3] of the edges from each corner of a face to the next."""
    corners = pos[face]
    return np.asarray(np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=2))
