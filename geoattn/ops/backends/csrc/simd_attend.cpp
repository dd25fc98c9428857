// Attention over compressed rows: softmax of scores, sum of values, and the gradients, with nothing stored per edge.
//
// Work goes row by row in tiles of 16 edges, and in a tile edge by edge, all heads of it side by side: a row of keys is
// read from end to end, and its dot products are folded into vectors of scores that hold several edges, so that a short
// row wastes little. Meanwhile the rows of edges further on are prefetched. Gradients of queries go along rows,
// gradients of keys and values along the transpose, so every sum has one owner and one order: the bits do not depend on
// the number of threads.

#include <algorithm>
#include <atomic>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.h"
#include "simd.h"
#include "simd_row.h"

namespace GEOATTN_NAMESPACE {
using geoattn::parallel_blocks;

namespace {

// Mirrors geoattn.ops.backends.cpu._Call field by field. Strides are in elements; null is absent.
struct Call {
  int64_t queries, keys, edges, heads, key_heads, dim, width;
  const void *query, *key, *value;
  int64_t query_stride[2], key_stride[2], value_stride[2];
  Visits rows;
  const void *bias, *log_weight, *edge_key, *edge_value, *att;
  int64_t bias_heads, weight_heads, edge_key_heads, edge_value_heads;
  double scale, negative_slope, dropout;
  uint64_t seed;
  void *out, *lse;  // the backward pass reads lse alone
  // Of the backward pass only. grad_value may be grad_key where scores are additive: then it is the sum of both.
  Visits columns;  // the transpose
  const void *grad_out, *grad_lse;
  int64_t grad_out_stride[2];
  void *grad_query, *grad_key, *grad_value, *grad_bias, *grad_log_weight, *grad_edge_key, *grad_edge_value, *grad_att;
  int64_t dtype, threads;
};

// ---- One call -------------------------------------------------------------------------------------------------------

// Heads go side by side in blocks of P, at most 8 and at most a vector; the last block is filled up with copies of
// head 0, whose results are dropped.
template <class T, int P>
struct Attention {
  using A = Sum<T>;
  static constexpr int W = kWidth<A>;
  static constexpr int kScores = kTile * P;
  static constexpr int64_t kItem = sizeof(T);
  const Call& call;
  const int64_t H, G, D, C;
  const int64_t blocks, padded;  // of heads; padded = blocks * P
  const A scale, slope, keep_scale;
  const uint64_t threshold;
  const bool per_edge;  // whether the positions of edges matter
  Kernels<T, P> of_dim, of_width;
  Buffer<A> att;  // [padded, D], where it is given
  std::atomic<int> error{0};  // of the walks

  explicit Attention(const Call& c)
      : call(c), H(c.heads), G(c.key_heads), D(c.dim), C(c.width), blocks((H + P - 1) / P), padded(blocks * P),
        scale(static_cast<A>(c.scale)), slope(static_cast<A>(c.negative_slope)),
        keep_scale(static_cast<A>(1.0 / (1.0 - c.dropout))),
        threshold(static_cast<uint64_t>(c.dropout * 4294967296.0)),
        per_edge(c.bias || c.edge_key || c.edge_value || c.dropout > 0 || c.grad_bias), att(c.att ? padded * D : 1) {
    for (int64_t i = 0; i < padded; ++i) {
      const int64_t h = i < H ? i : 0, g = h / (H / G);
      const auto shared = [&](int64_t number) { return number ? h / (H / number) : 0; };
      in_key.push_back(g * c.key_stride[1] * kItem);
      in_value.push_back(g * c.value_stride[1] * kItem);
      in_query.push_back(h * c.query_stride[1] * kItem);
      in_grad_out.push_back(h * c.grad_out_stride[1] * kItem);
      in_edge_key.push_back(shared(c.edge_key_heads) * D * kItem);
      in_edge_value.push_back(shared(c.edge_value_heads) * C * kItem);
      in_bias.push_back(shared(c.bias_heads));
      in_weight.push_back(shared(c.weight_heads));
    }
    if (c.att) std::copy_n(static_cast<const A*>(c.att), H * D, att + 0);
    const auto side_by_side = [](const void* p, const std::vector<int64_t>& offset, int64_t length) {
      return !p || dense<T>(offset, length);
    };
    of_dim = Kernels<T, P>::of(D, side_by_side(c.query, in_query, D) && side_by_side(c.key, in_key, D) &&
                                      side_by_side(c.edge_key, in_edge_key, D));
    of_width = Kernels<T, P>::of(C, side_by_side(c.value, in_value, C) && side_by_side(c.grad_out, in_grad_out, C) &&
                                        side_by_side(c.edge_value, in_edge_value, C));
  }

  // Where a head of a query finds what is its own: bytes into a row, or for the last two numbers.
  std::vector<int64_t> in_key, in_value, in_query, in_grad_out, in_edge_key, in_edge_value, in_bias, in_weight;

  // Vectors that the scores of a tile take.
  static INLINE int vectors(const Tile& tile) { return (tile.count * P + W - 1) / W; }

  struct Side {
    const Walk walk;
    const void *at, *opposite;
    const int64_t *at_stride, *opposite_stride;
    const std::vector<int64_t>&in_at, &in_opposite;
  };
  Side along_rows() {
    return {{call.rows, call.queries, call.keys, call.edges, per_edge, error},
            call.key,
            call.value,
            call.key_stride,
            call.value_stride,
            in_key,
            in_value};
  }
  Side along_transpose() {
    return {{call.columns, call.keys, call.queries, call.edges, per_edge, error},
            call.query,
            call.grad_out,
            call.query_stride,
            call.grad_out_stride,
            in_query,
            in_grad_out};
  }

  // A row with a head for every head of a query, [padded, length]: where it lies, if it lies so, or else copied.
  INLINE const A* own(const void* p, const int64_t* stride, int64_t i, const std::vector<int64_t>& head, int64_t length,
                      A* to) const {
    const T* row = row_of<T>(p, stride, i);
    if constexpr (std::is_same_v<T, A>)
      if (padded == G && stride[1] == length) return row;
    copy_heads(row, head.data(), H, length, to);
    return to;
  }
  // Sums heads of queries that share one of keys, in place: [H, length] to [G, length].
  NOINLINE void share(A* sum, int64_t length) const {
    if (G == H) return;
    for (int64_t g = 0; g < G; ++g) {
      const A* from = sum + g * (H / G) * length;
      for (int64_t d = 0; d < length; ++d) {
        A total = 0;
        for (int64_t h = 0; h < H / G; ++h) total += from[h * length + d];
        sum[g * length + d] = total;
      }
    }
  }
  // The rows that a tile gathers, from the block of heads at h on.
  static INLINE Rows<T> rows_at(const Side& side, const Tile& tile, int64_t h) {
    return {side.at, side.at_stride[0] * kItem, tile.node, &side.in_at[h]};
  }
  static INLINE Rows<T> rows_opposite(const Side& side, const Tile& tile, int64_t h) {
    return {side.opposite, side.opposite_stride[0] * kItem, tile.node, &side.in_opposite[h]};
  }
  INLINE Rows<T> edge_keys(const Tile& tile, int64_t h) const {
    return {call.edge_key, call.edge_key_heads * D * kItem, tile.edge, &in_edge_key[h]};
  }
  INLINE Rows<T> edge_values(const Tile& tile, int64_t h) const {
    return {call.edge_value, call.edge_value_heads * C * kItem, tile.edge, &in_edge_value[h]};
  }
  INLINE Additive<T> additive_of(const Tile& tile, const Side& side, const A* own, int64_t h) const {
    return {own, att.data() + h * D, rows_at(side, tile, h), edge_keys(tile, h), slope};
  }

  // Scores of a tile in the heads from h on, [kTile, P], -inf beyond its edges; `own` is the rows that all its edges
  // share, `query` the same where those are a query's, `key` the key of edge b.
  template <class KeyOf>
  INLINE void scores(const Tile& tile, const Side& side, const A* own, int64_t h, const A* query, const KeyOf& key,
                     A* score) const {
    const int n = tile.count;
    if (call.att) {
      of_dim.additive_(additive_of(tile, side, own, h), static_cast<int>(D), n, score);
    } else {
      of_dim.dots_(own, rows_at(side, tile, h), static_cast<int>(D), n, scale, score);
      if (call.edge_key) add_edge_keys(tile, side, h, query, score);
    }
    if (call.bias || call.log_weight) add_biases(tile, h, key, score);
    const int last = (n * P) / W * W;
    if (last < n * P) store(score + last, lane_numbers<A>() < n * P - last ? load(score + last) : splat(A(-INFINITY)));
  }
  // The edges' part of dot products; along the transpose (query null) the queries are the gathered rows.
  NOINLINE void add_edge_keys(const Tile& tile, const Side& side, int64_t h, const A* query, A* score) const {
    alignas(64) A more[kScores];
    if (query)
      of_dim.dots_(query, edge_keys(tile, h), static_cast<int>(D), tile.count, scale, more);
    else
      pair_dots(rows_at(side, tile, h), edge_keys(tile, h), D, tile.count, scale, more);
    add(score, more, tile.count);
  }
  template <class KeyOf>
  NOINLINE void add_biases(const Tile& tile, int64_t h, const KeyOf& key, A* score) const {
    const A *bias = static_cast<const A*>(call.bias), *weight = static_cast<const A*>(call.log_weight);
    for (int b = 0; b < tile.count; ++b) {
      for (int p = 0; p < P; ++p) {
        A& x = score[b * P + p];
        if (bias) x += bias[tile.edge[b] * call.bias_heads + in_bias[h + p]];
        if (weight) x += weight[key(b) * call.weight_heads + in_weight[h + p]];
      }
    }
  }
  static NOINLINE void add(A* x, const A* y, int count) {
    for (int l = 0; l < count * P; ++l) x[l] += y[l];
  }
  // to[b, h] = by * x[b, h] . y[b, h]
  static NOINLINE void pair_dots(const Rows<T>& x, const Rows<T>& y, int64_t length, int count, A by, A* to) {
    for (int b = 0; b < count; ++b) {
      for (int p = 0; p < P; ++p) {
        const T *of_x = x.at(b, p), *of_y = y.at(b, p);
        Vec<A> sums{};
        lanes<A>(0, length, [&](int64_t d, int n) LAMBDA_INLINE { sums += load_n(of_x + d, n) * load_n(of_y + d, n); });
        to[b * P + p] = by * over_edges<1, A>(sums, [](Vec<A> x, Vec<A> y) LAMBDA_INLINE { return x + y; })[0];
      }
    }
  }

  // 1 / (1 - dropout) where an edge is kept in a head from h on, 0 where not: [kTile, P].
  NOINLINE void keep(const Tile& tile, int64_t h, A* kept) const {
    uint32_t word[4];
    for (int b = 0; b < tile.count; ++b) {
      for (int p = 0; p < P; ++p) {
        if (p == 0 || (h + p) % 4 == 0)
          philox(call.seed, static_cast<uint64_t>(tile.edge[b]), static_cast<uint32_t>((h + p) / 4), word);
        kept[b * P + p] = word[(h + p) % 4] >= threshold ? keep_scale : A(0);
      }
    }
  }

  // Lane l takes lane l % P.
  static INLINE Vec<A> repeat(Vec<A> x) { return repeat_(x, std::make_integer_sequence<int, W>{}); }
  template <int... L>
  static INLINE Vec<A> repeat_(Vec<A> x, std::integer_sequence<int, L...>) {
    return GEOATTN_SHUFFLE(x, x, (L % P)...);
  }
  // Numbers of the heads of a block, repeated to fill a vector, of a tensor [N, H].
  INLINE Vec<A> of_heads(const void* p, int64_t row, int64_t h) const {
    return repeat(load_part(static_cast<const A*>(p) + row * H + h, static_cast<int>(std::min<int64_t>(H - h, P))));
  }
  // The first P lanes.
  static INLINE void store_heads(A* to, Vec<A> x) {
    alignas(64) A lanes[W];
    store(lanes, x);
    std::memcpy(to, lanes, P * sizeof(A));
  }

  int forward() {
    const Side side = along_rows();
    const Target<T, P> out(call.out, call.queries, H, C, H / P * P, 1);
    parallel_blocks(call.queries, grain(call.queries), static_cast<int>(call.threads), [&](int64_t from, int64_t to) {
      Buffer<A> query(padded * D), sum(padded * C), score(kBatch * blocks * kScores);
      // Of the row: per block of heads, repeated to fill a vector.
      Buffer<A> row_top(blocks * W), row_total(blocks * W);
      // Of rows of several blocks: their totals and sums, and what the latter are to be multiplied by.
      Buffer<double> long_total(padded), rescale(padded);
      std::fill(rescale + 0, rescale + padded, 1.0);
      BlockSums<A> block_sums(padded * C);
      // Of every tile, [blocks, P]: the same, and what was summed before it is to be multiplied by.
      Buffer<A> top(kBatch * blocks * P + W), total(kBatch * blocks * P + W), shrink(kBatch * blocks * P + W);
      side.walk.batches(from, to, [&](Batch& batch) {
        for (const Tile& tile : batch) {
          prefetch_row<T>(call.query, call.query_stride, H, D, tile.row_ahead);
          const A* q = own(call.query, call.query_stride, tile.row, in_query, D, query);
          A* to_score = score + batch.index(tile) * blocks * kScores;
          for (int64_t h = 0; h < padded; h += P, to_score += kScores)
            scores(tile, side, q + h * D, h, q + h * D, [&](int b) { return tile.node[b]; }, to_score);
        }
        for (const Tile& tile : batch) {
          for (int64_t k = 0; k < blocks; ++k) {
            const int64_t n = batch.index(tile) * blocks + k;
            online_softmax(tile, k * P, score + n * kScores, row_top + k * W, row_total + k * W, shrink + n * P);
            store_heads(top + n * P, load(row_top + k * W));
            store_heads(total + n * P, load(row_total + k * W));
            if (tile.divided) add_total(tile, total + n * P, shrink + n * P, long_total + k * P);
          }
        }
        normalize(top, total, batch.count * blocks * P);
        for (const Tile& tile : batch) {
          for (int64_t k = 0; k < blocks; ++k) {
            const int64_t h = k * P, n = batch.index(tile) * blocks + k;
            A *weight = score + n * kScores, *of_head = shrink + n * P;
            if (tile.last) {
              std::copy_n(top + n * P, std::min<int64_t>(H - h, P), static_cast<A*>(call.lse) + tile.row * H + h);
              const Vec<A> by = repeat(load(total + n * P));
              for (int v = 0; v < vectors(tile); ++v) store(weight + v * W, load(weight + v * W) * by);
              for (int p = 0; p < P; ++p) of_head[p] *= total[n * P + p];
            }
            if (!tile.begins)
              for (int p = 0; p < P; ++p)
                for (int64_t c = 0; c < C; ++c) sum[(h + p) * C + c] *= of_head[p];
            if (tile.divided && !tile.first)
              for (int p = 0; p < P; ++p) rescale[h + p] *= of_head[p];
            of_width.add_rows_ahead_(out.into(tile, sum, h, false, !call.edge_value), weight,
                                     rows_opposite(side, tile, h), static_cast<int>(C), tile.count);
            if (call.edge_value)
              of_width.add_rows_ahead_(out.into(tile, sum, h, true, true), weight, edge_values(tile, h),
                                       static_cast<int>(C), tile.count);
          }
          if (tile.divided && tile.ends) {
            block_sums.add_block(tile, sum, [&](int64_t i) { return rescale[i / C]; });
            std::fill(rescale + 0, rescale + padded, 1.0);
          }
          if (tile.last) out.write_rest(tile, sum);
        }
      });
      finish_streams();
    });
    return error;
  }

  // A tile's step of the online softmax: from scores, in place, to weights relative to the highest score so far. Of the
  // row, or of its block, what was summed so far is to be multiplied by `shrink`.
  INLINE void online_softmax(const Tile& tile, int64_t h, A* score, A* to_top, A* to_total, A* to_shrink) const {
    const int n = vectors(tile);
    const Vec<A> before = tile.first ? splat(A(-INFINITY)) : load(to_top);
    Vec<A> top = before, total{};
    for (int v = 0; v < n; ++v) {
      const Vec<A> x = load(score + v * W);
      top = x > top ? x : top;
    }
    top = over_edges<P, A>(top, [](Vec<A> x, Vec<A> y) LAMBDA_INLINE { return x > y ? x : y; });
    store(to_top, top);
    const Vec<A> shift = top == -INFINITY ? Vec<A>{} : top;  // hidden, every one of them
    for (int v = 0; v < n; ++v) {
      const Vec<A> x = exp(load(score + v * W) - shift);
      total += x;
      store(score + v * W, x);
    }
    total = over_edges<P, A>(total, [](Vec<A> x, Vec<A> y) LAMBDA_INLINE { return x + y; });
    if (!tile.first) {
      const Vec<A> shrink = exp(before - shift);
      if (!tile.begins) total += load(to_total) * shrink;
      store_heads(to_shrink, shrink);
    }
    store(to_total, total);
    if (call.dropout > 0) {
      alignas(64) A kept[kScores];
      keep(tile, h, kept);
      for (int l = 0; l < tile.count * P; ++l) score[l] *= kept[l];
    }
  }
  // Adds the total of a block that ends to that of its row, [P].
  static NOINLINE void add_total(const Tile& tile, A* total, const A* shrink, double* of_row) {
    for (int p = 0; p < P; ++p) {
      of_row[p] = tile.first ? 0.0 : of_row[p] * shrink[p];
      if (tile.ends) of_row[p] += total[p];
      if (tile.last) total[p] = static_cast<A>(of_row[p]);
    }
  }
  // In place, of any number of rows: from the highest scores to log-sum-exp, and from totals to what the weights are to
  // be multiplied by.
  static INLINE void normalize(A* top, A* total, int64_t count) {
    for (int64_t l = 0; l < count; l += W) {
      const Vec<A> sum = load(total + l);
      const Mask<A> empty = sum == 0;
      store(top + l, empty ? splat(A(-INFINITY)) : load(top + l) + log(sum));
      store(total + l, empty ? Vec<A>{} : 1 / sum);
    }
  }

  // ---- Gradients ----------------------------------------------------------------------------------------------------
  // With p the weight of an edge, d its upstream gradient grad_out_i . value_j: ds = p (d - delta_i), where
  // delta_i = sum p d - grad_lse_i, which is grad_out_i . out_i - grad_lse_i.

  A* stats = nullptr;  // [N, blocks, 2, P]: log-sum-exp (0 where a row is empty) and delta, made along queries

  // In place, from scores to p and from grad_out_i . value_j to d. Vector v of the tile has the log-sum-exp lse_of(v).
  template <class Of>
  INLINE void probabilities(const Tile& tile, A* score, A* upstream, const A* kept, const Of& lse_of) const {
    for (int v = 0; v < vectors(tile); ++v) {
      store(score + v * W, exp(load(score + v * W) - lse_of(v)));
      if (kept) store(upstream + v * W, load(upstream + v * W) * load(kept + v * W));
    }
  }
  // In place, from p to the weights that values were summed with, and from d to ds.
  template <class Of>
  INLINE void gradient_of_scores(const Tile& tile, A* score, A* upstream, const A* kept, const Of& delta_of) const {
    for (int v = 0; v < vectors(tile); ++v) {
      const Vec<A> p = load(score + v * W);
      store(upstream + v * W, p * (load(upstream + v * W) - delta_of(v)));
      if (kept) store(score + v * W, p * load(kept + v * W));
    }
  }
  // What dropout multiplies the edges of a tile by, or null without dropout.
  INLINE const A* kept_of(const Tile& tile, int64_t h, A* scratch) const {
    if (call.dropout <= 0) return nullptr;
    std::fill(scratch, scratch + kScores, A(0));
    keep(tile, h, scratch);
    return scratch;
  }

  // Of a tile of queries: from scores to p, from upstream gradients to d, and, if `sum`, its part of sum p d. Leaves what
  // the transpose needs to know in `own`, the stats of the row.
  INLINE void probabilities_of_row(const Tile& tile, int64_t h, A* score, A* upstream, const A* kept, bool sum, A* own,
                        double* long_delta) const {
    const Vec<A> lse = of_heads(call.lse, tile.row, h);
    const Mask<A> empty = lse == -INFINITY;
    const Vec<A> shift = empty ? Vec<A>{} : lse;
    probabilities(tile, score, upstream, kept, [&](int) LAMBDA_INLINE { return shift; });
    if (!sum) return;
    Vec<A> delta{};
    for (int v = 0; v < vectors(tile); ++v) {
      const Vec<A> p = load(score + v * W);
      delta += p != 0 ? p * load(upstream + v * W) : Vec<A>{};  // lanes beyond the edges hold anything
    }
    delta = over_edges<P, A>(delta, [](Vec<A> x, Vec<A> y) LAMBDA_INLINE { return x + y; });
    if (tile.first) {
      store_heads(own, shift);
      if (call.grad_lse) delta -= empty ? Vec<A>{} : of_heads(call.grad_lse, tile.row, h);
    } else if (tile.whole) {
      delta += repeat(load_part(own + P, P));
    }
    if (tile.whole) return store_heads(own + P, delta);
    alignas(64) A part[W];
    store(part, delta);
    for (int p = 0; p < P; ++p) {
      long_delta[p] = (tile.first ? 0.0 : long_delta[p]) + part[p];
      own[P + p] = static_cast<A>(long_delta[p]);
    }
  }

  // What is known of the tiles of a batch along queries.
  struct OfRows {
    const A *query[kBatch], *grad[kBatch];
    Buffer<A> query_copy, grad_copy, score, upstream, kept;  // the last is empty without dropout
    Buffer<double> long_delta;                               // of the row, where it does not fit into a batch
    explicit OfRows(const Attention& of)
        : query_copy(kBatch * of.padded * of.D), grad_copy(kBatch * of.padded * of.C),
          score(kBatch * of.blocks * kScores), upstream(kBatch * of.blocks * kScores),
          kept(of.call.dropout > 0 ? kBatch * of.blocks * kScores : 1), long_delta(of.padded) {}
  };
  // Fills it. delta is summed over rows that are whole in the batch, or, if `parts`, over all.
  INLINE void probabilities_of_rows(const Side& side, Batch& batch, OfRows& of, bool parts) const {
    for (const Tile& tile : batch) {
      const int t = batch.index(tile);
      prefetch_row<T>(call.query, call.query_stride, H, D, tile.row_ahead);
      prefetch_row<T>(call.grad_out, call.grad_out_stride, H, C, tile.row_ahead);
      of.query[t] = own(call.query, call.query_stride, tile.row, in_query, D, of.query_copy + t * padded * D);
      of.grad[t] = own(call.grad_out, call.grad_out_stride, tile.row, in_grad_out, C, of.grad_copy + t * padded * C);
      for (int64_t k = 0; k < blocks; ++k) {
        const int64_t h = k * P, at = (t * blocks + k) * kScores;
        const A *q = of.query[t] + h * D, *g = of.grad[t] + h * C;
        scores(tile, side, q, h, q, [&](int b) { return tile.node[b]; }, of.score + at);
        of_width.dots_(g, rows_opposite(side, tile, h), static_cast<int>(C), tile.count, A(1), of.upstream + at);
        if (call.edge_value) {
          alignas(64) A more[kScores];
          of_width.dots_(g, edge_values(tile, h), static_cast<int>(C), tile.count, A(1), more);
          add(of.upstream + at, more, tile.count);
        }
      }
    }
    for (const Tile& tile : batch) {
      for (int64_t k = 0; k < blocks; ++k) {
        const int64_t at = (batch.index(tile) * blocks + k) * kScores;
        const A* kept = kept_of(tile, k * P, of.kept + (call.dropout > 0 ? at : 0));
        probabilities_of_row(tile, k * P, of.score + at, of.upstream + at, kept, tile.whole || parts,
                  stats + (tile.row * blocks + k) * 2 * P, of.long_delta + k * P);
      }
    }
  }
  // delta of a row that does not fit into a batch: its tiles are gone through once more, beforehand.
  NOINLINE void delta_of_long_row(const Side& side, int64_t visit, OfRows& of) const {
    side.walk.batches(visit, visit + 1, [&](Batch& batch) { probabilities_of_rows(side, batch, of, true); });
  }

  void along_queries() {
    const Side side = along_rows();
    const Target<T, P> grad_query(call.grad_query, call.queries, H, D, call.att ? 0 : H / P * P,
                                  call.att ? A(1) : scale);
    const int64_t step = grain(call.queries);
    std::vector<double> att_parts;  // one sum per block of rows, so that its order does not depend on threads
    if (call.grad_att) att_parts.resize((call.queries + step - 1) / step * padded * D);
    parallel_blocks(call.queries, step, static_cast<int>(call.threads), [&](int64_t from, int64_t to) {
      Buffer<A> sum(padded * D), grad_bias(kTile), edge_key(kTile * D), edge_value(kTile * C);
      Buffer<A> grad_att(call.grad_att ? padded * D : 1);  // of at least kBlock edges
      BlockSums<A> block_sums(padded * D);
      OfRows of(*this);
      int att_edges = 0;
      const auto flush_att = [&] {
        double* part = att_parts.data() + from / step * padded * D;
        for (int64_t d = 0; d < padded * D; ++d) part[d] += grad_att[d], grad_att[d] = 0;
        att_edges = 0;
      };
      side.walk.batches(from, to, [&](Batch& batch) {
        for (const Tile& tile : batch)
          if (tile.first && !tile.whole) delta_of_long_row(side, tile.visit, of);
        probabilities_of_rows(side, batch, of, false);
        for (const Tile& tile : batch) {
          for (int64_t k = 0; k < blocks; ++k) {
            const int64_t at = (batch.index(tile) * blocks + k) * kScores;
            const Vec<A> delta = repeat(load_part(stats + (tile.row * blocks + k) * 2 * P + P, P));
            gradient_of_scores(tile, of.score + at, of.upstream + at, call.dropout > 0 ? of.kept + at : nullptr,
                  [&](int) LAMBDA_INLINE { return delta; });
          }
        }
        for (const Tile& tile : batch) {
          const int t = batch.index(tile), n = tile.count;
          if (call.att && tile.begins) std::fill(sum + 0, sum + padded * D, A(0));
          for (int64_t k = 0; k < blocks; ++k) {
            const int64_t h = k * P, at = (t * blocks + k) * kScores;
            const A *q = of.query[t] + h * D, *g = of.grad[t] + h * C, *weight = of.score + at, *ds = of.upstream + at;
            if (call.att) {
              if (call.grad_query || call.grad_att)
                of_dim.additive_backward_(additive_of(tile, side, q, h), ds, static_cast<int>(D), n, sum + h * D,
                                          call.grad_att ? grad_att + h * D : nullptr);
            } else if (call.grad_query) {
              of_dim.add_rows_(grad_query.into(tile, sum, h, false, !call.edge_key), ds, rows_at(side, tile, h),
                               static_cast<int>(D), n);
              if (call.edge_key)
                of_dim.add_rows_(grad_query.into(tile, sum, h, true, true), ds, edge_keys(tile, h), static_cast<int>(D),
                                 n);
            }
            for (int64_t p = 0; p < P && h + p < H; ++p) {
              if (call.grad_bias) spread_bias(tile, h + p, ds + p, grad_bias);
              if (call.grad_edge_key) spread_edge_key(side, tile, h + p, q + p * D, ds + p, edge_key);
              if (call.grad_edge_value) spread_edge_value(tile, h + p, g + p * C, weight + p, edge_value);
            }
          }
          if (call.grad_att && (att_edges += n) >= kBlock) flush_att();
          if (call.grad_query) block_sums.add(tile, sum);
          if (call.grad_query && tile.last) grad_query.write_rest(tile, sum);
        }
      });
      if (call.grad_att) flush_att();
      finish_streams();
    });
    if (!call.grad_att) return;
    for (int64_t d = 0; d < H * D; ++d) {
      double total = 0;
      for (size_t part = 0; part < att_parts.size(); part += padded * D) total += att_parts[part + d];
      static_cast<A*>(call.grad_att)[d] = static_cast<A>(total);
    }
  }

  // Gradients per edge, of one head; ds and weights are P apart. Heads that share a term are summed before it is
  // written.
  NOINLINE void spread_bias(const Tile& tile, int64_t h, const A* ds, A* sum) const {
    const int64_t share = H / call.bias_heads;
    for (int b = 0; b < tile.count; ++b) sum[b] = (h % share ? sum[b] : A(0)) + ds[b * P];
    if (h % share != share - 1) return;
    A* to = static_cast<A*>(call.grad_bias) + h / share;
    for (int b = 0; b < tile.count; ++b) to[tile.edge[b] * call.bias_heads] = sum[b];
  }
  NOINLINE void spread_edge_key(const Side& side, const Tile& tile, int64_t h, const A* query, const A* ds,
                                A* sum) const {
    const int64_t share = H / call.edge_key_heads, head = h / share;
    if (h % share == 0) std::fill(sum, sum + kTile * D, A(0));
    const Rows<T> keys = rows_at(side, tile, h), edges = edge_keys(tile, h);
    const A* of_head = call.att ? att.data() + h * D : query;
    for (int b = 0; b < tile.count; ++b) {
      const A by = call.att ? ds[b * P] : ds[b * P] * scale;
      const T *key = keys.at(b, 0), *edge = edges.at(b, 0);
      lanes<A>(0, D, [&](int64_t d, int n) LAMBDA_INLINE {
        Vec<A> x = by * load_n(of_head + d, n);
        if (call.att) {
          const Vec<A> y = load_n(query + d, n) + load_n(key + d, n) + load_n(edge + d, n);
          x = y > 0 ? x : x * slope;
        }
        store_n(sum + b * D + d, load_n(sum + b * D + d, n) + x, n);
      });
    }
    if (h % share == share - 1) write_edges(tile, sum, call.grad_edge_key, call.edge_key_heads, head, D);
  }
  NOINLINE void spread_edge_value(const Tile& tile, int64_t h, const A* grad, const A* weight, A* sum) const {
    const int64_t share = H / call.edge_value_heads;
    if (h % share == 0) std::fill(sum, sum + kTile * C, A(0));
    for (int b = 0; b < tile.count; ++b)
      lanes<A>(0, C, [&](int64_t c, int n) LAMBDA_INLINE {
        store_n(sum + b * C + c, load_n(sum + b * C + c, n) + weight[b * P] * load_n(grad + c, n), n);
      });
    if (h % share == share - 1) write_edges(tile, sum, call.grad_edge_value, call.edge_value_heads, h / share, C);
  }
  static NOINLINE void write_edges(const Tile& tile, const A* sum, void* to, int64_t heads, int64_t head,
                                   int64_t length) {
    for (int b = 0; b < tile.count; ++b) {
      T* row = static_cast<T*>(to) + (tile.edge[b] * heads + head) * length;
      lanes<A>(0, length, [&](int64_t d, int n) LAMBDA_INLINE {
        if (n == W)
          store(row + d, load(sum + b * length + d));
        else
          for (int l = 0; l < n; ++l) row[d + l] = static_cast<T>(sum[b * length + d + l]);
      });
    }
  }

  void along_keys() {
    const Side side = along_transpose();
    const int64_t whole = G == H ? H / P * P : 0;  // heads that have a key and a value of their own
    const Target<T, P> grad_key(call.grad_key, call.keys, G, D, call.att ? 0 : whole, call.att ? A(1) : scale);
    const Target<T, P> grad_value(call.grad_value, call.keys, G, C, whole, 1);
    const bool one = call.grad_key == call.grad_value;  // of both
    parallel_blocks(call.keys, grain(call.keys), static_cast<int>(call.threads), [&](int64_t from, int64_t to) {
      Buffer<A> key(kBatch * padded * D), value(kBatch * padded * C), sum_key(padded * D), sum_value(padded * C),
          score(kBatch * blocks * kScores), upstream(kBatch * blocks * kScores);
      Buffer<double> sum_weight(padded);
      BlockSums<A> key_blocks(padded * D), value_blocks(padded * C);
      Buffer<A> of_query(2 * kBatch * blocks * kScores);  // log-sum-exp, then delta, of the queries of a tile
      side.walk.batches(from, to, [&](Batch& batch) {
        const A *keys[kBatch], *values[kBatch];
        for (const Tile& tile : batch) {
          const int t = batch.index(tile);
          prefetch_row<T>(call.key, call.key_stride, G, D, tile.row_ahead);
          prefetch_row<T>(call.value, call.value_stride, G, C, tile.row_ahead);
          keys[t] = own(call.key, call.key_stride, tile.row, in_key, D, key + t * padded * D);
          values[t] = own(call.value, call.value_stride, tile.row, in_value, C, value + t * padded * C);
          for (int b = 0; b < tile.count; ++b)
            prefetch(stats + tile.node[b + kAhead] * 2 * padded, 2 * padded * static_cast<int64_t>(sizeof(A)));
          for (int64_t k = 0; k < blocks; ++k) {
            const int64_t h = k * P, at = (t * blocks + k) * kScores;
            for (int b = 0; b < tile.count; ++b) {
              const A* from = stats + (tile.node[b] * blocks + k) * 2 * P;
              std::copy_n(from, P, of_query + 2 * at + b * P);
              std::copy_n(from + P, P, of_query + 2 * at + kScores + b * P);
            }
            scores(tile, side, keys[t] + h * D, h, nullptr, [&](int) { return tile.row; }, score + at);
            of_width.dots_(values[t] + h * C, rows_opposite(side, tile, h), static_cast<int>(C), tile.count, A(1),
                           upstream + at);
            if (call.edge_value) {
              alignas(64) A more[kScores];
              pair_dots(rows_opposite(side, tile, h), edge_values(tile, h), C, tile.count, A(1), more);
              add(upstream + at, more, tile.count);
            }
          }
        }
        for (const Tile& tile : batch) {
          for (int64_t k = 0; k < blocks; ++k) {
            const int64_t at = (batch.index(tile) * blocks + k) * kScores;
            const A *lse = of_query + 2 * at, *delta = lse + kScores;
            alignas(64) A scratch[kScores];
            const A* kept = kept_of(tile, k * P, scratch);
            probabilities(tile, score + at, upstream + at, kept, [&](int v) LAMBDA_INLINE { return load(lse + v * W); });
            gradient_of_scores(tile, score + at, upstream + at, kept, [&](int v) LAMBDA_INLINE { return load(delta + v * W); });
          }
        }
        for (const Tile& tile : batch) {
          const int t = batch.index(tile), n = tile.count;
          if (call.att && tile.begins) std::fill(sum_key + 0, sum_key + padded * D, A(0));
          if (tile.first) std::fill(sum_weight + 0, sum_weight + padded, 0.0);
          for (int64_t k = 0; k < blocks; ++k) {
            const int64_t h = k * P, at = (t * blocks + k) * kScores;
            const A *weight = score + at, *ds = upstream + at;
            if (call.grad_key) {
              if (call.att)
                of_dim.additive_backward_(additive_of(tile, side, keys[t] + h * D, h), ds, static_cast<int>(D), n,
                                          sum_key + h * D, nullptr);
              else
                of_dim.add_rows_(grad_key.into(tile, sum_key, h, false, true), ds, rows_at(side, tile, h),
                                 static_cast<int>(D), n);
            }
            if (call.grad_value)
              of_width.add_rows_(grad_value.into(tile, one ? sum_key : sum_value, h, one, true), weight,
                                 rows_opposite(side, tile, h), static_cast<int>(C), n);
            if (call.grad_log_weight)
              for (int b = 0; b < n; ++b)
                for (int p = 0; p < P; ++p) sum_weight[h + p] += ds[b * P + p];
          }
          if (call.grad_key) key_blocks.add(tile, sum_key);
          if (call.grad_value && !one) value_blocks.add(tile, sum_value);
          if (!tile.last) continue;
          if (call.grad_key && !one) {
            share(sum_key, D);
            grad_key.write_rest(tile, sum_key);
          }
          if (call.grad_value) {
            A* sum = one ? sum_key : sum_value;
            share(sum, C);
            grad_value.write_rest(tile, sum);
          }
          if (call.grad_log_weight) {
            A* to = static_cast<A*>(call.grad_log_weight) + tile.row * call.weight_heads;
            if (call.weight_heads == 1) sum_weight[0] = std::accumulate(sum_weight + 0, sum_weight + H, 0.0);
            for (int64_t h = 0; h < call.weight_heads; ++h) to[h] = static_cast<A>(sum_weight[h]);
          }
        }
      });
      finish_streams();
    });
  }

  int backward() {
    Buffer<A> of_rows(call.queries * padded * 2);
    stats = of_rows;
    along_queries();
    if (!error && (call.grad_key || call.grad_value || call.grad_log_weight)) along_keys();
    return error;
  }
};

int dispatch(const Call& call, bool backward) {
  return geoattn::guarded([&] {
    return for_type_and_heads(call.dtype, call.heads, [&](auto type, auto heads) {
      Attention<decltype(type), heads> attention(call);
      return backward ? attention.backward() : attention.forward();
    });
  });
}

}  // namespace
}  // namespace GEOATTN_NAMESPACE

GEOATTN_EXPORT(geoattn_attend_forward)(const void* call) {
  return GEOATTN_NAMESPACE::dispatch(*static_cast<const GEOATTN_NAMESPACE::Call*>(call), false);
}
GEOATTN_EXPORT(geoattn_attend_backward)(const void* call) {
  return GEOATTN_NAMESPACE::dispatch(*static_cast<const GEOATTN_NAMESPACE::Call*>(call), true);
}
