// Vector attention over compressed rows (Zhao et al. 2021): o_i = sum_j softmax_j(score_ij) * (v_j + delta_ij), a weight
// for every channel. Both networks are chains of linear layers, and run here, too, in tiles of edges that stay in cache.
//
// Nothing is stored per edge for the backward pass: it computes the tiles again. Where tiles and chunks are cut depends
// on the pattern alone, and every sum has one owner and one order, so the bits do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace GEOATTN_NAMESPACE {
using geoattn::on_threads;

namespace {

constexpr int64_t kTileEdges = 128;  // plus at most one row
constexpr int64_t kBlockTiles = 4;   // that one thread works on in turn
constexpr int64_t kBlocks = 16;      // in a chunk; gradients of weights have as many slots

// y = x W^T + b, then perhaps ReLU. Rows are padded with zeros to whole cache lines. Mirrors vector_cpu._Layer.
struct Layer {
  int64_t in, out, relu;
  const void* forward;   // [in, out padded]
  const void* backward;  // [out, in padded]
  const void* bias;      // [out padded], or null
  void* grad;            // [kBlocks, in + 1, out padded], the last row of the bias; or null
};

// Mirrors vector_cpu._Call. Node tensors are contiguous; null is absent.
struct Call {
  int64_t queries, keys, edges, channels, positions, is_double, threads;
  const int64_t *rowptr, *col;
  const void *query, *key, *value, *position, *key_position, *grad_out;
  void *out, *grad_query, *grad_key, *grad_value, *grad_position, *grad_key_position;
  int64_t pos_layers, attn_layers;
  const Layer *pos, *attn;
};

template <class A>
constexpr int64_t padded(int64_t n) {
  constexpr int64_t line = 64 / sizeof(A);
  return (n + line - 1) / line * line;
}

// ---- Between the networks -------------------------------------------------------------------------------------------

// Edges first, first + 1, ... of the pattern as rows of a buffer.
template <class A>
struct Edges {
  A* data;
  int64_t stride, first;
  INLINE A* operator[](int64_t edge) const { return data + (edge - first) * stride; }
};

template <class A>
struct Between {
  const Call& call;
  const int64_t channels = call.channels;

  template <class T>
  INLINE T* node(T* base, int64_t i) const {
    return base + i * channels;
  }
  const A* as(const void* p) const { return static_cast<const A*>(p); }
  A* as(void* p) const { return static_cast<A*>(p); }

  // score = q_i - k_j + delta
  void relate(int64_t begin, int64_t end, Edges<A> delta, Edges<A> score) const {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t e = call.rowptr[i]; e < call.rowptr[i + 1]; ++e) {
        const A *q = node(as(call.query), i), *k = node(as(call.key), call.col[e]), *d = delta[e];
        A* s = score[e];
        lanes<A>(0, channels, [&](int64_t c, int n) {
          store_n(s + c, load_n(q + c, n) - load_n(k + c, n) + load_n(d + c, n), n);
        });
      }
  }

  // Highest score of a row, 0 where there is none above -inf.
  INLINE Vec<A> highest(int64_t row, Edges<A> score, int64_t c, int n) const {
    Vec<A> most = splat(-static_cast<A>(INFINITY));
    for (int64_t e = call.rowptr[row]; e < call.rowptr[row + 1]; ++e) {
      const Vec<A> s = load_n(score[e] + c, n);
      most = s > most ? s : most;
    }
    return most > -static_cast<A>(INFINITY) ? most : Vec<A>{};
  }

  void sum(int64_t begin, int64_t end, Edges<A> delta, Edges<A> score) const {
    for (int64_t i = begin; i < end; ++i)
      lanes<A>(0, channels, [&](int64_t c, int n) {
        const Vec<A> most = highest(i, score, c, n);
        Vec<A> total{}, acc{};
        for (int64_t e = call.rowptr[i]; e < call.rowptr[i + 1]; ++e) {
          const Vec<A> weight = exp(load_n(score[e] + c, n) - most);
          total += weight;
          acc += weight * (load_n(node(as(call.value), call.col[e]) + c, n) + load_n(delta[e] + c, n));
        }
        store_n(node(as(call.out), i) + c, acc / (total > 0 ? total : splat(A(1))), n);
      });
  }

  // Writes the gradients of the scores and, to message, of v_j + delta.
  void sum_backward(int64_t begin, int64_t end, Edges<A> delta, Edges<A> score, Edges<A> of_score,
                    Edges<A> message) const {
    for (int64_t i = begin; i < end; ++i)
      lanes<A>(0, channels, [&](int64_t c, int n) {
        const Vec<A> most = highest(i, score, c, n);
        const Vec<A> grad = load_n(node(as(call.grad_out), i) + c, n);
        Vec<A> total{}, mean{};
        for (int64_t e = call.rowptr[i]; e < call.rowptr[i + 1]; ++e) {
          const Vec<A> weight = exp(load_n(score[e] + c, n) - most);
          const Vec<A> v = load_n(node(as(call.value), call.col[e]) + c, n) + load_n(delta[e] + c, n);
          total += weight;
          mean += weight * v;
          store_n(of_score[e] + c, weight, n);
          store_n(message[e] + c, v, n);
        }
        const Vec<A> by = 1 / (total > 0 ? total : splat(A(1)));
        mean *= by;
        for (int64_t e = call.rowptr[i]; e < call.rowptr[i + 1]; ++e) {
          const Vec<A> upstream = load_n(of_score[e] + c, n) * by * grad;
          store_n(of_score[e] + c, upstream * (load_n(message[e] + c, n) - mean), n);
          store_n(message[e] + c, upstream, n);
        }
      });
  }

  // grad[i] = sum of the row, for tensors of any number of channels
  static void sum_rows(const Call& call, int64_t begin, int64_t end, Edges<A> edges, A* grad, int64_t channels) {
    for (int64_t i = begin; i < end; ++i)
      lanes<A>(0, channels, [&](int64_t c, int n) {
        Vec<A> acc{};
        for (int64_t e = call.rowptr[i]; e < call.rowptr[i + 1]; ++e) acc += load_n(edges[e] + c, n);
        store_n(grad + i * channels + c, acc, n);
      });
  }

  // grad[j] += or -= its edges in [begin, end), in order, channels [from, to) only
  template <bool Subtract>
  static void sum_columns(const Call& call, int64_t begin, int64_t end, Edges<A> edges, A* grad, int64_t channels,
                          int64_t from, int64_t to) {
    for (int64_t e = begin; e < end; ++e) {
      A* target = grad + call.col[e] * channels;
      lanes<A>(from, to, [&](int64_t c, int n) {
        const Vec<A> x = load_n(edges[e] + c, n), before = load_n(target + c, n);
        store_n(target + c, Subtract ? before - x : before + x, n);
      });
    }
  }

  // Gradients of keys and values from those of the edges of rows [begin, end), channels [from, to) only.
  void collect(int64_t begin, int64_t end, Edges<A> score, Edges<A> message, int64_t from, int64_t to) const {
    const int64_t first = call.rowptr[begin], last = call.rowptr[end];
    if (call.grad_key) sum_columns<true>(call, first, last, score, as(call.grad_key), channels, from, to);
    if (call.grad_value) sum_columns<false>(call, first, last, message, as(call.grad_value), channels, from, to);
  }
  // How many channels each thread collects.
  int64_t strip() const { return padded<A>((channels + call.threads - 1) / call.threads); }
};

// ---- Matrix products ------------------------------------------------------------------------------------------------

// out = a b, [rows, columns] = [rows, inner] [inner, columns], all strides in elements, columns padded.
template <class A>
struct Product {
  int64_t rows, columns, inner;
  const A *a, *b;
  int64_t a_stride, b_stride;
  A* out;
  int64_t out_stride;
  const A* bias = nullptr;      // added to every row
  const A* positive = nullptr;  // like out: where it is not above 0, out is 0
  bool add = false;             // to what out held
  bool relu = false;
};

// R rows by N vectors of the output, held in registers. Transposed: a is given as [inner, rows].
template <class A, bool Transposed, int R, int N>
void micro(const Product<A>& p, int64_t row, int64_t column) {
  constexpr int W = kWidth<A>;
  Vec<A> acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
      acc[r][n] = p.add    ? load(p.out + (row + r) * p.out_stride + column + n * W)
                  : p.bias ? load(p.bias + column + n * W)
                           : Vec<A>{};
  const A* a = p.a + row * (Transposed ? 1 : p.a_stride);
  const A* b = p.b + column;
  for (int64_t k = 0; k < p.inner; ++k, b += p.b_stride, a += Transposed ? p.a_stride : 1) {
    Vec<A> x[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) x[n] = load(b + n * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<A> by = splat(a[r * (Transposed ? 1 : p.a_stride)]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[r][n] += by * x[n];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const int64_t at = (row + r) * p.out_stride + column + n * W;
      if (p.relu) acc[r][n] = acc[r][n] < 0 ? Vec<A>{} : acc[r][n];  // NaN stays
      if (p.positive) acc[r][n] = load(p.positive + at) > 0 ? acc[r][n] : Vec<A>{};
      store(p.out + at, acc[r][n]);
    }
}

template <class A, bool Transposed, int N>
void strip(const Product<A>& p, int64_t column) {
  constexpr int R = 6;
  int64_t row = 0;
  for (; row + R <= p.rows; row += R) micro<A, Transposed, R, N>(p, row, column);
  switch (p.rows - row) {
    case 5: return micro<A, Transposed, 5, N>(p, row, column);
    case 4: return micro<A, Transposed, 4, N>(p, row, column);
    case 3: return micro<A, Transposed, 3, N>(p, row, column);
    case 2: return micro<A, Transposed, 2, N>(p, row, column);
    case 1: return micro<A, Transposed, 1, N>(p, row, column);
  }
}

template <bool Transposed, class A>
void multiply(const Product<A>& p) {
  constexpr int W = kWidth<A>, N = kBytes == 64 ? 4 : 2;  // what the registers hold
  int64_t column = 0;
  for (; column + N * W <= p.columns; column += N * W) strip<A, Transposed, N>(p, column);
  for (; column < p.columns; column += W) strip<A, Transposed, 1>(p, column);
}

// ---- With both networks ---------------------------------------------------------------------------------------------

template <class A>
class Chain {
 public:
  Chain(const Layer* layers, int64_t count, int64_t in, int64_t edges) : layers_(layers), count_(count), in_(in) {
    for (int64_t l = 0; l <= count; ++l) {
      width_ = std::max(width_, stride(l));
      activations_.emplace_back(edges * stride(l));
    }
  }
  int64_t width() const { return width_; }
  int64_t stride(int64_t l) const { return padded<A>(l ? layers_[l - 1].out : in_); }
  A* input() { return activations_.front().data(); }
  A* output() { return activations_.back().data(); }
  int64_t output_stride() const { return stride(count_); }

  void forward(int64_t edges) {
    for (int64_t l = 0; l < count_; ++l) {
      const Layer& layer = layers_[l];
      Product<A> p;
      p.rows = edges, p.columns = stride(l + 1), p.inner = layer.in;
      p.a = activations_[l].data(), p.a_stride = stride(l);
      p.b = static_cast<const A*>(layer.forward), p.b_stride = stride(l + 1);
      p.out = activations_[l + 1].data(), p.out_stride = stride(l + 1);
      p.bias = static_cast<const A*>(layer.bias), p.relu = layer.relu;
      multiply<false>(p);
    }
  }

  // From the gradient of the output (overwritten) to that of the input (if not null); gradients of weights are added to
  // `slot`. `spare` holds edges * width().
  void backward(int64_t edges, int64_t slot, A* grad, A* spare, A* grad_input) {
    if (count_ && layers_[count_ - 1].relu) {
      const A* out = output();
      for (int64_t x = 0; x < edges * output_stride(); x += kWidth<A>)
        store(grad + x, load(out + x) > 0 ? load(grad + x) : Vec<A>{});
    }
    for (int64_t l = count_ - 1; l >= 0; --l) {
      const Layer& layer = layers_[l];
      if (layer.grad) add_weight_gradient(edges, slot, l, grad);
      if (l == 0 && !grad_input) return;
      Product<A> p;
      p.rows = edges, p.columns = stride(l), p.inner = layer.out;
      p.a = grad, p.a_stride = stride(l + 1);
      p.b = static_cast<const A*>(layer.backward), p.b_stride = stride(l);
      p.out = l ? spare : grad_input, p.out_stride = stride(l);
      if (l && layers_[l - 1].relu) p.positive = activations_[l].data();
      multiply<false>(p);
      std::swap(grad, spare);
    }
  }

 private:
  void add_weight_gradient(int64_t edges, int64_t slot, int64_t l, const A* grad) {
    const Layer& layer = layers_[l];
    const int64_t columns = stride(l + 1);
    Product<A> p;
    p.rows = layer.in, p.columns = columns, p.inner = edges;
    p.a = activations_[l].data(), p.a_stride = stride(l);
    p.b = grad, p.b_stride = columns;
    p.out = static_cast<A*>(layer.grad) + slot * (layer.in + 1) * columns, p.out_stride = columns;
    p.add = true;
    multiply<true>(p);
    A* bias = p.out + layer.in * columns;
    for (int64_t c = 0; c < columns; c += kWidth<A>) {
      Vec<A> acc = load(bias + c);
      for (int64_t e = 0; e < edges; ++e) acc += load(grad + e * columns + c);
      store(bias + c, acc);
    }
  }

  const Layer* layers_;
  int64_t count_, in_, width_ = 0;
  std::vector<std::vector<A>> activations_;
};

template <class A>
class Whole {
 public:
  explicit Whole(const Call& call) : call_(call), between_{call} {
    int64_t most = 0;
    cuts_.push_back(0);
    for (int64_t i = 0; i < call.queries; ++i)
      if (i + 1 == call.queries || call.rowptr[i + 1] - call.rowptr[cuts_.back()] >= kTileEdges) {
        most = std::max(most, call.rowptr[i + 1] - call.rowptr[cuts_.back()]);
        cuts_.push_back(i + 1);
      }
    capacity_ = most;
  }

  void forward() {
    std::atomic<int64_t> next{0};
    on_threads(static_cast<int>(call_.threads), [&] {
      Tile tile(call_, capacity_);
      for (int64_t t; (t = next++) < tiles();) {
        compute(tile, cuts_[t], cuts_[t + 1]);
        between_.sum(cuts_[t], cuts_[t + 1], tile.delta(), tile.score());
      }
    });
  }

  // Chunk after chunk, the threads compute what its edges pass on; while they do so for one, they sum up over keys what
  // the edges of the chunk before have passed on.
  void backward() {
    constexpr int64_t step = kBlockTiles * kBlocks;
    int64_t most = 0;  // edges in a chunk
    for (int64_t t = 0; t < tiles(); t += step) most = std::max(most, edge(std::min(t + step, tiles())) - edge(t));
    Passed memory[2] = {Passed(call_, most), Passed(call_, most)};
    Passed *now = &memory[0], *before = &memory[1];
    std::vector<std::unique_ptr<Tile>> spaces(call_.threads);
    const int64_t strip = between_.strip(), strips = (call_.channels + strip - 1) / strip;

    for (int64_t first = 0; first < tiles() + step; first += step) {
      now->start(std::min(first, tiles()), std::min(first + step, tiles()), *this);
      std::atomic<int64_t> next{before->last > before->first ? 0 : strips}, thread{0};
      const int64_t tasks = strips + (now->last - now->first + kBlockTiles - 1) / kBlockTiles;
      on_threads(static_cast<int>(std::min(call_.threads, tasks - next)), [&] {
        std::unique_ptr<Tile>& tile = spaces[thread++];
        for (int64_t task; (task = next++) < tasks;) {
          if (task < strips) {
            collect(*before, task * strip, std::min(call_.channels, (task + 1) * strip));
          } else {
            if (!tile) tile = std::make_unique<Tile>(call_, capacity_);
            const int64_t block = task - strips, t = now->first + block * kBlockTiles;
            for (int64_t i = t; i < std::min(t + kBlockTiles, now->last); ++i) differentiate(*tile, i, block, *now);
          }
        }
      });
      std::swap(now, before);
    }
  }

 private:
  // Gradients of the edges of a chunk.
  struct Passed {
    std::vector<A> of_relation, of_message, of_offset;
    Edges<A> relation{}, message{}, offset{};
    int64_t first = 0, last = 0;  // tiles
    Passed(const Call& call, int64_t edges)
        : of_relation(edges * padded<A>(call.channels)),
          of_message(edges * padded<A>(call.channels)),
          of_offset(needs_offset(call) ? edges * padded<A>(call.positions) : 0) {}
    void start(int64_t from, int64_t to, const Whole& whole) {
      first = from, last = to;
      const int64_t C = padded<A>(whole.call_.channels), e = whole.edge(from);
      relation = {of_relation.data(), C, e};
      message = {of_message.data(), C, e};
      offset = {of_offset.data(), padded<A>(whole.call_.positions), e};
    }
  };
  static bool needs_offset(const Call& call) { return call.grad_position || call.grad_key_position; }

  struct Tile {
    Chain<A> pos, attn;
    std::vector<A> grad, spare;
    int64_t first = 0;
    Tile(const Call& call, int64_t edges)
        : pos(call.pos, call.pos_layers, call.positions, edges), attn(call.attn, call.attn_layers, call.channels, edges) {
      const int64_t width = std::max(pos.width(), attn.width());
      if (call.grad_out) grad.resize(edges * width), spare.resize(edges * width);
    }
    Edges<A> delta() { return {pos.output(), pos.output_stride(), first}; }
    Edges<A> relation() { return {attn.input(), attn.stride(0), first}; }
    Edges<A> score() { return {attn.output(), attn.output_stride(), first}; }
  };

  int64_t tiles() const { return static_cast<int64_t>(cuts_.size()) - 1; }
  int64_t edge(int64_t tile) const { return call_.rowptr[cuts_[tile]]; }

  // delta and score of the edges of some rows.
  void compute(Tile& tile, int64_t begin, int64_t end) {
    tile.first = call_.rowptr[begin];
    const int64_t edges = call_.rowptr[end] - tile.first, P = call_.positions;
    const int64_t bytes = call_.channels * static_cast<int64_t>(sizeof(A));
    A* difference = tile.pos.input();
    for (int64_t i = begin; i < end; ++i)
      for (int64_t e = call_.rowptr[i]; e < call_.rowptr[i + 1]; ++e, difference += tile.pos.stride(0)) {
        const int64_t j = call_.col[e];
        const A *p = static_cast<const A*>(call_.position) + i * P;
        const A *q = static_cast<const A*>(call_.key_position) + j * P;
        for (int64_t d = 0; d < P; ++d) difference[d] = p[d] - q[d];
        // Needed after the products to come.
        prefetch(static_cast<const char*>(call_.key) + j * bytes, bytes);
        prefetch(static_cast<const char*>(call_.value) + j * bytes, bytes);
      }
    tile.pos.forward(edges);
    between_.relate(begin, end, tile.delta(), tile.relation());
    tile.attn.forward(edges);
  }

  void differentiate(Tile& tile, int64_t t, int64_t slot, const Passed& passed) {
    const int64_t begin = cuts_[t], end = cuts_[t + 1], edges = edge(t + 1) - edge(t);
    compute(tile, begin, end);
    const int64_t size = edges * passed.relation.stride;
    A *relation = passed.relation[tile.first], *message = passed.message[tile.first], *grad = tile.grad.data();
    const Edges<A> of_score = {call_.attn_layers ? grad : relation, passed.relation.stride, tile.first};
    between_.sum_backward(begin, end, tile.delta(), tile.score(), of_score, passed.message);
    if (call_.attn_layers) tile.attn.backward(edges, slot, grad, tile.spare.data(), relation);
    if (call_.grad_query)
      Between<A>::sum_rows(call_, begin, end, passed.relation, between_.as(call_.grad_query), call_.channels);
    for (int64_t x = 0; x < size; x += kWidth<A>) store(grad + x, load(relation + x) + load(message + x));
    A* offset = needs_offset(call_) ? passed.offset[tile.first] : nullptr;
    tile.pos.backward(edges, slot, grad, tile.spare.data(), offset);
    if (call_.grad_position)
      Between<A>::sum_rows(call_, begin, end, passed.offset, between_.as(call_.grad_position), call_.positions);
  }

  void collect(const Passed& passed, int64_t from, int64_t to) {
    between_.collect(cuts_[passed.first], cuts_[passed.last], passed.relation, passed.message, from, to);
    if (from == 0 && call_.grad_key_position)
      Between<A>::template sum_columns<true>(call_, edge(passed.first), edge(passed.last), passed.offset,
                                             between_.as(call_.grad_key_position), call_.positions, 0, call_.positions);
  }

  const Call& call_;
  Between<A> between_;
  std::vector<int64_t> cuts_;
  int64_t capacity_;
};

// Calls body(call, float or double), unless the pattern is wrong. Returns 0 or a geoattn::Failure.
template <class Body>
int typed(const void* call, const Body& body) {
  const Call& c = *static_cast<const Call*>(call);
  if (!std::is_sorted(c.rowptr, c.rowptr + c.queries + 1)) return geoattn::kNotRising;
  if (c.rowptr[0] < 0 || c.rowptr[c.queries] > c.edges) return geoattn::kNotRising;
  uint64_t largest = 0;
  for (int64_t e = c.rowptr[0]; e < c.rowptr[c.queries]; ++e)
    largest = std::max(largest, static_cast<uint64_t>(c.col[e]));  // negative ones are larger still
  if (c.rowptr[0] < c.rowptr[c.queries] && largest >= static_cast<uint64_t>(c.keys)) return geoattn::kOutOfRange;
  return geoattn::guarded([&] {
    c.is_double ? body(c, double{}) : body(c, float{});
    return 0;
  });
}

}  // namespace
}  // namespace GEOATTN_NAMESPACE

using namespace GEOATTN_NAMESPACE;

// out
GEOATTN_EXPORT(geoattn_vector_forward)(const void* call) {
  return typed(call, [](const Call& c, auto type) { Whole<decltype(type)>(c).forward(); });
}

// All gradients; those of keys, values and weights are added to
GEOATTN_EXPORT(geoattn_vector_backward)(const void* call) {
  return typed(call, [](const Call& c, auto type) { Whole<decltype(type)>(c).backward(); });
}
