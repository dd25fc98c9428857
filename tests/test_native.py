"""The loader of the compiled kernels, and who does without them."""

import pytest
import torch

from geoattn import backend, native
from geoattn.geometry import search
from geoattn.geometry.search import brute_force, compiled, scipy_tree
from geoattn.ops import farthest_point_sample, knn, radius


@pytest.mark.skipif(native.library() is None, reason="needs the compiled kernels")
def test_searches_follow_a_forced_backend(monkeypatch):
    pos = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    expected = [knn(pos, 5), radius(pos, 0.2)], farthest_point_sample(pos, 50)
    monkeypatch.setattr(compiled, "_library", lambda: pytest.fail("the compiled kernels ran"))
    for name in ("torch", "reference"):
        with backend(name):
            found = [knn(pos, 5), radius(pos, 0.2)], farthest_point_sample(pos, 50)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    monkeypatch.setattr(native, "_LIBRARY", None)
    with backend("cpu"), pytest.raises(RuntimeError, match="'cpu' was asked for, but the CPU kernels were not built"):
        knn(pos, 5)


@pytest.mark.parametrize("dim", [3, 16])
def test_searches_without_kernels_choose_by_width(monkeypatch, dim):
    pos = torch.rand(300, dim, generator=torch.Generator().manual_seed(0))
    expected = knn(pos, 5)
    monkeypatch.setattr(native, "_LIBRARY", None)
    torch.testing.assert_close(knn(pos, 5), expected, rtol=0, atol=0)
    chosen = search._implementation(search._points(pos, None, None, None))
    assert chosen is (scipy_tree if dim == 3 else brute_force)


def test_kernels_that_were_not_built_are_named(monkeypatch):
    monkeypatch.setattr(native, "_LIBRARY", None)
    assert native.library() is None
    with pytest.raises(RuntimeError, match="not built; install a C\\+\\+ compiler"):
        native.function.__wrapped__("geoattn_attend_forward")
