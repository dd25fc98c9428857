"""The README's Python runs as it stands, one block after the other; links lead somewhere, options exist."""

import argparse
import re
import shlex
import warnings
from pathlib import Path

import pytest

import geoattn
from geoattn.cli import main
from geoattn.models import list_models

ROOT = Path(__file__).parents[1]
PAGES = [path for folder in ("", "docs", "examples/graph", "datasets") for path in sorted((ROOT / folder).glob("*.md"))]
COMMANDS = [
    f"{path.relative_to(ROOT)}: {line}"
    for path in (*PAGES, *sorted(ROOT.glob("geoattn/**/assets/*/README.md")), *sorted(ROOT.glob("examples/*.py")))
    for line in re.findall(
        r"^ *(?:torchrun .* -m )?geoattn ((?:segment|info|train|evaluate) .*)", path.read_text(), re.MULTILINE
    )
]


def test_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = ROOT / "README.md"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec(re.search(r'python -c "(.*)"', readme.read_text())[1])
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL):
        exec(compile(block, str(readme), "exec"), names)
    assert geoattn.load("parts.ply").label.max() == 7
    assert names["out"].shape == (1000, 4, 32)
    assert names["parts"].label.shape == (names["mesh"].face.size(1),)


def test_the_table_of_layers_and_networks_is_of_what_there_is():
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Layers and networks") : readme.index("## Install")]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("|")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 20
    known = {*geoattn.nn.__all__, *geoattn.nn.graph.__all__, *list_models()}
    assert named <= known
    assert set(list_models()) <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link, image in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page.read_text()):
        target = link or image
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            # As GitHub makes anchors of headings.
            assert anchor in [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings], target


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_the_options_they_are_given(command, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, argv):
        found = parse(parser, argv)
        found.run = lambda arguments: None
        return found

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    line = command.partition(": ")[2].removesuffix("\\")
    assert main(shlex.split(line, comments=True)) == 0


def test_the_version_is_the_same_everywhere():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == geoattn.__version__
    assert re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == geoattn.__version__
