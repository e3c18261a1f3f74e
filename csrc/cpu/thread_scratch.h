#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mmcore {

// One thread's memory, kept from call to call.
inline void* thread_scratch(std::size_t bytes) {
  thread_local std::vector<unsigned char> storage;
  constexpr std::size_t kAlign = 64;
  if (storage.size() < bytes + kAlign) storage.assign(bytes + kAlign, 0);
  const auto address = reinterpret_cast<std::uintptr_t>(storage.data());
  return storage.data() + (kAlign - address % kAlign) % kAlign;
}

}  // namespace mmcore
