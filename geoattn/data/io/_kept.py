"""What each format that is written keeps of a sample. ``docs/formats.md`` has the same tables, and a test compares."""

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
    "pos": "glb npz obj off ply vtk vtu xyz",
    "color": "glb npz obj off ply vtk vtu xyz",
    "alpha of color": "glb npz off ply vtk vtu xyz",
    "normal": "npz obj ply vtk vtu xyz",
    "uv": "npz obj ply vtk vtu",
    "label per vertex": "npz ply vtk vtu",
    "scalar per vertex": "npz ply vtk vtu",
    "part": "npz ply vtk vtu",
    "part_name": "npz ply",
    "origin": "glb npz obj off ply vtk vtu xyz",
    "origin beyond float64": "npz",
    "others per vertex or face": "npz",
    "others": "",
}
"""The same of a point cloud."""
