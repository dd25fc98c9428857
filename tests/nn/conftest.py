import pytest

from geoattn.nn.graph import _drop_in


@pytest.fixture(autouse=True)
def _small_graphs_are_not_left_to_pyg(monkeypatch):
    """Tests are made of them."""
    monkeypatch.setattr(_drop_in, "_FEW_NUMBERS", 0)
