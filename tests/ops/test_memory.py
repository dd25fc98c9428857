"""Too little memory inside the compiled kernels, on any of their threads: an exception, and the process goes on."""

import os
import subprocess
import sys

import pytest

from geoattn import native

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason="needs the compiled kernels"),
    pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does"),
]

CASES = """
import resource
import threading
import torch
from geoattn import Neighbors, attend
from geoattn.ops import edge_dot, farthest_point_sample, knn, radius, vector_attend, weighted_sum

torch.set_num_threads(2)


def limited(call, megabytes):
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + int(megabytes * 2**20), -1))
    try:
        call()
    except (MemoryError, RuntimeError) as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))


N = 400_000
wide = Neighbors(torch.arange(N + 1, dtype=torch.int32), torch.zeros(N, dtype=torch.int32), 1)
one = Neighbors(torch.tensor([0, 30_000]), torch.zeros(30_000, dtype=torch.int64), 1)
ring = torch.randperm(40_000)
ring = Neighbors.from_edge_index(torch.stack([ring, ring.roll(1)]), 40_000)
q, k, v = torch.randn(N, 3, 1), torch.randn(1, 3, 1, requires_grad=True), torch.randn(1, 3, 1)
out = attend(q, k, v, wide)
wider = torch.randn(2, 64, 4_000)
x, pos = torch.randn(1, 512, requires_grad=True), torch.zeros(1, 3)
network = torch.nn.Sequential(torch.nn.Linear(3, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512))
star = torch.stack([torch.arange(400_000).flip(0), torch.zeros(400_000, dtype=torch.int64)])
points = torch.rand(100_000, 3)
forked = Neighbors(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), 2)
vector = vector_attend(x, x, x, one, pos, pos_nn=network)
calls = {
    "attend, gradients": lambda: torch.autograd.grad(out, k, torch.ones_like(out), retain_graph=True),
    "attend": lambda: attend(wider, wider, wider, forked),
    "edge_dot": lambda: edge_dot(wider, wider, forked),
    "weighted_sum": lambda: weighted_sum(torch.ones(2, 64), wider, forked),
    "vector_attend": lambda: vector_attend(x.detach(), x.detach(), x.detach(), one, pos, pos_nn=network),
    "vector_attend, gradients": lambda: vector.sum().backward(retain_graph=True),
    "visits": lambda: Neighbors(ring.rowptr, ring.col, 40_000, check=False).visits(),
    "compress": lambda: Neighbors.from_edge_index(star, 400_000),
    "knn": lambda: knn(points, 4),
    "radius": lambda: radius(points, 0.01),
    "farthest": lambda: farthest_point_sample(points, 10),
}
for name, call in calls.items():
    errors = [limited(call, megabytes) for megabytes in (0.5, 2, 8, 32, 128)]
    print(name, [type(error).__name__ for error in errors], flush=True)
    call()


def small():
    q = torch.randn(64, 1, 1, requires_grad=True)
    ring = Neighbors.from_edge_index(torch.stack([torch.arange(64), torch.arange(64).roll(1)]), 64)
    expected = attend(q.detach(), q.detach(), q.detach(), ring)
    # Threads are kept for each thread that calls the kernels: this one has none yet, and there is no room for a stack.
    found = []
    error = limited(lambda: found.append(attend(q.detach(), q.detach(), q.detach(), ring)), 4)
    print("threads", error, torch.equal(found[0], expected), flush=True)


torch.set_num_threads(1)
thread = threading.Thread(target=lambda: (torch.set_num_threads(2), small()))
thread.start()
thread.join()
print("done")
"""


def test_kernels_raise_where_memory_runs_out():
    # Memory that is freed goes back to the system, so that little of it is left in a limited process.
    heap = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", CASES], capture_output=True, text=True, env=os.environ | heap)
    assert done.stdout.endswith("done\n"), f"{done.stdout[-500:]}: {done.returncode} {done.stderr[-2000:]}"
    assert "threads None True" in done.stdout
    failed = [line for line in done.stdout.splitlines() if "MemoryError" in line]
    assert len(failed) > 5, done.stdout
