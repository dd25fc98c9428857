// Dot products along the edges of compressed rows, and sums over the edges of every row with given weights.
//
// Tiles of 16 edges that share a row, all heads side by side, as in attention (simd_attend.cpp). Every number has one
// owner and every sum one order, so the bits do not depend on the number of threads.

#include <atomic>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "simd.h"
#include "simd_row.h"

namespace GEOATTN_NAMESPACE {
using geoattn::parallel_blocks;

namespace {

// Mirrors geoattn.ops.backends.edges_cpu._Call field by field. Strides are in elements.
struct Call {
  int64_t queries, keys, edges, heads, length;
  Visits rows;              // along the transpose, queries are keys here and keys queries
  const void *own, *other;  // [queries, heads, length], where they are read, and [keys, heads, length]
  int64_t own_stride[2], other_stride[2];
  void* edge;  // [edges, heads]: products, or weights
  void* out;   // [queries, heads, length]: sums
  int64_t dtype, threads;
};

template <class T, int P>
struct Edges {
  using A = Sum<T>;
  static constexpr int64_t kItem = sizeof(T);
  const Call& call;
  const int64_t H, L, padded;  // padded: heads in whole blocks of P, the last filled up with head 0
  std::vector<int64_t> in_own, in_other;  // bytes into a row where each head begins
  std::atomic<int> error{0};
  const Walk walk;

  explicit Edges(const Call& c)
      : call(c), H(c.heads), L(c.length), padded((H + P - 1) / P * P),
        walk(c.rows, c.queries, c.keys, c.edges, true, error) {
    for (int64_t h = 0; h < padded; ++h) {
      in_own.push_back((h < H ? h : 0) * c.own_stride[1] * kItem);
      in_other.push_back((h < H ? h : 0) * c.other_stride[1] * kItem);
    }
  }

  int products() {
    const auto dots_of = for_length<T, P>(L, dense<T>(in_other, L), [](auto n) { return dots<T, P, n>; });
    parallel_blocks(call.queries, grain(call.queries), static_cast<int>(call.threads), [&](int64_t from, int64_t to) {
      Buffer<A> copy(padded * L), product(kTile * P);
      walk.batches(from, to, [&](Batch& batch) {
        for (const Tile& tile : batch) {
          prefetch_row<T>(call.own, call.own_stride, H, L, tile.row_ahead);
          const A* own = own_row(tile.row, copy);
          for (int64_t h = 0; h < padded; h += P) {
            dots_of(own + h * L, others(tile, h), static_cast<int>(L), tile.count, A(1), product);
            for (int b = 0; b < tile.count; ++b)
              for (int64_t p = 0; p < P && h + p < H; ++p) at_edge(tile, b, h)[p] = static_cast<T>(product[b * P + p]);
          }
        }
      });
    });
    return error;
  }

  int sums() {
    const auto add = for_length<T, P>(L, dense<T>(in_other, L), [](auto n) { return add_rows<T, P, n, true>; });
    const Target<T, P> out(call.out, call.queries, H, L, H / P * P, 1);
    parallel_blocks(call.queries, grain(call.queries), static_cast<int>(call.threads), [&](int64_t from, int64_t to) {
      Buffer<A> sum(padded * L), copy(kTile * P);
      BlockSums<A> blocks(padded * L);
      walk.batches(from, to, [&](Batch& batch) {
        for (const Tile& tile : batch) {
          for (int64_t h = 0; h < padded; h += P)
            add(out.into(tile, sum, h, false, true), weights(tile, h, copy), others(tile, h), static_cast<int>(L),
                tile.count);
          blocks.add(tile, sum);
          if (tile.last) out.write_rest(tile, sum);
        }
      });
      finish_streams();
    });
    return error;
  }

  INLINE Rows<T> others(const Tile& tile, int64_t h) const {
    return {call.other, call.other_stride[0] * kItem, tile.node, &in_other[h]};
  }
  INLINE T* at_edge(const Tile& tile, int b, int64_t h) const {
    return static_cast<T*>(call.edge) + tile.edge[b] * H + h;
  }
  // A row, [padded, L]: where it lies, if it lies so, or else copied.
  INLINE const A* own_row(int64_t i, A* copy) const {
    const T* row = row_of<T>(call.own, call.own_stride, i);
    if constexpr (std::is_same_v<T, A>)
      if (padded == H && call.own_stride[1] == L) return row;
    copy_heads(row, in_own.data(), H, L, copy);
    return copy;
  }
  // Weights of a tile in a block of heads, [kTile, P], likewise.
  INLINE const A* weights(const Tile& tile, int64_t h, A* copy) const {
    if constexpr (std::is_same_v<T, A>)
      if (P == H && !call.rows.edge && tile.count) return at_edge(tile, 0, 0);
    for (int b = 0; b < tile.count; ++b) {
      prefetch(at_edge(tile, b + kAhead, h), P * kItem);
      for (int64_t p = 0; p < P; ++p) copy[b * P + p] = h + p < H ? static_cast<A>(at_edge(tile, b, h)[p]) : A(0);
    }
    return copy;
  }
};

template <class Work>
int with_type_and_heads(const void* p, const Work& work) {
  const Call& call = *static_cast<const Call*>(p);
  return geoattn::guarded([&] {
    return for_type_and_heads(call.dtype, call.heads, [&](auto type, auto heads) {
      Edges<decltype(type), heads> edges(call);
      return work(edges);
    });
  });
}

}  // namespace

GEOATTN_EXPORT(geoattn_edge_dot)(const void* call) {
  return with_type_and_heads(call, [](auto& edges) { return edges.products(); });
}
GEOATTN_EXPORT(geoattn_weighted_sum)(const void* call) {
  return with_type_and_heads(call, [](auto& edges) { return edges.sums(); });
}

}  // namespace GEOATTN_NAMESPACE
