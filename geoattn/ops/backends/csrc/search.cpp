// Nearest neighbors, neighbors within a radius and farthest points, exact, with balanced k-d trees.
//
// Distances are squares, summed in float64 over x, y, z, ... in this order, by single operations: the other backends do
// the same, so all agree to the bit. Rounding is monotone, so the distance to a box is never above the distance to a
// point in it, and nothing here needs a tolerance. Equal distances are ordered by index: every node knows the smallest
// index below it, so a node with nothing but losers of a tie is not entered, however many points share a place.

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")  // a fused multiply-add would round differently
#endif

#include <algorithm>
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
constexpr int32_t NOBODY = std::numeric_limits<int32_t>::max();
constexpr double INF = std::numeric_limits<double>::infinity();

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

// One tree: a complete binary tree over `size` points, nodes numbered 1, 2 and 3, 4 to 7, ... as in a heap. A level cuts
// the points, in the tree's order, into equal parts.
struct Tree {
  int64_t begin, size;  // its points among all
  int levels;           // the leaves stand at this level, the root at 0
  int64_t node, leaf;   // node 0 (unused) and leaf 0 among those of all trees

  int64_t leaves() const { return int64_t{1} << levels; }
  int64_t part(int level, int64_t i) const { return (size * i) >> level; }
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
  Trees(const T* pos, int64_t count, int dim, const int64_t* ptr, int64_t trees, int threads) : dim_(D ? D : dim) {
    int64_t nodes = 0, leaves = 0;
    for (int64_t t = 0; t < trees; ++t) {
      Tree tree{ptr[t], ptr[t + 1] - ptr[t], 0, nodes, leaves};
      while (tree.size > int64_t{LEAF} << tree.levels) ++tree.levels;
      nodes += 2 * tree.leaves();
      leaves += tree.leaves();
      trees_.push_back(tree);
    }
    box_.resize(nodes * 2 * this->dim());
    first_.resize(nodes);
    block_.resize(leaves * LEAF * this->dim());
    index_.assign(leaves * LEAF, NOBODY);
    build(pos, count, threads);
  }

  void knn(const void* query, const int64_t* tree_of, int64_t queries, int64_t k, double limit, const int64_t* rowptr,
           int64_t* col, int threads) const override {
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
    for (int d = 0; d < dim(); ++d) low[d] = high[d] = pos[int64_t{begin->index} * dim() + d];
    int32_t first = begin->index;
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
    std::vector<int64_t> leaf_of(queries), order(queries), place(index_.size() / LEAF + 2);
    parallel_blocks(queries, 1024, threads, [&](int64_t begin, int64_t end) {
      std::vector<double> q(dim());
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = tree_of ? tree_of[i] : 0;
        std::copy_n(points + i * dim(), dim(), q.begin());
        leaf_of[i] = t < 0 ? -1 : trees_[t].leaf + closest_leaf(trees_[t], q.data());
      }
    });
    for (int64_t leaf : leaf_of) ++place[leaf + 2];
    for (size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
    const int64_t nowhere = place[1];  // queries without a tree come first
    for (int64_t i = 0; i < queries; ++i) order[place[leaf_of[i] + 1]++] = i;
    parallel_blocks(queries - nowhere, 512, threads, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      std::vector<double> q(dim());
      for (int64_t i = nowhere + begin; i < nowhere + end; ++i) {
        const int64_t row = order[i];
        const Tree& tree = trees_[tree_of ? tree_of[row] : 0];
        std::copy_n(points + row * dim(), dim(), q.begin());
        visit(tree, q.data(), leaf_of[row] - tree.leaf, row, scratch);
      }
    });
  }

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
          int level = 0;
          while (node >> (level + 1)) ++level;
          const int64_t i = node - (int64_t{1} << level);
          all(tree.part(level, i + 1) - tree.part(level, i));
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

  // ---- farthest points ------------------------------------------------------------------------------------------

  // Every node knows the farthest of its points from all chosen ones; a chosen point is entered only into nodes that have
  // a point it may be closer to. The buckets of Han et al., "QuickFPS" (2023), with bounds on all levels of the tree.
  class Farthest {
   public:
    Farthest(const Trees& trees, const Tree& tree, const T* pos)
        : trees_(trees), tree_(tree), pos_(pos), q_(trees.dim()), index_(&trees.index_[tree.leaf * LEAF]),
          distance_(tree.leaves() * LEAF), slot_(tree.leaves()) {
      for (size_t slot = 0; slot < distance_.size(); ++slot) distance_[slot] = index_[slot] == NOBODY ? -INF : INF;
      for (int64_t node = 0; node < 2 * tree.leaves(); ++node) best_.push_back({INF, NOBODY});
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
  std::vector<Tree> trees_;
  std::vector<T> box_;          // [nodes, 2, D] lowest and highest corner
  std::vector<int32_t> first_;  // [nodes] smallest index
  std::vector<T> block_;        // [leaves, D, LEAF]
  std::vector<int32_t> index_;  // [leaves, LEAF]
};

template <class T>
Forest* forest(const void* pos, int64_t count, int dim, const int64_t* ptr, int64_t trees, int threads) {
  const T* x = static_cast<const T*>(pos);
  switch (dim) {
    case 2: return new Trees<T, 2>(x, count, dim, ptr, trees, threads);
    case 3: return new Trees<T, 3>(x, count, dim, ptr, trees, threads);
    default: return new Trees<T, 0>(x, count, dim, ptr, trees, threads);
  }
}

}  // namespace

#define GEOATTN_EXPORT extern "C" __attribute__((visibility("default")))

// Trees over the points ptr[t] <= i < ptr[t + 1] of pos [count, dim], t < trees, float32 or float64; count < 2^31 - 1.
// Null if there is not enough memory. The points are copied.
GEOATTN_EXPORT void* geoattn_forest_new(const void* pos, int is_float64, int64_t count, int dim, const int64_t* ptr,
                                        int64_t trees, int threads) {
  void* made = nullptr;
  guarded([&] {
    made = is_float64 ? forest<double>(pos, count, dim, ptr, trees, threads)
                      : forest<float>(pos, count, dim, ptr, trees, threads);
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
