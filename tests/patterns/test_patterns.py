"""Patterns say who attends to whom: against sets of pairs, and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoattn import Neighbors, Windows

edge_lists = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=25)

# Two triangles that share the edge 1-2, and one that touches them in vertex 3 only.
FACE = torch.tensor([[0, 1, 2], [2, 1, 3], [3, 4, 5]]).T


def pairs(pattern):
    """(query, key) of every edge, in order."""
    return list(zip(pattern.row.tolist(), pattern.col.tolist(), strict=True))


@given(edge_lists)
def test_edge_index_there_and_back(edges):
    index = torch.tensor(edges, dtype=torch.int64).view(-1, 2).T
    pattern = Neighbors.from_edge_index(index, 6)
    assert pairs(pattern) == sorted((query, key) for key, query in edges)
    assert torch.equal(pattern.reorder_edges(index.T).T, pattern.to_edge_index())
    assert pattern.degree.sum() == len(edges)


@given(edge_lists)
def test_transposing_twice_gives_the_pattern_back(edges):
    pattern = Neighbors.from_edge_index(torch.tensor(edges, dtype=torch.int32).view(-1, 2).T, 6, 7)
    turned = pattern.transpose
    assert (turned.num_queries, turned.num_keys) == (7, 6)
    assert pairs(turned) == sorted((key, query) for query, key in pairs(pattern))
    assert torch.equal(turned.reorder_edges(pattern.row), turned.col)
    assert pairs(turned.transpose) == pairs(pattern)
    assert pattern.transpose is turned


@given(edge_lists, st.integers(1, 4))
def test_k_hop_reaches_what_walking_reaches(edges, hops):
    reached = {(i, i) for i in range(6)}
    for _ in range(hops):
        reached |= {(target, start) for end, start in reached for source, target in edges if source == end}
    pattern = Neighbors.k_hop(torch.tensor(edges, dtype=torch.int64).view(-1, 2).T, hops, 6)
    assert pairs(pattern) == sorted(reached)


def test_from_mesh():
    vertex = Neighbors.from_mesh(FACE)
    assert vertex.col[vertex.rowptr[3] : vertex.rowptr[4]].tolist() == [1, 2, 3, 4, 5]
    face = Neighbors.from_mesh(FACE, "face")
    assert pairs(face) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert pairs(Neighbors.from_mesh(FACE, "face", hops=2)) == [(i, j) for i in range(3) for j in range(3)]
    edge = Neighbors.from_mesh(FACE, "edge")
    assert edge.num_queries == 8
    assert edge.degree.tolist() == [3, 5, 3, 3, 3, 3, 3, 3]


def test_knn_and_radius():
    pos = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    assert pairs(Neighbors.knn(pos, 2)) == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 2), (2, 1), (3, 3), (3, 2)]
    assert pairs(Neighbors.radius(pos, 1.0)) == [
        (0, 0),
        (0, 1),
        (1, 1),
        (1, 0),
        (1, 2),
        (2, 2),
        (2, 1),
        (3, 3),
    ]


def test_index_type_and_device_move_together():
    pattern = Neighbors.from_edge_index(torch.tensor([[0, 1], [1, 0]])).to(torch.int32)
    assert pattern.rowptr.dtype == pattern.col.dtype == pattern.row.dtype == torch.int32
    assert pattern.transpose.col.dtype == torch.int32


def test_windows_write_out_their_pairs():
    windows = Windows.from_batch(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1, 2]), 3)
    assert pairs(windows.to_neighbors()) == [(0, 0), (1, 0), (2, 3)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Neighbors(torch.tensor([0, 2]), torch.tensor([0, 5]), 5), r"col must be in \[0, 5\)"),
        (lambda: Neighbors(torch.tensor([0, 1]), torch.tensor([-1]), 5), r"col must be in \[0, 5\)"),
        (lambda: Neighbors(torch.tensor([0, 2, 1]), torch.tensor([0]), 1), "rowptr must rise"),
        (lambda: Neighbors(torch.tensor([0, 1]), torch.tensor([0], dtype=torch.int32), 1), "both be int32"),
        (
            lambda: Neighbors.from_edge_index(torch.zeros(3, 2, dtype=torch.int64)),
            r"expected edge_index \[2, E\]",
        ),
        (
            lambda: Neighbors.from_edge_index(torch.tensor([[0], [7]]), 3),
            r"edge_index\[1\] must be in \[0, 3\)",
        ),
        (lambda: Neighbors.from_mesh(FACE, "corner"), "element must be"),
        (lambda: Neighbors.k_hop(torch.tensor([[0], [1]]), 0), "hops must be"),
        (lambda: Neighbors.knn(torch.zeros(2, 3), 1).reorder_edges(torch.zeros(2)), "no edge_order"),
        (lambda: Windows(torch.tensor([0, 1]), torch.tensor([0])), "expected query_ptr and key_ptr"),
        (lambda: Windows(torch.tensor([0, 2, 1])), "query_ptr must rise"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
