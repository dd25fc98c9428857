// Attention over compressed rows: softmax of scores, sum of values, and the gradients, with nothing stored per edge.
//
// Work goes row by row in tiles of 16 edges, and in a tile step by step, each for all heads, so that the processor has
// independent work at hand. The scores of a tile are 16 dot products of one query with 16 gathered rows, folded into
// vectors of scores; meanwhile the rows of edges further on are prefetched. Gradients of queries go along rows, gradients of keys and values along the transpose, so
// every sum has one owner and one order: the bits do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace GEOATTN_NAMESPACE {
using geoattn::parallel_blocks;

namespace {

constexpr int kTile = 16;
constexpr int kAhead = 16;  // edges between the one worked on and the one prefetched
constexpr int64_t kStream = 16 << 20;  // bytes from which a result is written around the cache

// Mirrors geoattn.ops.backends.cpu.Call field by field. Strides are in elements; null is absent.
struct Call {
  int64_t queries, keys, edges, heads, key_heads, dim, width;
  const void *query, *key, *value;
  int64_t query_stride[2], key_stride[2], value_stride[2];
  const void *rowptr, *col;
  const void *bias, *log_weight, *edge_key, *edge_value, *att;
  int64_t bias_heads, weight_heads, edge_key_heads, edge_value_heads;
  double scale, negative_slope, dropout;
  uint64_t seed;
  void *out, *lse;
  // Of the backward pass only.
  const void *t_rowptr, *t_row, *t_order;
  const void *grad_out, *grad_lse;
  int64_t grad_out_stride[2];
  void *grad_query, *grad_key, *grad_value, *grad_bias, *grad_log_weight, *grad_edge_key, *grad_edge_value, *grad_att;
  int64_t dtype, wide_index, threads;
};

// ---- What is done with the rows of a tile, for one head -------------------------------------------------------------

// Full vectors at compile time where N says how many; N = 0 reads any length, with a last part.
template <class T, int N>
struct Span {
  using A = Sum<T>;
  int length;
  INLINE int full() const { return N ? N : length / kWidth<A>; }
  INLINE int rest() const { return N ? 0 : length % kWidth<A>; }
};

// One number for each edge of a tile, kept in registers.
template <class A>
struct Lanes {
  static constexpr int W = kWidth<A>, kParts = kTile / W;
  Vec<A> part[kParts];

  template <class F>
  INLINE void each(const F& f) {
    for (int n = 0; n < kParts; ++n) f(n, part[n]);
  }
  INLINE void store_to(A* p) const {
    for (int n = 0; n < kParts; ++n) store(p + n * W, part[n]);
  }
  static INLINE Lanes from(const A* p) {
    Lanes x;
    for (int n = 0; n < kParts; ++n) x.part[n] = load(p + n * W);
    return x;
  }
};

// Lane b: leaf(b) summed over its lanes, for b < count; what lanes beyond hold is undefined.
template <class A, class Leaf>
INLINE Lanes<A> sums(const Leaf& leaf, int count) {
  constexpr int W = kWidth<A>;
  Lanes<A> x;
  for (int n = 0; n < Lanes<A>::kParts; ++n) {
    const int first = n * W, rest = count - first;
    if (rest <= 0) {
      x.part[n] = Vec<A>{};
      continue;
    }
    if constexpr (W >= 16) {
      if (rest > 8) {
        x.part[n] = tree<4, A>(leaf, first);
        continue;
      }
    }
    if constexpr (W >= 8) {
      if (rest > 4) {
        x.part[n] = fold_rest<8, A>(tree<3, A>(leaf, first));
        continue;
      }
    }
    if constexpr (W >= 4)
      x.part[n] = fold_rest<4, A>(tree<2, A>(leaf, first));
    else
      x.part[n] = tree<1, A>(leaf, first);
  }
  return x;
}

// Lane b: x . row[b]
template <class T, int N>
Lanes<Sum<T>> dots(const Sum<T>* x, const T* const* row, int64_t offset, int length, int count) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const Span<T, N> span{length};
  Vec<A> own[N ? N : 1];
  for (int n = 0; n < N; ++n) own[n] = load(x + n * W);
  return sums<A>(
      [&](int b) {
        const T* r = row[b] + offset;
        Vec<A> acc{};
        for (int n = 0; n < span.full(); ++n) acc += (N ? own[n] : load(x + n * W)) * load(r + n * W);
        if (span.rest()) acc += load_part(x + span.full() * W, span.rest()) * load_part(r + span.full() * W, span.rest());
        return acc;
      },
      count);
}

// sum[:] += sum_b weight[b] * row[b]
template <class T, int N>
void add_rows(Sum<T>* sum, const Sum<T>* weight, const T* const* row, int64_t offset, int length, int count) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const Span<T, N> span{length};
  if constexpr (N > 0) {
    Vec<A> even[N], odd[N];  // two chains, to hide the latency of additions
    for (int n = 0; n < N; ++n) even[n] = load(sum + n * W), odd[n] = Vec<A>{};
    int b = 0;
    for (; b + 1 < count; b += 2) {
      const T *r = row[b] + offset, *s = row[b + 1] + offset;
      for (int n = 0; n < N; ++n) even[n] += weight[b] * load(r + n * W);
      for (int n = 0; n < N; ++n) odd[n] += weight[b + 1] * load(s + n * W);
    }
    if (b < count)
      for (int n = 0; n < N; ++n) even[n] += weight[b] * load(row[b] + offset + n * W);
    for (int n = 0; n < N; ++n) store(sum + n * W, even[n] + odd[n]);
  } else {
    for (int n = 0; n < span.full(); ++n) {
      Vec<A> acc = load(sum + n * W);
      for (int b = 0; b < count; ++b) acc += weight[b] * load(row[b] + offset + n * W);
      store(sum + n * W, acc);
    }
    const int begin = span.full() * W;
    if (span.rest()) {
      Vec<A> acc = load_part(sum + begin, span.rest());
      for (int b = 0; b < count; ++b) acc += weight[b] * load_part(row[b] + offset + begin, span.rest());
      store_part(sum + begin, acc, span.rest());
    }
  }
}

template <class A>
INLINE Vec<A> leaky(Vec<A> x, A slope) {
  return x > 0 ? x : x * slope;
}

// What both additive functions read: their own row, the gathered rows, the terms of the edges (or null).
template <class T>
struct Additive {
  const Sum<T>*x, *att;
  const T* const* row;
  int64_t offset;
  const T* const* edge;
  int64_t edge_offset;
  Sum<T> slope;

  INLINE Vec<Sum<T>> at(int b, int begin) const {
    Vec<Sum<T>> y = load(x + begin) + load(row[b] + offset + begin);
    return edge ? y + load(edge[b] + edge_offset + begin) : y;
  }
  INLINE Vec<Sum<T>> part(int b, int begin, int rest) const {
    Vec<Sum<T>> y = load_part(x + begin, rest) + load_part(row[b] + offset + begin, rest);
    return edge ? y + load_part(edge[b] + edge_offset + begin, rest) : y;
  }
};

// Lane b: att . leaky_relu(x + row[b] + edge[b])
template <class T, int N>
Lanes<Sum<T>> additive(const Additive<T>& of, int length, int count) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  if (length == 1) {
    alignas(64) A score[kTile] = {};
    for (int b = 0; b < count; ++b) {
      A y = of.x[0] + static_cast<A>(of.row[b][of.offset]);
      if (of.edge) y += static_cast<A>(of.edge[b][of.edge_offset]);
      score[b] = of.att[0] * (y > 0 ? y : y * of.slope);
    }
    return Lanes<A>::from(score);
  }
  const Span<T, N> span{length};
  return sums<A>(
      [&](int b) {
        Vec<A> acc{};
        for (int n = 0; n < span.full(); ++n) acc += load(of.att + n * W) * leaky<A>(of.at(b, n * W), of.slope);
        const int begin = span.full() * W;
        if (span.rest())
          acc += load_part(of.att + begin, span.rest()) * leaky<A>(of.part(b, begin, span.rest()), of.slope);
        return acc;
      },
      count);
}

// With y = x + row[b] + edge[b]: sum[:] += sum_b weight[b] att leaky'(y), and grad_att[:] += sum_b weight[b] leaky(y).
template <class T, int N>
void additive_backward(const Additive<T>& of, const Sum<T>* weight, int length, int count, Sum<T>* sum,
                       Sum<T>* grad_att) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const Span<T, N> span{length};
  for (int n = 0; n < span.full(); ++n) {
    const Vec<A> rising = load(of.att + n * W), falling = rising * of.slope;
    Vec<A> acc = load(sum + n * W);
    Vec<A> acc_att = grad_att ? load(grad_att + n * W) : Vec<A>{};
    for (int b = 0; b < count; ++b) {
      const Vec<A> y = of.at(b, n * W);
      acc += weight[b] * (y > 0 ? rising : falling);
      if (grad_att) acc_att += weight[b] * leaky<A>(y, of.slope);
    }
    store(sum + n * W, acc);
    if (grad_att) store(grad_att + n * W, acc_att);
  }
  for (int d = span.full() * W; d < length; ++d) {
    for (int b = 0; b < count; ++b) {
      A y = of.x[d] + static_cast<A>(of.row[b][of.offset + d]);
      if (of.edge) y += static_cast<A>(of.edge[b][of.edge_offset + d]);
      sum[d] += weight[b] * of.att[d] * (y > 0 ? A(1) : of.slope);
      if (grad_att) grad_att[d] += weight[b] * (y > 0 ? y : y * of.slope);
    }
  }
}

// The functions for one length, chosen once per call.
template <class T>
struct Kernels {
  decltype(&dots<T, 0>) dots_;
  decltype(&add_rows<T, 0>) add_rows_;
  decltype(&additive<T, 0>) additive_;
  decltype(&additive_backward<T, 0>) additive_backward_;

  template <int N>
  static Kernels of() {
    return {dots<T, N>, add_rows<T, N>, additive<T, N>, additive_backward<T, N>};
  }
  explicit Kernels(int64_t length) {
    constexpr int W = kWidth<Sum<T>>;
    *this = length == W ? of<1>() : length == 2 * W ? of<2>() : length == 4 * W ? of<4>() : of<0>();
  }
  Kernels(decltype(dots_) a, decltype(add_rows_) b, decltype(additive_) c, decltype(additive_backward_) d)
      : dots_(a), add_rows_(b), additive_(c), additive_backward_(d) {}
};

// Keeps edge e in heads h, h + 1, h + 2, h + 3, h a multiple of 4: Philox4x32-10 (Salmon et al. 2011).
INLINE void philox(uint64_t seed, uint64_t edge, uint32_t group, uint32_t word[4]) {
  uint32_t c0 = static_cast<uint32_t>(edge), c1 = static_cast<uint32_t>(edge >> 32), c2 = group, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

// ---- One call -------------------------------------------------------------------------------------------------------

template <class T>
struct Attention {
  using A = Sum<T>;
  static constexpr int W = kWidth<A>;
  const Call& call;
  const int64_t H, G, D, C;
  const bool wide;
  const A scale, slope, keep_scale;
  const uint64_t threshold;
  const Kernels<T> of_dim, of_width;
  std::atomic<int> error{0};  // 1: a key out of range, 2: rowptr does not rise

  explicit Attention(const Call& c)
      : call(c), H(c.heads), G(c.key_heads), D(c.dim), C(c.width), wide(c.wide_index),
        scale(static_cast<A>(c.scale)), slope(static_cast<A>(c.negative_slope)),
        keep_scale(static_cast<A>(1.0 / (1.0 - c.dropout))),
        threshold(static_cast<uint64_t>(c.dropout * 4294967296.0)), of_dim(c.dim), of_width(c.width) {
    for (int64_t h = 0; h < H; ++h) {
      const int64_t g = h / (H / G);
      const auto shared = [&](int64_t number) { return number ? h / (H / number) : 0; };
      heads.push_back({g * c.key_stride[1], g * c.value_stride[1], h * c.query_stride[1], h * c.grad_out_stride[1],
                       g * D, g * C, shared(c.bias_heads), shared(c.weight_heads), shared(c.edge_key_heads) * D,
                       shared(c.edge_value_heads) * C});
    }
  }

  // Where a head of a query finds what is its own, in a row of each tensor.
  struct Head {
    int64_t key, value, query, grad_out;  // by the strides of the tensors
    int64_t dense_key, dense_value;       // in a row without gaps
    int64_t bias, weight, edge_key, edge_value;
  };
  std::vector<Head> heads;

  INLINE int64_t index(const void* p, int64_t i) const {
    return wide ? static_cast<const int64_t*>(p)[i] : static_cast<const int32_t*>(p)[i];
  }
  static const T* at(const void* p, const int64_t* stride, int64_t i) {
    return static_cast<const T*>(p) + i * stride[0];
  }

  // The 16 edges, or fewer, that are worked on, and what is gathered for them.
  struct Tile {
    int count;
    int64_t edge[kTile];       // position in col
    int64_t other[kTile];      // the node at the other end
    const T* first[kTile];     // row of key (along rows) or query (along the transpose)
    const T* second[kTile];    // row of value or grad_out
    int next;
    const T* next_first[kTile];  // the same of the edges kAhead further on
    const T* next_second[kTile];
    const T* edge_key[kTile];
    const T* edge_value[kTile];
    uint32_t word[kTile][4];  // random, of the group of four heads worked on
  };

  struct Side {
    const void *ptr, *node, *order;  // compressed rows; order is null along rows, where positions are their own
    int64_t count, others;
    const void *first, *second;
    const int64_t *first_stride, *second_stride;
    int64_t first_bytes, second_bytes;  // from the first head of a row to the end of its last
  };
  static int64_t bytes(const int64_t* stride, int64_t heads, int64_t length) {
    return ((heads - 1) * stride[1] + length) * static_cast<int64_t>(sizeof(T));
  }

  bool row_of(const Side& side, int64_t i, int64_t& begin, int64_t& end) {
    begin = index(side.ptr, i), end = index(side.ptr, i + 1);
    if (0 <= begin && begin <= end && end <= call.edges) return true;
    error = 2;
    return false;
  }

  // Reads the numbers of nodes begin to begin + count; those up to kTile repeat the first.
  INLINE void read(const void* p, int64_t begin, int count, int64_t* to) const {
    int64_t from[kTile];
    const int there = begin + kTile <= call.edges ? kTile : count;
    if (wide) {
      const int64_t* q = static_cast<const int64_t*>(p) + begin;
      if (there == kTile)
        for (int b = 0; b < kTile; ++b) from[b] = q[b];
      else
        for (int b = 0; b < there; ++b) from[b] = q[b];
    } else {
      const int32_t* q = static_cast<const int32_t*>(p) + begin;
      if (there == kTile)
        for (int b = 0; b < kTile; ++b) from[b] = q[b];
      else
        for (int b = 0; b < there; ++b) from[b] = q[b];
    }
    const int64_t first = from[0];
    for (int b = 0; b < kTile; ++b) to[b] = b < count ? from[b] : first;
  }
  static INLINE void rows(const void* p, int64_t stride, const int64_t* node, const T** to) {
    const T* base = static_cast<const T*>(p);
    for (int b = 0; b < kTile; ++b) to[b] = base + node[b] * stride;
  }
  static INLINE bool inside(const int64_t* node, int64_t count) {
    bool good = true;
    for (int b = 0; b < kTile; ++b) good &= static_cast<uint64_t>(node[b]) < static_cast<uint64_t>(count);
    return good;
  }

  INLINE bool gather(const Side& side, int64_t begin, int64_t end, Tile& tile) {
    tile.count = static_cast<int>(std::min<int64_t>(end - begin, kTile));
    read(side.node, begin, tile.count, tile.other);
    bool good = inside(tile.other, side.others);
    if (side.order) {
      read(side.order, begin, tile.count, tile.edge);
      good &= inside(tile.edge, call.edges);
    } else {
      for (int b = 0; b < kTile; ++b) tile.edge[b] = b < tile.count ? begin + b : begin;
    }
    if (!good) {
      error = 1;
      return false;
    }
    rows(side.first, side.first_stride[0], tile.other, tile.first);
    rows(side.second, side.second_stride[0], tile.other, tile.second);
    if (call.edge_key) rows(call.edge_key, call.edge_key_heads * D, tile.edge, tile.edge_key);
    if (call.edge_value) rows(call.edge_value, call.edge_value_heads * C, tile.edge, tile.edge_value);

    tile.next = static_cast<int>(std::clamp<int64_t>(call.edges - begin - kAhead, 0, tile.count));
    if (tile.next) {
      int64_t node[kTile];
      read(side.node, begin + kAhead, tile.next, node);
      rows(side.first, side.first_stride[0], node, tile.next_first);
      rows(side.second, side.second_stride[0], node, tile.next_second);
    }
    return true;
  }

  // Prefetches what the edges need that lie kAhead beyond those of the tile: in head h, its share of them. Rows that are
  // read first and rows that are read second are asked for at different times, or they would wait for each other.
  INLINE void prefetch(const T* const* row, int count, int64_t bytes, int64_t h) const {
    for (int b = static_cast<int>(h); b < count; b += static_cast<int>(H)) prefetch_row(row[b], bytes);
  }
  static INLINE void prefetch_row(const T* row, int64_t bytes) {
    const char *p = reinterpret_cast<const char*>(row), *end = p + bytes;
    for (; p + 256 <= end; p += 256) {
      __builtin_prefetch(p);
      __builtin_prefetch(p + 64);
      __builtin_prefetch(p + 128);
      __builtin_prefetch(p + 192);
    }
    for (; p < end; p += 64) __builtin_prefetch(p);
  }

  // Prefetches the row that two rows on will need.
  static INLINE void prefetch_own(const void* p, const int64_t* stride, int64_t heads, int64_t length, int64_t i,
                                  int64_t count) {
    if (i + 2 < count) prefetch_row(at(p, stride, i + 2), bytes(stride, heads, length));
  }

  // Copies one row, all its heads, into sums.
  static void widen(const T* row, int64_t head_stride, int64_t heads, int64_t length, A* to) {
    for (int64_t h = 0; h < heads; ++h, row += head_stride, to += length) {
      int64_t d = 0;
      for (; d + W <= length; d += W) store(to + d, load(row + d));
      for (; d < length; ++d) to[d] = static_cast<A>(row[d]);
    }
  }
  // to[:] = by * sum[:]
  static INLINE void narrow(const A* sum, A by, int64_t length, T* to, bool stream) {
    int64_t d = 0;
    if (stream && reinterpret_cast<uintptr_t>(to) % kBytes == 0)
      for (; d + W <= length; d += W) store<true>(to + d, load(sum + d) * by);
    for (; d + W <= length; d += W) store(to + d, load(sum + d) * by);
    for (; d < length; ++d) to[d] = static_cast<T>(sum[d] * by);
  }
  // Whether a result of so many numbers would drive everything else from the cache.
  static bool streams(int64_t numbers) { return numbers * static_cast<int64_t>(sizeof(T)) >= kStream; }

  Additive<T> additive_of(const Tile& tile, const A* own, int64_t h, int64_t offset) const {
    return {own,
            static_cast<const A*>(call.att) + h * D,
            tile.first,
            offset,
            call.edge_key ? tile.edge_key : nullptr,
            heads[h].edge_key,
            slope};
  }

  // Scores of a tile in head h, -inf beyond its edges; `own` is the row that all its edges share, `query` the same
  // where that is a query's, `key` the key of edge b.
  template <class KeyOf>
  INLINE Lanes<A> scores(const Tile& tile, const A* own, int64_t h, int64_t offset, const A* query,
                         const KeyOf& key) const {
    const int n = tile.count;
    Lanes<A> score;
    if (call.att) {
      score = of_dim.additive_(additive_of(tile, own, h, offset), static_cast<int>(D), n);
    } else {
      score = of_dim.dots_(own, tile.first, offset, static_cast<int>(D), n);
      if (call.edge_key) add(score, edge_dots(tile, h, offset, query));
      score.each([&](int, Vec<A>& x) { x *= scale; });
    }
    if (call.bias || call.log_weight) {
      alignas(64) A more[kTile] = {};
      if (call.bias) {
        const A* bias = static_cast<const A*>(call.bias) + heads[h].bias;
        for (int b = 0; b < n; ++b) more[b] = bias[tile.edge[b] * call.bias_heads];
      }
      if (call.log_weight) {
        const A* weight = static_cast<const A*>(call.log_weight) + heads[h].weight;
        for (int b = 0; b < n; ++b) more[b] += weight[key(b) * call.weight_heads];
      }
      add(score, Lanes<A>::from(more));
    }
    score.each([&](int part, Vec<A>& x) { x = lane_numbers() + part * W < n ? x : splat(A(-INFINITY)); });
    return score;
  }
  static INLINE Mask<A> lane_numbers() {
    Mask<A> lane;
    for (int l = 0; l < W; ++l) lane[l] = l;
    return lane;
  }
  static INLINE void add(Lanes<A>& x, const Lanes<A>& y) {
    x.each([&](int n, Vec<A>& part) { part += y.part[n]; });
  }
  // Dot products of queries with edge_key; along the transpose (query null) the queries are the gathered rows.
  Lanes<A> edge_dots(const Tile& tile, int64_t h, int64_t offset, const A* query) const {
    const int64_t edge_offset = heads[h].edge_key;
    if (query) return of_dim.dots_(query, tile.edge_key, edge_offset, static_cast<int>(D), tile.count);
    return pair_dots(tile.first, offset, tile.edge_key, edge_offset, D, tile.count);
  }
  static Lanes<A> pair_dots(const T* const* x, int64_t x_offset, const T* const* y, int64_t y_offset, int64_t length,
                            int count) {
    alignas(64) A sum[kTile] = {};
    for (int b = 0; b < count; ++b)
      for (int64_t d = 0; d < length; ++d)
        sum[b] += static_cast<A>(x[b][x_offset + d]) * static_cast<A>(y[b][y_offset + d]);
    return Lanes<A>::from(sum);
  }

  // 1 / (1 - dropout) where the edge is kept in head h, 0 where not. To be called for heads in their order.
  INLINE Lanes<A> keep(Tile& tile, int64_t h) const {
    alignas(64) A kept[kTile] = {};
    for (int b = 0; b < tile.count; ++b) {
      if (h % 4 == 0)
        philox(call.seed, static_cast<uint64_t>(tile.edge[b]), static_cast<uint32_t>(h / 4), tile.word[b]);
      kept[b] = tile.word[b][h % 4] >= threshold ? keep_scale : A(0);
    }
    return Lanes<A>::from(kept);
  }

  static INLINE A highest(const Lanes<A>& score) {
    Vec<A> top = score.part[0];
    for (int n = 1; n < Lanes<A>::kParts; ++n) top = score.part[n] > top ? score.part[n] : top;
    return max_lanes<1, A>(top);
  }
  static INLINE A total_of(const Lanes<A>& x) {
    Vec<A> total = x.part[0];
    for (int n = 1; n < Lanes<A>::kParts; ++n) total += x.part[n];
    return sum_lanes<A>(total);
  }

  int64_t grain(int64_t count) const { return std::clamp<int64_t>(count / 64, 16, 512); }

  Side along_rows() const {
    return {call.rowptr, call.col, nullptr, call.queries, call.keys, call.key, call.value, call.key_stride,
            call.value_stride, bytes(call.key_stride, G, D), bytes(call.value_stride, G, C)};
  }

  int forward() {
    const Side side = along_rows();
    const bool stream = streams(call.queries * H * C);
    parallel_blocks(call.queries, grain(call.queries), static_cast<int>(call.threads), [&](int64_t from, int64_t to) {
      Buffer<A> query(H * D), out(H * C), score(H * kTile), top(H + W), total(H + W), share(H + W);
      Tile tile;
      for (int64_t i = from; i < to; ++i) {
        int64_t begin, end;
        if (!row_of(side, i, begin, end)) return;
        prefetch_own(call.query, call.query_stride, H, D, i, call.queries);
        widen(at(call.query, call.query_stride, i), call.query_stride[1], H, D, query);
        std::fill(out + 0, out + H * C, A(0));
        std::fill(top + 0, top + H, A(-INFINITY));
        std::fill(total + 0, total + H, A(0));
        for (; begin < end; begin += kTile) {
          if (!gather(side, begin, end, tile)) return;
          for (int64_t h = 0; h < H; ++h) {
            prefetch(tile.next_first, tile.next, side.first_bytes, h);
            const A* q = query + h * D;
            scores(tile, q, h, heads[h].key, q, [&](int b) { return tile.other[b]; }).store_to(score + h * kTile);
          }
          for (int64_t h = 0; h < H; ++h) soften(tile, h, score + h * kTile, top[h], total[h], out + h * C);
          for (int64_t h = 0; h < H; ++h) {
            prefetch(tile.next_second, tile.next, side.second_bytes, h);
            const A* weight = score + h * kTile;
            A* sum = out + h * C;
            of_width.add_rows_(sum, weight, tile.second, heads[h].value, static_cast<int>(C), tile.count);
            if (call.edge_value)
              of_width.add_rows_(sum, weight, tile.edge_value, heads[h].edge_value, static_cast<int>(C), tile.count);
          }
        }
        A* to_lse = static_cast<A*>(call.lse) + i * H;
        for (int64_t h = 0; h < H; h += W) {
          const Vec<A> sum = load(total + h);
          const Mask<A> empty = sum == 0;
          store(share + h, empty ? Vec<A>{} : 1 / sum);
          const Vec<A> lse = empty ? splat(A(-INFINITY)) : load(top + h) + log(sum);
          store_part(to_lse + h, lse, static_cast<int>(std::min<int64_t>(H - h, W)));
        }
        T* to_out = static_cast<T*>(call.out) + i * H * C;
        for (int64_t h = 0; h < H; ++h) narrow(out + h * C, share[h], C, to_out + h * C, stream);
      }
      finish_streams();
    });
    return error;
  }

  // From the scores of a tile, in place, to weights relative to the highest score so far; rescales what was summed.
  INLINE void soften(Tile& tile, int64_t h, A* score, A& top, A& total, A* sum) const {
    Lanes<A> x = Lanes<A>::from(score);
    const A peak = std::max(highest(x), top);
    if (peak == -INFINITY) {  // hidden, every one of them, or NaN
      if (std::isnan(total_of(x))) total = NAN;
      x.each([](int, Vec<A>& part) { part = Vec<A>{}; });
      return x.store_to(score);
    }
    if (peak > top) {
      if (total != 0) {
        const A shrink = std::exp(top - peak);
        for (int64_t c = 0; c < C; ++c) sum[c] *= shrink;
        total *= shrink;
      }
      top = peak;
    }
    x.each([&](int, Vec<A>& part) { part = exp(part - peak); });
    total += total_of(x);
    if (call.dropout > 0) {
      const Lanes<A> kept = keep(tile, h);
      x.each([&](int n, Vec<A>& part) { part *= kept.part[n]; });
    }
    x.store_to(score);
  }

  // ---- Gradients ----------------------------------------------------------------------------------------------------
  // With p the weight of an edge, d its upstream gradient grad_out_i . value_j: ds = p (d - delta_i), where
  // delta_i = grad_out_i . out_i - grad_lse_i.

  A* stats = nullptr;  // [N, H, 2]: log-sum-exp (0 where a row is empty) and delta

  void prepare() {
    parallel_blocks(call.queries, 1024, static_cast<int>(call.threads), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const T* grad = at(call.grad_out, call.grad_out_stride, i);
        const T* out = static_cast<const T*>(call.out) + i * H * C;
        for (int64_t h = 0; h < H; ++h) {
          const T *g = grad + h * call.grad_out_stride[1], *o = out + h * C;
          Vec<A> acc{};
          int64_t c = 0;
          for (; c + W <= C; c += W) acc += load(g + c) * load(o + c);
          A delta = sum_lanes<A>(acc);
          for (; c < C; ++c) delta += static_cast<A>(g[c]) * static_cast<A>(o[c]);
          const A lse = static_cast<const A*>(call.lse)[i * H + h];
          if (call.grad_lse && lse != -INFINITY) delta -= static_cast<const A*>(call.grad_lse)[i * H + h];
          stats[(i * H + h) * 2] = lse == -INFINITY ? A(0) : lse;
          stats[(i * H + h) * 2 + 1] = delta;
        }
      }
    });
  }

  // In place, from scores to the weights that values were summed with, and from upstream gradients to ds.
  INLINE void chain(Tile& tile, int64_t h, A* score, A* upstream, const Lanes<A>& lse, const Lanes<A>& delta) const {
    Lanes<A> p = Lanes<A>::from(score), ds = Lanes<A>::from(upstream), kept;
    p.each([&](int n, Vec<A>& x) { x = exp(x - lse.part[n]); });
    if (call.dropout > 0) {
      kept = keep(tile, h);
      ds.each([&](int n, Vec<A>& x) { x *= kept.part[n]; });
    }
    ds.each([&](int n, Vec<A>& x) { x = p.part[n] * (x - delta.part[n]); });
    ds.store_to(upstream);
    if (call.dropout > 0) p.each([&](int n, Vec<A>& x) { x *= kept.part[n]; });
    p.store_to(score);
  }

  void along_queries() {
    const Side side = along_rows();
    const bool stream = streams(call.queries * H * D);
    const int64_t step = grain(call.queries);
    std::vector<A> att_parts;  // one sum per block, so that its order does not depend on threads
    if (call.grad_att) att_parts.resize((call.queries + step - 1) / step * H * D);
    parallel_blocks(call.queries, step, static_cast<int>(call.threads), [&](int64_t from, int64_t to) {
      Buffer<A> query(H * D), grad(H * C), sum(H * D), score(H * kTile), upstream(H * kTile), grad_bias(kTile),
          edge_key(kTile * D), edge_value(kTile * C);
      A* grad_att = call.grad_att ? att_parts.data() + from / step * H * D : nullptr;
      Tile tile;
      for (int64_t i = from; i < to; ++i) {
        int64_t begin, end;
        if (!row_of(side, i, begin, end)) return;
        prefetch_own(call.query, call.query_stride, H, D, i, call.queries);
        prefetch_own(call.grad_out, call.grad_out_stride, H, C, i, call.queries);
        widen(at(call.query, call.query_stride, i), call.query_stride[1], H, D, query);
        widen(at(call.grad_out, call.grad_out_stride, i), call.grad_out_stride[1], H, C, grad);
        std::fill(sum + 0, sum + H * D, A(0));
        for (; begin < end; begin += kTile) {
          if (!gather(side, begin, end, tile)) return;
          const int n = tile.count;
          for (int64_t h = 0; h < H; ++h) {
            prefetch(tile.next_first, tile.next, side.first_bytes, h);
            const A* q = query + h * D;
            scores(tile, q, h, heads[h].key, q, [&](int b) { return tile.other[b]; }).store_to(score + h * kTile);
          }
          for (int64_t h = 0; h < H; ++h) {
            Lanes<A> x = of_width.dots_(grad + h * C, tile.second, heads[h].value, static_cast<int>(C), n);
            if (call.edge_value)
              add(x, of_width.dots_(grad + h * C, tile.edge_value, heads[h].edge_value, static_cast<int>(C), n));
            x.store_to(upstream + h * kTile);
          }
          for (int64_t h = 0; h < H; ++h) {
            const A* own = stats + (i * H + h) * 2;
            Lanes<A> lse, delta;
            lse.each([&](int, Vec<A>& x) { x = splat(own[0]); });
            delta.each([&](int, Vec<A>& x) { x = splat(own[1]); });
            chain(tile, h, score + h * kTile, upstream + h * kTile, lse, delta);
          }
          for (int64_t h = 0; h < H; ++h) {
            prefetch(tile.next_second, tile.next, side.second_bytes, h);
            const A *q = query + h * D, *weight = score + h * kTile, *ds = upstream + h * kTile;
            if (call.att) {
              if (call.grad_query || call.grad_att)
                of_dim.additive_backward_(additive_of(tile, q, h, heads[h].key), ds, static_cast<int>(D), n,
                                          sum + h * D, grad_att ? grad_att + h * D : nullptr);
            } else if (call.grad_query) {
              of_dim.add_rows_(sum + h * D, ds, tile.first, heads[h].key, static_cast<int>(D), n);
              if (call.edge_key)
                of_dim.add_rows_(sum + h * D, ds, tile.edge_key, heads[h].edge_key, static_cast<int>(D), n);
            }
            if (call.grad_bias) spread_bias(tile, h, ds, grad_bias);
            if (call.grad_edge_key) spread_edge_key(tile, h, heads[h].key, q, ds, edge_key);
            if (call.grad_edge_value) spread_edge_value(tile, h, grad + h * C, weight, edge_value);
          }
        }
        if (call.grad_query)
          narrow(sum, call.att ? A(1) : scale, H * D, static_cast<T*>(call.grad_query) + i * H * D, stream);
      }
      finish_streams();
    });
    if (!call.grad_att) return;
    A* total = static_cast<A*>(call.grad_att);
    std::fill(total, total + H * D, A(0));
    for (size_t k = 0; k < att_parts.size(); ++k) total[k % (H * D)] += att_parts[k];
  }

  // Gradients per edge: heads that share a term are summed before it is written.
  void spread_bias(const Tile& tile, int64_t h, const A* ds, A* sum) const {
    const int64_t share = H / call.bias_heads;
    for (int b = 0; b < tile.count; ++b) sum[b] = (h % share ? sum[b] : A(0)) + ds[b];
    if (h % share != share - 1) return;
    A* to = static_cast<A*>(call.grad_bias) + h / share;
    for (int b = 0; b < tile.count; ++b) to[tile.edge[b] * call.bias_heads] = sum[b];
  }
  void spread_edge_key(const Tile& tile, int64_t h, int64_t offset, const A* query, const A* ds, A* sum) const {
    const int64_t share = H / call.edge_key_heads, head = h / share;
    if (h % share == 0) std::fill(sum, sum + kTile * D, A(0));
    const A* att = call.att ? static_cast<const A*>(call.att) + h * D : nullptr;
    for (int b = 0; b < tile.count; ++b) {
      for (int64_t d = 0; d < D; ++d) {
        if (att) {
          const A y = query[d] + static_cast<A>(tile.first[b][offset + d]) +
                      static_cast<A>(tile.edge_key[b][head * D + d]);
          sum[b * D + d] += ds[b] * att[d] * (y > 0 ? A(1) : slope);
        } else {
          sum[b * D + d] += ds[b] * scale * query[d];
        }
      }
    }
    if (h % share == share - 1) write_edges(tile, sum, call.grad_edge_key, call.edge_key_heads, head, D);
  }
  void spread_edge_value(const Tile& tile, int64_t h, const A* grad, const A* weight, A* sum) const {
    const int64_t share = H / call.edge_value_heads;
    if (h % share == 0) std::fill(sum, sum + kTile * C, A(0));
    for (int b = 0; b < tile.count; ++b)
      for (int64_t c = 0; c < C; ++c) sum[b * C + c] += weight[b] * grad[c];
    if (h % share == share - 1) write_edges(tile, sum, call.grad_edge_value, call.edge_value_heads, h / share, C);
  }
  static void write_edges(const Tile& tile, const A* sum, void* to, int64_t heads, int64_t head, int64_t length) {
    for (int b = 0; b < tile.count; ++b) {
      T* row = static_cast<T*>(to) + (tile.edge[b] * heads + head) * length;
      for (int64_t d = 0; d < length; ++d) row[d] = static_cast<T>(sum[b * length + d]);
    }
  }

  void along_keys() {
    const Side side = {call.t_rowptr, call.t_row, call.t_order, call.keys, call.queries, call.query, call.grad_out,
                       call.query_stride, call.grad_out_stride, bytes(call.query_stride, H, D),
                       bytes(call.grad_out_stride, H, C)};
    const bool stream = streams(call.keys * G * std::max(D, C));
    parallel_blocks(call.keys, grain(call.keys), static_cast<int>(call.threads), [&](int64_t from, int64_t to) {
      Buffer<A> key(G * D), value(G * C), sum_key(G * D), sum_value(G * C), sum_weight(H), score(H * kTile),
          upstream(H * kTile);
      Buffer<A> of_query(2 * H * kTile);  // log-sum-exp, then delta, per head, of the queries of a tile
      Tile tile;
      for (int64_t j = from; j < to; ++j) {
        int64_t begin, end;
        if (!row_of(side, j, begin, end)) return;
        prefetch_own(call.key, call.key_stride, G, D, j, call.keys);
        prefetch_own(call.value, call.value_stride, G, C, j, call.keys);
        widen(at(call.key, call.key_stride, j), call.key_stride[1], G, D, key);
        widen(at(call.value, call.value_stride, j), call.value_stride[1], G, C, value);
        std::fill(sum_key + 0, sum_key + G * D, A(0));
        std::fill(sum_value + 0, sum_value + G * C, A(0));
        std::fill(sum_weight + 0, sum_weight + H, A(0));
        for (; begin < end; begin += kTile) {
          if (!gather(side, begin, end, tile)) return;
          const int n = tile.count;
          for (int b = 0; b < n; ++b)
            for (int64_t s = 0; s < 2 * H; ++s) of_query[s * kTile + b] = stats[tile.other[b] * 2 * H + s];
          for (int64_t h = 0; h < H; ++h) {
            prefetch(tile.next_first, tile.next, side.first_bytes, h);
            scores(tile, key + heads[h].dense_key, h, heads[h].query, nullptr, [&](int) { return j; })
                .store_to(score + h * kTile);
          }
          for (int64_t h = 0; h < H; ++h) {
            const A* v = value + heads[h].dense_value;
            Lanes<A> x = of_width.dots_(v, tile.second, heads[h].grad_out, static_cast<int>(C), n);
            if (call.edge_value)
              add(x, pair_dots(tile.second, heads[h].grad_out, tile.edge_value, heads[h].edge_value, C, n));
            x.store_to(upstream + h * kTile);
          }
          for (int64_t h = 0; h < H; ++h) {
            const A* own = of_query + 2 * h * kTile;
            chain(tile, h, score + h * kTile, upstream + h * kTile, Lanes<A>::from(own), Lanes<A>::from(own + kTile));
          }
          for (int64_t h = 0; h < H; ++h) {
            prefetch(tile.next_second, tile.next, side.second_bytes, h);
            const A *weight = score + h * kTile, *ds = upstream + h * kTile;
            if (call.grad_key) {
              A* sum = sum_key + heads[h].dense_key;
              if (call.att)
                of_dim.additive_backward_(additive_of(tile, key + heads[h].dense_key, h, heads[h].query), ds,
                                          static_cast<int>(D), n, sum, nullptr);
              else
                of_dim.add_rows_(sum, ds, tile.first, heads[h].query, static_cast<int>(D), n);
            }
            if (call.grad_value)
              of_width.add_rows_(sum_value + heads[h].dense_value, weight, tile.second, heads[h].grad_out,
                                 static_cast<int>(C), n);
            if (call.grad_log_weight)
              for (int b = 0; b < n; ++b) sum_weight[h] += ds[b];
          }
        }
        if (call.grad_key)
          narrow(sum_key, call.att ? A(1) : scale, G * D, static_cast<T*>(call.grad_key) + j * G * D, stream);
        if (call.grad_value) narrow(sum_value, A(1), G * C, static_cast<T*>(call.grad_value) + j * G * C, stream);
        if (call.grad_log_weight) {
          A* to_weight = static_cast<A*>(call.grad_log_weight) + j * call.weight_heads;
          std::fill(to_weight, to_weight + call.weight_heads, A(0));
          for (int64_t h = 0; h < H; ++h) to_weight[heads[h].weight] += sum_weight[h];
        }
      }
      finish_streams();
    });
  }

  int backward() {
    Buffer<A> of_rows(call.queries * H * 2);
    stats = of_rows;
    prepare();
    if (call.grad_query || call.grad_bias || call.grad_edge_key || call.grad_edge_value || call.grad_att)
      along_queries();
    if (!error && (call.grad_key || call.grad_value || call.grad_log_weight)) along_keys();
    return error;
  }
};

template <class T>
int run(const Call& call, bool backward) {
  Attention<T> attention(call);
  return backward ? attention.backward() : attention.forward();
}

int dispatch(const Call& call, bool backward) {
  switch (call.dtype) {
    case 0: return run<float>(call, backward);
    case 1: return run<double>(call, backward);
    case 2: return run<bf16>(call, backward);
    case 3: return run<f16>(call, backward);
    default: return -1;
  }
}

}  // namespace
}  // namespace GEOATTN_NAMESPACE

GEOATTN_EXPORT(geoattn_attend_forward)(const void* call) {
  return GEOATTN_NAMESPACE::dispatch(*static_cast<const GEOATTN_NAMESPACE::Call*>(call), false);
}
GEOATTN_EXPORT(geoattn_attend_backward)(const void* call) {
  return GEOATTN_NAMESPACE::dispatch(*static_cast<const GEOATTN_NAMESPACE::Call*>(call), true);
}
