// The row that a walk is at: read whole, in the type of sums, and written whole. And which code runs: the type of a
// tensor and the number of its heads, made constants.
#pragma once

#include <algorithm>
#include <vector>

#include "simd_walk.h"

namespace GEOATTN_NAMESPACE {
namespace {

constexpr int64_t kStream = 16 << 20;  // bytes from which a result is written around the cache

// Rows that a thread takes at a time.
INLINE int64_t grain(int64_t count) { return std::clamp<int64_t>(count / 64, 16, 512); }

// Row i of a tensor [N, heads, length]. Strides are in elements.
template <class T>
INLINE const T* row_of(const void* p, const int64_t* stride, int64_t i) {
  return static_cast<const T*>(p) + i * stride[0];
}

// Prefetches a row that will be needed after those of a batch.
template <class T>
INLINE void prefetch_row(const void* p, const int64_t* stride, int64_t heads, int64_t length, int64_t i) {
  prefetch(row_of<T>(p, stride, i), ((heads - 1) * stride[1] + length) * static_cast<int64_t>(sizeof(T)));
}

// Copies the heads that begin at these bytes of a row, [heads, length].
template <class T>
INLINE void copy_heads(const T* row, const int64_t* offset, int64_t heads, int64_t length, Sum<T>* to) {
  constexpr int W = kWidth<Sum<T>>;
  for (int64_t h = 0; h < heads; ++h, to += length) {
    const T* from = row + offset[h] / static_cast<int64_t>(sizeof(T));
    int64_t d = 0;
    for (; d + W <= length; d += W) store(to + d, load(from + d));
    for (; d < length; ++d) to[d] = static_cast<Sum<T>>(from[d]);
  }
}

// A result, [rows, heads, length], and what sums are multiplied by before they are written to it. The first `direct`
// heads of a row get there from registers, P at a time, the others by way of the buffer they are summed in.
template <class T, int P>
struct Target {
  using A = Sum<T>;
  static constexpr int W = kWidth<A>;
  T* at;
  int64_t heads, length, direct;
  A by;
  bool stream;  // large enough to drive everything else from the cache, and aligned

  Target(void* p, int64_t count, int64_t heads_, int64_t length_, int64_t whole, A by_)
      : at(static_cast<T*>(p)), heads(heads_), length(length_),
        direct(length % W == 0 || (length < W && P * length % W == 0) ? whole : 0), by(by_) {
    const int64_t bytes = heads * length * static_cast<int64_t>(sizeof(T));
    stream = count * bytes >= kStream && (reinterpret_cast<int64_t>(p) | bytes) % kBytes == 0;
  }
  INLINE T* row(int64_t i) const { return at + i * heads * length; }
  // Where a tile's part of the block of heads at h is added; more of it may have been added or be to follow.
  INLINE Into<T> into(const Tile& tile, A* sum, int64_t h, bool begun, bool ended) const {
    A* part = sum + h * length;
    const bool complete = ended && tile.last && !tile.divided && h + P <= direct;
    return {begun || !tile.begins ? part : nullptr, part, complete ? row(tile.row) + h * length : nullptr, by, stream};
  }
  // At the end of a row.
  INLINE void write_rest(const Tile& tile, const A* sum) const {
    T* to = row(tile.row);
    int64_t d = tile.divided ? 0 : direct * length;
    if (stream)
      for (; d + W <= heads * length; d += W) store<true>(to + d, load(sum + d) * by);
    for (; d + W <= heads * length; d += W) store(to + d, load(sum + d) * by);
    for (; d < heads * length; ++d) to[d] = static_cast<T>(sum[d] * by);
  }
};

// Sums of a row of several blocks. Added one by one in float32, many terms drift, and a sum stops growing where a term
// is less than half a unit of its last place (ones at 2^24); so the sums of the blocks are added in float64.
template <class A>
class BlockSums {
 public:
  explicit BlockSums(int64_t count) : count_(count), total_(count) {}
  // At the end of a tile: takes the sums of a block that ends, and gives those of the row where that ends, too.
  INLINE void add(const Tile& tile, A* sum) {
    if (tile.divided && tile.ends) add_block(tile, sum, [](int64_t) { return 1.0; });
  }
  // The same where what was added before is to be multiplied by by(i).
  template <class By>
  NOINLINE void add_block(const Tile& tile, A* sum, const By& by) {
    for (int64_t i = 0; i < count_; ++i) {
      total_[i] = begun_ ? total_[i] * by(i) + sum[i] : sum[i];
      if (tile.last) sum[i] = static_cast<A>(total_[i]);
    }
    begun_ = !tile.last;
  }

 private:
  const int64_t count_;
  Buffer<double> total_;
  bool begun_ = false;
};

// Whether heads that begin at these bytes lie side by side.
template <class T>
INLINE bool dense(const std::vector<int64_t>& offset, int64_t length) {
  for (size_t h = 1; h < offset.size(); ++h)
    if (offset[h] - offset[h - 1] != length * static_cast<int64_t>(sizeof(T))) return false;
  return true;
}

template <class T, class Work>
int for_heads(int64_t heads, const Work& work) {
  // What is not float32 or bfloat16 is not worth the code.
  constexpr bool kMany = std::is_same_v<T, float> || std::is_same_v<T, bf16>;
  if constexpr (kMany) {
    if (heads % 4 == 2) return work(T{}, std::integral_constant<int, 2>{});  // blocks of more would not be full
    if (heads % 8 == 4) return work(T{}, std::integral_constant<int, 4>{});
    if (heads > 4) return work(T{}, std::integral_constant<int, std::min(8, kWidth<Sum<T>>)>{});
    if (heads > 1) return work(T{}, std::integral_constant<int, 4>{});
  }
  return work(T{}, std::integral_constant<int, 1>{});
}

// work(T{}, P): the type that torch's number `dtype` in cpu.py stands for, and how many heads go side by side.
template <class Work>
int for_type_and_heads(int64_t dtype, int64_t heads, const Work& work) {
  switch (dtype) {
    case 0: return for_heads<float>(heads, work);
    case 1: return for_heads<double>(heads, work);
    case 2: return for_heads<bf16>(heads, work);
    default: return for_heads<f16>(heads, work);
  }
}

}  // namespace
}  // namespace GEOATTN_NAMESPACE
