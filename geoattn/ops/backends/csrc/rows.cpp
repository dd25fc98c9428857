// Edges in compressed rows, by counting: no edge is stored twice on the way.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel.h"

namespace {

using geoattn::guarded;
using geoattn::kNotRising;
using geoattn::kOutOfRange;

// From how many edges there are in each row, at ptr[row + 1], to where each begins.
template <class I>
void begin_rows(I* ptr, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) ptr[i + 1] += ptr[i];
}

// Back to where each row begins, once ptr[row] has counted up to its end.
template <class I>
void end_rows(I* ptr, int64_t rows) {
  for (int64_t i = rows; i > 0; --i) ptr[i] = ptr[i - 1];
  ptr[0] = 0;
}

// By key; edges of the same key stay as they are.
template <class I>
void sort_row(I* col, I* order, int64_t count, std::vector<std::pair<I, I>>& sorted) {
  if (std::is_sorted(col, col + count)) return;
  sorted.resize(count);
  for (int64_t e = 0; e < count; ++e) sorted[e] = {col[e], order[e]};
  std::sort(sorted.begin(), sorted.end());  // order ascends, so it decides between duplicates
  for (int64_t e = 0; e < count; ++e) col[e] = sorted[e].first, order[e] = sorted[e].second;
}

template <class I, class O>
int compress(const I* key, const I* query, int64_t edges, int64_t keys, int64_t queries, bool loops, O* ptr, O* col,
             O* order) {
  const int64_t own = loops ? std::min(keys, queries) : 0;
  std::fill(ptr, ptr + queries + 1, O(0));
  for (int64_t e = 0; e < edges; ++e) {
    if (key[e] < 0 || key[e] >= keys || query[e] < 0 || query[e] >= queries) return kOutOfRange;
    ptr[query[e] + 1] += !(loops && key[e] == query[e]);
  }
  for (int64_t i = 0; i < own; ++i) ++ptr[i + 1];
  begin_rows(ptr, queries);
  int64_t kept = 0;
  for (int64_t e = 0; e < edges; ++e) {
    if (loops && key[e] == query[e]) continue;
    const O to = ptr[query[e]]++;
    col[to] = static_cast<O>(key[e]);
    order[to] = static_cast<O>(kept++);
  }
  for (int64_t i = 0; i < own; ++i) {
    const O to = ptr[i]++;
    col[to] = static_cast<O>(i);
    order[to] = static_cast<O>(kept + i);
  }
  end_rows(ptr, queries);
  std::vector<std::pair<O, O>> sorted;
  for (int64_t i = 0; i < queries; ++i) sort_row(col + ptr[i], order + ptr[i], ptr[i + 1] - ptr[i] - (i < own), sorted);
  return 0;
}

template <class I>
int transpose(const I* ptr, const I* col, int64_t queries, int64_t keys, int64_t edges, I* to_ptr, I* row, I* order) {
  if (ptr[0] != 0 || ptr[queries] != edges || !std::is_sorted(ptr, ptr + queries + 1)) return kNotRising;
  std::fill(to_ptr, to_ptr + keys + 1, I(0));
  for (int64_t e = 0; e < edges; ++e) {
    if (col[e] < 0 || col[e] >= keys) return kOutOfRange;
    ++to_ptr[col[e] + 1];
  }
  begin_rows(to_ptr, keys);
  for (int64_t i = 0; i < queries; ++i) {
    for (I e = ptr[i]; e < ptr[i + 1]; ++e) {
      const I to = to_ptr[col[e]]++;
      row[to] = static_cast<I>(i);
      if (order) order[to] = e;
    }
  }
  end_rows(to_ptr, keys);
  return 0;
}

}  // namespace

// 0, or a geoattn::Failure. `wide`: 64-bit numbers.

// Keys ascending in rows of queries, and for every edge its number among those given, or with `loops`, among those that
// are no loops; the loops then follow, one to a query that is also a key, at the end of its row.
extern "C" __attribute__((visibility("default"))) int geoattn_compress(const void* key, const void* query,
                                                                       int64_t edges, int64_t keys, int64_t queries,
                                                                       int64_t loops, void* ptr, void* col,
                                                                       void* order, int64_t wide, int64_t to_wide) {
  const auto run = [&](auto from, auto to) {
    using I = decltype(from);
    using O = decltype(to);
    return guarded([&] {
      return compress(static_cast<const I*>(key), static_cast<const I*>(query), edges, keys, queries, loops != 0,
                      static_cast<O*>(ptr), static_cast<O*>(col), static_cast<O*>(order));
    });
  };
  if (to_wide) return wide ? run(int64_t{}, int64_t{}) : run(int32_t{}, int64_t{});
  return wide ? run(int64_t{}, int32_t{}) : run(int32_t{}, int32_t{});
}

// The transpose; edges of one key keep their order. And the position of every edge among the rows, unless null.
extern "C" __attribute__((visibility("default"))) int geoattn_transpose(const void* ptr, const void* col,
                                                                        int64_t queries, int64_t keys, int64_t edges,
                                                                        void* to_ptr, void* row, void* order,
                                                                        int64_t wide) {
  const auto run = [&](auto type) {
    using I = decltype(type);
    return transpose(static_cast<const I*>(ptr), static_cast<const I*>(col), queries, keys, edges,
                     static_cast<I*>(to_ptr), static_cast<I*>(row), static_cast<I*>(order));
  };
  return wide ? run(int64_t{}) : run(int32_t{});
}
