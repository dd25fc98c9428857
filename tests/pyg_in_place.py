"""A plugin of pytest that puts geoattn's layers into the place of PyG's, to run PyG's own tests on them.

Clone github.com/pyg-team/pytorch_geometric at 2.8.0.post1 to ``PYG``, and run

    python -m pytest -p tests.pyg_in_place -c PYG/pyproject.toml PYG/test/nn/conv/test_gat_conv.py ...
"""

import sys

import geoattn.nn.graph
from geoattn.nn.graph._drop_in import DropIn

LAYERS = [x for x in vars(geoattn.nn.graph).values() if isinstance(x, type) and issubclass(x, DropIn)]

for module in [module for name, module in sys.modules.items() if name.startswith("torch_geometric.")]:
    for layer in LAYERS:
        if getattr(module, layer.__name__, None) is layer.pyg_layer and module.__name__ != layer.pyg_layer.__module__:
            setattr(module, layer.__name__, layer)


def pytest_report_header():
    return f"geoattn's in place of PyG's: {', '.join(layer.__name__ for layer in LAYERS)}"
