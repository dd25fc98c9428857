"""The README's Python runs as it stands, one block after the other."""

import re
from pathlib import Path

import geoattn
from geoattn.data import Bodies


def test_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    geoattn.save("person.obj", Bodies(1)[0])
    readme = Path(__file__).parents[1] / "README.md"
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL):
        exec(compile(block, str(readme), "exec"), names)
    assert geoattn.load("parts.ply").label.max() == 7
    assert names["out"].shape == (1000, 4, 32)
    assert names["loss"].isfinite()
