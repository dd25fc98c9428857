// How fast the rows of two tables can be read once for every edge: what bounds any attention over these edges.
#include <cstdint>

#include "parallel.h"

namespace {

constexpr int64_t LANES = 64, LINE = 16;  // floats kept in registers; floats in a line of the cache

struct Sum {
  float lane[LANES] = {};
  void add(const float* row, int64_t width) {
    for (; width >= LANES; width -= LANES, row += LANES)
      for (int64_t i = 0; i < LANES; ++i) lane[i] += row[i];
    for (int64_t i = 0; i < width; ++i) lane[i] += row[i];
  }
};

void prefetch(const float* row, int64_t width, bool second) {
  for (int64_t i = 0; i < width; i += LINE)
    second ? __builtin_prefetch(row + i, 0, 2) : __builtin_prefetch(row + i, 0, 3);
}

}  // namespace

// out[i] = sum of all entries of rows col[rowptr[i] .. rowptr[i + 1]) of key and value, rows being fetched `ahead` edges
// before they are read, into the first or the second level of the cache. One number a query is written, so that nothing
// is left out by the compiler.
extern "C" void gather(const float* key, const float* value, const int64_t* rowptr, const int64_t* col, float* out,
                       int64_t queries, int64_t width, int64_t ahead, int64_t second, int64_t threads) {
  const int64_t edges = rowptr[queries];
  geoattn::parallel_blocks(queries, 256, static_cast<int>(threads), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Sum sum;
      for (int64_t e = rowptr[i]; e < rowptr[i + 1]; ++e) {
        if (ahead && e + ahead < edges) {
          prefetch(key + col[e + ahead] * width, width, second);
          prefetch(value + col[e + ahead] * width, width, second);
        }
        sum.add(key + col[e] * width, width);
        sum.add(value + col[e] * width, width);
      }
      float total = 0;
      for (float x : sum.lane) total += x;
      out[i] = total;
    }
  });
}
