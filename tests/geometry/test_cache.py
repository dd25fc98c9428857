import os
import threading
import warnings

import pytest
import torch

from geoattn.geometry import cache, cache_dir, cached, clear_cache

calls = []


def double(x, factor=2.0, name=None):
    calls.append(name)
    return x * factor


def split(x, at):
    calls.append(at)
    return x[:at], x[at:].t()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOATTN_CACHE", str(tmp_path / "cache"))
    cache._warn_once.cache_clear()
    calls.clear()
    return tmp_path / "cache"


def test_second_call_reads_the_same_bits(folder):
    x = torch.randn(5, 4, dtype=torch.float64)
    first, second = cached(split, x, 2), cached(split, x, 2)
    assert len(calls) == 1
    assert isinstance(second, tuple)
    for a, b, c in zip(first, second, split(x, 2), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert a.dtype == b.dtype == torch.float64
    assert torch.equal(cached(double, x), x * 2)
    assert torch.equal(cached(double, x), x * 2)
    assert len(calls) == 3
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_every_dtype_and_shape(dtype):
    for shape in ((), (0,), (2, 3)):
        x = torch.ones(shape).to(dtype)
        assert torch.equal(cached(double, x, 1), cached(double, x, 1))


def test_each_argument_is_part_of_the_key():
    x = torch.arange(6.0)
    variants = [
        ((x,), {}),
        ((x + 1,), {}),
        ((x.double(),), {}),
        ((x.view(2, 3),), {}),
        ((x.view(3, 2),), {}),
        ((x, 3.0), {}),
        ((x, 3), {}),
        ((x,), {"factor": 3.0}),
        ((x,), {"name": "3"}),
        ((x,), {"name": ("a", "bc")}),
        ((x,), {"name": ("ab", "c")}),
        ((x,), {"name": (("a",), "bc")}),
    ]
    for args, kwargs in variants:
        assert torch.equal(cached(double, *args, **kwargs), double(*args, **kwargs))
    assert len(calls) == 2 * len(variants)
    # Equal content in another memory layout is the same key.
    cached(double, x.view(3, 2).t().contiguous().t())
    assert len(calls) == 2 * len(variants)


def test_broken_file_is_replaced(folder):
    x = torch.arange(4.0)
    cached(double, x)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[:-3], whole[:20]):
        path.write_bytes(content)
        assert torch.equal(cached(double, x), 2 * x)
        assert path.read_bytes() == whole
    assert len(calls) == 5


def test_unusable_folder_warns_once_and_computes(folder):
    folder.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="GEOATTN_CACHE"):
        first = cached(double, torch.tensor([1]))
    assert first.tolist() == [2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cached(double, torch.tensor([3])).tolist() == [6]


def test_failed_write_leaves_nothing(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        cached(double, torch.ones(3))
    assert list(folder.iterdir()) == []


def test_threads_share_the_folder(folder):
    x = torch.randn(1000)
    results = []
    threads = [threading.Thread(target=lambda: results.append(cached(double, x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, 2 * x) for result in results)
    assert len(results) == 8
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_clear_deletes_only_the_cache(folder):
    assert clear_cache() == 0
    cached(double, torch.ones(1))
    cached(double, torch.ones(2))
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


def test_what_has_no_key_is_refused():
    with pytest.raises(TypeError, match="top of a module"):
        cached(lambda x: x, torch.ones(1))
    with pytest.raises(TypeError, match="got"):
        cached(double, torch.ones(1), name=object())
