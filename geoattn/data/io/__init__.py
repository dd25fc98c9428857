"""Meshes and point clouds from files and to files.

``docs/formats.md`` says what each format keeps and through which package it is read. Archives (.zip) are not loaded:
unpack them first. Nothing is ever unpickled.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from os import PathLike
from pathlib import Path

from torch_geometric.data import Data

from ._annotate import annotate
from ._check import Arrays, LoadError, merge_vertices, to_data
from ._cloud_readers import read_npz, read_xyz
from ._las import read_las
from ._mesh_readers import ply_points, read_obj, read_off, read_ply, read_stl
from ._meshio_readers import read_msh, read_vtk, read_vtu
from ._output import check_path, write_whole
from ._pcd import read_pcd
from ._scene_readers import read_3mf, read_dae, read_glb, read_gltf
from ._writers import check_output, save

__all__ = [
    "READERS",
    "LoadError",
    "annotate",
    "check_output",
    "check_path",
    "load",
    "ply_points",
    "save",
    "write_whole",
]

READERS: dict[str, Callable[[Path], Arrays]] = {
    "3mf": read_3mf,
    "dae": read_dae,
    "glb": read_glb,
    "gltf": read_gltf,
    "las": read_las,
    "laz": read_las,
    "msh": read_msh,
    "npz": read_npz,
    "obj": read_obj,
    "off": read_off,
    "pcd": read_pcd,
    "ply": read_ply,
    "stl": read_stl,
    "vtk": read_vtk,
    "vtu": read_vtu,
    "xyz": read_xyz,
}
"""Reader of each file extension."""


def load(path: str | PathLike[str], *, process: bool = False) -> Data:
    """Load a mesh or a point cloud.

    Vertices keep the number and the order of the file, polygons become triangles (fans), and the axes stay as
    they are. The geometries of a scene are placed by its transforms and joined.

    Args:
        path: A file with one of the extensions in :data:`READERS`, in any case.
        process: Merge the vertices of a mesh that lie at exactly the same position. The attributes of the
            first one stay. If there are as many faces as vertices, attributes of other names than below count as
            the vertices'.

    Returns:
        Sample with ``pos`` [N, 3] float32, ``face`` [3, F] int64 (none for a point cloud), and what the file
        has of

        - ``color`` [N, 3 or 4] and ``face_color`` [F, 3 or 4], float32 in 0..1;
        - ``normal`` [N, 3] and ``uv`` [N, 2], float32, if each vertex has one of its own (v points up);
        - ``label`` [N or F] int64 (float32 if some are no integers) and ``scalar`` [N or F] float32, with
          ``label_on`` and ``scalar_on`` ("vertex" or "face") for what they describe;
        - ``part`` [F], or [N] for a cloud: the geometry of the scene, and ``part_name``, a list of their
          names, if there are several;
        - ``intensity`` and ``score`` [N] float32, of a cloud: what a scanner measured, in the unit of the file, and
          how sure the labels are;
        - ``origin`` [3] float64, for coordinates so far from zero that float32 would blur the shape (by more
          than 1e-5 of its size): ``pos + origin`` is where the file has its vertices.

        Attributes with values that are not finite are left out, with a warning.

    Raises:
        LoadError: If there is no such file, or it cannot be read whole: unknown extension, content that is
            not what the extension says, cut off, coordinates that are not finite, faces with vertices that do
            not exist, a header that announces more than the file holds. The message names file and reason.
        ImportError: If the format needs a package that is not installed; the message has the pip line.

    """
    path = Path(path)
    reader = READERS.get(path.suffix[1:].lower())
    if reader is None:
        raise LoadError(f"{path}: unknown extension {path.suffix!r}; supported are {', '.join(READERS)}")
    try:
        if not path.is_file():
            raise ValueError("it is a directory" if path.is_dir() else "no such file")
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with _quiet():
            arrays = reader(path)
        data = to_data(arrays)
    except (ImportError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    # Parsers raise anything: KeyError, MemoryError, and a Rust panic is not even an Exception.
    except BaseException as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise LoadError(f"{path}: {' '.join(reason.split())[:500]}") from error
    return merge_vertices(data) if process else data


_one_at_a_time = threading.RLock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what parsers print, log and warn: what matters of it is raised by the checks.

    These switches belong to the whole process, so one thread parses at a time.
    """
    with _one_at_a_time:
        logging_was = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with _no_output():
                yield
        finally:
            logging.disable(logging_was)


@contextmanager
def _no_output() -> Iterator[None]:
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        # numpy < 2.4 only warns where a text stops being numbers, which would be half a mesh
        warnings.filterwarnings("error", message="string or file could not be read")
        yield
