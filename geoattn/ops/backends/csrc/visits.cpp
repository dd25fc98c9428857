// An order of the rows of a graph in which those with neighbors in common follow each other.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace {

using geoattn::guarded;
using geoattn::kNotRising;
using geoattn::kOutOfRange;

constexpr int64_t kCluster = 512;  // rows; at 512 bytes for a key and as many for a value, half of a core's cache
constexpr int64_t kSamples = 64;

// How many different nodes kCluster rows in succession name, for every row of them: the mean over a few places.
template <class I>
double spread(const I* ptr, const I* node, int64_t rows) {
  std::vector<int64_t> seen(rows, -1);
  int64_t named = 0, looked = 0;
  const int64_t step = std::max(kCluster, rows / kSamples);
  for (int64_t begin = 0; begin + kCluster <= rows; begin += step, looked += kCluster) {
    for (int64_t e = ptr[begin]; e < ptr[begin + kCluster]; ++e) {
      named += seen[node[e]] != begin;
      seen[node[e]] = begin;
    }
  }
  return static_cast<double>(named) / static_cast<double>(std::max<int64_t>(looked, 1));
}

// Breadth first, up to kCluster rows from one start; the next start is the first node that was left over.
// `left` has room for every edge.
template <class I, class O>
void clusters(const I* ptr, const I* node, int64_t rows, O* order, O* left) {
  std::vector<char> taken(rows);
  int64_t count = 0, lefts = 0, next_left = 0;
  const auto take = [&](int64_t i) {
    taken[i] = 1;
    order[count++] = static_cast<O>(i);
  };
  for (int64_t unseen = 0; count < rows;) {
    while (next_left < lefts && taken[left[next_left]]) ++next_left;
    while (unseen < rows && taken[unseen]) ++unseen;
    const int64_t begin = count, end = begin + kCluster;
    take(next_left < lefts ? left[next_left] : unseen);
    for (int64_t head = begin; head < count; ++head) {
      for (I e = ptr[order[head]]; e < ptr[order[head] + 1]; ++e) {
        if (taken[node[e]]) continue;
        if (count < end)
          take(node[e]);
        else
          left[lefts++] = static_cast<O>(node[e]);
      }
    }
    // What lies in a cluster is in cache in any order; from outside of it, ascending rows are read faster.
    std::sort(order + begin, order + count);
  }
}

template <class I, class O>
int visits(const I* ptr, const I* node, O* to_ptr, O* to_node, O* to_row, int64_t rows, int64_t edges) {
  if (ptr[0] != 0 || ptr[rows] != edges || !std::is_sorted(ptr, ptr + rows + 1)) return kNotRising;
  for (int64_t e = 0; e < edges; ++e)
    if (node[e] < 0 || node[e] >= rows) return kOutOfRange;

  // Along a curve through a volume, rows of 16 neighbors name about two nodes each; on a surface, fewer.
  const double before = spread(ptr, node, rows);
  if (before <= 2 + 0.05 * static_cast<double>(edges) / static_cast<double>(rows)) return 0;
  clusters(ptr, node, rows, to_row, to_node);
  to_ptr[0] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    O to = to_ptr[i];
    for (I e = ptr[to_row[i]]; e < ptr[to_row[i] + 1]; ++e) to_node[to++] = static_cast<O>(node[e]);
    to_ptr[i + 1] = to;
  }
  return spread(to_ptr, to_node, rows) <= 0.8 * before;
}

}  // namespace

// 1: written, 0: would not pay; or a geoattn::Failure. `wide`: 64-bit numbers.
extern "C" __attribute__((visibility("default"))) int geoattn_visits(const void* ptr, const void* node, void* to_ptr,
                                                                     void* to_node, void* to_row, int64_t rows,
                                                                     int64_t edges, int64_t wide, int64_t to_wide) {
  const auto run = [&](auto from, auto to) {
    using I = decltype(from);
    using O = decltype(to);
    return guarded([&] {
      return visits(static_cast<const I*>(ptr), static_cast<const I*>(node), static_cast<O*>(to_ptr),
                    static_cast<O*>(to_node), static_cast<O*>(to_row), rows, edges);
    });
  };
  if (to_wide) return run(int64_t{}, int64_t{});
  return wide ? run(int64_t{}, int32_t{}) : run(int32_t{}, int32_t{});
}
