"""What each format that is written keeps of a sample. ``docs/formats.md`` has the same tables, and a test compares."""

import numpy as np

from ._sample import ON, PAINT, Mesh, On

MESH = {
    "face": "glb npz obj off ply stl vtk vtu",
    "numbering of vertices": "glb npz obj off ply vtk vtu",
    "color": "glb npz obj off ply vtk vtu",
    "alpha of color": "glb npz off ply vtk vtu",
    "face_color": "npz ply vtk vtu",
    "normal": "glb npz obj ply vtk vtu",
    "uv": "glb npz obj ply vtk vtu",
    "label per vertex": "glb npz ply vtk vtu",
    "label per face": "npz ply vtk vtu",
    "scalar per vertex": "glb npz ply vtk vtu",
    "scalar per face": "npz ply vtk vtu",
    "part": "npz obj ply vtk vtu",
    "part in any order": "npz ply vtk vtu",
    "part_name": "npz obj ply",
    "part_name of any kind": "npz ply",
    "origin": "glb npz obj off ply vtk vtu",
    "origin beyond float64": "npz",
    "others per vertex or face": "npz",
    "others": "",
}
"""Extensions, separated by blanks, by what they keep of a mesh."""

CLOUD = {
    "pos": "glb las laz npz obj off pcd ply vtk vtu xyz",
    "color": "glb las laz npz obj off pcd ply vtk vtu xyz",
    "alpha of color": "glb npz off pcd ply vtk vtu xyz",
    "normal": "las laz npz obj pcd ply vtk vtu xyz",
    "uv": "npz obj ply vtk vtu",
    "label per vertex": "las laz npz pcd ply vtk vtu",
    "scalar per vertex": "las laz npz pcd ply vtk vtu",
    "intensity": "las laz npz pcd ply vtk vtu",
    "score": "las laz npz pcd ply vtk vtu",
    "part": "las laz npz pcd ply vtk vtu",
    "part_name": "npz ply",
    "origin": "glb las laz npz obj off pcd ply vtk vtu xyz",
    "origin beyond float64": "npz",
    "others per vertex or face": "npz",
    "others": "",
}
"""The same of a point cloud."""

LABEL_BITS = {"glb": 24, "las": 31, "laz": 31, "pcd": 31, "ply": 31}
"""Where labels are not integers of 64 bits."""


def _row(key: str, on: On) -> str:
    """The row of the tables of what is kept."""
    if key == "color":
        return "color" if on == "vertex" else "face_color"
    return f"{key} per {on}" if key in ("label", "scalar") else key


def check_holds(extension: str, has_faces: bool | None, asked: list[tuple[str, On]]) -> None:
    """Refuse what would lose the mesh itself, or labels and scalars that were asked for.

    Args:
        extension: The format.
        has_faces: Whether it is a mesh or a cloud; None if that is not known.
        asked: Labels and scalars, and what they describe.

    """
    if has_faces is not None:
        row, kept = ("face", MESH) if has_faces else ("pos", CLOUD)
        if extension not in kept[row].split():
            raise ValueError(
                f"{extension} holds no {'faces' if has_faces else 'point cloud'}; use {_listed(kept[row])}"
            )
    kept = {None: MESH | CLOUD, True: MESH, False: CLOUD}[has_faces]
    as_colors = []
    for key, on in asked:
        row = _row(key, on)
        if row not in kept:
            raise ValueError(f"a point cloud has no faces, so no {row}" if on == "face" else f"no format holds a {row}")
        if extension not in kept[row].split():
            as_colors.append(row)
            if extension not in kept[_row("color", on)].split():
                raise ValueError(f"{extension} holds no {row}; use {_listed(kept[row])}")
    if len(as_colors) > 1:
        raise ValueError(f"{extension} holds one colour, not {' and '.join(as_colors)}; use {_listed(kept[row])}")


def _listed(extensions: str) -> str:
    return extensions.replace(" ", ", ") or "no format"


def fit(extension: str, mesh: Mesh, asked: list[tuple[str, On]]) -> list[str]:
    """Paint labels where there is room for colours, and leave out what the format does not keep. Returns the latter."""
    kept = CLOUD if mesh.face is None else MESH
    lost = []

    def keeps(row: str) -> bool:
        return extension in kept[row].split()

    own_colors = any("color" in mesh.of(on) and keeps(_row("color", on)) for on in ON)
    labels = [(key, on) for key in ("label", "scalar") for on in ON if key in mesh.of(on)]
    painted = None
    for key, on in sorted(labels, key=lambda label: label not in asked):
        only_as_color = (key, on) in asked and not keeps(_row(key, on))
        if keeps(_row("color", on)) and (only_as_color or not own_colors):
            if "color" in mesh.of(on):
                lost.append(f"color (the {key}s take its place; both are kept by {_listed(kept[_row(key, on)])})")
            mesh.of(on)["color"] = PAINT[key](mesh.of(on)[key]) / np.float32(255)
            painted = _row(key, on)
            break

    for row, names in _found(mesh).items():
        if not keeps(row):
            shown = "shown as colours; " if row == painted else ""
            lost += [f"{name} ({shown}kept by {_listed(kept[row])})" for name in names]
            _leave_out(mesh, row)
    return lost


def _found(mesh: Mesh) -> dict[str, list[str]]:
    """The rows of the table that concern a mesh, and what to call what was found."""
    found = [_row(key, on) for on in ON for key in mesh.of(on)]
    color = mesh.vertex.get("color")
    if color is not None and color.shape[1] == 4 and color[:, 3].min() < 1:
        found.append("alpha of color")
    if mesh.origin is not None:
        found.append("origin")
        if np.abs(mesh.world() - mesh.origin - mesh.pos).max() > 1e-5 * np.ptp(mesh.pos, axis=0).max():
            found.append("origin beyond float64")
    if mesh.face is not None and not np.array_equal(mesh.face.reshape(-1), np.arange(len(mesh.pos))):
        found.append("numbering of vertices")
    in_order = True
    if "part" in mesh.faces:
        part = mesh.faces["part"]
        number = len(mesh.part_name) or part.max() + 1
        in_order = bool(
            number > 1 and (np.diff(part) >= 0).all() and np.array_equal(np.unique(part), np.arange(number))
        )
        if not in_order:
            found.append("part in any order")
    if mesh.part_name:
        found.append("part_name")
        plain = all(
            name == " ".join(name.split()) and name.isprintable() and name[-1:] not in "\\" for name in mesh.part_name
        )
        if mesh.face is not None and not (in_order and plain):
            found.append("part_name of any kind")
    named = {row: [row] for row in found}
    return named | {"others per vertex or face": list(mesh.rows), "others": mesh.others}


def _leave_out(mesh: Mesh, row: str) -> None:
    for on in ON:
        for key in [key for key in mesh.of(on) if row in (_row(key, on), f"{key} in any order")]:
            del mesh.of(on)[key]
    if row == "alpha of color" and "color" in mesh.vertex:
        mesh.vertex["color"] = mesh.vertex["color"][:, :3]
    if row.startswith("origin"):
        mesh.origin = None
    if row.startswith("part"):
        mesh.part_name = []
    if row == "others per vertex or face":
        mesh.rows = {}


def check_bits(extension: str, mesh: Mesh) -> None:
    bits = LABEL_BITS.get(extension, 63)
    for on in ON:
        label = mesh.of(on).get("label")
        if label is not None and label.size and not -(2**bits) < int(label.min()) <= int(label.max()) < 2**bits:
            raise ValueError(
                f"{extension} holds labels of {bits} bits, the largest here are {label.min()} and {label.max()}; "
                f"use npz, vtk or vtu"
            )
