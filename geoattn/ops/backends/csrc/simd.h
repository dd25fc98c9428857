// Vectors of the instruction set this file is compiled for: loads, folds, exp. GCC and Clang vector extensions, so that
// one source serves SSE2, AVX2, AVX-512 and NEON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define GEOATTN_PASTE_(a, b) a##b
#define GEOATTN_PASTE(a, b) GEOATTN_PASTE_(a, b)
// Everything here exists once per instruction set, each in a namespace of its own: the linker must not merge them.
#define GEOATTN_NAMESPACE GEOATTN_PASTE(geoattn_, GEOATTN_ISA)
#define GEOATTN_EXPORT(name) \
  extern "C" __attribute__((visibility("default"))) int GEOATTN_PASTE(name##_, GEOATTN_ISA)
// GCC before 12 knows the older builtin only.
#if defined(__clang__) || __GNUC__ >= 12
#define GEOATTN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define GEOATTN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a == b){__VA_ARGS__})
#endif
#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define LAMBDA_INLINE __attribute__((always_inline))

namespace GEOATTN_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

struct bf16 {
  uint16_t bits;
  bf16() = default;
  // Rounds to nearest even; NaN stays NaN.
  explicit bf16(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    bits = x != x ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t u = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &u, 4);
    return x;
  }
};
struct f16 {
  uint16_t bits;
  f16() = default;
  // Rounds to nearest even; what is too large becomes infinite.
  explicit f16(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    const uint32_t sign = (u >> 16) & 0x8000, size = u & 0x7fffffff;
    if (size > 0x7f800000) {
      bits = static_cast<uint16_t>(sign | 0x7e00);
    } else if (size >= 0x477ff000) {
      bits = static_cast<uint16_t>(sign | 0x7c00);
    } else if (size < 0x38800000) {  // denormal: adding 0.5 shifts the bits that stay into place, and rounds
      float shifted;
      std::memcpy(&shifted, &size, 4);
      shifted += 0.5f;
      std::memcpy(&u, &shifted, 4);
      bits = static_cast<uint16_t>(sign | (u - 0x3f000000));
    } else {
      bits = static_cast<uint16_t>(sign | ((size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13));
    }
  }
  explicit operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, size = bits & 0x7fff;
    uint32_t u = size >= 0x7c00 ? (size << 13) + 0x70000000 : (size << 13) + 0x38000000;
    float x;
    if (size < 0x400) {  // zero or denormal
      x = static_cast<float>(size) * 5.9604644775390625e-8f;
      std::memcpy(&u, &x, 4);
    }
    u |= sign;
    std::memcpy(&x, &u, 4);
    return x;
  }
};

// The type sums are made in.
template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <class T>
using Sum = typename SumOf<T>::type;

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kBytes)));
  typedef int32_t mask __attribute__((vector_size(kBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kBytes)));
  typedef int64_t mask __attribute__((vector_size(kBytes)));
};
template <class A>
using Vec = typename VectorOf<A>::type;
template <class A>
using Mask = typename VectorOf<A>::mask;
template <class A>
constexpr int kWidth = kBytes / sizeof(A);

template <class A>
INLINE Vec<A> splat(A x) {
  return x - Vec<A>{};
}

// Reads the cache lines of `bytes` bytes ahead, into the second level: rows of 512 bytes in random order arrive there
// twice as fast as in the first (measured on AMD Zen 4), and from there it is a short way.
INLINE void prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, 2);
}

// W elements of any storage type, as sums.
INLINE Vec<float> load(const float* p) {
  Vec<float> x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
INLINE Vec<double> load(const double* p) {
  Vec<double> x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
INLINE Vec<float> load(const bf16* p) {
#if defined(__AVX512F__)
  const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return reinterpret_cast<Vec<float>>(_mm512_slli_epi32(x, 16));
#elif defined(__AVX2__)
  const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return reinterpret_cast<Vec<float>>(_mm256_slli_epi32(x, 16));
#else
  Vec<float> x;
  for (int i = 0; i < kWidth<float>; ++i) x[i] = static_cast<float>(p[i]);
  return x;
#endif
}
INLINE Vec<float> load(const f16* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec<float>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec<float>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Vec<float> x;
  for (int i = 0; i < kWidth<float>; ++i) x[i] = static_cast<float>(p[i]);
  return x;
#endif
}

// Lane l is p[l % P].
template <int P, class T>
INLINE Vec<Sum<T>> load_repeated(const T* p) {
  T all[kWidth<Sum<T>>];
  for (int l = 0; l < kWidth<Sum<T>>; ++l) all[l] = p[l % P];
  return load(all);
}
template <int P>
INLINE Vec<float> load_repeated(const float* p) {
  static_assert(P == 1 || P == 2 || P == 4 || P == 8, "other numbers of heads are not repeated");
  if constexpr (P == 1) return splat(*p);
  if constexpr (P == 2) {
    typedef int64_t Pairs __attribute__((vector_size(kBytes)));
    int64_t pair;
    std::memcpy(&pair, p, 8);
    return reinterpret_cast<Vec<float>>(pair + Pairs{});
  }
#if defined(__AVX512F__)
  if constexpr (P == 4) return reinterpret_cast<Vec<float>>(_mm512_broadcast_f32x4(_mm_loadu_ps(p)));
  if constexpr (P == 8) return reinterpret_cast<Vec<float>>(_mm512_broadcast_f32x8(_mm256_loadu_ps(p)));
#elif defined(__AVX2__)
  if constexpr (P == 4) {
    const __m128 x = _mm_loadu_ps(p);
    return reinterpret_cast<Vec<float>>(_mm256_broadcast_ps(&x));
  }
#endif
  return load(p);
}
// Of P numbers, repeated, those from H on: S of them, each in W / S lanes that follow each other.
template <int P, int H, int S, class V, int... L>
INLINE V heads_(V x, std::integer_sequence<int, L...>) {
  constexpr int kLanes = sizeof...(L) / S;
  return GEOATTN_SHUFFLE(x, x, (L / P * P + (H + L / kLanes) % P)...);
}
template <int P, int H, int S, class A>
INLINE Vec<A> heads(Vec<A> x) {
  return heads_<P, H, S>(x, std::make_integer_sequence<int, kWidth<A>>{});
}
// Lane l is p[l / (W / S)].
template <int S, class A>
INLINE Vec<A> spread(const A* p) {
  if constexpr (S == 1) return splat(*p);
  return heads<S, 0, S, A>(load_repeated<S>(p));
}
// Lane l is lane l of y from lane `Begin` on, else of x.
template <int Begin, class V, int... L>
INLINE V splice_(V x, V y, std::integer_sequence<int, L...>) {
  return GEOATTN_SHUFFLE(x, y, (L < Begin ? L : static_cast<int>(sizeof...(L)) + L)...);
}
template <int Begin, class A>
INLINE Vec<A> splice(Vec<A> x, Vec<A> y) {
  return splice_<Begin>(x, y, std::make_integer_sequence<int, kWidth<A>>{});
}

// The first n < W elements, zeros after them; reads no byte beyond.
template <class T>
INLINE Vec<Sum<T>> load_part(const T* p, int n) {
  T part[kWidth<Sum<T>>] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}
#if defined(__AVX512F__)
INLINE Vec<float> load_part(const float* p, int n) {
  return reinterpret_cast<Vec<float>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
INLINE Vec<float> load_part(const bf16* p, int n) {
  const __m256i x = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
  return reinterpret_cast<Vec<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
INLINE Vec<float> load_part(const f16* p, int n) {
  const __m256i x = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
  return reinterpret_cast<Vec<float>>(_mm512_cvtph_ps(x));
}
#endif

// Writes a vector. Streamed, it goes around the cache: a large result that nobody reads soon would otherwise be fetched
// from memory only to be overwritten. Streamed addresses must be aligned to the vector; `finish_streams` ends them.
template <bool Stream, class V>
INLINE void write(void* p, V x) {
#if defined(__AVX512F__)
  if constexpr (Stream && sizeof(V) == 64)
    return _mm512_stream_si512(static_cast<__m512i*>(p), reinterpret_cast<__m512i>(x));
#endif
#if defined(__AVX2__)
  if constexpr (Stream && sizeof(V) == 32)
    return _mm256_stream_si256(static_cast<__m256i*>(p), reinterpret_cast<__m256i>(x));
#endif
#if defined(__SSE2__)
  if constexpr (Stream && sizeof(V) == 16)
    return _mm_stream_si128(static_cast<__m128i*>(p), reinterpret_cast<__m128i>(x));
#endif
  std::memcpy(p, &x, sizeof x);
}
INLINE void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}
template <bool Stream = false>
INLINE void store(float* p, Vec<float> x) {
  write<Stream>(p, x);
}
template <bool Stream = false>
INLINE void store(double* p, Vec<double> x) {
  write<Stream>(p, x);
}
// Bits whose upper half is the nearest bfloat16; NaN stays NaN.
typedef uint32_t Bits __attribute__((vector_size(kBytes)));
INLINE Bits rounded(Vec<float> x) {
  const Bits u = reinterpret_cast<Bits>(x);
  return x == x ? u + 0x7fff + ((u >> 16) & 1) : u * 0 + 0x7fc00000;
}
template <bool Stream = false>
INLINE void store(bf16* p, Vec<float> x) {
  typedef uint16_t Half __attribute__((vector_size(kBytes / 2)));
  write<Stream>(p, __builtin_convertvector(rounded(x) >> 16, Half));
}
template <bool Stream = false>
INLINE void store(f16* p, Vec<float> x) {
#if defined(__AVX512F__)
  write<Stream>(p, _mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  write<Stream>(p, _mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kWidth<float>; ++i) p[i] = static_cast<f16>(x[i]);
#endif
}
template <class T>
INLINE void store_part(T* p, Vec<Sum<T>> x, int n) {
  for (int i = 0; i < n; ++i) p[i] = static_cast<T>(x[i]);
}
#if defined(__AVX512F__)
INLINE void store_part(float* p, Vec<float> x, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(x));
}
#endif

// The first n <= W elements.
template <class T>
INLINE Vec<Sum<T>> load_n(const T* p, int n) {
  return n == kWidth<Sum<T>> ? load(p) : load_part(p, n);
}
template <class A>
INLINE void store_n(A* p, Vec<A> x, int n) {
  n == kWidth<A> ? store(p, x) : store_part(p, x, n);
}
// body(c, n) for [begin, end) cut into vectors of n lanes.
template <class A, class Body>
INLINE void lanes(int64_t begin, int64_t end, const Body& body) {
  int64_t c = begin;
  for (; c + kWidth<A> <= end; c += kWidth<A>) body(c, kWidth<A>);
  if (c < end) body(c, static_cast<int>(end - c));
}

// N vectors of a row at once, in an order of its own: of bfloat16, two vectors are the even and the odd elements of as
// many, because it takes no shuffle to read them so. Whoever keeps sums in this order turns others into it.
template <class T, int N>
constexpr bool kPairs = std::is_same_v<T, bf16> && N % 2 == 0;

template <class T, int N>
INLINE void load_all(const T* p, Vec<Sum<T>>* to) {
  constexpr int W = kWidth<Sum<T>>;
  if constexpr (kPairs<T, N>) {
    for (int n = 0; n < N; n += 2) {
      Mask<float> both;
      std::memcpy(&both, p + n * W, sizeof both);
      to[n] = reinterpret_cast<Vec<float>>(both << 16);
      to[n + 1] = reinterpret_cast<Vec<float>>(both & static_cast<int32_t>(0xffff0000));
    }
  } else {
    for (int n = 0; n < N; ++n) to[n] = load(p + n * W);
  }
}
template <bool Stream, class T, int N>
INLINE void store_all(T* p, const Vec<Sum<T>>* x) {
  constexpr int W = kWidth<Sum<T>>;
  if constexpr (kPairs<T, N>) {
    for (int n = 0; n < N; n += 2)
      write<Stream>(p + n * W, (rounded(x[n]) >> 16) | (rounded(x[n + 1]) & 0xffff0000));
  } else {
    for (int n = 0; n < N; ++n) store<Stream>(p + n * W, x[n]);
  }
}
// The same of sums, in the order that rows of T have.
template <class V, int... L>
INLINE void part_(V a, V b, V* even, V* odd, std::integer_sequence<int, L...>) {
  *even = GEOATTN_SHUFFLE(a, b, (2 * L)...);
  *odd = GEOATTN_SHUFFLE(a, b, (2 * L + 1)...);
}
template <class V, int... L>
INLINE void join_(V even, V odd, V* a, V* b, std::integer_sequence<int, L...>) {
  constexpr int W = sizeof...(L);
  *a = GEOATTN_SHUFFLE(even, odd, (L / 2 + L % 2 * W)...);
  *b = GEOATTN_SHUFFLE(even, odd, (W / 2 + L / 2 + L % 2 * W)...);
}
template <class T, int N, class A>
INLINE void load_sums(const A* p, Vec<A>* to) {
  constexpr int W = kWidth<A>;
  for (int n = 0; n < N; ++n) to[n] = load(p + n * W);
  if constexpr (kPairs<T, N>)
    for (int n = 0; n < N; n += 2)
      part_(to[n], to[n + 1], to + n, to + n + 1, std::make_integer_sequence<int, W>{});
}
template <class T, int N, class A>
INLINE void store_sums(A* p, const Vec<A>* x) {
  constexpr int W = kWidth<A>;
  for (int n = 0; n < N; n += kPairs<T, N> ? 2 : 1) {
    if constexpr (kPairs<T, N>) {
      Vec<A> a, b;
      join_(x[n], x[n + 1], &a, &b, std::make_integer_sequence<int, W>{});
      store(p + n * W, a), store(p + n * W + W, b);
    } else {
      store(p + n * W, x[n]);
    }
  }
}

// Sums of neighbors: x0 + x1, x2 + x3 and so on, where x is the units of a, then those of b. While S lanes are less
// than 16 bytes, a unit is a lane, and x is the first 16 bytes of a and b, then the next; after that a unit is 16 bytes.
template <int S, int W>
constexpr int first_lane(int l) {
  constexpr int kQuarter = 16 * W / kBytes, kUnit = S < kQuarter ? 1 : kQuarter, kGroup = S < kQuarter ? kQuarter : W;
  constexpr int kHalf = kGroup / kUnit / 2;
  const int unit = l % kGroup / kUnit;
  return (unit >= kHalf ? W : 0) + l / kGroup * kGroup + unit % kHalf * 2 * kUnit + l % kUnit;
}
template <int S, class V, int... L>
INLINE V fold_(V a, V b, std::integer_sequence<int, L...>) {
  constexpr int W = sizeof...(L), kQuarter = 16 * W / kBytes, kUnit = S < kQuarter ? 1 : kQuarter;
  const V first = GEOATTN_SHUFFLE(a, b, first_lane<S, W>(L)...);
  const V second = GEOATTN_SHUFFLE(a, b, (first_lane<S, W>(L) + kUnit)...);
  return first + second;
}
template <int S, class A>
INLINE Vec<A> fold(Vec<A> a, Vec<A> b) {
  return fold_<S>(a, b, std::make_integer_sequence<int, kWidth<A>>{});
}

constexpr int levels(int width) { return width == 1 ? 0 : 1 + levels(width / 2); }
// Folds 2^Levels leaves into a vector of sums of 2^Levels neighbors; where those are all lanes of a leaf, lane l is the
// sum of leaf(first + l).
template <int Levels, class A, class Leaf>
INLINE Vec<A> tree(const Leaf& leaf, int first) {
  if constexpr (Levels == 0) {
    return leaf(first);
  } else {
    constexpr int S = 1 << (Levels - 1);
    const Vec<A> a = tree<Levels - 1, A>(leaf, first);
    const Vec<A> b = tree<Levels - 1, A>(leaf, first + S);
    return fold<S, A>(a, b);
  }
}
// The tree goes on, with copies of what it has made, up to sums of `End` lanes.
template <int S, class A, int End = kWidth<A>>
INLINE Vec<A> fold_rest(Vec<A> x) {
  if constexpr (S < End) {
    return fold_rest<2 * S, A, End>(fold<S, A>(x, x));
  } else {
    return x;
  }
}
// Which sum lane l of a tree is, counted leaf by leaf: sums of S lanes, W / S of a leaf.
template <int S, int W>
constexpr int sum_at(int l, int leaf = 0) {
  if constexpr (S == 1) {
    return leaf * W + l;
  } else {
    const int from = first_lane<S / 2, W>(l);
    return from < W ? sum_at<S / 2, W>(from, leaf) : sum_at<S / 2, W>(from - W, leaf + S / 2);
  }
}
template <int S, int W>
constexpr int lane_of(int sum) {
  for (int l = 0; l < W; ++l)
    if (sum_at<S, W>(l) / W * (W / S) + sum_at<S, W>(l) % W / S == sum) return l;
  return 0;
}
template <int S, class V, int... L>
INLINE V in_order_(V x, std::integer_sequence<int, L...>) {
  return GEOATTN_SHUFFLE(x, x, (lane_of<S, sizeof...(L)>(L))...);
}
// Sums of S lanes as a tree leaves them, put in the order of its leaves.
template <int S, class A>
INLINE Vec<A> in_order(Vec<A> x) {
  return in_order_<S>(x, std::make_integer_sequence<int, kWidth<A>>{});
}
template <int S, class V, int... L>
INLINE V swap_(V x, std::integer_sequence<int, L...>) {
  return GEOATTN_SHUFFLE(x, x, (L ^ S)...);
}
// Lane l of the result is the lane across S.
template <int S, class A>
INLINE Vec<A> across(Vec<A> x) {
  return swap_<S>(x, std::make_integer_sequence<int, kWidth<A>>{});
}

// Combines the lanes l, l + P, l + 2 P and so on; each gets the result.
template <int P, class A, class F>
INLINE Vec<A> over_edges(Vec<A> x, const F& f) {
  if constexpr (P <= 1 && kWidth<A> > 1) x = f(x, across<1, A>(x));
  if constexpr (P <= 2 && kWidth<A> > 2) x = f(x, across<2, A>(x));
  if constexpr (P <= 4 && kWidth<A> > 4) x = f(x, across<4, A>(x));
  if constexpr (P <= 8 && kWidth<A> > 8) x = f(x, across<8, A>(x));
  return x;
}
template <class A>
INLINE Mask<A> lane_numbers() {
  Mask<A> lane;
  for (int l = 0; l < kWidth<A>; ++l) lane[l] = l;
  return lane;
}

INLINE Vec<float> exp(Vec<float> x) {
  // exp(x) = 2^n exp(r), |r| <= ln 2 / 2; below -87.3, where the result would be denormal, 0.
  const Mask<float> alive = ~(x <= -87.3f);  // of NaN too
  x = alive ? x : splat(-87.3f);
  x = x > 88.7f ? splat(88.7f) : x;
  const Vec<float> shifted = x * 1.44269504f + 12582912.0f;
  const Vec<float> n = shifted - 12582912.0f;
  Vec<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec<float> y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const Mask<float> bits = (reinterpret_cast<Mask<float>>(shifted) << 23) + reinterpret_cast<Mask<float>>(y);
  return alive ? reinterpret_cast<Vec<float>>(bits) : Vec<float>{};
}
// Of positive normal numbers.
INLINE Vec<float> log(Vec<float> x) {
  // x = 2^n m with m in [sqrt(1/2), sqrt(2)), log x = n ln 2 + log m.
  const Mask<float> bits = reinterpret_cast<Mask<float>>(x) - 0x3f3504f3;
  const Vec<float> n = __builtin_convertvector(bits >> 23, Vec<float>);
  const Vec<float> r = reinterpret_cast<Vec<float>>((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
  Vec<float> y = splat(7.0376836292e-2f);
  y = y * r - 1.1514610310e-1f;
  y = y * r + 1.1676998740e-1f;
  y = y * r - 1.2420140846e-1f;
  y = y * r + 1.4249322787e-1f;
  y = y * r - 1.6668057665e-1f;
  y = y * r + 2.0000714765e-1f;
  y = y * r - 2.4999993993e-1f;
  y = y * r + 3.3333331174e-1f;
  const Vec<float> z = r * r;
  return r + (y * r * z + n * -2.12194440e-4f - 0.5f * z) + n * 0.693359375f;
}
INLINE Vec<double> log(Vec<double> x) {
  for (int i = 0; i < kWidth<double>; ++i) x[i] = std::log(x[i]);
  return x;
}
INLINE Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kWidth<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// Memory whose vectors do not straddle cache lines, zero at first.
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<A*>(::operator new(bytes(count), std::align_val_t{64}))) {
    std::memset(data_, 0, bytes(count));
  }
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator A*() { return data_; }
  const A* data() const { return data_; }

 private:
  static size_t bytes(int64_t count) { return (static_cast<size_t>(count) * sizeof(A) + 127) & ~size_t{63}; }
  A* data_;
};

}  // namespace GEOATTN_NAMESPACE
