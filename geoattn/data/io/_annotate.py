"""Copies of files of point clouds with labels: all that a file has is kept."""

import re
import warnings
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch_geometric.data import Data

from ._check import Array
from ._las import annotate_las, left_out_of_las
from ._mesh_readers import PLY_TYPES, check_ply
from ._output import write_whole
from ._pcd import annotate_pcd, left_out_of_pcd, with_columns
from ._writers import check_output, save

_FAMILY = {"las": "las", "laz": "las", "pcd": "pcd", "ply": "ply"}
_COPY = {"las": annotate_las, "pcd": annotate_pcd}
_LEFT_OUT = {"las": left_out_of_las, "pcd": left_out_of_pcd}


def annotate(
    source: str | PathLike[str],
    target: str | PathLike[str],
    data: Data,
    *,
    label: torch.Tensor | npt.ArrayLike,
    score: torch.Tensor | npt.ArrayLike | None = None,
) -> None:
    """Write the point cloud of a file to another, with a label and a score for each point.

    From las or laz to las or laz, from ply to ply and from pcd to pcd, all else stays as it is in the file:
    coordinates to the last bit, every attribute, header, coordinate system. Labels go to the ``classification`` of
    las and laz if it holds them (0 to 31, or to 255 in point formats 6 to 10), else to an extra dimension ``label``;
    in ply and pcd to the property ``label``. Scores are ``score``. Labels and scores that the file has already are
    replaced. Missing returns of an organized pcd, which :func:`load` leaves out, get the label -1 and the score 0. A
    compressed pcd comes out uncompressed.

    Between other formats, what :func:`load` read is written by :func:`save`, with a warning that names the rest.

    Args:
        source: The file.
        target: Where to write; may be ``source``. It is replaced in one step, or not at all.
        data: What :func:`load` made of ``source``.
        label: Integers, ``[N]``.
        score: Numbers, ``[N]``.

    Raises:
        ValueError: If there is not one label and one score for each point of ``data``, or ``target`` cannot hold them.
        OSError: If the folder of ``target`` does not exist or cannot be written in.

    """
    source, target = Path(source), Path(target)
    check_output(target, data, label_on="vertex")
    labels, scores = np.asarray(label), None if score is None else np.asarray(score, dtype=np.float32)
    for name, values in (("label", labels), ("score", scores)):
        if values is not None and values.shape != (len(data.pos),):
            raise ValueError(f"{name} has shape {list(values.shape)}, expected one number for each of {len(data.pos)}")
    if labels.dtype.kind not in "iu" or max(abs(int(labels.min())), abs(int(labels.max()))) >= 2**31:
        raise ValueError(f"label holds {labels.dtype} from {labels.min()} to {labels.max()}, expected 32-bit integers")

    family = _FAMILY.get(source.suffix[1:].lower())
    if data.get("face") is None and family is not None and family == _FAMILY.get(target.suffix[1:].lower()):
        with write_whole(target) as temporary:
            _COPY[family](source, temporary, labels, scores)
        return
    if left := _LEFT_OUT[family](source) if family in _LEFT_OUT else []:
        warnings.warn(f"{target}: {', '.join(left)} of {source.name} are kept by {_kept_by(family)} only", stacklevel=2)
    copy = data.clone()
    copy.score = scores if scores is None else torch.from_numpy(scores)
    save(target, copy, label=labels, label_on="vertex")


def _kept_by(family: str | None) -> str:
    return " and ".join(extension for extension, other in _FAMILY.items() if other == family)


def _annotate_ply(source: Path, target: Path, label: Array, score: Array | None) -> None:
    """Copy a file with other labels and scores."""
    raw = source.read_bytes()
    elements, lines = check_ply(raw)
    count, properties = elements["vertex"]
    columns = {"label": label.astype("<i4")} | ({} if score is None else {"score": score.astype("<f4")})
    added = [f"property {kind} {name}" for name, kind in (("label", "int"), ("score", "float")) if name in columns]

    end = re.search(rb"\nend_header[ \t]*\r?\n", raw)
    assert end is not None
    header, element = [], ""
    for line in raw[: end.start()].decode("utf-8", errors="surrogateescape").splitlines():
        words = line.split()
        if words[:1] == ["element"]:
            header += added if element == "vertex" else []
            element = words[1]
        if not (element == "vertex" and words[:1] == ["property"] and words[-1] in columns):
            header.append(line)
    header += [*(added if element == "vertex" else []), "end_header", ""]
    before = list(elements)[: list(elements).index("vertex")]
    names = [name for name, *_ in properties]
    if any(len(types) == 2 for name in ("vertex", *before) for _, *types in elements[name][1]):
        raise ValueError(f"{source}: lists in or before its vertices cannot be copied; use another format than ply")

    body = raw[end.end() :]
    if lines:
        rows = body.decode("ascii").splitlines()
        first = sum(elements[name][0] for name in before)
        kept = [i for i, name in enumerate(names) if name not in columns]
        for i, new in enumerate(zip(*(values.tolist() for values in columns.values()), strict=True)):
            words = rows[first + i].split()
            rows[first + i] = " ".join(
                [*(words[j] for j in kept), str(new[0]), *(f"{number:.9g}" for number in new[1:])]
            )
        new_body = ("\n".join(rows) + "\n").encode("ascii")
    else:
        order: Literal["<", ">"] = ">" if b"format binary_big_endian" in raw[: end.start()] else "<"
        dtype = [(name, order + PLY_TYPES[types[0]]) for name, *types in properties]
        start = sum(elements[n][0] * sum(np.dtype(PLY_TYPES[p[1]]).itemsize for p in elements[n][1]) for n in before)
        table = np.frombuffer(body, dtype, count, start)
        new_table = with_columns(table, {k: v.astype(v.dtype.newbyteorder(order)) for k, v in columns.items()})
        new_body = body[:start] + new_table.tobytes() + body[start + table.nbytes :]
    target.write_bytes("\n".join(header).encode("utf-8", errors="surrogateescape") + new_body)


_COPY["ply"] = _annotate_ply
