"""What others compute attention with, on the same query, key and value."""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch_geometric.typing
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.utils import scatter, segment, softmax

from geoattn import Neighbors

# Of a loop in C++: how many edges ahead rows are fetched, and whether into the second level of the cache only.
LOOPS = {
    "C++ loop": (0, False),
    **{f"C++ loop, {ahead} ahead": (ahead, False) for ahead in (4, 8, 16)},
    **{f"C++ loop, {ahead} ahead in L2": (ahead, True) for ahead in (8, 16, 32)},
}
GATHERS = ("index_select", "embedding_bag", "sparse product", *LOOPS)


def dgl_error() -> str | None:
    """Why DGL cannot be used, or None."""
    try:
        importlib.import_module("dgl")
    except Exception as error:  # it raises many kinds when its libraries do not fit this torch
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def pyg(query: Tensor, key: Tensor, value: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """PyG's formulas (`TransformerConv` without its projections): gather, softmax, scatter."""
    nodes = query.size(0)
    score = (query.index_select(0, row) * key.index_select(0, col)).sum(-1) / math.sqrt(query.size(-1))
    weight = softmax(score, row, num_nodes=nodes)
    return scatter(value.index_select(0, col) * weight.unsqueeze(-1), row, 0, nodes, "sum")


def pyg_rows(query: Tensor, key: Tensor, value: Tensor, pattern: Neighbors) -> Tensor:
    """The same with PyG's operators for compressed rows, which use torch-scatter where it is installed."""
    score = (query.index_select(0, pattern.row) * key.index_select(0, pattern.col)).sum(-1) / math.sqrt(query.size(-1))
    weight = softmax(score, ptr=pattern.rowptr)
    return segment(value.index_select(0, pattern.col) * weight.unsqueeze(-1), pattern.rowptr, "sum")


def torch_scatter_rows(query: Tensor, key: Tensor, value: Tensor, pattern: Neighbors) -> Tensor:
    """The same formulas over torch-scatter's kernels for compressed rows, called directly."""
    library, rowptr = importlib.import_module("torch_scatter"), pattern.rowptr.long()
    score = (query.index_select(0, pattern.row) * key.index_select(0, pattern.col)).sum(-1) / math.sqrt(query.size(-1))
    highest = library.segment_csr(score.detach(), rowptr, reduce="max")
    weight = (score - library.gather_csr(highest, rowptr)).exp()
    weight = weight / library.gather_csr(library.segment_csr(weight, rowptr, reduce="sum"), rowptr)
    return library.segment_csr(value.index_select(0, pattern.col) * weight.unsqueeze(-1), rowptr, reduce="sum")


@contextmanager
def without_torch_scatter() -> Iterator[None]:
    """PyG as it is where torch-scatter is not installed."""
    before = torch_geometric.typing.WITH_TORCH_SCATTER
    torch_geometric.typing.WITH_TORCH_SCATTER = False
    try:
        yield
    finally:
        torch_geometric.typing.WITH_TORCH_SCATTER = before


class Given(torch.nn.Module):
    """Stands for a layer's projection where its result is given."""

    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, _: Tensor) -> Tensor:
        """The result, whatever comes in."""
        return self.result


def padded(query: Tensor, key: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """Plain dense attention over ``index`` ``[N, k]``, where all queries have equally many keys."""
    nodes, k = index.shape
    near_key, near_value = (x.index_select(0, index.flatten()).view(nodes, k, *x.shape[1:]) for x in (key, value))
    score = torch.einsum("nhd,nkhd->nhk", query, near_key) / math.sqrt(query.size(-1))
    return torch.einsum("nhk,nkhd->nhd", score.softmax(-1), near_value)


def dgl(query: Tensor, key: Tensor, value: Tensor, graph: object) -> Tensor:
    """DGL's sparse operators."""
    ops = importlib.import_module("dgl.ops")
    score = ops.v_dot_u(graph, query, key) / math.sqrt(query.size(-1))
    return ops.u_mul_e_sum(graph, value, ops.edge_softmax(graph, score))


def flex_knn(pos: Tensor, pattern: Neighbors) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention over k nearest neighbors: blocks that hold an edge are visited, distances mask what is in them.

    The ball of a query ends halfway between its last neighbor and the next one, so rounding does not matter.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    nodes, block = pattern.num_queries, 128
    k = int(pattern.degree[0])
    following = Neighbors.knn(pos.cpu(), k + 1).col.view(nodes, k + 1)[:, -2:].to(pos.device)
    reach = (pos[following] - pos.unsqueeze(1)).square().sum(-1).mean(1)

    def near(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        x, y, z = (pos[i, d] - pos[j, d] for d in range(3))
        return x * x + y * y + z * z < reach[i]

    blocks = -(-nodes // block)
    pair = torch.unique(pattern.row // block * blocks + pattern.col // block)
    active = torch.zeros(blocks * blocks, dtype=torch.int32, device=pos.device)
    active[pair] = 1
    active = active.view(blocks, blocks)
    order = active.argsort(dim=1, descending=True, stable=True).to(torch.int32)
    mask = BlockMask.from_kv_blocks(
        active.sum(1, dtype=torch.int32)[None, None], order[None, None], BLOCK_SIZE=block, mask_mod=near,
        seq_lengths=(nodes, nodes),
    )  # fmt: skip
    run = torch.compile(flex_attention) if pos.is_cuda else flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        return run(*heads_first, block_mask=mask).squeeze(0).transpose(0, 1)

    return attend


def gather(name: str, key: Tensor, value: Tensor, pattern: Neighbors) -> Callable[[], Callable[[], Tensor]] | None:
    """One of `GATHERS`: reads the rows of key and value once for every edge. None if it cannot run here.

    The fastest of them is a bound for any attention. The result makes its buffers and returns what is to be timed.
    """
    key, value = key.detach().flatten(1), value.detach().flatten(1)
    rowptr, col = pattern.rowptr, pattern.col

    def index_select() -> Callable[[], Tensor]:
        buffer = key.new_empty(pattern.num_edges, key.size(1))

        def run() -> Tensor:
            torch.index_select(key, 0, col, out=buffer)
            return torch.index_select(value, 0, col, out=buffer)

        return run

    def embedding_bag() -> Callable[[], Tensor]:
        def run() -> Tensor:
            F.embedding_bag(col, key, rowptr[:-1], mode="sum")
            return F.embedding_bag(col, value, rowptr[:-1], mode="sum")

        return run

    def product() -> Callable[[], Tensor]:
        ones = key.new_ones(pattern.num_edges)
        matrix = torch.sparse_csr_tensor(rowptr, col, ones, (pattern.num_queries, pattern.num_keys))

        def run() -> Tensor:
            matrix @ key
            return matrix @ value

        return run

    if name not in LOOPS:
        return {"index_select": index_select, "embedding_bag": embedding_bag, "sparse product": product}[name]
    if key.is_cuda or _compiled() is None:
        return None
    return lambda: functools.partial(_loop, key, value, rowptr, col, *LOOPS[name])


def _loop(key: Tensor, value: Tensor, rowptr: Tensor, col: Tensor, ahead: int, second: bool) -> Tensor:
    library = _compiled()
    assert library is not None
    out = key.new_empty(rowptr.numel() - 1)
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (key, value, rowptr, col, out)]
    numbers = [ctypes.c_int64(x) for x in (out.numel(), key.size(1), ahead, second, torch.get_num_threads())]
    library.gather(*pointers, *numbers)
    return out


@functools.cache
def _compiled() -> ctypes.CDLL | None:
    """`gather.cpp`, or None where there is no compiler."""
    here = Path(__file__).parent
    headers = here.parent / "geoattn" / "ops" / "backends" / "csrc"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "gather.so"
        flags = ["-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-shared", "-fPIC"]
        for chosen in (flags, [flag for flag in flags if not flag.startswith("-m")]):
            command = ["c++", *chosen, f"-I{headers}", str(here / "gather.cpp"), "-o", str(library)]
            try:
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                continue
            return ctypes.CDLL(str(library))
    return None
