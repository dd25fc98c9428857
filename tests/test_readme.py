"""The README's Python runs as it stands, one block after the other; what it links to exists."""

import re
from pathlib import Path

import pytest

import geoattn
from geoattn.data import Bodies

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md"), *ROOT.glob("datasets/*.md")]


def test_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    geoattn.save("person.obj", Bodies(1)[0])
    readme = ROOT / "README.md"
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL):
        exec(compile(block, str(readme), "exec"), names)
    assert geoattn.load("parts.ply").label.max() == 7
    assert names["out"].shape == (1000, 4, 32)
    assert names["parts"].label.shape == (names["mesh"].face.size(1),)


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


def test_the_version_is_the_same_everywhere():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == geoattn.__version__
    assert re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == geoattn.__version__
