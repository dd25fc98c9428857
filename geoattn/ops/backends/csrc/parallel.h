// Threads for the kernels, and what a kernel returns.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <dlfcn.h>

namespace geoattn {

// What a kernel returns unless all went well: mirrors `raise_for` in Python.
enum Failure : int {
  kOutOfRange = -1,  // the pattern names a row or a column that does not exist
  kNotRising = -2,   // its row pointers do not rise from 0 to the number of edges
  kNoMemory = -3,
};

// What work() returns, or kNoMemory. An exception must not reach Python, which calls kernels as functions of C.
template <class Work>
int guarded(const Work& work) {
  try {
    return work();
  } catch (const std::exception&) {  // std::bad_alloc, or std::length_error of a vector that cannot be so long
    return kNoMemory;
  }
}

// How many threads there can be, up to `threads`. libgomp ends the process where it cannot start one, so they are
// started here once, at the same time, before it is asked for as many; it keeps its threads for each calling thread.
inline int startable(int threads) {
  static thread_local int known = 1;
  if (threads <= known) return threads;
  std::mutex gate;
  std::vector<std::thread> others;
  {
    std::lock_guard<std::mutex> closed(gate);
    try {
      others.reserve(threads - 1);
      while (static_cast<int>(others.size()) < threads - 1)
        others.emplace_back([&gate] { std::lock_guard<std::mutex> passed(gate); });
    } catch (const std::exception&) {  // no memory, or too many threads
    }
  }
  for (auto& thread : others) thread.join();
  return known = static_cast<int>(others.size()) + 1;
}

// Calls work() on up to `threads` threads at once, the calling one among them, and returns when all are done. What one
// of them throws is thrown here. They are those of the OpenMP runtime that torch brought into the process: a second pool
// would spin against torch's between kernels. libgomp's entry point is looked up instead of being linked.
template <class Work>
void on_threads(int threads, const Work& work) {
  struct Shared {
    const Work& work;
    std::atomic<bool> failed{false};
    std::exception_ptr error{};

    static void run(void* data) {
      auto& shared = *static_cast<Shared*>(data);
      try {
        shared.work();
      } catch (...) {
        if (!shared.failed.exchange(true)) shared.error = std::current_exception();
      }
    }
  } shared{work};
  using Entry = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const Entry gomp_parallel = reinterpret_cast<Entry>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (threads > 1) threads = startable(threads);
  if (threads <= 1) {
    Shared::run(&shared);
  } else if (gomp_parallel) {
    gomp_parallel(&Shared::run, &shared, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    try {
      others.reserve(threads - 1);
      for (int i = 1; i < threads; ++i) others.emplace_back(&Shared::run, &shared);
    } catch (const std::exception&) {  // those that started do all of the work
    }
    Shared::run(&shared);
    for (auto& thread : others) thread.join();
  }
  if (shared.error) std::rethrow_exception(shared.error);
}

// Calls body(begin, end) for [0, count) cut into blocks of `grain`. Which thread gets a block depends on the moment;
// where the blocks are cut does not, so results that depend on the block alone are the same for any thread count.
template <class Body>
void parallel_blocks(int64_t count, int64_t grain, int threads, const Body& body) {
  const int64_t blocks = (count + grain - 1) / grain;
  std::atomic<int64_t> next{0};
  on_threads(static_cast<int>(blocks < threads ? blocks : threads), [&] {
    for (int64_t begin; (begin = next.fetch_add(grain)) < count;)
      body(begin, begin + grain < count ? begin + grain : count);
  });
}

}  // namespace geoattn
