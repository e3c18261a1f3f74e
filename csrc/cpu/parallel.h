// Work shared out over threads of one call.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace mmcore {

// work(i) for every i in [0, count), on up to `threads` threads, this one among them. Which thread takes which i is
// left to chance, so that results must not depend on it. The first exception is rethrown after all have stopped.
template <typename Work>
void parallel_for(std::int64_t count, int threads, const Work& work) {
  if (threads <= 1 || count <= 1) {
    for (std::int64_t i = 0; i < count; ++i) work(i);
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  auto run = [&] {
    try {
      for (std::int64_t i; (i = next.fetch_add(1)) < count;) work(i);
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex);
      error = std::current_exception();
      next.store(count);
    }
  };
  std::vector<std::thread> pool;
  const std::int64_t extra = (threads < count ? threads : count) - 1;
  try {
    for (std::int64_t i = 0; i < extra; ++i) pool.emplace_back(run);
  } catch (...) {
    // No more threads to be had: those that run share the work.
  }
  run();
  for (std::thread& t : pool) t.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace mmcore
