"""The guides in docs/ run as they stand, each from top to bottom in an empty folder.

Run are blocks of ``python``, and of ``sh`` the lines that begin with ``geoattn``. What is not to be run is in a block
of another kind, ``console`` or ``text``.
"""

import re
import shlex
from pathlib import Path

import pytest

from geoattn.cli import main
from geoattn.data import registry

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))  # what a page registers ends with it
    text, names = page.read_text(), {}
    for block in re.finditer(r"^```(python|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        kind, code = block.groups()
        if kind == "python":
            first_line = text[: block.start(2)].count("\n")
            exec(compile("\n" * first_line + code, str(page), "exec"), names)  # errors name the page's own lines
            continue
        for line in code.replace("\\\n", " ").splitlines():
            if line.startswith("geoattn "):
                assert main(shlex.split(line)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
