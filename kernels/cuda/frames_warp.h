// A warp's values and what its lanes do together, so that the tests can run it on the CPU: on the device a Lanes<T> is
// a register and MMCORE_EACH_LANE a block that runs once; elsewhere they are 32 values and a loop.
#pragma once

#include "frames_body.h"

namespace mmcore::cuda {

#if defined(__CUDACC__)
constexpr int kLanes = 1;
#define MMCORE_EACH_LANE(lane) for (int lane = threadIdx.x % 32, once_##lane = 0; once_##lane < 1; ++once_##lane)
#else
constexpr int kLanes = 32;
#define MMCORE_EACH_LANE(lane) for (int lane = 0; lane < 32; ++lane)
struct float2 {
  float x, y;
};
struct uint2 {
  std::uint32_t x, y;
};
struct uint4 {
  std::uint32_t x, y, z, w;
};
#endif

template <typename T>
struct Lanes {
  T value[kLanes];
  MMCORE_DEVICE T& operator[](int lane) { return value[kLanes == 1 ? 0 : lane]; }
  MMCORE_DEVICE const T& operator[](int lane) const { return value[kLanes == 1 ? 0 : lane]; }
};

MMCORE_DEVICE bool all_lanes(const Lanes<bool>& condition) {
#if defined(__CUDACC__)
  return __all_sync(0xffffffffu, condition.value[0]);
#else
  for (bool c : condition.value) {
    if (!c) return false;
  }
  return true;
#endif
}

MMCORE_DEVICE std::uint32_t permute(std::uint32_t a, std::uint32_t b, unsigned selector) {
#if defined(__CUDACC__)
  return __byte_perm(a, b, selector);
#else
  const std::uint64_t both = static_cast<std::uint64_t>(b) << 32 | a;
  std::uint32_t r = 0;
  for (int i = 0; i < 4; ++i) r |= static_cast<std::uint32_t>(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return r;
#endif
}

// 16 rows of 32 bytes, `pitch` bytes apart and aligned to 16, as the left factor of a product: lane 4 g + q holds bytes
// 4 q ... 4 q + 3 of rows g (x) and g + 8 (y), and those 16 bytes further on (z, w).
MMCORE_DEVICE void load_fragment(Lanes<uint4>& a, const void* from, int pitch) {
  const std::uint8_t* bytes = static_cast<const std::uint8_t*>(from);
#if defined(__CUDACC__)
  const int lane = threadIdx.x % 32;
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(bytes + lane % 16 * pitch + lane / 16 * 16));
  uint4& r = a.value[0];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(address)
               : "memory");
#else
  for (int lane = 0; lane < 32; ++lane) {
    std::uint32_t r[4];
    for (int i = 0; i < 4; ++i) {
      std::memcpy(&r[i], bytes + (lane / 4 + 8 * (i % 2)) * pitch + lane % 4 * 4 + 16 * (i / 2), 4);
    }
    a[lane] = {r[0], r[1], r[2], r[3]};
  }
#endif
}

}  // namespace mmcore::cuda
