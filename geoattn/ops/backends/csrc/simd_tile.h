// What is done with the rows of a tile, 16 edges that share a row, for a block of P heads: dot products, weighted sums,
// additive scores and their gradients, random bits. Numbers per edge and head lie edge by edge, [kTile, P], so that a
// vector of W lanes holds W / P edges.
#pragma once

#include <type_traits>

#include "simd.h"

namespace GEOATTN_NAMESPACE {
namespace {

constexpr int kTile = 16;

// Full vectors at compile time where N says how many; N = 0 reads any length, with a last part.
template <class T, int N>
struct Span {
  using A = Sum<T>;
  int length;
  INLINE int full() const { return N ? N : length / kWidth<A>; }
  INLINE int rest() const { return N ? 0 : length % kWidth<A>; }
  INLINE int bytes() const { return (N ? N * kWidth<A> : length) * static_cast<int>(sizeof(T)); }
};

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

  // N vectors, in the order of load_all.
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
};

// to[b, h] = by * leaf(b, h), summed over its lanes, for b < count; what follows up to the end of a vector is undefined.
template <class A, int P, class Leaf>
INLINE void sums(const Leaf& leaf, int count, A by, A* to) {
  constexpr int W = kWidth<A>;
  for (int first = 0; first < count * P; first += W) {
    const int rest = count * P - first;
    const auto lane = [&](int l) LAMBDA_INLINE { return leaf(first / P + l / P, l % P); };
    if constexpr (W >= 16 && P <= 8) {
      if (rest <= 8) {
        if (P <= 4 && rest <= 4)
          store(to + first, by * fold_rest<4, A>(tree<2, A>(lane, 0)));
        else
          store(to + first, by * fold_rest<8, A>(tree<3, A>(lane, 0)));
        continue;
      }
    }
    if constexpr (W == 8 && P <= 4) {
      if (rest <= 4) {
        store(to + first, by * fold_rest<4, A>(tree<2, A>(lane, 0)));
        continue;
      }
    }
    store(to + first, by * tree<levels(W), A>(lane, 0));
  }
}

// score[b, h] = by * x[h] . row[b, h]
template <class T, int P, int N>
void dots(const Sum<T>* x, const Rows<T>& rows, int length, int count, Sum<T> by, Sum<T>* score) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const Span<T, N> span{length};
  Vec<A> own[N ? P * N : 1];
  for (int h = 0; h < (N ? P : 0); ++h) load_sums<T, N>(x + h * N * W, own + h * N);
  sums<A, P>(
      [&](int b, int h) LAMBDA_INLINE {
        const T* r = rows.at(b, h);
        rows.prefetch(b, h, span.bytes());
        if constexpr (N > 0) {
          Vec<A> y[N];
          load_all<T, N>(r, y);
          Vec<A> acc = own[h * N] * y[0];
          for (int n = 1; n < N; ++n) acc += own[h * N + n] * y[n];
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

template <class F, int... I>
INLINE void each_(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

// into[h] += sum_b weight[b, h] row[b, h]
template <class T, int P, int N, bool Prefetch>
void add_rows(const Into<T>& into, const Sum<T>* weight, const Rows<T>& rows, int length, int count) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const Span<T, N> span{length};
  if constexpr (N > 0) {
    // As many heads at once as there are registers for; where those are few, two chains hide the latency of additions.
    constexpr int kSums = kBytes == 64 ? 16 : 8, M = P * N <= kSums ? P : kSums / N, kChains = M * N <= 2 ? 2 : 1;
    for (int h = 0; h < P; h += M) {
      Vec<A> acc[kChains][M * N];
      for (int m = 0; m < M; ++m) into.template begin<N>((h + m) * N * W, acc[0] + m * N);
      for (int n = 0; n < M * N; ++n) acc[kChains - 1][n] = kChains == 1 ? acc[0][n] : Vec<A>{};
      const auto add = [&](int b, int chain) LAMBDA_INLINE {
        // One load for all heads: loads are what this is bound by.
        const Vec<A> weights = load_repeated<M>(weight + b * P + h);
        const auto add_head = [&](auto m) LAMBDA_INLINE {
          const T* r = rows.at(b, h + m);
          if (Prefetch) rows.prefetch(b, h + m, span.bytes());
          Vec<A> y[N];
          load_all<T, N>(r, y);
          for (int n = 0; n < N; ++n) acc[chain][m * N + n] += head<M, m, A>(weights) * y[n];
        };
        each_(add_head, std::make_integer_sequence<int, M>{});
      };
      int b = 0;
      for (; b + kChains <= count; b += kChains)
        for (int chain = 0; chain < kChains; ++chain) add(b + chain, chain);
      if (b < count) add(b, 0);
      if (kChains > 1)
        for (int n = 0; n < M * N; ++n) acc[0][n] += acc[kChains - 1][n];
      for (int m = 0; m < M; ++m) into.template end<N>((h + m) * N * W, acc[0] + m * N);
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
        const int at = h * length + begin;
        Vec<A> acc = into.from ? load_part(into.from + at, span.rest()) : Vec<A>{};
        for (int b = 0; b < count; ++b) acc += weight[b * P + h] * load_part(rows.at(b, h) + begin, span.rest());
        if (into.out)
          store_part(into.out + at, acc * into.by, span.rest());
        else
          store_part(into.sum + at, acc, span.rest());
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

  INLINE Vec<Sum<T>> at(const Sum<T>* own, int b, int h, int begin) const {
    Vec<Sum<T>> y = load(own + begin) + load(rows.at(b, h) + begin);
    return edges.base ? y + load(edges.at(b, h) + begin) : y;
  }
  INLINE Vec<Sum<T>> part(const Sum<T>* own, int b, int h, int begin, int rest) const {
    Vec<Sum<T>> y = load_part(own + begin, rest) + load_part(rows.at(b, h) + begin, rest);
    return edges.base ? y + load_part(edges.at(b, h) + begin, rest) : y;
  }
  INLINE Sum<T> one(const Sum<T>* own, int b, int h, int d) const {
    Sum<T> y = own[d] + static_cast<Sum<T>>(rows.at(b, h)[d]);
    return edges.base ? y + static_cast<Sum<T>>(edges.at(b, h)[d]) : y;
  }
};

template <class A>
INLINE Vec<A> leaky(Vec<A> x, A slope) {
  return x > 0 ? x : x * slope;
}

// score[b, h] = att[h] . leaky_relu(x[h] + row[b, h] + edge[b, h])
template <class T, int P, int N>
void additive(const Additive<T>& of, int length, int count, Sum<T>* score) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  if (length == 1) {
    for (int b = 0; b < count; ++b) {
      for (int h = 0; h < P; ++h) {
        const A y = of.one(of.x + h, b, h, 0);
        score[b * P + h] = of.att[h] * (y > 0 ? y : y * of.slope);
      }
      of.rows.prefetch(b, 0, P * static_cast<int>(sizeof(T)));
    }
    return;
  }
  const Span<T, N> span{length};
  const auto all = [&](auto edges) LAMBDA_INLINE {
    sums<A, P>(
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
  if constexpr (N == 0)
    all(of.edges.base != nullptr);
  else
    of.edges.base ? all(std::true_type{}) : all(std::false_type{});
}

// With y = x[h] + row[b, h] + edge[b, h]: sum[h] += sum_b weight[b, h] att[h] leaky'(y), and
// grad_att[h] += sum_b weight[b, h] leaky(y). Both are slope times a sum over all b and 1 - slope times one over y > 0.
template <class T, int P>
void additive_backward(const Additive<T>& of, const Sum<T>* weight, int length, int count, Sum<T>* sum,
                       Sum<T>* grad_att) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const int whole = length / W * W;
  for (int h = 0; h < P; ++h, ++weight) {
    const A *x = of.x + h * length, *att = of.att + h * length;
    A total = 0;
    for (int b = 0; b < count; ++b) total += weight[b * P];
    const auto parts = [&](auto with_att, auto edges) LAMBDA_INLINE {
      for (int begin = 0; begin < whole; begin += W) {
        const Vec<A> own = load(x + begin);
        Vec<A> rising{}, leaked{}, leaked_rising{};
        for (int b = 0; b < count; ++b) {
          Vec<A> y = own + load(of.rows.at(b, h) + begin);
          if (edges) y += load(of.edges.at(b, h) + begin);
          const Vec<A> w = splat(weight[b * P]);
          const Mask<A> up = y > 0;
          rising += up ? w : Vec<A>{};
          if constexpr (with_att) {
            const Vec<A> z = w * y;
            leaked += z;
            leaked_rising += up ? z : Vec<A>{};
          }
        }
        store(sum + begin, load(sum + begin) + load(att + begin) * (of.slope * total + (1 - of.slope) * rising));
        if (with_att && grad_att)
          store(grad_att + begin, load(grad_att + begin) + of.slope * leaked + (1 - of.slope) * leaked_rising);
      }
    };
    if (of.edges.base)
      parts(std::true_type{}, true);
    else if (grad_att)
      parts(std::true_type{}, std::false_type{});
    else
      parts(std::false_type{}, std::false_type{});
    for (int d = whole; d < length; ++d) {
      for (int b = 0; b < count; ++b) {
        const A y = of.one(x, b, h, d);
        sum[d] += weight[b * P] * att[d] * (y > 0 ? A(1) : of.slope);
        if (grad_att) grad_att[d] += weight[b * P] * (y > 0 ? y : y * of.slope);
      }
    }
    sum += length;
    if (grad_att) grad_att += length;
  }
}

// work(N): which of the functions for rows of N full vectors, or 0 of any, suits a length.
template <class T, class Work>
auto for_length(int64_t length, const Work& work) {
  constexpr int W = kWidth<Sum<T>>;
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, bf16>) {
    if (length == W) return work(std::integral_constant<int, 1>{});
    if (length == 2 * W) return work(std::integral_constant<int, 2>{});
    if (length == 4 * W) return work(std::integral_constant<int, 4>{});
  }
  return work(std::integral_constant<int, 0>{});
}

// The functions for one length, chosen once per call.
template <class T, int P>
struct Kernels {
  decltype(&dots<T, P, 0>) dots_;
  decltype(&add_rows<T, P, 0, true>) add_rows_, add_rows_ahead_;  // the latter prefetches
  decltype(&additive<T, P, 0>) additive_;

  static Kernels of(int64_t length) {
    return for_length<T>(length, [](auto n) {
      return Kernels{dots<T, P, n>, add_rows<T, P, n, false>, add_rows<T, P, n, true>, additive<T, P, n>};
    });
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
