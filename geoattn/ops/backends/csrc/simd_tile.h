// What is done with the rows of a tile, 16 edges that share a row, for a block of P heads: dot products, weighted sums,
// additive scores and their gradients, random bits. Numbers per edge and head lie edge by edge, [kTile, P], so that a
// vector of W lanes holds W / P edges.
#pragma once

#include <type_traits>

#include "simd.h"

namespace GEOATTN_NAMESPACE {
namespace {

constexpr int kTile = 16;

template <class F, int... I>
INLINE void each_(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

constexpr int kAhead = 24;  // edges between the one worked on and the one prefetched

// Rows of a tensor that a tile gathers: number[b] is the row of edge b, known for kAhead edges beyond the tile, too,
// and offset[h] is where head h of the block begins in a row. Strides and offsets are in bytes.
template <class T>
struct Rows {
  const void* base;  // null: absent
  int64_t stride;
  const int64_t *number, *offset;

  INLINE const T* at(int b, int h) const {
    return reinterpret_cast<const T*>(static_cast<const char*>(base) + number[b] * stride + offset[h]);
  }
  // Heads of length 1, side by side if `Dense`: lane l is head l % P of edge b + l / P.
  template <int P, bool Dense>
  INLINE Vec<Sum<T>> single(int b) const {
    constexpr int W = kWidth<Sum<T>>;
    if constexpr (Dense && std::is_same_v<T, float>) {
      Vec<float> x = load_repeated<P>(at(b, 0));
      const auto take = [&](auto c) LAMBDA_INLINE {
        if constexpr (c > 0) x = splice<c * P, float>(x, load_repeated<P>(at(b + c, 0)));
      };
      each_(take, std::make_integer_sequence<int, W / P>{});
      return x;
    }
    T x[W];
    for (int l = 0; l < W; ++l) x[l] = *at(b + l / P, l % P);
    return load(x);
  }
  INLINE void prefetch(int b, int h, int bytes) const { GEOATTN_NAMESPACE::prefetch(at(b + kAhead, h), bytes); }
};

// Where a sum of rows, [P, length], begins and where it goes: to `sum`, or times `by` to `out`.
template <class T>
struct Into {
  const Sum<T>* from;  // null: zeros
  Sum<T>* sum;
  T* out;  // null: sum
  Sum<T> by;
  bool stream;  // out is aligned, and written around the cache

  // N vectors, in the order of load_all, or a part of one.
  template <int N>
  INLINE void begin(int64_t at, Vec<Sum<T>>* x) const {
    if (from)
      load_sums<T, N>(from + at, x);
    else
      for (int n = 0; n < N; ++n) x[n] = Vec<Sum<T>>{};
  }
  template <int N>
  INLINE void end(int64_t at, Vec<Sum<T>>* x) const {
    if (!out) return store_sums<T, N>(sum + at, x);
    for (int n = 0; n < N; ++n) x[n] *= by;
    if (stream)
      store_all<true, T, N>(out + at, x);
    else
      store_all<false, T, N>(out + at, x);
  }
  INLINE Vec<Sum<T>> begin_part(int64_t at, int n) const {
    return from ? load_part(from + at, n) : Vec<Sum<T>>{};
  }
  INLINE void end_part(int64_t at, Vec<Sum<T>> x, int n) const {
    out ? store_part(out + at, x * by, n) : store_part(sum + at, x, n);
  }
};

constexpr int kAny = 0, kPart = -1;

// Rows of [P, length]; L is the length, at compile time: whole vectors, or a part of one, which heads that lie side by
// side then fill. L = kPart reads any length below a vector, and L = kAny any length, both head by head.
template <class T, int L>
struct Span {
  using A = Sum<T>;
  static constexpr int W = kWidth<A>;
  static constexpr int kHeads = L > 0 && L < W ? W / L : 1;              // read at once
  static constexpr int kVectors = L == kPart ? 1 : L * kHeads / W;       // that these take
  int length;
  INLINE int full() const { return L == kPart ? 0 : L ? kVectors : length / W; }
  INLINE int rest() const { return L == kPart ? length : L ? 0 : length % W; }
  INLINE int bytes() const { return (L > 0 ? kVectors * W : length) * static_cast<int>(sizeof(T)); }

  // What is read at once, of a row and of sums.
  INLINE void read(const T* p, Vec<A>* to) const {
    if constexpr (L == kPart)
      *to = load_part(p, length);
    else
      load_all<T, kVectors>(p, to);
  }
  INLINE void read_sums(const A* p, Vec<A>* to) const {
    if constexpr (L == kPart)
      *to = load_part(p, length);
    else
      load_sums<T, kVectors>(p, to);
  }
  INLINE void begin(const Into<T>& into, int h, Vec<A>* x) const {
    if constexpr (L == kPart)
      *x = into.begin_part(h * length, length);
    else
      into.template begin<kVectors>(h * L, x);
  }
  INLINE void end(const Into<T>& into, int h, Vec<A>* x) const {
    if constexpr (L == kPart)
      into.end_part(h * length, *x, length);
    else
      into.template end<kVectors>(h * L, x);
  }
};

// to[b, h] = by * leaf(b, h), summed over its lanes, for b < count; what follows up to the end of a vector is undefined.
// A leaf has S heads, h and those after it, one after the other.
template <class A, int P, int S, class Leaf>
INLINE void sums(const Leaf& leaf, int count, A by, A* to) {
  constexpr int W = kWidth<A>, kLanes = W / S;  // kLanes lanes are summed: as many leaves fill a vector
  for (int first = 0; first < count * P; first += W) {
    const auto lane = [&](int l) LAMBDA_INLINE { return leaf(first / P + l * S / P, l * S % P); };
    const auto write = [&](auto leaves) LAMBDA_INLINE {
      const Vec<A> x = fold_rest<leaves, A, kLanes>(tree<levels(leaves), A>(lane, 0));
      store(to + first, by * in_order<kLanes, A>(x));
    };
    const int rest = count * P - first;
    if constexpr (W >= 16 && P <= W / 4 && kLanes >= 4) {
      if (rest <= W / 4) {
        write(std::integral_constant<int, kLanes / 4>{});
        continue;
      }
    }
    if constexpr (W >= 8 && P <= W / 2 && kLanes >= 2) {
      if (rest <= W / 2) {
        write(std::integral_constant<int, kLanes / 2>{});
        continue;
      }
    }
    write(std::integral_constant<int, kLanes>{});
  }
}

// score[b, h] = by * x[h] . row[b, h]
template <class T, int P, int L>
void dots(const Sum<T>* x, const Rows<T>& rows, int length, int count, Sum<T> by, Sum<T>* score) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>, S = Span<T, L>::kHeads, N = Span<T, L>::kVectors;
  const Span<T, L> span{length};
  Vec<A> own[N ? P / S * N : 1];
  for (int h = 0; h < (N ? P : 0); h += S) span.read_sums(x + h * length, own + h / S * N);
  sums<A, P, S>(
      [&](int b, int h) LAMBDA_INLINE {
        const T* r = rows.at(b, h);
        rows.prefetch(b, h, span.bytes());
        if constexpr (N > 0) {
          Vec<A> y[N];
          span.read(r, y);
          Vec<A> acc = own[h / S * N] * y[0];
          for (int n = 1; n < N; ++n) acc += own[h / S * N + n] * y[n];
          return acc;
        }
        const A* y = x + h * length;
        Vec<A> acc{};
        for (int n = 0; n < span.full(); ++n) acc += load(y + n * W) * load(r + n * W);
        const int begin = span.full() * W;
        if (span.rest()) acc += load_part(y + begin, span.rest()) * load_part(r + begin, span.rest());
        return acc;
      },
      count, by, score);
}

// into[h] += sum_b weight[b, h] row[b, h]
template <class T, int P, int L, bool Prefetch>
void add_rows(const Into<T>& into, const Sum<T>* weight, const Rows<T>& rows, int length, int count) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>, S = Span<T, L>::kHeads, N = Span<T, L>::kVectors;
  const Span<T, L> span{length};
  if constexpr (N > 0) {
    // As many heads at once as there are registers for; where those are few, two chains hide the latency of additions.
    constexpr int kSums = kBytes == 64 ? 16 : 8, kAll = P / S * N, M = kAll <= kSums ? P / S : kSums / N;
    constexpr int kChains = M * N <= 2 ? 2 : 1;
    for (int h = 0; h < P; h += M * S) {
      Vec<A> acc[kChains][M * N];
      for (int m = 0; m < M; ++m) span.begin(into, h + m * S, acc[0] + m * N);
      for (int n = 0; n < M * N; ++n) acc[kChains - 1][n] = kChains == 1 ? acc[0][n] : Vec<A>{};
      const auto add = [&](int b, int chain) LAMBDA_INLINE {
        // One load for all heads: loads are what this is bound by.
        const Vec<A> weights = load_repeated<M * S>(weight + b * P + h);
        const auto add_heads = [&](auto m) LAMBDA_INLINE {
          const T* r = rows.at(b, h + m * S);
          if (Prefetch) rows.prefetch(b, h + m * S, span.bytes());
          Vec<A> y[N];
          span.read(r, y);
          for (int n = 0; n < N; ++n) acc[chain][m * N + n] += heads<M * S, m * S, S, A>(weights) * y[n];
        };
        each_(add_heads, std::make_integer_sequence<int, M>{});
      };
      int b = 0;
      for (; b + kChains <= count; b += kChains)
        for (int chain = 0; chain < kChains; ++chain) add(b + chain, chain);
      if (b < count) add(b, 0);
      if (kChains > 1)
        for (int n = 0; n < M * N; ++n) acc[0][n] += acc[kChains - 1][n];
      for (int m = 0; m < M; ++m) span.end(into, h + m * S, acc[0] + m * N);
    }
  } else {
    for (int h = 0; h < P; ++h) {
      if (Prefetch)
        for (int b = 0; b < count; ++b) rows.prefetch(b, h, span.bytes());
      for (int n = 0; n < span.full(); ++n) {
        Vec<A> acc;
        into.template begin<1>(h * length + n * W, &acc);
        for (int b = 0; b < count; ++b) acc += weight[b * P + h] * load(rows.at(b, h) + n * W);
        into.template end<1>(h * length + n * W, &acc);
      }
      const int begin = span.full() * W;
      if (span.rest()) {
        Vec<A> acc = into.begin_part(h * length + begin, span.rest());
        for (int b = 0; b < count; ++b) acc += weight[b * P + h] * load_part(rows.at(b, h) + begin, span.rest());
        into.end_part(h * length + begin, acc, span.rest());
      }
    }
  }
}

// What both additive functions read: their own row and att, [P, length], the gathered rows, the terms of the edges.
template <class T>
struct Additive {
  const Sum<T>*x, *att;
  Rows<T> rows, edges;  // edges may be absent
  Sum<T> slope;

  INLINE Vec<Sum<T>> part(const Sum<T>* own, int b, int h, int begin, int rest) const {
    Vec<Sum<T>> y = load_part(own + begin, rest) + load_part(rows.at(b, h) + begin, rest);
    return edges.base ? y + load_part(edges.at(b, h) + begin, rest) : y;
  }
};

template <class A>
INLINE Vec<A> leaky(Vec<A> x, A slope) {
  return x > 0 ? x : x * slope;
}

// score[b, h] = att[h] . leaky_relu(x[h] + row[b, h] + edge[b, h])
template <class T, int P, int L>
void additive(const Additive<T>& of, int length, int count, Sum<T>* score) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>, S = Span<T, L>::kHeads;
  const Span<T, L> span{length};
  const auto all = [&](auto edges) LAMBDA_INLINE {
    sums<A, P, S>(
        [&](int b, int h) LAMBDA_INLINE {
          of.rows.prefetch(b, h, span.bytes());
          const A *x = of.x + h * length, *att = of.att + h * length;
          const T* r = of.rows.at(b, h);
          Vec<A> acc{};
          for (int n = 0; n < span.full(); ++n) {
            Vec<A> y = load(x + n * W) + load(r + n * W);
            if (edges) y += load(of.edges.at(b, h) + n * W);
            acc += load(att + n * W) * leaky<A>(y, of.slope);
          }
          const int begin = span.full() * W;
          if (span.rest())
            acc += load_part(att + begin, span.rest()) * leaky<A>(of.part(x, b, h, begin, span.rest()), of.slope);
          return acc;
        },
        count, A(1), score);
  };
  if constexpr (L <= 0)
    all(of.edges.base != nullptr);
  else
    of.edges.base ? all(std::true_type{}) : all(std::false_type{});
}

// With y = x[h] + row[b, h] + edge[b, h]: sum[h] += sum_b weight[b, h] att[h] leaky'(y), and
// grad_att[h] += sum_b weight[b, h] leaky(y). Both are slope times a sum over all b and 1 - slope times one over y > 0.
template <class T, int P, int S>
void additive_backward(const Additive<T>& of, const Sum<T>* weight, int length, int count, Sum<T>* sum,
                       Sum<T>* grad_att) {
  using A = Sum<T>;
  for (int h = 0; h < P; h += S) {
    const int first = h * length;
    Vec<A> total{};
    for (int b = 0; b < count; ++b) total += spread<S, A>(weight + b * P + h);
    const auto parts = [&](auto with_att, auto edges) LAMBDA_INLINE {
      const auto part = [&](int64_t d, int n) LAMBDA_INLINE {
        const Vec<A> own = load_n(of.x + first + d, n);
        Vec<A> rising{}, leaked{}, leaked_rising{};
        for (int b = 0; b < count; ++b) {
          Vec<A> y = own + load_n(of.rows.at(b, h) + d, n);
          if (edges) y += load_n(of.edges.at(b, h) + d, n);
          const Vec<A> w = spread<S, A>(weight + b * P + h);
          const Mask<A> up = y > 0;
          rising += up ? w : Vec<A>{};
          if constexpr (with_att) {
            const Vec<A> z = w * y;
            leaked += z;
            leaked_rising += up ? z : Vec<A>{};
          }
        }
        const Vec<A> grad = load_n(of.att + first + d, n) * (of.slope * total + (1 - of.slope) * rising);
        A* to = sum + first + d;
        store_n(to, load_n(to, n) + grad, n);
        if (!with_att || !grad_att) return;
        to = grad_att + first + d;
        store_n(to, load_n(to, n) + of.slope * leaked + (1 - of.slope) * leaked_rising, n);
      };
      if constexpr (S > 1)
        part(0, kWidth<A>);
      else
        lanes<A>(0, length, part);
    };
    if (of.edges.base)
      parts(std::true_type{}, true);
    else if (grad_att)
      parts(std::true_type{}, std::false_type{});
    else
      parts(std::false_type{}, std::false_type{});
  }
}

// The same of heads of length 1: a vector holds all heads of W / P edges, as scores lie.
template <class T, int P, bool Dense>
void additive_single(const Additive<T>& of, int, int count, Sum<T>* score) {
  using A = Sum<T>;
  const Vec<A> own = load_repeated<P>(of.x), att = load_repeated<P>(of.att);
  for (int b = 0; b < count; b += kWidth<A> / P) {
    Vec<A> y = own + of.rows.template single<P, Dense>(b);
    if (of.edges.base) y += of.edges.template single<P, Dense>(b);
    store(score + b * P, att * leaky<A>(y, of.slope));
    for (int c = b; c < b + kWidth<A> / P; ++c) of.rows.prefetch(c, 0, P * static_cast<int>(sizeof(T)));
  }
}
template <class T, int P, bool Dense>
void additive_single_backward(const Additive<T>& of, const Sum<T>* weight, int, int count, Sum<T>* sum,
                              Sum<T>* grad_att) {
  using A = Sum<T>;
  const Vec<A> own = load_repeated<P>(of.x);
  Vec<A> total{}, leaked{};
  for (int b = 0; b < count; b += kWidth<A> / P) {
    Vec<A> y = own + of.rows.template single<P, Dense>(b);
    if (of.edges.base) y += of.edges.template single<P, Dense>(b);
    const Mask<A> inside = lane_numbers<A>() < (count - b) * P;
    const Vec<A> w = inside ? load(weight + b * P) : Vec<A>{};
    const Vec<A> sloped = y > 0 ? w : w * of.slope;
    total += sloped;
    leaked += inside ? sloped * y : Vec<A>{};
  }
  const auto add = [](Vec<A> x, Vec<A> y) LAMBDA_INLINE { return x + y; };
  total = load_n(of.att, P) * over_edges<P, A>(total, add);
  store_n(sum, load_n(sum, P) + total, P);
  if (grad_att) store_n(grad_att, load_n(grad_att, P) + over_edges<P, A>(leaked, add), P);
}

// work(L): which of the functions, see Span, suits a length; `dense`: heads lie side by side.
template <class T, int P, class Work>
auto for_length(int64_t length, bool dense, const Work& work) {
  constexpr int W = kWidth<Sum<T>>;
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, bf16>) {
    if constexpr (W > 8 && P >= W / 8)
      if (length == 8 && dense) return work(std::integral_constant<int, 8>{});
    if constexpr (W > 4 && P >= W / 4)
      if (length == 4 && dense) return work(std::integral_constant<int, 4>{});
    if (length < W) return work(std::integral_constant<int, kPart>{});
    if (length == W) return work(std::integral_constant<int, W>{});
    if (length == 2 * W) return work(std::integral_constant<int, 2 * W>{});
    if (length == 4 * W) return work(std::integral_constant<int, 4 * W>{});
  }
  return work(std::integral_constant<int, kAny>{});
}

// The functions for one length, chosen once per call.
template <class T, int P>
struct Kernels {
  decltype(&dots<T, P, kAny>) dots_;
  decltype(&add_rows<T, P, kAny, true>) add_rows_, add_rows_ahead_;  // the latter prefetches
  decltype(&additive<T, P, kAny>) additive_;
  decltype(&additive_backward<T, P, 1>) additive_backward_;

  static Kernels of(int64_t length, bool dense) {
    Kernels all = for_length<T, P>(length, dense, [](auto l) {
      return Kernels{dots<T, P, l>, add_rows<T, P, l, false>, add_rows<T, P, l, true>, additive<T, P, l>,
                     additive_backward<T, P, Span<T, l>::kHeads>};
    });
    if (length == 1) {
      all.additive_ = dense ? additive_single<T, P, true> : additive_single<T, P, false>;
      all.additive_backward_ = dense ? additive_single_backward<T, P, true> : additive_single_backward<T, P, false>;
    }
    return all;
  }
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

}  // namespace
}  // namespace GEOATTN_NAMESPACE
