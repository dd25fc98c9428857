"""Imports inside the package point one way: from what solves tasks to what it is made of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "geoattn").rglob("*.py"))
}

# What each part of the package may import besides itself.
BASE = ["_arguments", "_forced", "_optional", "native"]
OPERATORS = [*BASE, "geometry", "patterns", "ops.backends", "ops"]
LAYERS = [*OPERATORS, "nn", "metrics", "train"]
MAY_IMPORT = {
    **{name: [] for name in BASE},
    "native": ["_arguments"],
    "geometry": BASE,
    "patterns": [*BASE, "geometry"],
    "ops.backends": [*BASE, "geometry", "patterns"],
    "ops": OPERATORS,
    "nn": OPERATORS,
    "metrics": OPERATORS,
    "train": OPERATORS,
    "data": [*BASE, "geometry", "patterns"],
    "viz": [*BASE, "geometry", "data"],
    "models": [name for name in LAYERS if name != "ops.backends"] + ["data"],
    "__main__": ["cli"],
    "cli": [*LAYERS, "data", "viz", "models", "geoattn"],
}


class Import(NamedTuple):
    """A line of the package that imports one of its modules, at its top or anywhere below."""

    module: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{MODULES[self.module].relative_to(ROOT)}:{self.line} imports {self.target}"


def imports(module: str, text: str) -> Iterator[Import]:
    """All imports of modules of the package in the source of one of them."""
    package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            # `from package import name` imports a module of that name, if there is one.
            targets = [f"{source}.{a.name}" if f"{source}.{a.name}" in MODULES else source for a in node.names]
        else:
            continue
        for target in dict.fromkeys(targets):
            if target.split(".")[0] in ("geoattn", "tests", "benchmarks", "examples"):
                yield Import(module, node.lineno, target)


def part(module: str) -> str:
    """The part of the package that a module belongs to, as `MAY_IMPORT` names it."""
    inside = f"{module.removeprefix('geoattn.')}."
    return max((name for name in MAY_IMPORT if inside.startswith(f"{name}.")), key=len, default=module)


def offending(found: Iterator[Import]) -> list[str]:
    """What is wrong with some of the imports, in words."""
    wrong = []
    for line in found:
        importer, imported = part(line.module), part(line.target)
        if importer != imported and line.module != "geoattn" and imported not in MAY_IMPORT.get(importer, []):
            allowed = ", ".join(MAY_IMPORT.get(importer, [])) or "nothing of the package"
            wrong.append(f"{line}, but {importer} may import only {allowed}")
    return wrong


def test_imports_point_one_way():
    wrong = [text for module, path in MODULES.items() for text in offending(imports(module, path.read_text()))]
    assert not wrong, "\n".join(["imports that point the wrong way:", *wrong])


def test_no_modules_import_each_other():
    """Neither at once nor inside a function, where that would only hide it."""
    graph = {
        module: {line.target for line in imports(module, path.read_text())} - {module, "geoattn"}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("module", "text", "message"),
    [
        ("geoattn.geometry.mesh", "def f():\n    from geoattn.patterns import Neighbors", "mesh.py:2 .*geometry may"),
        ("geoattn.patterns", "from ..ops import knn", "imports geoattn.ops, but patterns may import only _arguments"),
        ("geoattn.patterns.rows", "from geoattn import native, nn", "imports geoattn.nn, but patterns"),
        ("geoattn.models.segmentation", "import geoattn.ops.backends.cpu", "but models may import"),
        ("geoattn.ops.edges", "import benchmarks.harness", "imports benchmarks.harness, but ops may"),
        ("geoattn.nn", "from geoattn import data", "imports geoattn.data, but nn may"),
    ],
)
def test_an_import_the_other_way_is_named(module, text, message):
    [wrong] = offending(imports(module, text))
    assert re.search(message, wrong)


def test_other_imports_are_not():
    text = "from geoattn import native\nfrom .search import knn\nimport torch\nfrom geoattn.geometry import mesh\n"
    assert not offending(imports("geoattn.geometry", text))
