"""The guides in docs/ run as they stand, each from top to bottom in an empty folder.

Run are blocks of ``python``, and of ``sh`` the lines that begin with ``geoattn``, or with ``python`` and the name of a
program that is the command line with a task of its own. What is not to be run is in a block of another kind,
``console`` or ``text``.
"""

import re
import shlex
from pathlib import Path

import pytest

from geoattn.cli import main
from geoattn.data import registry as data_sets
from geoattn.models import list_tasks
from geoattn.models import registry as networks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    list_tasks()  # the package's own come first, and stay; what a page registers ends with it
    for registry, name in ((data_sets, "_BUILDERS"), (networks, "_NETWORKS"), (networks, "_TASKS")):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    text, names = page.read_text(), {}
    for block in re.finditer(r"^```(python|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        kind, code = block.groups()
        if kind == "python":
            first_line = text[: block.start(2)].count("\n")
            exec(compile("\n" * first_line + code, str(page), "exec"), names)  # errors name the page's own lines
            continue
        for line in code.replace("\\\n", " ").splitlines():
            command = re.fullmatch(r"(?:geoattn|python \w+\.py) (.*)", line)
            if command:
                assert main(shlex.split(command[1])) == 0, f"{line}\n{capsys.readouterr().err}"


def test_the_task_of_the_guide_is_the_one_that_is_tested():
    assert f"```python\n{(ROOT / 'tests/models/toy_task.py').read_text()}```" in (DOCS / "adding.md").read_text()
