// Squared distances of a few points to a block of others, for neighbor search among many dimensions (search.cpp).
//
// They are rounded as it comes, in the type of the coordinates: search.cpp allows for that and decides exactly. Here
// differences are squared, not |q|^2 - 2 qk + |k|^2 summed, so the error is small against the distance itself, however
// far from the origin the points are.

#include "simd.h"

namespace GEOATTN_NAMESPACE {
namespace {

constexpr int kBlock = 32;  // points in a block, LEAF in search.cpp
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 8;  // queries at a time: two sums of each stay in registers
#else
constexpr int kRows = 4;
#endif

// Bit l is whether lane l is set.
template <class A>
INLINE uint32_t bits(Mask<A> mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
  if constexpr (sizeof(A) == 8) return _mm512_movepi64_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) return _mm256_movemask_ps(reinterpret_cast<__m256>(mask));
  if constexpr (sizeof(A) == 8) return _mm256_movemask_pd(reinterpret_cast<__m256d>(mask));
#elif defined(__SSE2__)
  if constexpr (sizeof(A) == 4) return _mm_movemask_ps(reinterpret_cast<__m128>(mask));
  if constexpr (sizeof(A) == 8) return _mm_movemask_pd(reinterpret_cast<__m128d>(mask));
#else
  uint32_t set = 0;
  for (int l = 0; l < kWidth<A>; ++l) set |= static_cast<uint32_t>(mask[l] & 1) << l;
  return set;
#endif
}

template <class A>
void distances(const A* query, int rows, const A* block, int dim, const A* limit, A* distance,
               uint32_t* within) {
  constexpr int W = kWidth<A>;
  for (int row = 0; row < rows; row += kRows) {
    const A* q = query + static_cast<int64_t>(row) * dim;
    uint32_t near[kRows] = {};
    for (int at = 0; at < kBlock; at += 2 * W) {
      Vec<A> sum[kRows][2] = {};
      for (int d = 0; d < dim; ++d) {
        const Vec<A> one = load(block + d * kBlock + at), other = load(block + d * kBlock + at + W);
        for (int r = 0; r < kRows; ++r) {
          const Vec<A> x = splat(q[static_cast<int64_t>(r) * dim + d]);
          const Vec<A> a = one - x, b = other - x;
          sum[r][0] += a * a;
          sum[r][1] += b * b;
        }
      }
      for (int r = 0; r < kRows; ++r) {
        A* out = distance + (row + r) * kBlock + at;
        store(out, sum[r][0]), store(out + W, sum[r][1]);
        near[r] |= bits<A>(sum[r][0] <= limit[row + r]) << at | bits<A>(sum[r][1] <= limit[row + r]) << (at + W);
      }
    }
    for (int r = 0; r < kRows; ++r) within[row + r] = near[r];
  }
}

}  // namespace

// From query [rows, dim] to block [dim, 32]: distance [rows, 32], and which of them are at most limit [rows]: within
// [rows], a bit for each. float32 or float64; rows are read and written up to the next multiple of 8.
GEOATTN_EXPORT(geoattn_distances)(int is_float64, const void* query, int rows, const void* block,
                                  int dim, const void* limit, void* distance, uint32_t* within) {
  if (is_float64)
    distances(static_cast<const double*>(query), rows, static_cast<const double*>(block),
              dim, static_cast<const double*>(limit), static_cast<double*>(distance), within);
  else
    distances(static_cast<const float*>(query), rows, static_cast<const float*>(block),
              dim, static_cast<const float*>(limit), static_cast<float*>(distance), within);
  return 0;
}

}  // namespace GEOATTN_NAMESPACE
