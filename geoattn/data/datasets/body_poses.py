"""Random plausible poses of the body model: joint angles, and the rotations of its bones they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from geoattn.geometry.body import BodyModel

Array = NDArray[Any]
Ranges = dict[str, tuple[float, float]]
Angles = dict[str, float]

# Joint angles in degrees. An arm points down at elevation 0 and up at 180; it is raised sideways at azimuth 0
# and forwards at 90. Bends, flexions and turns are from upright with straight limbs.
LIMITS: Ranges = {
    "arm elevation": (5, 165),
    "arm azimuth": (-25, 110),
    "arm turn": (-60, 60),
    "elbow": (0, 140),
    "forearm turn": (-60, 60),
    "wrist bend": (-50, 50),
    "wrist side": (-20, 20),
    "finger curl": (0, 85),
    "hip flexion": (-20, 110),
    "hip side": (-12, 38),
    "hip turn": (-25, 35),
    "knee": (0, 130),
    "ankle": (-15, 40),
    "spine bend": (-20, 75),
    "spine side": (-25, 25),
    "spine turn": (-35, 35),
    "neck bend": (-30, 40),
    "neck side": (-25, 25),
    "neck turn": (-60, 60),
}
RELAXED: Ranges = {
    "arm elevation": (4, 25),
    "arm azimuth": (-15, 60),
    "arm turn": (-30, 30),
    "elbow": (0, 40),
    "forearm turn": (-40, 40),
    "wrist bend": (-20, 20),
    "wrist side": (-10, 10),
    "finger curl": (0, 85),
    "hip flexion": (-5, 10),
    "hip side": (-5, 9),
    "hip turn": (-5, 15),
    "knee": (0, 12),
    "ankle": (-5, 5),
    "spine bend": (-5, 12),
    "spine side": (-5, 5),
    "spine turn": (-10, 10),
    "neck bend": (-15, 20),
    "neck side": (-8, 8),
    "neck turn": (-30, 30),
}
# Families of poses: how often, the ranges that differ from RELAXED, and the other side's where they differ.
STRAIGHT: Ranges = {"arm turn": (-10, 10), "elbow": (0, 12), "wrist bend": (-8, 8), "finger curl": (0, 25)}
STANDING: Ranges = {}
A_POSE: Ranges = STRAIGHT | {"arm elevation": (25, 65)}
T_POSE: Ranges = STRAIGHT | {"arm elevation": (75, 100), "arm azimuth": (-5, 12), "forearm turn": (-30, 30)}
STRIDE_FRONT: Ranges = {
    "hip flexion": (10, 75),
    "knee": (5, 90),
    "ankle": (-10, 20),
    "arm azimuth": (-90, -60),
    "arm elevation": (5, 50),
    "elbow": (10, 100),
}
STRIDE_BACK: Ranges = {
    "hip flexion": (-25, 5),
    "knee": (0, 80),
    "ankle": (0, 40),
    "arm azimuth": (70, 100),
    "arm elevation": (5, 60),
    "elbow": (10, 100),
}
CROUCH: Ranges = {
    "hip flexion": (55, 110),
    "hip side": (0, 30),
    "knee": (60, 130),
    "ankle": (-20, 10),
    "spine bend": (-5, 50),
    "arm elevation": (5, 90),
    "arm azimuth": (20, 100),
    "elbow": (0, 100),
}
ARMS_UP: Ranges = {"arm elevation": (100, 170), "arm azimuth": (-10, 90), "elbow": (0, 90)}
BEND: Ranges = {
    "spine bend": (30, 80),
    "spine turn": (-30, 30),
    "hip flexion": (0, 70),
    "knee": (0, 50),
    "arm elevation": (10, 110),
    "arm azimuth": (20, 100),
}
GESTURE: Ranges = {
    "arm elevation": (15, 60),
    "arm azimuth": (-20, 90),
    "elbow": (50, 140),
    "arm turn": (-60, 40),
}
FAMILIES: tuple[tuple[float, Ranges, Ranges | None], ...] = (
    (0.14, STANDING, None),
    (0.06, A_POSE, None),
    (0.12, T_POSE, None),
    (0.18, STRIDE_FRONT, STRIDE_BACK),
    (0.10, CROUCH, None),
    (0.12, ARMS_UP, None),
    (0.10, BEND, None),
    (0.08, GESTURE, None),
    (0.10, LIMITS, None),
)


class Skeleton:
    """Turns joint angles into the transforms that `BodyModel` takes."""

    def __init__(self, body: BodyModel) -> None:
        with torch.no_grad():
            joints = body({}).joints[0].double().numpy()
        self.index = {name: i for i, name in enumerate(body.bone_names)}
        at = {name: joints[i] for name, i in self.index.items()}
        self.upper_arm = _unit(at["lowerarm01.L"] - at["upperarm01.L"])
        self.forearm = _unit(at["wrist.L"] - at["lowerarm01.L"])
        # The elbow and the fingers are slightly bent in the reference pose; that gives their hinges' axes.
        self.elbow_axis = _unit(np.cross(self.upper_arm, self.forearm))
        self.elbow_bend = np.degrees(np.arccos(self.upper_arm @ self.forearm))
        self.finger_axis = _unit(
            sum(
                np.cross(at[f"finger{k}-2.L"] - at[f"finger{k}-1.L"], at[f"finger{k}-3.L"] - at[f"finger{k}-2.L"])
                for k in range(2, 6)
            )
        )
        self.thumb_axis = _unit(np.cross(at["finger1-2.L"] - at["finger1-1.L"], at["finger1-3.L"] - at["finger1-2.L"]))
        self.palm_axis = _unit(np.cross(self.finger_axis, self.forearm))

    def pose(self, left: Angles, right: Angles) -> Array:
        """Transforms [J, 4, 4]; the trunk's angles are read from `left`."""
        result = np.tile(np.eye(4), (len(self.index), 1, 1))
        turns = self.trunk(left)
        turns |= {f"{name}.L": turn for name, turn in self.limbs(left).items()}
        # The right side is the mirror image of the left: x changes sign, and with it rotations about y and z.
        for name, turn in self.limbs(right).items():
            turns[f"{name}.R"] = Rotation.from_rotvec(turn.as_rotvec() * [1, -1, -1])
        for name, turn in turns.items():
            result[self.index[name], :3, :3] = turn.as_matrix()
        return result

    def trunk(self, angles: Angles) -> dict[str, Rotation]:
        """Rotations of the spine and the neck, shared evenly by their bones."""
        turns: dict[str, Rotation] = {}
        for part, bones in (
            ("spine", ("spine05", "spine04", "spine03", "spine02", "spine01")),
            ("neck", ("neck01", "neck02", "neck03", "head")),
        ):
            vector = np.array([angles[f"{part} bend"], angles[f"{part} side"], angles[f"{part} turn"]])
            turns |= {bone: _turn(vector / len(bones)) for bone in bones}
        return turns

    def limbs(self, angles: Angles) -> dict[str, Rotation]:
        """Rotations of the left arm, hand and leg."""
        elevation, azimuth = np.radians(angles["arm elevation"]), np.radians(angles["arm azimuth"])
        direction = np.array(
            [np.sin(elevation) * np.cos(azimuth), -np.sin(elevation) * np.sin(azimuth), -np.cos(elevation)]
        )
        raised = _turn(direction * angles["arm turn"]) * _between(self.upper_arm, direction)
        clavicle = Rotation.from_rotvec(0.2 * raised.as_rotvec())
        curl = angles["finger curl"]
        turns = {
            "clavicle": clavicle,
            "upperarm01": clavicle.inv() * raised,
            "lowerarm01": _turn(self.elbow_axis * (angles["elbow"] - self.elbow_bend)),
            "lowerarm02": _turn(self.forearm * angles["forearm turn"]),
            "wrist": _turn(self.finger_axis * angles["wrist bend"] + self.palm_axis * angles["wrist side"]),
            "finger1-2": _turn(self.thumb_axis * 0.4 * curl),
            "finger1-3": _turn(self.thumb_axis * 0.6 * curl),
            "upperleg01": _turn([-angles["hip flexion"], 0, 0])
            * _turn([0, -angles["hip side"], 0])
            * _turn([0, 0, angles["hip turn"]]),
            "lowerleg01": _turn([angles["knee"], 0, 0]),
            "foot": _turn([angles["ankle"], 0, 0]),
        }
        for finger in range(2, 6):
            for joint, share in ((1, 0.8), (2, 1.1), (3, 0.7)):
                turns[f"finger{finger}-{joint}"] = _turn(self.finger_axis * share * curl)
        return turns


def random_angles(rng: np.random.Generator) -> tuple[Angles, Angles]:
    """Joint angles of the two sides, in degrees. Arms and legs sometimes come from two families."""
    arms, legs = rng.choice(len(FAMILIES), size=2, p=[chance for chance, _, _ in FAMILIES])
    if rng.random() < 0.7:
        arms = legs
    sides: list[Angles] = []
    for side in (1, 2):
        ranges = dict(RELAXED)
        for family, of_arms in ((arms, True), (legs, False)):
            chosen = FAMILIES[family][side] or FAMILIES[family][1]
            ranges |= {name: limits for name, limits in chosen.items() if name in RELAXED and _of_arm(name) == of_arms}
        sides.append({name: rng.uniform(*limits) for name, limits in ranges.items()})
    one, other = sides
    for of_arms, family in ((True, arms), (False, legs)):
        if FAMILIES[family][2] is None and rng.random() < 0.5:
            other |= {name: one[name] + rng.normal(0, 4) for name in one if _of_arm(name) == of_arms}
    if rng.random() < 0.2:
        one["finger curl"], other["finger curl"] = rng.uniform(70, 90, size=2)
    return (one, other) if rng.random() < 0.5 else (other, one)


def _of_arm(name: str) -> bool:
    return name.split()[0] in ("arm", "elbow", "forearm", "wrist", "finger")


def _turn(degrees: Any) -> Rotation:
    return Rotation.from_rotvec(degrees, degrees=True)


def _unit(vector: Any) -> Array:
    return np.asarray(vector / np.linalg.norm(vector))


def _between(start: Array, end: Array) -> Rotation:
    """The smallest rotation that takes one unit vector to another."""
    axis = np.cross(start, end)
    sine = np.linalg.norm(axis)
    return Rotation.from_rotvec(axis / max(sine, 1e-9) * np.arctan2(sine, start @ end))
