import functools
import os
import random
import threading
import warnings
from dataclasses import dataclass

import pytest
import torch

from geoattn.data import MeshElements
from geoattn.geometry import cache, cache_dir, clear_cache
from geoattn.geometry.cache import cached, fingerprint

calls = []


def double(x):
    def compute():
        calls.append(x)
        return {"x": 2 * x, "name": "ü", "count": 3, "scale": 0.1, "whole": True, "nothing": None, "json": x.t()}

    return compute


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOATTN_CACHE", str(tmp_path / "cache"))
    cache._warn_once.cache_clear()
    calls.clear()
    return tmp_path / "cache"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_what_is_read_is_what_was_computed(dtype):
    for i, shape in enumerate([(), (0,), (2, 3)]):
        x = torch.ones(shape).to(dtype)
        expected = double(x)()
        for found in (cached(f"{dtype}{i}", double(x)) for _ in range(2)):
            assert list(found) == list(expected)
            for name, value in expected.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(found[name], value)
                    assert found[name].dtype == value.dtype
                else:
                    assert found[name] == value
                    assert type(found[name]) is type(value)
    assert len(calls) == 6  # one of each two by this test


@dataclass(frozen=True)
class Options:
    size: float
    names: tuple[str, ...] = ()

    def method(self):
        pass

    def other(self):
        pass


@dataclass(frozen=True)
class OtherOptions:
    size: float
    names: tuple[str, ...] = ()


def test_different_content_has_different_fingerprints():
    x = torch.arange(6.0)
    different = [
        (),
        (x,),
        (x + 1,),
        (x.double(),),
        (x.view(2, 3),),
        (x.view(3, 2),),
        (x, x),
        ((x, x),),
        (3,),
        (3.0,),
        ("3",),
        (True,),
        (None,),
        (("a", "bc"),),
        (("ab", "c"),),
        ((("a",), "bc"),),
        (["a", "bc"],),
        ({"a": "bc"},),
        ({"a": x},),
        (Options(3),),
        (Options(3.0),),
        (Options(3, ("a",)),),
        (OtherOptions(3),),
        (Options(3).method,),
        (Options(4).method,),
        (Options(3).other,),
        (MeshElements(),),
        (MeshElements(hops=2),),
        (Options,),
        (test_folder,),
        (double,),
    ]
    assert len({fingerprint(*values) for values in different}) == len(different)
    # Equal content in another memory layout has the same one.
    assert fingerprint(x.view(3, 2).t().contiguous().t()) == fingerprint(x.view(3, 2))
    assert fingerprint(Options(3, ("a",)).method) == fingerprint(Options(3, ("a",)).method)


class HasState(random.Random):
    """Its numbers depend on more than its attributes."""


@pytest.mark.parametrize(
    "value", [lambda: 0, double(None), functools.partial(double, 1), HasState(), Options(lambda: 0).method, object()]
)
def test_what_may_change_unseen_is_refused(value):
    with pytest.raises(TypeError, match=r"nothing says when .* changes"):
        fingerprint(value)


def test_what_cannot_be_kept_is_refused(folder):
    for value in ([1], (1,), object(), torch.eye(2).to_sparse()):
        with pytest.raises(TypeError, match=r"'x' is a .*; only tensors, strings and numbers can be kept"):
            cached("key", lambda value=value: {"x": value})
    assert not folder.exists()


def test_broken_file_is_replaced(folder):
    x = torch.arange(4.0)
    cached("key", double(x))
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[:-3], whole[:20]):
        path.write_bytes(content)
        assert torch.equal(cached("key", double(x))["x"], 2 * x)
        assert path.read_bytes() == whole
    assert len(calls) == 5


def test_unusable_folder_warns_once_and_computes(folder):
    folder.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="GEOATTN_CACHE"):
        first = cached("key", double(torch.tensor([1])))
    assert first["x"].tolist() == [2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cached("key", double(torch.tensor([3])))["x"].tolist() == [6]


def test_failed_write_leaves_nothing(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        cached("key", double(torch.ones(3)))
    assert list(folder.iterdir()) == []


def test_threads_share_the_folder(folder):
    x = torch.randn(1000)
    results = []
    threads = [threading.Thread(target=lambda: results.append(cached("key", double(x)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result["x"], 2 * x) for result in results)
    assert len(results) == 8
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_clear_deletes_only_the_cache(folder):
    assert clear_cache() == 0
    cached("key", double(torch.ones(1)))
    cached("other", double(torch.ones(2)))
    (folder / "notes.txt").write_text("mine")
    assert clear_cache() == 2
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("GEOATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "geoattn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "geoattn"
