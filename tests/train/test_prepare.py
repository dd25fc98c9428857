"""Preparation: the same bits however many processes, variants that take turns, errors that name the sample."""

import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from geoattn.data import Bodies, MeshElements
from geoattn.models.labels import PrepareLabelled
from geoattn.train import Prepared
from geoattn.train.prepare import _Pickled, _Recipe


class Clouds:
    def __init__(self, length=5):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == 3 and self.length == 4:
            raise OSError("scan3.ply is empty")
        return Data(pos=torch.full((index + 1, 3), float(index)), name=f"scan{index}")


def jitter(sample, generator):
    """Draws from the generator and, as PyG's transforms do, from the global ones."""
    if sample.name == "scan7":
        raise KeyError("x")
    noise = 0.0 if generator is None else torch.rand(len(sample.pos), 3, generator=generator)
    return Data(
        pos=sample.pos + noise,
        crop=torch.rand(2, 4).t(),
        half=sample.pos.half(),
        name=sample.name,
        numbers=[random.random(), np.random.rand()],  # noqa: NPY002
        num_nodes=len(sample.pos),
    )


def same(a, b):
    return list(a.to_dict()) == list(b.to_dict()) and all(
        torch.equal(value, b[name]) and value.dtype == b[name].dtype if torch.is_tensor(value) else value == b[name]
        for name, value in a.to_dict().items()
    )


def read(prepared, epochs=3):
    for epoch in range(epochs):
        prepared.set_epoch(epoch)
        yield from (prepared[i] for i in range(len(prepared)))


def test_the_same_bits_in_any_number_of_processes():
    torch.manual_seed(1)
    expected = list(read(Prepared(Clouds(), jitter, copies=3, seed=5, workers=0)))
    for workers in (1, 2, None):
        torch.manual_seed(2)
        before = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
        found = list(read(Prepared(Clouds(), jitter, copies=3, seed=5, workers=workers)))
        assert all(same(a, b) for a, b in zip(expected, found, strict=True))
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (random.getstate(), torch.get_num_threads())
    other = list(read(Prepared(Clouds(), jitter, copies=3, seed=6, workers=0)))
    assert [same(a, b) for a, b in zip(expected, other, strict=True)].count(True) == 5  # the samples themselves


def test_copies_take_turns_and_the_first_is_the_sample_itself():
    clouds = Clouds()
    prepared = Prepared(clouds, jitter, copies=2, workers=0)
    first, second, third = (list(read(prepared, epoch))[-5:] for epoch in (1, 2, 3))
    assert all(same(a, b) for a, b in zip(first, third, strict=True))
    assert not any(same(a, b) for a, b in zip(first, second, strict=True))
    for i in range(5):
        assert torch.equal((first, second)[i % 2][i].pos, clouds[i].pos)


def test_one_more_copy_or_sample_changes_no_other():
    few, more = Prepared(Clouds(5), jitter, copies=2, workers=0), Prepared(Clouds(6), jitter, copies=3, workers=0)
    for prepared in (few, more):
        prepared.set_epoch(1)
    assert same(few[0], more[0])


def test_without_copies_each_epoch_has_new_variants():
    prepared = Prepared(Clouds(), jitter, copies=None, seed=3)
    seen = list(read(prepared))
    assert all(not same(a, b) for i, a in enumerate(seen) for b in seen[:i])
    again = Prepared(Clouds(), jitter, copies=None, seed=3)
    for workers in (0, 2):
        batches = []
        loader = DataLoader(again, 5, num_workers=workers, persistent_workers=workers > 0)
        for epoch in range(3):
            again.set_epoch(epoch)
            batches += [cloud for batch in loader for cloud in batch.to_data_list()]
        assert all(torch.equal(a.pos, b.pos) for a, b in zip(seen, batches, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_name_the_sample_and_the_reason(workers):
    with pytest.raises(ValueError, match=r"^sample 3 cannot be prepared: OSError: scan3.ply is empty$"):
        Prepared(Clouds(4), jitter, workers=workers)
    with pytest.raises(ValueError, match=r"^sample 7 \(scan7\) cannot be prepared: KeyError: 'x'$") as caught:
        Prepared(Clouds(9), jitter, workers=workers)
    if workers:
        assert 'raise KeyError("x")' in str(caught.value.__cause__)
    loader = DataLoader(Prepared(Clouds(9), jitter, copies=None), sampler=[7], num_workers=workers)
    with pytest.raises(ValueError, match=r"^sample 7 \(scan7\) cannot be prepared: KeyError: 'x'$") as caught:
        list(loader)  # in a process of torch's own, which repeats errors with their traceback as message
    assert 'raise KeyError("x")' in str(caught.value.__cause__) or not workers
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        Prepared(Clouds(), jitter, copies=0)
    with pytest.raises(ValueError, match="sample 3 cannot be prepared"):
        Prepared(Clouds(4), jitter, copies=None)[3]
    assert len(Prepared([], jitter, workers=workers)) == 0


def test_a_process_is_sent_bytes_alone():
    """Tensors would be sent as open files, one for each, and a data set has thousands."""
    recipe = _Recipe([Clouds()[2]], jitter, 2, 0, None)
    sent = pickle.loads(pickle.dumps(_Pickled(recipe)))
    result = sent[0]
    assert isinstance(result, bytes)
    assert all(same(a, b) for a, b in zip(pickle.loads(result), recipe[0], strict=True))
    assert _Pickled(recipe).__reduce__()[1][0].__class__ is bytes


@dataclass(frozen=True)
class Scaling:
    factor: float

    def prepare(self, sample, generator):
        prepared.append(sample.name)
        return Data(pos=sample.pos * self.factor, name=sample.name, num_nodes=len(sample.pos))


prepared = []


def test_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOATTN_CACHE", str(tmp_path))
    prepared.clear()

    def run(factor=2.0, clouds=None, **options):
        return list(read(Prepared(clouds or Clouds(), Scaling(factor).prepare, workers=0, cache=True, **options), 1))

    first, second = run(), run()
    assert len(prepared) == 5
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    run(seed=1)
    run(clouds=Clouds(3))
    run(clouds=[Clouds()[i] for i in (4, 2)])
    assert len(prepared) == 5  # a sample's own preparation depends on neither the seed nor its place
    run(copies=2)
    assert len(prepared) == 10
    run(copies=2, seed=1)
    assert len(prepared) == 15
    run(factor=3.0)
    assert len(prepared) == 20
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    assert all(same(a, b) for a, b in zip(first, run(), strict=True))
    assert len(prepared) == 25
    with pytest.raises(TypeError, match="top of a module"):
        Prepared(Clouds(), lambda sample, generator: sample, cache=True)
    with pytest.raises(ValueError, match="'numbers' is a list; only tensors, strings and numbers can be kept"):
        Prepared(Clouds(), jitter, cache=True)


def test_what_tasks_prepare_can_be_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOATTN_CACHE", str(tmp_path))
    prepare = PrepareLabelled(MeshElements(eigenpairs=4), 8)
    body = Bodies(1)[0]
    computed, again = (Prepared([body], prepare, copies=2, cache=True)[0] for _ in range(2))
    assert same(computed, again)
    assert same(computed, Prepared([body], prepare)[0])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="processes end with their parent on Linux")
@pytest.mark.parametrize("end", ["interrupt", "kill"])
def test_no_process_is_left(end):
    script = textwrap.dedent(r"""
        import os, signal, time
        from torch_geometric.data import Data
        from geoattn.train import Prepared

        signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells switch off for what they run behind

        def slow(sample, generator):
            os.write(1, b"%d\n" % os.getpid())
            time.sleep(600)

        Prepared([Data()] * 4, slow, workers=2)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    workers = [int(process.stdout.readline()) for _ in range(2)]
    if end == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    else:
        os.kill(process.pid, signal.SIGKILL)
    error = process.communicate(timeout=300)[1].decode()  # until no process has the pipes open
    assert ("KeyboardInterrupt" in error) == (end == "interrupt")
    if end == "interrupt":
        for worker in workers:
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)


def test_a_process_ended_from_outside_is_explained():
    def killed(sample, generator):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ChildProcessError, match=r"ended from outside, as systems do when memory runs out; .*--workers"):
        Prepared([Data()] * 2, killed, workers=1)
