#if defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tensor_to_planes_kernels.h"

namespace mmcore {
namespace neon {
#include "lanes_neon.h"

namespace planes {
struct V : Lanes {
  using Lanes::load;
  static inline F load(const std::uint8_t* p) { return load_bytes(p); }
  static inline F level(F a) { return min(vmaxnmq_f32(a, set(0)), set(255)); }  // vmaxq would keep a NaN
  static inline uint16x4_t words(F a) { return vqmovn_u32(vcvtnq_u32_f32(a)); }
  static inline void store_u8(std::uint8_t* p, F a) {
    const uint16x4_t w = words(a);
    std::uint8_t all[8];
    vst1_u8(all, vqmovn_u16(vcombine_u16(w, w)));
    std::memcpy(p, all, 4);
  }
  static inline void store_u16(std::uint16_t* p, F a, int shift) {
    vst1_u16(p, vshl_u16(words(a), vdup_n_s16(static_cast<std::int16_t>(shift))));
  }
  static inline void split(const float* p, F* even, F* odd) {
    const float32x4x2_t both = vld2q_f32(p);
    *even = both.val[0];
    *odd = both.val[1];
  }
};
}  // namespace planes

#include "tensor_to_planes_kernels.inl"
}  // namespace neon
}  // namespace mmcore
#endif
