// Submanifold convolution: rows of voxels times the matrix of each kernel offset, added to the rows of the voxels that
// read them; and sums of outer products over the pairs of each offset, which are the gradients of those matrices.
//
// Both go through the voxels in blocks, all offsets of a block one after the other, so that rows that are read for
// several offsets stay in cache. The inner loops are those of a matrix product whose sums stay in registers; what it
// reads is gathered on the way and nothing is written but sums. Every number has one owner and every sum one order, so
// the bits do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <utility>

#include "parallel.h"
#include "simd.h"

namespace GEOATTN_NAMESPACE {
using geoattn::parallel_blocks;

namespace {

// Mirrors geoattn.ops.backends.convolution_cpu._CALL field by field.
struct Call {
  int64_t voxels, offsets;
  const int32_t *voxel, *neighbor;  // pairs of the offsets before the centre, both ascending within an offset
  const int64_t* ptr;               // where those of each begin, [(offsets - 1) / 2 + 1]
  int64_t depth, width;             // channels of x and of the other, the latter a multiple of kPanel
  const float *x, *other;           // [voxels, depth]; matrices [offsets, width / kPanel, depth, kPanel], or y [voxels, width]
  float* out;                       // [voxels, width], or [offsets, depth, width]
  int64_t threads;
};

constexpr int W = kWidth<float>;
constexpr int kPanel = 32;                    // columns of a matrix that lie side by side
constexpr int kRows = kBytes == 64 ? 14 : 6;  // of a tile of 2 vectors: as many sums as there are registers for
constexpr int kDepth = 256;                   // channels of x that are multiplied at once
constexpr int kStride = kDepth + 16;          // an odd number of cache lines: rows do not fall onto each other
constexpr int kGroup = 16 * kRows;            // rows that are gathered at once
constexpr int kPairs = 128;                   // outer products that are summed at once

// body(M), the number of rows of a tile as a constant
template <class Body, int... M>
INLINE void with_rows_(int rows, const Body& body, std::integer_sequence<int, M...>) {
  ((rows == M + 1 ? body(std::integral_constant<int, M + 1>{}) : void()), ...);
}
template <class Body>
INLINE void with_rows(int rows, const Body& body) {
  with_rows_(rows, body, std::make_integer_sequence<int, kRows>{});
}

// The pairs of one offset whose readers are in [from, to).
struct Pairs {
  const int32_t *reader = nullptr, *read = nullptr;  // none: every voxel reads itself
  int64_t begin, end;

  Pairs(const Call& call, int64_t offset, int64_t from, int64_t to) : begin(from), end(to) {
    const int64_t centre = call.offsets / 2;
    if (offset == centre) return;
    const bool before = offset < centre;
    const int64_t number = before ? offset : call.offsets - 1 - offset;
    reader = before ? call.voxel : call.neighbor;
    read = before ? call.neighbor : call.voxel;
    const int32_t *first = reader + call.ptr[number], *last = reader + call.ptr[number + 1];
    begin = std::lower_bound(first, last, from) - reader;
    end = std::lower_bound(first, last, to) - reader;
  }
  INLINE int64_t reads(int64_t i) const { return reader ? reader[i] : i; }
  INLINE int64_t is_read(int64_t i) const { return read ? read[i] : i; }
};

// out[m] (+)= a[m] @ w, of 2 vectors of columns
template <int M>
NOINLINE void multiply(const float* a, const float* w, int64_t depth, float* const* out, int64_t column, bool add) {
  Vec<float> sum[M][2] = {};
  for (int64_t d = 0; d < depth; ++d) {
    const Vec<float> w0 = load(w + d * kPanel), w1 = load(w + d * kPanel + W);
    for (int m = 0; m < M; ++m) {
      const Vec<float> x = splat(a[m * kStride + d]);
      sum[m][0] += x * w0;
      sum[m][1] += x * w1;
    }
  }
  for (int m = 0; m < M; ++m) {
    float* to = out[m] + column;
    store(to, add ? load(to) + sum[m][0] : sum[m][0]);
    store(to + W, add ? load(to + W) + sum[m][1] : sum[m][1]);
  }
}

// sum[m] += sum over pairs of a[pair][m] b[pair], of 2 vectors of columns
template <int M>
NOINLINE void outer(const float* const* a, const float* const* b, int64_t pairs, int64_t row, int64_t column,
                    float* out, int64_t width) {
  Vec<float> sum[M][2] = {};
  for (int64_t p = 0; p < pairs; ++p) {
    const float *x = a[p] + row, *y = b[p] + column;
    const Vec<float> y0 = load(y), y1 = load(y + W);
    for (int m = 0; m < M; ++m) {
      sum[m][0] += splat(x[m]) * y0;
      sum[m][1] += splat(x[m]) * y1;
    }
  }
  for (int m = 0; m < M; ++m) {
    float* to = out + m * width;
    store(to, load(to) + sum[m][0]);
    store(to + W, load(to + W) + sum[m][1]);
  }
}

// Voxels of a block: their rows fit into the second level of cache.
int64_t block_size(const Call& call) {
  return std::clamp<int64_t>((1 << 18) / (call.depth + call.width), 256, 4096);
}

int convolve(const Call& call) {
  std::atomic<int> error{0};
  parallel_blocks(call.voxels, block_size(call), static_cast<int>(call.threads), [&](int64_t from, int64_t to) {
    Buffer<float> gathered(kGroup * kStride);
    float* out[kGroup];
    for (int64_t number = 0; number < call.offsets; ++number) {
      // The centre first: it writes every row.
      const int64_t centre = call.offsets / 2, offset = number == 0 ? centre : number <= centre ? number - 1 : number;
      const Pairs pairs(call, offset, from, to);
      for (int64_t begin = pairs.begin; begin < pairs.end; begin += kGroup) {
        const int count = static_cast<int>(std::min<int64_t>(kGroup, pairs.end - begin));
        for (int64_t first = 0; first < call.depth; first += kDepth) {
          const int64_t depth = std::min<int64_t>(kDepth, call.depth - first);
          for (int i = 0; i < count; ++i) {
            const int64_t reader = pairs.reads(begin + i), read = pairs.is_read(begin + i);
            if (reader < from || reader >= to || read < 0 || read >= call.voxels) return error.store(geoattn::kOutOfRange);
            out[i] = call.out + reader * call.width;
            std::memcpy(gathered + i * kStride, call.x + read * call.depth + first, depth * sizeof(float));
          }
          for (int64_t column = 0; column < call.width; column += 2 * W) {
            const float* w = call.other + (offset * call.width + column / kPanel * kPanel) * call.depth +
                             first * kPanel + column % kPanel;
            for (int i = 0; i < count; i += kRows)
              with_rows(std::min(kRows, count - i), [&](auto rows) {
                multiply<rows>(gathered + i * kStride, w, depth, out + i, column, number > 0 || first > 0);
              });
          }
        }
      }
    }
  });
  return error;
}

int correlate(const Call& call) {
  std::atomic<int> error{0};
  const int64_t tiles = (call.depth + kRows - 1) / kRows;
  const int64_t grain = (call.offsets + 2 * call.threads - 2) / (2 * call.threads - 1);
  parallel_blocks(call.offsets, grain, static_cast<int>(call.threads), [&](int64_t first, int64_t last) {
    const float *x[kPairs], *y[kPairs];
    const int64_t size = call.depth * call.width, block = block_size(call);
    std::fill(call.out + first * size, call.out + last * size, 0.0f);
    for (int64_t from = 0; from < call.voxels; from += block) {
      const int64_t to = std::min(from + block, call.voxels);
      for (int64_t offset = first; offset < last; ++offset) {
        const Pairs pairs(call, offset, from, to);
        for (int64_t begin = pairs.begin; begin < pairs.end; begin += kPairs) {
          const int64_t count = std::min<int64_t>(kPairs, pairs.end - begin);
          for (int64_t i = 0; i < count; ++i) {
            const int64_t reader = pairs.reads(begin + i), read = pairs.is_read(begin + i);
            if (reader < from || reader >= to || read < 0 || read >= call.voxels) return error.store(geoattn::kOutOfRange);
            x[i] = call.x + read * call.depth;
            y[i] = call.other + reader * call.width;
          }
          float* out = call.out + offset * size;
          for (int64_t column = 0; column < call.width; column += 2 * W)
            for (int64_t tile = 0; tile < tiles; ++tile) {  // of nearly equal size
              const int64_t row = call.depth * tile / tiles, end = call.depth * (tile + 1) / tiles;
              with_rows(static_cast<int>(end - row), [&](auto rows) {
                outer<rows>(x, y, count, row, column, out + row * call.width + column, call.width);
              });
            }
        }
      }
    }
  });
  return error;
}

}  // namespace

GEOATTN_EXPORT(geoattn_convolve)(const void* call) {
  return geoattn::guarded([&] { return convolve(*static_cast<const Call*>(call)); });
}
GEOATTN_EXPORT(geoattn_correlate)(const void* call) {
  return geoattn::guarded([&] { return correlate(*static_cast<const Call*>(call)); });
}

}  // namespace GEOATTN_NAMESPACE
