// Codes of cells of a grid in space along the Z-order and the Hilbert curve.

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel.h"

namespace {

using geoattn::guarded;
using geoattn::parallel_blocks;

constexpr int64_t BLOCK = 4096;  // points

// Bits b of x, b < 21, at 3 b.
uint64_t spread(uint64_t x) {
  x = (x | x << 32) & 0x001f00000000ffffu;
  x = (x | x << 16) & 0x001f0000ff0000ffu;
  x = (x | x << 8) & 0x100f00f00f00f00fu;
  x = (x | x << 4) & 0x10c30c30c30c30c3u;
  return (x | x << 2) & 0x1249249249249249u;
}

// From digits of the Z-order to those of the Hilbert curve, from the highest down: what a digit becomes depends on how
// the curve runs through the cell of the digits before. Skilling's algorithm moves all lower bits after every digit;
// here the moves are composed, and a state is what they make of three lower bits.
class Hilbert {
 public:
  static constexpr int LEVELS = 3;  // of cells that are passed in one step
  static constexpr int DIGIT = 3 * LEVELS;

  Hilbert() {
    std::vector<State> states{{{0, 1, 2}, {0, 0, 0}, 0}};
    std::vector<std::array<Step, 8>> one_level;
    for (size_t s = 0; s < states.size(); ++s) {
      one_level.emplace_back();
      for (int digit = 0; digit < 8; ++digit) {
        const auto [code, next] = step(states[s], digit);
        const size_t found = std::find(states.begin(), states.end(), next) - states.begin();
        if (found == states.size()) states.push_back(next);
        one_level[s][digit] = {static_cast<uint16_t>(code), static_cast<uint16_t>(found)};
      }
    }
    for (size_t s = 0; s < states.size(); ++s)
      for (int digits = 0; digits < 1 << DIGIT; ++digits) {
        Step all{0, static_cast<uint16_t>(s)};
        for (int shift = DIGIT - 3; shift >= 0; shift -= 3) {
          const Step one = one_level[all.next][digits >> shift & 7];
          all = {static_cast<uint16_t>(all.code << 3 | one.code), one.next};
        }
        steps_.push_back(all);
      }
    // Digits of zero lead from one state to another and, after three, back.
    for (int s = one_level[0][0].next, zeros = 2; zeros > 0; s = one_level[s][0].next) after_zeros_[zeros--] = s;
  }

  // `zorder`: 3 * bits bits.
  uint64_t code(uint64_t zorder, int bits) const {
    const int count = (bits + LEVELS - 1) / LEVELS;
    uint64_t code = 0;
    int state = after_zeros_[count * LEVELS - bits];
    for (int shift = (count - 1) * DIGIT; shift >= 0; shift -= DIGIT) {
      const Step& step = steps_[state << DIGIT | (zorder >> shift & ((1 << DIGIT) - 1))];
      code = code << DIGIT | step.code;
      state = step.next;
    }
    return code;
  }

 private:
  struct State {
    std::array<int, 3> axis;     // which axis of the grid an axis is
    std::array<int, 3> flipped;  // whether it runs backwards
    int parity;                  // of all digits before, as the Gray code is read
    bool operator==(const State& other) const {
      return axis == other.axis && flipped == other.flipped && parity == other.parity;
    }
  };
  struct Step {
    uint16_t code, next;
  };

  static std::pair<int, State> step(State state, int digit) {
    int code = 0;
    const State before = state;
    for (int i = 0; i < 3; ++i) {
      const int bit = (digit >> (2 - before.axis[i]) & 1) ^ before.flipped[i];
      if (bit) {
        state.flipped[0] ^= 1;
      } else {
        std::swap(state.axis[0], state.axis[i]);
        std::swap(state.flipped[0], state.flipped[i]);
      }
      state.parity ^= bit;
      code = code << 1 | state.parity;
    }
    return {code, state};
  }

  std::vector<Step> steps_;  // [states, 2^DIGIT]
  int after_zeros_[LEVELS] = {0, 0, 0};
};

}  // namespace

#define GEOATTN_EXPORT extern "C" __attribute__((visibility("default")))

// Returns 0 or a geoattn::Failure. Writes code [curves, points] of cell [points, 3] in [0, 2^bits), bits <= 21, and, above it, of sample [points] if that is not
// null. Curves: 0 is the Z-order, 1 the Hilbert curve; plus 2: with the first two axes exchanged.
GEOATTN_EXPORT int geoattn_curve_codes(const int64_t* cell, const int64_t* sample, int64_t points, int64_t bits,
                                       const int64_t* curve, int64_t curves, int64_t* code, int64_t threads) {
  return guarded([&] {
    static const Hilbert hilbert;
    parallel_blocks(points, BLOCK, static_cast<int>(threads), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint64_t x = spread(cell[3 * i]), y = spread(cell[3 * i + 1]), z = spread(cell[3 * i + 2]);
        const uint64_t above = sample && sample[i] ? static_cast<uint64_t>(sample[i]) << 3 * bits : 0;
        for (int64_t c = 0; c < curves; ++c) {
          const uint64_t zorder = (curve[c] & 2 ? y << 2 | x << 1 : x << 2 | y << 1) | z;
          code[c * points + i] = static_cast<int64_t>(above | (curve[c] & 1 ? hilbert.code(zorder, bits) : zorder));
        }
      }
    });
    return 0;
  });
}
