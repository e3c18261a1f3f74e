#include "mmcore/memory_pool.h"

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#if defined(_WIN32)
#include <malloc.h>
#else
#include <pthread.h>
#endif

namespace mmcore {

namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kGranule = std::size_t{1} << 16;  // sizes are rounded up to 64 KiB

struct Block {
  void* data;
  std::size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Block> kept;  // the most recently returned last: its pages are the likeliest in cache
  std::unordered_map<void*, std::size_t> lent;
  std::size_t kept_bytes = 0;
  std::size_t limit = std::size_t{512} << 20;
};

// Never destroyed: tensors may die after static destructors have run.
Pool& pool() {
  static Pool* instance = [] {
    auto* p = new Pool;
#if !defined(_WIN32)
    // fork() must not copy the mutex in a locked state.
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
#endif
    return p;
  }();
  return *instance;
}

void* system_allocate(std::size_t bytes) {
#if defined(_WIN32)
  void* data = _aligned_malloc(bytes, kAlignment);
#else
  void* data = nullptr;
  if (posix_memalign(&data, kAlignment, bytes) != 0) data = nullptr;
#endif
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

void system_free(void* data) noexcept {
#if defined(_WIN32)
  _aligned_free(data);
#else
  std::free(data);
#endif
}

void shrink_to(Pool& p, std::size_t limit) {
  while (p.kept_bytes > limit) {  // the least recently returned first
    p.kept_bytes -= p.kept.front().bytes;
    system_free(p.kept.front().data);
    p.kept.erase(p.kept.begin());
  }
}

}  // namespace

void* pool_allocate(std::size_t bytes, bool* recycled) {
  if (recycled != nullptr) *recycled = false;
  if (bytes > SIZE_MAX - kGranule) throw std::bad_alloc();
  const std::size_t size = (bytes + kGranule - 1) / kGranule * kGranule;
  Pool& p = pool();
  {
    std::lock_guard<std::mutex> lock(p.mutex);
    for (auto it = p.kept.end(); it != p.kept.begin();) {
      --it;
      // A block up to a quarter too large is taken too: batches of a clip differ in their last frames.
      if (it->bytes >= size && it->bytes - size <= size / 4) {
        const Block block = *it;
        p.lent.emplace(block.data, block.bytes);
        p.kept.erase(it);
        p.kept_bytes -= block.bytes;
        if (recycled != nullptr) *recycled = true;
        return block.data;
      }
    }
  }
  void* data = system_allocate(size == 0 ? kGranule : size);
  std::lock_guard<std::mutex> lock(p.mutex);
  try {
    p.lent.emplace(data, size == 0 ? kGranule : size);
  } catch (...) {
    system_free(data);
    throw;
  }
  return data;
}

void pool_release(void* block) noexcept {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  const auto it = p.lent.find(block);
  if (it == p.lent.end()) return;
  const std::size_t bytes = it->second;
  p.lent.erase(it);
  if (bytes > p.limit) {
    system_free(block);
    return;
  }
  try {
    p.kept.push_back({block, bytes});
  } catch (...) {
    system_free(block);
    return;
  }
  p.kept_bytes += bytes;
  shrink_to(p, p.limit);
}

void pool_set_limit(std::size_t bytes) {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  p.limit = bytes;
  shrink_to(p, bytes);
}

std::size_t pool_limit() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  return p.limit;
}

std::size_t pool_kept() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  return p.kept_bytes;
}

void pool_clear() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  shrink_to(p, 0);
}

}  // namespace mmcore
