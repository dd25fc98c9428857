// The way through the rows of a pattern: tiles of edges in batches, every number checked before it is used.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>

#include "parallel.h"
#include "simd_tile.h"

namespace GEOATTN_NAMESPACE {
namespace {

constexpr int kBatch = 8;        // tiles; gradients of longer rows cost a second look
constexpr int kBatchEdges = 24;  // a batch that has so many takes no further row
constexpr int kWindow = 384;     // edges whose numbers are read at once
constexpr int kBlock = 4096;     // edges of a longer row whose terms are added in the accumulation dtype; see BlockSums

// Compressed rows in any order: where each begins, the node at the other end of every edge, the position of every edge
// in col, which row each is. The last two are null where they count up from 0.
struct Visits {
  const void *ptr, *node, *edge, *row;
  int64_t wide;  // 64-bit numbers

  INLINE int64_t number(const void* p, int64_t i) const {
    return wide ? static_cast<const int64_t*>(p)[i] : static_cast<const int32_t*>(p)[i];
  }
  INLINE int64_t row_at(int64_t i) const { return row ? number(row, i) : i; }
  INLINE void read(const void* p, int64_t begin, int count, int64_t* to) const {
    if (wide)
      std::copy_n(static_cast<const int64_t*>(p) + begin, count, to);
    else
      std::copy_n(static_cast<const int32_t*>(p) + begin, count, to);
  }
};

// Up to 16 edges of a row.
struct Tile {
  int64_t visit, row, row_ahead;  // the number of the row in the walk; which one it is; one that comes later
  bool first, last;               // of its row
  bool begins, ends;              // a block of its row
  bool divided;                   // its row has several blocks
  bool whole;                     // all tiles of its row are in its batch
  int count;
  const int64_t *node, *edge;  // known for kAhead edges beyond the tile, too
};

struct Batch {
  Tile tile[kBatch];
  int count;
  Tile* begin() { return tile; }
  Tile* end() { return tile + count; }
  int index(const Tile& of) const { return static_cast<int>(&of - tile); }
};

// Rows of `visits`, whose edges lead to one of `others` nodes.
class Walk {
 public:
  // `positions`: whether those of edges matter. `error` becomes a geoattn::Failure where a number is wrong.
  Walk(const Visits& visits, int64_t rows, int64_t others, int64_t edges, bool positions, std::atomic<int>& error)
      : visits_(visits), rows_(rows), others_(others), edges_(edges), positions_(positions), error_(error) {
    if (visits.number(visits.ptr, 0) != 0 || visits.number(visits.ptr, rows) != edges) error_ = geoattn::kNotRising;
  }

  // Calls work(batch) for the tiles of rows `from` to `to`, in their order. One step after the other is done for all
  // tiles of a batch, so that the steps of short rows do not wait for each other; a row that fits into a batch is not
  // divided. An empty row has a tile, too.
  template <class Work>
  INLINE void batches(int64_t from, int64_t to, const Work& work) const {
    Window window;
    Batch batch;
    int64_t i = from, begin = visits_.number(visits_.ptr, from), end = begin, row_begin = begin;
    bool first = true, whole = false;
    while (i < to) {
      if (begin + kReach > window.end && !move(begin, window)) return;
      int edges = 0;
      for (batch.count = 0; batch.count < kBatch && i < to; ++batch.count) {
        if (edges >= kBatchEdges && (first || !whole)) break;
        if (first) {
          row_begin = begin, end = visits_.number(visits_.ptr, i + 1);
          whole = end - begin <= kBatch * kTile;
          if (whole && end - begin > (kBatch - batch.count) * kTile) break;
        }
        Tile& tile = batch.tile[batch.count];
        tile.visit = i, tile.whole = whole;
        tile.row = visits_.row_at(i), tile.row_ahead = visits_.row_at(std::min(i + kBatch, rows_ - 1));
        if (end < begin || end > edges_ || !inside(tile.row, rows_)) {
          error_ = geoattn::kNotRising;
          return;
        }
        tile.count = static_cast<int>(std::min<int64_t>(end - begin, kTile));
        tile.node = window.node + (begin - window.begin), tile.edge = window.edge + (begin - window.begin);
        tile.first = first, tile.divided = end - row_begin > kBlock;
        tile.begins = (begin - row_begin) % kBlock == 0;
        begin += tile.count, edges += tile.count;
        first = tile.last = begin == end;
        tile.ends = tile.last || (begin - row_begin) % kBlock == 0;
        i += tile.last;
      }
      work(batch);
    }
  }

 private:
  static constexpr int kReach = kBatch * kTile + kAhead;  // of a batch, with what is prefetched meanwhile

  // Numbers of consecutive edges; those after the last edge of all repeat the first here.
  struct Window {
    int64_t begin = 0, end = std::numeric_limits<int64_t>::min();  // empty
    int64_t node[kWindow], edge[kWindow];
  };

  NOINLINE bool move(int64_t begin, Window& window) const {
    if (begin < 0 || begin > edges_) return fail(geoattn::kNotRising);
    const int count = static_cast<int>(std::min<int64_t>(kWindow, edges_ - begin));
    window.begin = begin, window.end = begin + kWindow;
    if (count == 0) return true;
    visits_.read(visits_.node, begin, count, window.node);
    std::fill(window.node + count, window.node + kWindow, window.node[0]);
    if (!all_inside(window.node, others_)) return fail(geoattn::kOutOfRange);
    if (!positions_) return true;
    if (visits_.edge)
      visits_.read(visits_.edge, begin, count, window.edge);
    else
      for (int b = 0; b < count; ++b) window.edge[b] = begin + b;
    std::fill(window.edge + count, window.edge + kWindow, window.edge[0]);
    return all_inside(window.edge, edges_) || fail(geoattn::kOutOfRange);
  }
  static INLINE bool inside(int64_t number, int64_t count) {
    return static_cast<uint64_t>(number) < static_cast<uint64_t>(count);
  }
  static INLINE bool all_inside(const int64_t* number, int64_t count) {
    bool good = true;
    for (int b = 0; b < kWindow; ++b) good &= inside(number[b], count);
    return good;
  }
  bool fail(geoattn::Failure failure) const {
    error_ = failure;
    return false;
  }

  const Visits& visits_;
  const int64_t rows_, others_, edges_;
  const bool positions_;
  std::atomic<int>& error_;
};

}  // namespace
}  // namespace GEOATTN_NAMESPACE
