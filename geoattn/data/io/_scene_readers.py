"""Readers of glb, gltf, dae and 3mf: scenes, flattened with their transforms applied."""

import json
import urllib.parse
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from geoattn._optional import require

from ._check import (
    MAX_INSTANCES,
    MAX_SCENE_VERTICES,
    Array,
    Arrays,
    check_face,
    check_instances,
    check_xml,
    check_zip,
    concatenate,
    unit_color,
    unpacked_limit,
)

# ----------------------------------------------------------------------------- glTF


def read_glb(path: Path) -> Arrays:
    """Binary glTF 2 through trimesh."""
    raw = path.read_bytes()
    words = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 20, 4)]
    if raw[:4] != b"glTF" or words[1] != 2:
        raise ValueError("no header of binary glTF 2")
    if words[2] > len(raw) or 20 + words[3] > len(raw):
        raise ValueError(f"the header announces {max(words[2], 20 + words[3])} bytes, the file has {len(raw)}")
    end = 20 + words[3]
    slim = json.dumps(_slim_gltf(json.loads(raw[20:end]), path, raw[end + 8 :])).encode()
    slim += b" " * (-len(slim) % 4)
    length = 20 + len(slim) + len(raw) - end
    header = b"glTF" + b"".join(n.to_bytes(4, "little") for n in (2, length, len(slim), words[4]))
    return _flatten(BytesIO(header + slim + raw[end:]), "glb")


def read_gltf(path: Path) -> Arrays:
    """JSON glTF 2 through trimesh. Its buffers are inline or in files in its folder."""
    slim = _slim_gltf(json.loads(path.read_bytes()), path, b"")
    return _flatten(BytesIO(json.dumps(slim).encode()), "gltf")


_GLTF_TYPES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_GLTF_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}


def _slim_gltf(tree: dict[str, Any], path: Path, chunk: bytes) -> dict[str, Any]:
    """Keep geometry and its placement, with buffers inlined; refuse what trimesh would read as zeros.

    Without materials no image is opened. Texture coordinates become a custom attribute, because trimesh only
    reads them together with a material, and normals, because it drops some.
    """
    if not str(tree.get("asset", {}).get("version", "2")).startswith("2"):
        raise ValueError(f"glTF version {tree['asset']['version']}; only 2 is supported")
    compressed = [e for e in tree.get("extensionsRequired", []) if "compression" in e or "draco" in e]
    if compressed:
        raise ValueError(f"needs the extension {compressed[0]}, which is not supported")
    keys = ("asset", "bufferViews", "nodes", "scenes", "scene")
    kept: dict[str, Any] = {key: tree[key] for key in keys if key in tree}
    _check_gltf_tree(tree)
    kept["buffers"] = _gltf_buffers(tree.get("buffers", []), path, chunk)

    size = sum(len(buffer["uri"]) if "uri" in buffer else len(chunk) for buffer in kept["buffers"])
    if sum(view["byteLength"] for view in kept.get("bufferViews", [])) > unpacked_limit(size):
        raise ValueError("its buffer views are together far larger than its buffers")
    needed = set()
    kept["meshes"] = []
    for mesh in tree.get("meshes", []):
        primitives = []
        for primitive in mesh["primitives"]:
            mode = primitive.get("mode", 4)
            if mode in (0, 4, 5):
                attributes = primitive["attributes"]
                attributes = {_GLTF_ATTRIBUTES[k]: v for k, v in attributes.items() if k in _GLTF_ATTRIBUTES}
                primitives.append({"attributes": attributes, "mode": mode})
                if "indices" in primitive:
                    primitives[-1]["indices"] = primitive["indices"]
                needed |= {*attributes.values(), *([primitive["indices"]] if "indices" in primitive else [])}
            elif mode not in (1, 2, 3):  # lines have no surface
                raise ValueError(f"primitive mode {mode} (triangle fan) is not supported")
        kept["meshes"].append({"primitives": primitives, "name": str(mesh.get("name", "mesh"))})
    total = 0
    kept["accessors"] = []
    for i, accessor in enumerate(tree.get("accessors", [])):
        if i not in needed:
            accessor = {"count": 0, "componentType": 5126, "type": "SCALAR"}
        elif "bufferView" not in accessor or "sparse" in accessor:
            raise ValueError(f"accessor {i} is sparse or has no buffer view, which is not supported")
        total += accessor["count"] * _GLTF_TYPES[accessor["type"]] * _GLTF_BYTES[accessor["componentType"]]
        kept["accessors"].append(accessor)
    if total > unpacked_limit(size):
        raise ValueError(f"its accessors announce {total} bytes, its buffers hold {size}")
    return kept


_GLTF_ATTRIBUTES = {key: key for key in ("POSITION", "COLOR_0", "_LABEL", "_SCALAR")}
_GLTF_ATTRIBUTES |= {"NORMAL": "_NORMAL", "TEXCOORD_0": "_UV"}


_MAX_DEPTH = 500


def _check_gltf_tree(tree: dict[str, Any]) -> None:
    """Refuse nodes that are no forest, as glTF asks, or one so deep that trimesh takes minutes."""
    nodes = tree.get("nodes", [])
    children = [child for node in nodes for child in node.get("children", [])]
    if len(set(children)) < len(children):
        raise ValueError("a node of the scene has two parents")
    if any(not set(children).isdisjoint(scene.get("nodes", [])) for scene in tree.get("scenes", [])):
        raise ValueError("a root of the scene has a parent")
    level = sorted(set(range(len(nodes))) - set(children))
    for _ in range(_MAX_DEPTH):
        level = [child for i in level for child in nodes[i].get("children", [])]
        if not level:
            return
    raise ValueError(f"the scene is nested more than {_MAX_DEPTH} levels deep")


def _gltf_buffers(buffers: list[dict[str, Any]], path: Path, chunk: bytes) -> list[dict[str, Any]]:
    """Companion files become inline data. Only files in the folder of ``path`` or below are opened."""
    import base64

    inlined = []
    for buffer in buffers:
        uri = buffer.get("uri")
        if uri is None:
            if len(chunk) < buffer["byteLength"]:
                raise ValueError(f"a buffer of {buffer['byteLength']} bytes is cut off after {len(chunk)}")
        elif not uri.startswith("data:"):
            folder = path.parent.resolve()
            companion = (folder / urllib.parse.unquote(uri)).resolve()
            if not companion.is_relative_to(folder):
                raise ValueError(f"its buffer {uri!r} lies outside its folder")
            if not companion.is_file():
                raise ValueError(f"its buffer {uri!r} is missing")
            content = companion.read_bytes()
            if len(content) < buffer["byteLength"]:
                raise ValueError(f"its buffer {uri!r} has {len(content)} of {buffer['byteLength']} bytes")
            uri = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
        inlined.append({"byteLength": buffer["byteLength"]} | ({"uri": uri} if uri else {}))
    return inlined


# ----------------------------------------------------------------------------- 3mf


def read_3mf(path: Path) -> Arrays:
    """3MF through trimesh, in the unit of the file."""
    etree = require("lxml.etree")

    raw = path.read_bytes()
    check_zip(raw)
    children: dict[str, list[str]] = {}
    roots: list[str] = []
    paths: list[str] = []
    with zipfile.ZipFile(BytesIO(raw)) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(".model")]
        main = next((name for name in names if name.lower().endswith("3d/3dmodel.model")), None)
        if main is None:
            raise ValueError("it has no 3D/3dmodel.model")
        for name in names:
            text = archive.read(name)
            check_xml(text)
            if name != main:
                continue
            model = etree.fromstring(text, etree.XMLParser(resolve_entities=False, no_network=True))
            for thing in model.iter("{*}object"):
                components = list(thing.iter("{*}component"))
                children.setdefault(thing.attrib["id"], []).extend(c.attrib["objectid"] for c in components)
                paths += [v for c in components for k, v in c.attrib.items() if k.endswith("path")]
            roots = [item.attrib["objectid"] for item in model.iter("{*}item")]
    if len(set(paths)) < len(paths):  # trimesh adds all meshes of the other file each time
        raise ValueError("several components from one other model file are not supported")
    leaves = check_instances(children, roots)
    unknown = sorted({child for group in [roots, *children.values()] for child in group} - set(children))
    if unknown and len(names) == 1:
        raise ValueError(f"it refers to object {unknown[0]!r}, which it does not have")
    return _flatten(BytesIO(raw), "3mf", leaves)


def _flatten(file: BytesIO, file_type: str, instances: int | None = None) -> Arrays:
    """Load a scene through trimesh and put its geometries in world coordinates."""
    trimesh = require("trimesh")

    scene = trimesh.load_scene(file, file_type=file_type, process=False)
    nodes = [(name, *scene.graph[name]) for name in scene.graph.nodes_geometry]
    if not nodes:  # geometry that no scene places
        nodes = [(name, np.eye(4), name) for name in scene.geometry]
    if instances is not None and len(nodes) < instances:
        raise ValueError(f"{len(nodes)} of {instances} instances were read")
    geometries = [
        (_part_name(str(name), str(key), scene.geometry[key]), scene.geometry[key], matrix)
        for name, matrix, key in nodes
    ]
    geometries = [g for g in geometries if hasattr(g[1], "faces") or isinstance(g[1], trimesh.PointCloud)]
    if len(geometries) > MAX_INSTANCES or sum(len(g.vertices) for _, g, _ in geometries) > MAX_SCENE_VERTICES:
        raise ValueError(f"the scene has more than {MAX_INSTANCES} instances or {MAX_SCENE_VERTICES} vertices")
    parts = [_place(_geometry_arrays(geometry), np.asarray(matrix)) for _, geometry, matrix in geometries]
    return concatenate(parts, [name for name, _, _ in geometries])


def _part_name(node: str, geometry_name: str, geometry: Any) -> str:
    """The name of the node; but those of the primitives of one mesh trimesh names at random."""
    return geometry_name if geometry.metadata.get("from_gltf_primitive") else node


def _geometry_arrays(geometry: Any) -> Arrays:
    """What trimesh read of one geometry, and nothing that it made up."""
    arrays: Arrays = {"pos": np.asarray(geometry.vertices)}
    if getattr(geometry, "faces", None) is not None:
        arrays["face"] = np.asarray(geometry.faces)
        check_face(arrays["face"], len(arrays["pos"]))
        if geometry.visual.kind == "vertex":
            arrays["color"] = unit_color(np.asarray(geometry.visual.vertex_colors))
        attributes = geometry.vertex_attributes
        if "_NORMAL" in attributes:
            arrays["normal"] = np.asarray(attributes["_NORMAL"])
        if "_UV" in attributes:
            # trimesh's convention (and OBJ's): the origin is the lower left corner of the picture
            arrays["uv"] = np.asarray(attributes["_UV"], dtype=np.float64) * (1, -1) + (0, 1)
        for key in ("label", "scalar"):
            if f"_{key.upper()}" in attributes:
                arrays[key] = np.asarray(attributes[f"_{key.upper()}"]).reshape(-1)
                arrays[f"{key}_on"] = "vertex"
    elif len(geometry.colors):
        arrays["color"] = unit_color(np.asarray(geometry.colors))
    return arrays


def _place(arrays: Arrays, matrix: Array) -> Arrays:
    """Apply a 4x4 transform. Normals go with the inverse transpose; mirrored faces are turned over."""
    linear = matrix[:3, :3]
    arrays["pos"] = arrays["pos"] @ linear.T + matrix[:3, 3]
    if np.array_equal(linear, np.eye(3)):
        return arrays
    determinant = np.linalg.det(linear)
    if arrays.get("normal") is not None:
        if determinant == 0:
            del arrays["normal"]
        else:
            normal = arrays["normal"] @ np.linalg.inv(linear)
            length = np.linalg.norm(normal, axis=1, keepdims=True)
            arrays["normal"] = normal / np.where(length > 0, length, 1)
    if determinant < 0 and arrays.get("face") is not None:
        arrays["face"] = arrays["face"][:, ::-1]
    return arrays


# ----------------------------------------------------------------------------- dae


def read_dae(path: Path) -> Arrays:
    """COLLADA through pycollada, which keeps the vertices of the file (trimesh makes three per triangle)."""
    collada = require("collada")
    etree = require("lxml.etree")

    raw = path.read_bytes()
    check_xml(raw)
    if zipfile.is_zipfile(BytesIO(raw)):
        raise ValueError("zipped COLLADA is not supported")
    tree = etree.fromstring(raw, etree.XMLParser(resolve_entities=False, no_network=True))
    children: dict[str, list[str]] = {}
    for i, node in enumerate(tree.iter("{*}node")):
        links = [link.attrib["url"].lstrip("#") for link in node.iter("{*}instance_node")]
        children.setdefault(node.attrib.get("id", f"unnamed {i}"), []).extend(links)
    check_instances(children, list(children))

    # A missing texture or a strange material leaves the geometry whole; an unreadable geometry does not.
    harmless = [
        collada.common.DaeUnsupportedError,
        collada.common.DaeMalformedError,
        collada.common.DaeBrokenRefError,
    ]
    document = collada.Collada(BytesIO(raw), ignore=harmless)
    broken = [error for error in document.errors if _breaks_geometry(error)]
    if broken:
        raise ValueError(str(broken[0]))
    announced = len(list(tree.iterfind("{*}library_geometries/{*}geometry")))
    if len(document.geometries) != announced:
        raise ValueError(f"{len(document.geometries)} of {announced} geometries were read")
    if document.scene is None:
        raise ValueError("it has no scene")
    parts: list[Arrays] = []
    names: list[str] = []
    vertices = 0
    for bound in document.scene.objects("geometry"):
        part = _collada_arrays(bound)
        if part is None:
            continue
        parts.append(part)
        names.append(bound.original.name or bound.original.id)
        vertices += len(part["pos"])
        if len(parts) > MAX_INSTANCES or vertices > MAX_SCENE_VERTICES:
            raise ValueError(f"the scene has more than {MAX_INSTANCES} instances or {MAX_SCENE_VERTICES} vertices")
    return concatenate(parts, names)


def _breaks_geometry(error: Exception) -> bool:
    import traceback

    files = {Path(frame.filename).stem for frame in traceback.extract_tb(error.__traceback__)}
    return bool(files & {"geometry", "source", "triangleset", "polylist", "polygons", "scene"})


def _collada_arrays(bound: Any) -> Arrays | None:
    """Vertices and triangles of one placed geometry; its primitives mostly share their vertices."""
    collada = require("collada")

    pos: list[Array] = []
    face: list[Array] = []
    start: dict[int, int] = {}
    for original, primitive in zip(bound.original.primitives, bound.primitives(), strict=True):
        if isinstance(original, collada.polylist.Polylist):  # Polygons is a kind of Polylist
            primitive = primitive.triangleset()
        elif not isinstance(original, collada.triangleset.TriangleSet):
            continue  # lines have no surface
        if primitive.vertex is None or primitive.vertex_index is None:
            continue
        index = np.asarray(primitive.vertex_index).reshape(-1, 3)
        check_face(index, len(primitive.vertex))
        key = id(original.sources["VERTEX"][0][4])
        if key not in start:
            start[key] = sum(map(len, pos))
            pos.append(np.asarray(primitive.vertex))
        face.append(index + start[key])
    if not face:
        return None
    return {"pos": np.concatenate(pos), "face": np.concatenate(face)}
