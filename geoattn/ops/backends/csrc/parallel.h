// Threads for the kernels: the pool of the OpenMP runtime that torch brought into the process.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include <dlfcn.h>

namespace geoattn {

// Calls work(data) on `threads` threads at once and returns when all are done. A second pool would spin against
// torch's between kernels, so libgomp's entry point is looked up in the process instead of being linked.
inline void on_threads(void (*work)(void*), void* data, int threads) {
  if (threads <= 1) return work(data);
  using Entry = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const Entry gomp_parallel = reinterpret_cast<Entry>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (gomp_parallel) return gomp_parallel(work, data, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, data);
  work(data);
  for (auto& thread : others) thread.join();
}

// Calls body(begin, end) for [0, count) cut into blocks of `grain`. Which thread gets a block depends on the moment;
// where the blocks are cut does not, so results that depend on the block alone are the same for any thread count.
template <class Body>
void parallel_blocks(int64_t count, int64_t grain, int threads, Body body) {
  const int64_t blocks = (count + grain - 1) / grain;
  if (blocks < threads) threads = static_cast<int>(blocks);
  struct Shared {
    Body& body;
    std::atomic<int64_t> next;
    int64_t count, grain;
  } shared{body, {0}, count, grain};
  on_threads(
      [](void* data) {
        auto& s = *static_cast<Shared*>(data);
        for (int64_t begin; (begin = s.next.fetch_add(s.grain)) < s.count;)
          s.body(begin, begin + s.grain < s.count ? begin + s.grain : s.count);
      },
      &shared, threads);
}

}  // namespace geoattn
