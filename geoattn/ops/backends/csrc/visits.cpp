// An order of the rows of a graph in which those with neighbors in common follow each other.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

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
template <class I>
std::vector<I> clusters(const I* ptr, const I* node, int64_t rows) {
  std::vector<I> order, left;
  std::vector<char> taken(rows);
  order.reserve(rows);
  size_t next_left = 0;
  for (int64_t unseen = 0; static_cast<int64_t>(order.size()) < rows;) {
    while (next_left < left.size() && taken[left[next_left]]) ++next_left;
    while (unseen < rows && taken[unseen]) ++unseen;
    const I start = next_left < left.size() ? left[next_left] : static_cast<I>(unseen);
    const size_t begin = order.size(), end = begin + kCluster;
    size_t head = begin;
    const auto take = [&](I i) {
      taken[i] = 1;
      order.push_back(i);
    };
    for (take(start); head < order.size(); ++head) {
      for (I e = ptr[order[head]]; e < ptr[order[head] + 1]; ++e) {
        if (taken[node[e]]) continue;
        if (order.size() < end)
          take(node[e]);
        else
          left.push_back(node[e]);
      }
    }
    // What lies in a cluster is in cache in any order; from outside of it, ascending rows are read faster.
    std::sort(order.begin() + static_cast<std::ptrdiff_t>(begin), order.end());
  }
  return order;
}

template <class I, class O>
int visits(const I* ptr, const I* node, const I* order, O* to_ptr, O* to_node, O* to_edge, O* to_row, int64_t rows,
           int64_t edges) {
  for (int64_t i = 0; i < rows; ++i)
    if (ptr[i + 1] < ptr[i]) return -1;
  if (ptr[0] != 0 || ptr[rows] != edges) return -1;
  for (int64_t e = 0; e < edges; ++e)
    if (node[e] < 0 || node[e] >= rows) return -1;

  // Along a curve through a volume, rows of 16 neighbors name about two nodes each; on a surface, fewer.
  const double before = spread(ptr, node, rows);
  if (before <= 2 + 0.05 * static_cast<double>(edges) / static_cast<double>(rows)) return 0;
  const std::vector<I> row = clusters(ptr, node, rows);
  to_ptr[0] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const I begin = ptr[row[i]], end = ptr[row[i] + 1];
    O to = to_ptr[i];
    for (I e = begin; e < end; ++e, ++to) {
      to_node[to] = static_cast<O>(node[e]);
      to_edge[to] = static_cast<O>(order ? order[e] : e);
    }
    to_ptr[i + 1] = to;
    to_row[i] = static_cast<O>(row[i]);
  }
  return spread(to_ptr, to_node, rows) <= 0.8 * before;
}

}  // namespace

// 1: written, 0: would not pay, -1: rows that do not rise or a node out of range. `wide`: 64-bit numbers.
extern "C" __attribute__((visibility("default"))) int geoattn_visits(const void* ptr, const void* node,
                                                                     const void* order, void* to_ptr, void* to_node,
                                                                     void* to_edge, void* to_row, int64_t rows,
                                                                     int64_t edges, int64_t wide, int64_t to_wide) {
  const auto run = [&](auto from, auto to) {
    using I = decltype(from);
    using O = decltype(to);
    return visits(static_cast<const I*>(ptr), static_cast<const I*>(node), static_cast<const I*>(order),
                  static_cast<O*>(to_ptr), static_cast<O*>(to_node), static_cast<O*>(to_edge), static_cast<O*>(to_row),
                  rows, edges);
  };
  if (to_wide) return run(int64_t{}, int64_t{});
  return wide ? run(int64_t{}, int32_t{}) : run(int32_t{}, int32_t{});
}
