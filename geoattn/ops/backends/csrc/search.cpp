// Nearest neighbors, neighbors within a radius and farthest points, exact, with balanced k-d trees.
//
// Distances are squares, summed in float64 over x, y, z, ... in this order, by single operations: the other backends do
// the same, so all agree to the bit. Rounding is monotone, so the distance to a box is never above the distance to a
// point in it, and nothing here needs a tolerance. Equal distances are ordered by index: every node knows the smallest
// index below it, so a node with nothing but losers of a tie is not entered, however many points share a place.
//
// With few dimensions, queries descend the tree one by one. With many, boxes keep little out, and queries go in groups of
// a leaf: all their distances to another leaf are found at once, fast and roughly (simd_distances.cpp), and only keys
// that may be among the nearest by that, given how far the rough distances can be off, are measured exactly.

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")  // a fused multiply-add would round differently
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.h"

namespace {

using geoattn::guarded;
using geoattn::parallel_blocks;

constexpr int LEAF = 32;  // points in a leaf, at most
constexpr uintptr_t LINE = 64;  // bytes of a cache line
constexpr int32_t NOBODY = std::numeric_limits<int32_t>::max();
constexpr double INF = std::numeric_limits<double>::infinity();
constexpr int MIN_GROUPED = 5;        // dimensions from which queries go in groups
constexpr int MAX_GROUPED = 1 << 16;  // and up to which the rounding of rough distances is small

// See simd_distances.cpp.
using RoughDistances = int (*)(int is_float64, const void* query, int rows, const void* block, int dim,
                               const void* limit, void* distance, uint32_t* within);

struct Hit {
  double distance;
  int32_t index;
  bool operator<(const Hit& other) const {
    return distance < other.distance || (distance == other.distance && index < other.index);
  }
};

// The k smallest hits seen that are below (limit, NOBODY).
class Nearest {
 public:
  void reset(int64_t k, double limit) {
    hits_.assign(k, Hit{limit, NOBODY});
    worst_ = hits_[0];
  }
  const Hit& worst() const { return worst_; }
  void offer(const Hit& hit) {
    if (!(hit < worst_)) return;
    if (hits_.size() <= SHORT) {  // kept sorted
      int64_t i = static_cast<int64_t>(hits_.size()) - 1;
      for (; i > 0 && hit < hits_[i - 1]; --i) hits_[i] = hits_[i - 1];
      hits_[i] = hit;
      worst_ = hits_.back();
    } else {  // kept as a heap, the worst on top
      std::pop_heap(hits_.begin(), hits_.end());
      hits_.back() = hit;
      std::push_heap(hits_.begin(), hits_.end());
      worst_ = hits_.front();
    }
  }
  const std::vector<Hit>& sorted() {
    if (hits_.size() > SHORT) std::sort_heap(hits_.begin(), hits_.end());
    return hits_;
  }

 private:
  static constexpr size_t SHORT = 64;
  std::vector<Hit> hits_;
  Hit worst_;
};

// How far distances summed in T, in any order, fused or not, denormal numbers flushed to zero or not, can be off: no more
// than (dim + 3) roundings each way, and the squares of numbers too small for T. The exact ones, in float64, likewise.
template <class T>
class Rounding {
 public:
  explicit Rounding(int dim)
      : relative_((dim + 8) * static_cast<double>(std::numeric_limits<T>::epsilon())),
        absolute_(4.0 * dim * std::numeric_limits<T>::min()) {}
  // One of the two is at most this, and at least that, if the other is x.
  double above(double x) const { return x * (1 + relative_) + absolute_; }
  double below(double x) const { return std::max(0.0, (x - absolute_) / (1 + relative_)); }
  // What a rough distance is at most if the exact one is at most x.
  T limit(double x) const {
    const double wanted = above(x);
    if (!(wanted < static_cast<double>(std::numeric_limits<T>::max()))) return std::numeric_limits<T>::max();
    const T rounded = static_cast<T>(wanted);
    return rounded < wanted ? std::nextafter(rounded, std::numeric_limits<T>::infinity()) : rounded;
  }

 private:
  double relative_, absolute_;
};

// The exact distance of q from points of index `hits[i].index` among pos [points, dim].
template <class T>
void measure(const T* q, const T* pos, int dim, std::vector<Hit>& hits) {
  constexpr size_t SIDE_BY_SIDE = 8;  // sums of which each has to wait for its last step
  for (size_t i = 0; i < hits.size(); i += SIDE_BY_SIDE) {
    const T* x[SIDE_BY_SIDE];
    double sum[SIDE_BY_SIDE] = {};
    for (size_t j = 0; j < SIDE_BY_SIDE; ++j)
      x[j] = pos + int64_t{hits[std::min(i + j, hits.size() - 1)].index} * dim;
    for (int d = 0; d < dim; ++d)
      for (size_t j = 0; j < SIDE_BY_SIDE; ++j) {
        const double gap = double{x[j][d]} - double{q[d]};
        sum[j] = sum[j] + gap * gap;
      }
    for (size_t j = 0; j < SIDE_BY_SIDE && i + j < hits.size(); ++j) hits[i + j].distance = sum[j];
  }
}

// The k nearest keys of one query, from rough distances.
template <class T>
class Candidates {
 public:
  void reset(const T* q, const T* pos, int dim, int64_t k, double limit) {
    q_ = q, pos_ = pos, dim_ = dim, k_ = k;
    next_ = k;
    rough_.clear();
    worst_ = Hit{INF, NOBODY};
    limit_ = std::numeric_limits<T>::max();
    bound(Hit{limit, NOBODY});
  }
  void offer(T distance, int32_t index) { rough_.push_back({distance, index}); }
  bool many() const { return static_cast<int64_t>(rough_.size()) >= next_; }
  // No key above `worst` is among the nearest, nor one whose rough distance is above `limit`.
  const Hit& worst() const { return worst_; }
  T limit() const { return limit_; }

  // Leaves out what cannot be among the k nearest.
  void tighten() {
    const auto kth = rough_.begin() + (k_ - 1);
    std::nth_element(rough_.begin(), kth, rough_.end());
    bound({Rounding<T>(dim_).above(kth->distance), NOBODY});
    rough_.erase(std::remove_if(kth + 1, rough_.end(), [&](const Rough& x) { return x.distance > limit_; }),
                 rough_.end());
    if (static_cast<int64_t>(rough_.size()) > 2 * k_ + LEAF) {  // many are as far as the k-th: a tie, maybe
      exact();
      std::nth_element(hits_.begin(), hits_.begin() + (k_ - 1), hits_.end());
      bound(hits_[k_ - 1]);
      rough_.resize(k_);
      for (int64_t i = 0; i < k_; ++i) rough_[i] = {static_cast<T>(hits_[i].distance), hits_[i].index};
    }
    next_ = rough_.size() + std::max<int64_t>(LEAF / 2, k_ / 2);
  }

  const std::vector<Hit>& sorted() {
    exact();
    std::sort(hits_.begin(), hits_.end());
    return hits_;
  }

 private:
  struct Rough {
    T distance;
    int32_t index;
    bool operator<(const Rough& other) const { return distance < other.distance; }
  };

  void bound(const Hit& worst) {
    if (!(worst < worst_)) return;
    worst_ = worst;
    limit_ = Rounding<T>(dim_).limit(worst.distance);
  }
  void exact() {
    hits_.clear();
    for (const Rough& x : rough_) hits_.push_back({0, x.index});
    measure(q_, pos_, dim_, hits_);
  }

  const T *q_, *pos_;
  int dim_;
  int64_t k_, next_;
  std::vector<Rough> rough_;
  std::vector<Hit> hits_;
  Hit worst_;
  T limit_;
};

// One tree: a complete binary tree over `size` points, nodes numbered 1, 2 and 3, 4 to 7, ... as in a heap. A level cuts
// the points, in the tree's order, into equal parts, which may be empty.
struct Tree {
  int64_t begin, size;  // its points among all
  int levels;           // the leaves stand at this level, the root at 0
  int64_t node, leaf;   // node 0 (unused) and leaf 0 among those of all trees
  int64_t unit;         // parts are cut at multiples of so many points

  int64_t leaves() const { return int64_t{1} << levels; }
  int64_t part(int level, int64_t i) const { return std::min(size, (((size + unit - 1) / unit * i) >> level) * unit); }
  int64_t size_of(int64_t node) const {
    int level = 0;
    while (node >> (level + 1)) ++level;
    const int64_t i = node - (int64_t{1} << level);
    return part(level, i + 1) - part(level, i);
  }
};

struct Forest {
  virtual ~Forest() = default;
  virtual void knn(const void* query, const int64_t* tree_of, int64_t queries, int64_t k, double limit,
                   const int64_t* rowptr, int64_t* col, int threads) const = 0;
  virtual void count(const void* query, const int64_t* tree_of, int64_t queries, double limit, int64_t* counts,
                     int threads) const = 0;
  virtual void within(const void* query, const int64_t* tree_of, int64_t queries, double limit, const int64_t* rowptr,
                      int64_t* col, int threads) const = 0;
  virtual void farthest(const void* pos, const int64_t* start, const int64_t* outptr, int64_t* out, int threads) const = 0;
};

// T: the type of the coordinates. D: how many there are, or 0 for any number.
template <class T, int D>
class Trees final : public Forest {
 public:
  Trees(const T* pos, int64_t count, int dim, const int64_t* ptr, int64_t trees, int threads, RoughDistances rough)
      : dim_(D ? D : dim), pos_(pos), rough_(rough), rounding_(dim_), grouped_(can_group(pos, count)) {
    int64_t nodes = 0, leaves = 0;
    for (int64_t t = 0; t < trees; ++t) {
      // Queries of a group look at whole leaves, full or not.
      Tree tree{ptr[t], ptr[t + 1] - ptr[t], 0, nodes, leaves, grouped_ ? LEAF : 1};
      while (tree.size > int64_t{LEAF} << tree.levels) ++tree.levels;
      nodes += 2 * tree.leaves();
      leaves += tree.leaves();
      trees_.push_back(tree);
    }
    box_.resize(nodes * 2 * this->dim());
    first_.resize(nodes);
    points_.resize(leaves * LEAF * this->dim() + LINE / sizeof(T));
    block_ = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(points_.data()) + LINE - 1) & ~(LINE - 1));
    index_.assign(leaves * LEAF, NOBODY);
    build(pos, count, threads);
  }

  void knn(const void* query, const int64_t* tree_of, int64_t queries, int64_t k, double limit, const int64_t* rowptr,
           int64_t* col, int threads) const override {
    if (grouped_ && can_group(static_cast<const T*>(query), queries))
      return each_group<GroupNearest>(query, tree_of, queries, threads, [=](GroupNearest& group) {
        group.search(k, limit);
        for (int i = 0; i < group.size; ++i) {
          const int64_t* row = rowptr + group.row[i];
          if (row[0] == row[1]) continue;
          const auto& hits = group.candidates[i].sorted();
          for (int64_t e = row[0]; e < row[1]; ++e) col[e] = hits[e - row[0]].index;
        }
      });
    each_query<Nearest>(query, tree_of, queries, threads,
                        [=](const Tree& tree, const double* q, int64_t leaf, int64_t row, Nearest& best) {
                          if (rowptr[row] == rowptr[row + 1]) return;
                          best.reset(std::min(k, tree.size), limit);
                          nearest(tree, q, leaf, best);
                          const auto& hits = best.sorted();
                          for (int64_t i = 0, e = rowptr[row]; e < rowptr[row + 1]; ++i, ++e) col[e] = hits[i].index;
                        });
  }

  void count(const void* query, const int64_t* tree_of, int64_t queries, double limit, int64_t* counts,
             int threads) const override {
    if (grouped_ && can_group(static_cast<const T*>(query), queries))
      return each_group<GroupWithin>(query, tree_of, queries, threads, [=](GroupWithin& group) {
        group.count(limit);
        for (int i = 0; i < group.size; ++i) counts[group.row[i]] = group.found[i];
      });
    each_query<std::vector<int64_t>>(
        query, tree_of, queries, threads,
        [=](const Tree& tree, const double* q, int64_t, int64_t row, std::vector<int64_t>& stack) {
          int64_t found = 0;
          inside(
              tree, q, limit, stack, [&](int64_t size) { found += size; },
              [&](double distance, int32_t index) { found += distance <= limit && index != NOBODY; });
          counts[row] = found;
        });
  }

  void within(const void* query, const int64_t* tree_of, int64_t queries, double limit, const int64_t* rowptr,
              int64_t* col, int threads) const override {
    if (grouped_ && can_group(static_cast<const T*>(query), queries))
      return each_group<GroupWithin>(query, tree_of, queries, threads, [=](GroupWithin& group) {
        group.search(limit);
        for (int i = 0; i < group.size; ++i) {
          int64_t* out = col + rowptr[group.row[i]];
          for (const Hit& hit : group.hits[i]) *out++ = hit.index;
        }
      });
    struct Scratch {
      std::vector<int64_t> stack;
      std::vector<Hit> hits;
    };
    each_query<Scratch>(query, tree_of, queries, threads,
                        [=](const Tree& tree, const double* q, int64_t, int64_t row, Scratch& scratch) {
                          auto& hits = scratch.hits;
                          hits.clear();
                          inside(tree, q, limit, scratch.stack, nullptr, [&](double distance, int32_t index) {
                            if (distance <= limit && index != NOBODY) hits.push_back({distance, index});
                          });
                          std::sort(hits.begin(), hits.end());
                          int64_t* out = col + rowptr[row];
                          for (const Hit& hit : hits) *out++ = hit.index;
                        });
  }

  void farthest(const void* pos, const int64_t* start, const int64_t* outptr, int64_t* out,
                int threads) const override {
    parallel_blocks(static_cast<int64_t>(trees_.size()), 1, threads, [&](int64_t t, int64_t) {
      Farthest(*this, trees_[t], static_cast<const T*>(pos))
            .select(start[t], out + outptr[t], outptr[t + 1] - outptr[t]);
    });
  }

 private:
  int dim() const { return D ? D : dim_; }
  const T* box(int64_t node) const { return &box_[node * 2 * dim()]; }

  // ---- build ----------------------------------------------------------------------------------------------------

  struct Keyed {
    T key;
    int32_t index;
    bool operator<(const Keyed& other) const { return key < other.key || (key == other.key && index < other.index); }
  };
  struct Part {
    int64_t tree, i;
    int level;
  };

  void build(const T* pos, int64_t count, int threads) {
    std::vector<Keyed> order(count);
    for (int64_t i = 0; i < count; ++i) order[i].index = static_cast<int32_t>(i);
    // Large parts are cut here, one after the other, until there are enough for all threads.
    const int64_t large = threads > 1 ? count / (4 * threads) : count;
    std::vector<Part> cut, parts;
    for (size_t t = 0; t < trees_.size(); ++t)
      if (trees_[t].size) cut.push_back({static_cast<int64_t>(t), 0, 0});
    while (!cut.empty()) {
      const Part part = cut.back();
      cut.pop_back();
      const Tree& tree = trees_[part.tree];
      if (part.level == tree.levels || tree.size >> part.level <= large) {
        parts.push_back(part);
        continue;
      }
      split(pos, order.data(), part);
      cut.push_back({part.tree, 2 * part.i, part.level + 1});
      cut.push_back({part.tree, 2 * part.i + 1, part.level + 1});
    }
    const int64_t number = static_cast<int64_t>(parts.size());
    parallel_blocks(number, std::max<int64_t>(1, number / (16 * threads)), threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) grow(pos, order.data(), parts[i]);
    });
  }

  void grow(const T* pos, Keyed* order, Part part) {
    split(pos, order, part);
    if (part.level == trees_[part.tree].levels) return;
    grow(pos, order, {part.tree, 2 * part.i, part.level + 1});
    grow(pos, order, {part.tree, 2 * part.i + 1, part.level + 1});
  }

  // Finds the box of a part and its smallest index; parts its points at the median of the widest side, or stores them.
  void split(const T* pos, Keyed* order, Part part) {
    const Tree& tree = trees_[part.tree];
    const int64_t node = tree.node + (int64_t{1} << part.level) + part.i;
    Keyed* const begin = order + tree.begin + tree.part(part.level, part.i);
    Keyed* const end = order + tree.begin + tree.part(part.level, part.i + 1);
    T* const low = &box_[node * 2 * dim()];
    T* const high = low + dim();
    std::fill_n(low, dim(), std::numeric_limits<T>::max());
    std::fill_n(high, dim(), std::numeric_limits<T>::lowest());
    int32_t first = NOBODY;
    for (const Keyed* p = begin; p < end; ++p) {
      first = std::min(first, p->index);
      const T* x = pos + int64_t{p->index} * dim();
      for (int d = 0; d < dim(); ++d) {
        low[d] = std::min(low[d], x[d]);
        high[d] = std::max(high[d], x[d]);
      }
    }
    first_[node] = first;
    if (part.level == tree.levels) return store(pos, begin, end, tree.leaf + part.i);
    int widest = 0;
    for (int d = 1; d < dim(); ++d)
      if (double{high[d]} - double{low[d]} > double{high[widest]} - double{low[widest]}) widest = d;
    for (Keyed* p = begin; p < end; ++p) p->key = pos[int64_t{p->index} * dim() + widest];
    std::nth_element(begin, order + tree.begin + tree.part(part.level + 1, 2 * part.i + 1), end);
  }

  // A leaf is filled up with points at infinity of index NOBODY, so that loops over it have a constant length.
  void store(const T* pos, const Keyed* begin, const Keyed* end, int64_t leaf) {
    T* block = &block_[leaf * LEAF * dim()];
    std::fill(block, block + LEAF * dim(), std::numeric_limits<T>::infinity());
    for (int j = 0; j < end - begin; ++j) {
      index_[leaf * LEAF + j] = begin[j].index;
      for (int d = 0; d < dim(); ++d) block[d * LEAF + j] = pos[int64_t{begin[j].index} * dim() + d];
    }
  }

  // ---- distances ------------------------------------------------------------------------------------------------

  double to_box(const double* q, int64_t node) const {
    const T* low = box(node);
    double sum = 0;
    for (int d = 0; d < dim(); ++d) {
      const double gap = std::max(std::max(double{low[d]} - q[d], q[d] - double{low[d + dim()]}), 0.0);
      sum = d ? sum + gap * gap : gap * gap;
    }
    return sum;
  }

  double to_far_corner(const double* q, int64_t node) const {
    const T* low = box(node);
    double sum = 0;
    for (int d = 0; d < dim(); ++d) {
      const double gap = std::max(double{low[d + dim()]} - q[d], q[d] - double{low[d]});
      sum = d ? sum + gap * gap : gap * gap;
    }
    return sum;
  }

  void to_leaf(const double* q, int64_t leaf, double* distance) const {
    const T* block = &block_[leaf * LEAF * dim()];
    for (int j = 0; j < LEAF; ++j) {
      const double gap = double{block[j]} - q[0];
      distance[j] = gap * gap;
    }
    for (int d = 1; d < dim(); ++d)
      for (int j = 0; j < LEAF; ++j) {
        const double gap = double{block[d * LEAF + j]} - q[d];
        distance[j] = distance[j] + gap * gap;
      }
  }

  // ---- queries --------------------------------------------------------------------------------------------------

  // Calls visit(tree, q, leaf to begin with, row, scratch) for every query that has a tree, leaf by leaf: queries close
  // to each other read the same memory. Without `query` the points of the trees are the queries.
  template <class Scratch, class Visit>
  void each_query(const void* query, const int64_t* tree_of, int64_t queries, int threads, Visit visit) const {
    if (!query) {
      std::vector<int32_t> tree_of_leaf;
      for (size_t t = 0; t < trees_.size(); ++t) tree_of_leaf.insert(tree_of_leaf.end(), trees_[t].leaves(), t);
      return parallel_blocks(tree_of_leaf.size(), 16, threads, [&](int64_t begin, int64_t end) {
        Scratch scratch;
        std::vector<double> q(dim());
        for (int64_t leaf = begin; leaf < end; ++leaf) {
          const Tree& tree = trees_[tree_of_leaf[leaf]];
          for (int j = 0; j < LEAF && index_[leaf * LEAF + j] != NOBODY; ++j) {
            for (int d = 0; d < dim(); ++d) q[d] = block_[(leaf * dim() + d) * LEAF + j];
            visit(tree, q.data(), leaf - tree.leaf, index_[leaf * LEAF + j], scratch);
          }
        }
      });
    }
    const T* points = static_cast<const T*>(query);
    const Sorted sorted(*this, points, tree_of, queries, threads);
    parallel_blocks(queries - sorted.nowhere, 512, threads, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      std::vector<double> q(dim());
      for (int64_t i = sorted.nowhere + begin; i < sorted.nowhere + end; ++i) {
        const int64_t row = sorted.order[i];
        const Tree& tree = trees_[tree_of ? tree_of[row] : 0];
        std::copy_n(points + row * dim(), dim(), q.begin());
        visit(tree, q.data(), sorted.leaf_of[row] - tree.leaf, row, scratch);
      }
    });
  }

  // Queries by the leaf, among those of all trees, that is closest to each.
  struct Sorted {
    std::vector<int64_t> leaf_of, order;
    int64_t nowhere;  // how many have no tree; they come first

    Sorted(const Trees& trees, const T* points, const int64_t* tree_of, int64_t queries, int threads)
        : leaf_of(queries), order(queries) {
      const int dim = trees.dim();
      std::vector<int64_t> place(trees.index_.size() / LEAF + 2);
      parallel_blocks(queries, 1024, threads, [&](int64_t begin, int64_t end) {
        std::vector<double> q(dim);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t t = tree_of ? tree_of[i] : 0;
          std::copy_n(points + i * dim, dim, q.begin());
          leaf_of[i] = t < 0 ? -1 : trees.trees_[t].leaf + trees.closest_leaf(trees.trees_[t], q.data());
        }
      });
      for (int64_t leaf : leaf_of) ++place[leaf + 2];
      for (size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
      nowhere = place[1];
      for (int64_t i = 0; i < queries; ++i) order[place[leaf_of[i] + 1]++] = i;
    }
  };

  int64_t closest_leaf(const Tree& tree, const double* q) const {
    int64_t node = 1;
    for (int level = 0; level < tree.levels; ++level)
      node = 2 * node + (to_box(q, tree.node + 2 * node + 1) < to_box(q, tree.node + 2 * node));
    return node - tree.leaves();
  }

  // From a leaf upwards: the bound is small before anything far away is looked at.
  void nearest(const Tree& tree, const double* q, int64_t leaf, Nearest& best) const {
    scan(tree, q, leaf, best);
    for (int64_t node = tree.leaves() + leaf; node > 1; node /= 2) descend(tree, q, node ^ 1, best);
  }

  void descend(const Tree& tree, const double* q, int64_t node, Nearest& best) const {
    std::pair<Hit, int64_t> stack[64];  // (lower bound of all hits below the node, node)
    int depth = 0;
    Hit bound{to_box(q, tree.node + node), first_[tree.node + node]};
    for (;;) {
      if (bound < best.worst()) {
        if (node >= tree.leaves()) {
          scan(tree, q, node - tree.leaves(), best);
        } else {
          const int64_t left = tree.node + 2 * node;
          Hit one{to_box(q, left), first_[left]}, other{to_box(q, left + 1), first_[left + 1]};
          const bool swap = other < one;
          if (swap) std::swap(one, other);
          stack[depth++] = {other, 2 * node + !swap};
          node = 2 * node + swap;
          bound = one;
          continue;
        }
      }
      if (depth == 0) return;
      std::tie(bound, node) = stack[--depth];
    }
  }

  void scan(const Tree& tree, const double* q, int64_t leaf, Nearest& best) const {
    alignas(64) double distance[LEAF];
    to_leaf(q, tree.leaf + leaf, distance);
    const int32_t* index = &index_[(tree.leaf + leaf) * LEAF];
    for (int j = 0; j < LEAF; ++j)
      if (distance[j] <= best.worst().distance) best.offer({distance[j], index[j]});
  }

  // Calls each(distance, index) for all points of all leaves that reach into the ball, the padding included, or
  // all(number of points) for whole nodes inside it where `all` is given.
  template <class All, class Each>
  void inside(const Tree& tree, const double* q, double limit, std::vector<int64_t>& stack, All all, Each each) const {
    stack.assign(tree.size ? 1 : 0, 1);
    while (!stack.empty()) {
      const int64_t node = stack.back();
      stack.pop_back();
      if (to_box(q, tree.node + node) > limit) continue;
      if constexpr (!std::is_same_v<All, std::nullptr_t>)
        if (to_far_corner(q, tree.node + node) <= limit) {
          all(tree.size_of(node));
          continue;
        }
      if (node < tree.leaves()) {
        stack.push_back(2 * node + 1);
        stack.push_back(2 * node);
        continue;
      }
      const int64_t leaf = tree.leaf + node - tree.leaves();
      alignas(64) double distance[LEAF];
      to_leaf(q, leaf, distance);
      for (int j = 0; j < LEAF; ++j) each(distance[j], index_[leaf * LEAF + j]);
    }
  }

  // ---- groups of queries ----------------------------------------------------------------------------------------

  // Whether rough distances are of use: many dimensions, and no square can overflow.
  bool can_group(const T* x, int64_t count) const {
    if (D || dim_ < MIN_GROUPED || dim_ > MAX_GROUPED) return false;
    T most = 0;
    for (int64_t i = 0; x && i < count * dim_; ++i) most = std::max(most, std::abs(x[i]));
    return most < std::sqrt(std::numeric_limits<T>::max() / (32 * dim_));
  }

  // Up to LEAF queries of a tree, close to each other.
  struct Group {
    const Trees& trees;
    const Tree* tree;
    int64_t leaf;  // to begin with, in the tree
    int size = 0;
    int64_t row[LEAF];
    std::vector<T> pos, low, high;  // [LEAF, D], and the box around them
    T limit[LEAF], distance[LEAF * LEAF];
    uint32_t within[LEAF];
    std::vector<Hit> hits[LEAF];

    explicit Group(const Trees& t) : trees(t), pos(LEAF * t.dim()), low(t.dim()), high(t.dim()) {
      std::fill_n(limit, LEAF, T(-1));
    }
    void begin(const Tree& in, int64_t at) { tree = &in, leaf = at, size = 0; }
    void add(int64_t number, const T* x) {
      for (int d = 0; d < trees.dim(); ++d) {
        low[d] = size ? std::min(low[d], x[d]) : x[d];
        high[d] = size ? std::max(high[d], x[d]) : x[d];
      }
      std::copy_n(x, trees.dim(), &pos[size * trees.dim()]);
      row[size++] = number;
    }
    const T* query(int i) const { return &pos[i * trees.dim()]; }

    // Rough distances to the points of a leaf.
    void scan(int64_t at) {
      trees.rough_(std::is_same_v<T, double>, pos.data(), size, trees.block_ + at * LEAF * trees.dim(), trees.dim(),
                   limit, distance, within);
    }
    // Calls each(distance, slot of the leaf) for those of query i that are within its limit.
    template <class Each>
    void each_within(int i, Each each) const {
      for (uint32_t left = within[i]; left; left &= left - 1) {
        const int j = __builtin_ctz(left);
        each(distance[i * LEAF + j], j);
      }
    }
    // No query is closer to a point of the node than this.
    double lowest(int64_t node) const {
      const T* box = trees.box(tree->node + node);
      return trees.rounding_.below(sum([&](int d) {
        return std::max(std::max(box[d] - high[d], low[d] - box[d + trees.dim()]), T(0));
      }));
    }
    // None is farther.
    double highest(int64_t node) const {
      const T* box = trees.box(tree->node + node);
      return trees.rounding_.above(
          sum([&](int d) { return std::max(box[d + trees.dim()] - low[d], high[d] - box[d]); }));
    }
    // Of the squares of what is given for each dimension.
    template <class Gap>
    T sum(Gap gap) const {
      constexpr int LANES = 8;
      T sums[LANES] = {};
      int d = 0;
      for (; d + LANES <= trees.dim(); d += LANES)
        for (int l = 0; l < LANES; ++l) sums[l] += gap(d + l) * gap(d + l);
      for (; d < trees.dim(); ++d) sums[0] += gap(d) * gap(d);
      for (int l = 1; l < LANES; ++l) sums[0] += sums[l];
      return sums[0];
    }
  };

  struct GroupNearest : Group {
    using Group::Group;
    Candidates<T> candidates[LEAF];
    Hit worst;  // of all queries

    void search(int64_t k, double limit) {
      const Trees& trees = this->trees;
      for (int i = 0; i < this->size; ++i) {
        candidates[i].reset(this->query(i), trees.pos_, trees.dim(), std::min(k, this->tree->size), limit);
        this->limit[i] = candidates[i].limit();
      }
      worst = candidates[0].worst();
      look(this->leaf);
      for (int64_t node = this->tree->leaves() + this->leaf; node > 1; node /= 2) descend(node ^ 1, bound(node ^ 1));
    }

   private:
    Hit bound(int64_t node) const { return {this->lowest(node), this->trees.first_[this->tree->node + node]}; }

    void descend(int64_t node, const Hit& at_least) {
      if (!(at_least < worst)) return;
      if (node >= this->tree->leaves()) return look(node - this->tree->leaves());
      const Hit left = bound(2 * node), right = bound(2 * node + 1);
      const bool swap = right < left;
      descend(2 * node + swap, swap ? right : left);
      descend(2 * node + !swap, swap ? left : right);
    }

    void look(int64_t leaf) {
      const int64_t at = this->tree->leaf + leaf;
      const int32_t* index = &this->trees.index_[at * LEAF];
      this->scan(at);
      bool tightened = false;
      for (int i = 0; i < this->size; ++i) {
        if (!this->within[i]) continue;
        this->each_within(i, [&](T distance, int j) { candidates[i].offer(distance, index[j]); });
        if (!candidates[i].many()) continue;
        candidates[i].tighten();
        this->limit[i] = candidates[i].limit();
        tightened = true;
      }
      if (!tightened) return;
      worst = candidates[0].worst();
      for (int i = 1; i < this->size; ++i) worst = std::max(worst, candidates[i].worst());
    }
  };

  struct GroupWithin : Group {
    using Group::Group;
    int64_t found[LEAF];

    // `hits` of every query: all keys within the limit, sorted.
    void search(double limit) {
      for (auto& hits : this->hits) hits.clear();
      each_leaf(limit, [&](int64_t at) {
        for (int i = 0; i < this->size; ++i)
          this->each_within(i, [&](T, int j) { this->hits[i].push_back({0, this->trees.index_[at * LEAF + j]}); });
      });
      for (int i = 0; i < this->size; ++i) {
        auto& hits = this->hits[i];
        measure(this->query(i), this->trees.pos_, this->trees.dim(), hits);
        hits.erase(std::remove_if(hits.begin(), hits.end(), [&](const Hit& hit) { return hit.distance > limit; }),
                   hits.end());
        std::sort(hits.begin(), hits.end());
      }
    }

    // `found` of every query: how many.
    void count(double limit) {
      const Rounding<T>& rounding = this->trees.rounding_;
      std::fill_n(found, LEAF, 0);
      each_leaf(
          limit,
          [&](int64_t at) {
            for (int i = 0; i < this->size; ++i) {
              auto& unsure = this->hits[i];
              unsure.clear();
              this->each_within(i, [&](T distance, int j) {
                if (rounding.above(distance) <= limit)
                  ++found[i];
                else
                  unsure.push_back({0, this->trees.index_[at * LEAF + j]});
              });
              measure(this->query(i), this->trees.pos_, this->trees.dim(), unsure);
              for (const Hit& hit : unsure) found[i] += hit.distance <= limit;
            }
          },
          [&](int64_t size) {
            for (int i = 0; i < this->size; ++i) found[i] += size;
          });
    }

   private:
    // Calls look(leaf among those of all trees) after a scan of it, for leaves in reach, or all(number of points) for
    // whole nodes inside it where that is given.
    template <class Look, class All = std::nullptr_t>
    void each_leaf(double limit, Look look, All all = nullptr) {
      const Trees& trees = this->trees;
      const Tree& tree = *this->tree;
      std::fill_n(this->limit, this->size, trees.rounding_.limit(limit));
      std::vector<int64_t> stack(tree.size ? 1 : 0, 1);
      while (!stack.empty()) {
        const int64_t node = stack.back();
        stack.pop_back();
        if (this->lowest(node) > limit) continue;
        if constexpr (!std::is_same_v<All, std::nullptr_t>)
          if (this->highest(node) <= limit) {
            all(tree.size_of(node));
            continue;
          }
        if (node < tree.leaves()) {
          stack.push_back(2 * node + 1);
          stack.push_back(2 * node);
          continue;
        }
        const int64_t at = tree.leaf + node - tree.leaves();
        this->scan(at);
        look(at);
      }
    }
  };

  // Calls visit(group) for groups of all queries that have a tree.
  template <class AGroup, class Visit>
  void each_group(const void* query, const int64_t* tree_of, int64_t queries, int threads, Visit visit) const {
    if (!query) {
      std::vector<int32_t> tree_of_leaf;
      for (size_t t = 0; t < trees_.size(); ++t) tree_of_leaf.insert(tree_of_leaf.end(), trees_[t].leaves(), t);
      return parallel_blocks(tree_of_leaf.size(), 4, threads, [&](int64_t begin, int64_t end) {
        AGroup group(*this);
        for (int64_t leaf = begin; leaf < end; ++leaf) {
          const Tree& tree = trees_[tree_of_leaf[leaf]];
          group.begin(tree, leaf - tree.leaf);
          const int32_t* index = &index_[leaf * LEAF];
          for (int j = 0; j < LEAF && index[j] != NOBODY; ++j) group.add(index[j], pos_ + int64_t{index[j]} * dim());
          if (group.size) visit(group);
        }
      });
    }
    const T* points = static_cast<const T*>(query);
    const Sorted sorted(*this, points, tree_of, queries, threads);
    parallel_blocks(queries - sorted.nowhere, 4 * LEAF, threads, [&](int64_t begin, int64_t end) {
      AGroup group(*this);
      for (int64_t i = sorted.nowhere + begin; i < sorted.nowhere + end; ++i) {
        const int64_t row = sorted.order[i];
        const Tree& tree = trees_[tree_of ? tree_of[row] : 0];
        if (group.size == LEAF || (group.size && group.tree != &tree)) {
          visit(group);
          group.size = 0;
        }
        if (!group.size) group.begin(tree, sorted.leaf_of[row] - tree.leaf);
        group.add(row, points + row * dim());
      }
      if (group.size) visit(group);
    });
  }

  // ---- farthest points ------------------------------------------------------------------------------------------

  // Every node knows the farthest of its points from all chosen ones; a chosen point is entered only into nodes that have
  // a point it may be closer to. The buckets of Han et al., "QuickFPS" (2023), with bounds on all levels of the tree.
  class Farthest {
   public:
    Farthest(const Trees& trees, const Tree& tree, const T* pos)
        : trees_(trees), tree_(tree), pos_(pos), q_(trees.dim()), index_(&trees.index_[tree.leaf * LEAF]),
          distance_(tree.leaves() * LEAF), slot_(tree.leaves()) {
      for (size_t slot = 0; slot < distance_.size(); ++slot) distance_[slot] = index_[slot] == NOBODY ? -INF : INF;
      for (int64_t node = 0; node < 2 * tree.leaves(); ++node)
        best_.push_back({trees.first_[tree.node + node] == NOBODY ? -INF : INF, NOBODY});
    }

    void select(int64_t start, int64_t* out, int64_t count) {
      if (count == 0) return;
      // All points are infinitely far from nothing; let the first one be the farthest.
      chosen_ = static_cast<int32_t>(start);
      const int64_t at = std::find(index_, index_ + distance_.size(), chosen_) - index_;
      slot_[at / LEAF] = static_cast<int32_t>(at % LEAF);
      for (int64_t node = tree_.leaves() + at / LEAF; node > 0; node /= 2) best_[node].index = chosen_;
      for (int64_t i = 0; i < count; ++i) {
        out[i] = chosen_;
        std::copy_n(pos_ + int64_t{chosen_} * trees_.dim(), trees_.dim(), q_.begin());
        enter(1);
        chosen_ = best_[1].index;
      }
    }

   private:
    static bool farther(const Hit& a, const Hit& b) {
      return a.distance > b.distance || (a.distance == b.distance && a.index < b.index);
    }

    void enter(int64_t node) {
      if (node >= tree_.leaves()) return enter_leaf(node);
      for (int64_t child = 2 * node; child < 2 * node + 2; ++child)
        if (best_[child].index == chosen_ || trees_.to_box(q_.data(), tree_.node + child) < best_[child].distance)
          enter(child);
      best_[node] = farther(best_[2 * node], best_[2 * node + 1]) ? best_[2 * node] : best_[2 * node + 1];
    }

    void enter_leaf(int64_t node) {
      constexpr int LANES = 8;
      const int64_t leaf = node - tree_.leaves();
      double* distance = &distance_[leaf * LEAF];
      Hit& best = best_[node];
      alignas(64) double now[LEAF], most[LANES];
      trees_.to_leaf(q_.data(), tree_.leaf + leaf, now);
      for (int j = 0; j < LEAF; ++j) distance[j] = now[j] < distance[j] ? now[j] : distance[j];
      if (best.index == chosen_) distance[slot_[leaf]] = -INF;
      if (best.index != NOBODY && distance[slot_[leaf]] == best.distance) return;  // distances only fall
      std::copy_n(distance, LANES, most);
      for (int j = LANES; j < LEAF; j += LANES)
        for (int i = 0; i < LANES; ++i) most[i] = most[i] < distance[j + i] ? distance[j + i] : most[i];
      best = {*std::max_element(most, most + LANES), NOBODY};
      for (int j = 0; j < LEAF; ++j)
        if (distance[j] == best.distance && index_[leaf * LEAF + j] < best.index) {
          best.index = index_[leaf * LEAF + j];
          slot_[leaf] = j;
        }
    }

    const Trees& trees_;
    const Tree& tree_;
    const T* pos_;
    std::vector<double> q_;
    const int32_t* index_;          // [leaves, LEAF]
    std::vector<double> distance_;  // [leaves, LEAF] to the closest chosen point; -INF for a chosen point and padding
    std::vector<int32_t> slot_;     // [leaves] where in the leaf its farthest point stands
    std::vector<Hit> best_;         // [nodes] the farthest point; NOBODY at first
    int32_t chosen_ = NOBODY;
  };

  const int dim_;
  const T* const pos_;  // [points, D]
  const RoughDistances rough_;
  const Rounding<T> rounding_;
  const bool grouped_;
  std::vector<Tree> trees_;
  std::vector<T> box_;          // [nodes, 2, D] lowest and highest corner
  std::vector<int32_t> first_;  // [nodes] smallest index
  std::vector<T> points_;       // memory of the blocks
  T* block_;                    // [leaves, D, LEAF], each aligned to cache lines
  std::vector<int32_t> index_;  // [leaves, LEAF]
};

template <class T>
Forest* forest(const void* pos, int64_t count, int dim, const int64_t* ptr, int64_t trees, int threads,
               RoughDistances rough) {
  const T* x = static_cast<const T*>(pos);
  switch (dim) {
    case 2: return new Trees<T, 2>(x, count, dim, ptr, trees, threads, rough);
    case 3: return new Trees<T, 3>(x, count, dim, ptr, trees, threads, rough);
    default: return new Trees<T, 0>(x, count, dim, ptr, trees, threads, rough);
  }
}

}  // namespace

#define GEOATTN_EXPORT extern "C" __attribute__((visibility("default")))

// Trees over the points ptr[t] <= i < ptr[t + 1] of pos [count, dim], t < trees, float32 or float64; count < 2^31 - 1.
// Null if there is not enough memory. The points must stay where they are. `rough` is geoattn_distances of the best
// instruction set there is.
GEOATTN_EXPORT void* geoattn_forest_new(const void* pos, int is_float64, int64_t count, int dim, const int64_t* ptr,
                                        int64_t trees, int threads, RoughDistances rough) {
  void* made = nullptr;
  guarded([&] {
    made = is_float64 ? forest<double>(pos, count, dim, ptr, trees, threads, rough)
                      : forest<float>(pos, count, dim, ptr, trees, threads, rough);
    return 0;
  });
  return made;
}

GEOATTN_EXPORT void geoattn_forest_delete(void* forest) { delete static_cast<Forest*>(forest); }

// The functions below return 0 or a geoattn::Failure.

// Of the points within the squared distance `limit` of query i in tree tree_of[i], the first
// n = rowptr[i + 1] - rowptr[i] <= k by (distance, index) go to col[rowptr[i]:]; n must not be more than there are.
// query [queries, dim] of the type of pos, or null for the points themselves. tree_of null: tree 0; negative: no tree.
GEOATTN_EXPORT int geoattn_forest_knn(const void* forest, const void* query, const int64_t* tree_of, int64_t queries,
                                      int64_t k, double limit, const int64_t* rowptr, int64_t* col, int threads) {
  return guarded([&] {
    static_cast<const Forest*>(forest)->knn(query, tree_of, queries, k, limit, rowptr, col, threads);
    return 0;
  });
}

// How many points there are within `limit` of every query; counts of queries without a tree are left alone.
GEOATTN_EXPORT int geoattn_forest_count(const void* forest, const void* query, const int64_t* tree_of, int64_t queries,
                                        double limit, int64_t* counts, int threads) {
  return guarded([&] {
    static_cast<const Forest*>(forest)->count(query, tree_of, queries, limit, counts, threads);
    return 0;
  });
}

// All of them, by (distance, index).
GEOATTN_EXPORT int geoattn_forest_radius(const void* forest, const void* query, const int64_t* tree_of, int64_t queries,
                                         double limit, const int64_t* rowptr, int64_t* col, int threads) {
  return guarded([&] {
    static_cast<const Forest*>(forest)->within(query, tree_of, queries, limit, rowptr, col, threads);
    return 0;
  });
}

// outptr[t + 1] - outptr[t] points of tree t from start[t] on, each the farthest from those before, to out[outptr[t]:].
GEOATTN_EXPORT int geoattn_forest_farthest(const void* forest, const void* pos, const int64_t* start,
                                           const int64_t* outptr, int64_t* out, int threads) {
  return guarded([&] {
    static_cast<const Forest*>(forest)->farthest(pos, start, outptr, out, threads);
    return 0;
  });
}
