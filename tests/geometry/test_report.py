import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from geoattn.geometry import describe


def tensors(mesh):
    return torch.tensor(np.array(mesh.vertices)), torch.tensor(np.array(mesh.faces).T.copy())


@st.composite
def soups(draw):
    """Triangles over a few places, some of them taken by several vertices, some by none of a face."""
    places = draw(st.lists(st.tuples(*[st.sampled_from([0.0, -0.0, 1.0, 2.5])] * 3), min_size=1, max_size=9))
    index = st.integers(0, len(places) - 1)
    faces = draw(st.lists(st.tuples(index, index, index), max_size=10))
    return torch.tensor(places), torch.tensor(faces, dtype=torch.int64).view(-1, 3).T


def components_of(faces):
    left, count = [set(face) for face in faces], 0
    while left:
        piece, count = left.pop(), count + 1
        while touching := [face for face in left if face & piece]:
            piece |= set().union(*touching)
            left = [face for face in left if not face & piece]
    return count


@settings(max_examples=150, deadline=None)
@given(soups())
def test_everything_is_what_counting_gives(soup):
    pos, face = soup
    report = describe(pos, face)
    place = [tuple(x + 0.0 for x in p) for p in pos.tolist()]  # -0.0 is 0.0
    every = [tuple(place[v] for v in f) for f in face.T.tolist()]
    faces = [f for f in every if len(set(f)) == 3]
    runs = [(f[i], f[(i + 1) % 3]) for f in faces for i in range(3)]
    sides = Counter(frozenset(run) for run in runs)
    assert (report.vertices, report.faces, report.edges) == (len(pos), face.size(1), len(sides))
    assert report.boundary_edges == sum(n == 1 for n in sides.values())
    assert report.nonmanifold_edges == sum(n > 2 for n in sides.values())
    assert report.inconsistent_edges == sum(n == 2 and runs.count(tuple(s)) != 1 for s, n in sides.items())
    assert report.euler_number == len({p for f in faces for p in f}) - len(sides) + len(faces)
    assert report.components == components_of(faces)
    assert report.duplicate_vertices == len(place) - len(set(place))
    assert report.unused_vertices == (len(set(place) - {p for f in every for p in f}) if every else 0)
    assert report.degenerate_faces >= len(every) - len(faces)
    assert (report.low, report.high) == (tuple(pos.amin(0).tolist()), tuple(pos.amax(0).tolist()))
    assert report.watertight == (bool(sides) and set(sides.values()) == {2})
    assert len(report.notes) == sum(
        count > 0
        for count in (
            report.duplicate_vertices,
            report.unused_vertices,
            report.degenerate_faces,
            report.nonmanifold_edges,
            report.boundary_edges,
            report.inconsistent_edges,
            report.components - 1,
        )
    )


@pytest.mark.parametrize(
    ("shape", "euler", "area"),
    [
        (trimesh.creation.box(), 2, 6),
        (trimesh.creation.icosphere(2), 2, None),
        (trimesh.creation.torus(2.0, 0.7, major_sections=12, minor_sections=8), 0, None),
    ],
)
def test_a_closed_oriented_surface_gets_no_note(shape, euler, area):
    report = describe(*tensors(shape))
    assert report.notes == ()
    assert report.watertight
    assert report.oriented
    assert (report.euler_number, report.components) == (euler, 1)
    assert report.area == pytest.approx(shape.area if area is None else area)


def test_a_flipped_face_disagrees_along_its_three_edges():
    pos, face = tensors(trimesh.creation.icosphere(1))
    face[:, 7] = face[:, 7].flip(0)
    report = describe(pos, face)
    assert (report.inconsistent_edges, report.oriented, report.watertight) == (3, False, True)
    assert report.notes == ("3 edges have faces of opposite orientation: normals change sides there",)
    assert describe(pos, face.flip(0)).inconsistent_edges == 3


def test_seams_and_faces_without_area_do_not_open_a_surface():
    """A globe by longitude and latitude: the seam is there twice, each pole many times."""
    longitude, latitude = np.meshgrid(np.linspace(0, 2 * math.pi, 9), np.linspace(0, math.pi, 5), indexing="ij")
    pos = np.stack(
        [np.sin(latitude) * np.cos(longitude), np.sin(latitude) * np.sin(longitude), np.cos(latitude)], -1
    ).round(9)
    i, j = np.meshgrid(np.arange(8), np.arange(4), indexing="ij")
    a, b, c, d = i * 5 + j, i * 5 + j + 1, i * 5 + j + 6, i * 5 + j + 5
    face = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    report = describe(torch.tensor(pos.reshape(-1, 3)), torch.tensor(face).T)
    assert report.watertight
    assert report.oriented
    assert (report.euler_number, report.components, report.degenerate_faces) == (2, 1, 16)
    assert report.duplicate_vertices == 45 - (8 * 3 + 2)
    assert [note.split()[0] for note in report.notes] == ["19", "16"]


def test_a_cloud_has_places_and_bounds_alone():
    report = describe(torch.tensor([[0.0, 0, 0], [1, 2, 3], [0, 0, 0]]))
    assert (report.vertices, report.faces, report.duplicate_vertices) == (3, 0, 1)
    assert (report.low, report.high) == ((0, 0, 0), (1, 2, 3))
    assert not report.watertight
    assert not report.oriented
    assert report.notes == ("1 vertices share a place with another",)
    assert "a point cloud" in str(report)
    assert "Euler" not in str(report)
    empty = describe(torch.zeros(0, 3))
    assert empty.vertices == 0
    assert all(map(math.isnan, empty.low + empty.high))


def test_as_a_string_it_is_a_table_with_its_notes():
    pos, face = tensors(trimesh.creation.box())
    lines = str(describe(pos, face[:, 1:])).splitlines()
    table = {line[:18].strip(): line[20:] for line in lines}
    assert table["faces"] == "11"
    assert table["watertight"] == "no"
    assert table["bounds"] == "x -0.5 to 0.5  y -0.5 to 0.5  z -0.5 to 0.5"
    assert table["note"] == "3 edges have one face: the surface is open"


def test_it_cannot_be_changed_and_refuses_what_is_no_mesh():
    pos, face = tensors(trimesh.creation.box())
    with pytest.raises(dataclasses.FrozenInstanceError):
        describe(pos, face).faces = 3
    with pytest.raises(ValueError, match="face must be int64 or int32"):
        describe(pos, face.T)
    pos[3, 0] = math.nan
    with pytest.raises(ValueError, match=r"pos\[3\]"):
        describe(pos)
