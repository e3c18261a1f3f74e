#if defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "log_mel_kernels.h"

namespace mmcore {
namespace neon {
#include "lanes_neon.h"

struct MelLanes : Lanes {
  static inline F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }  // b where one is NaN, as elsewhere
  static inline F split(F x, F* e) {
    const int32x4_t bits = vreinterpretq_s32_f32(x);
    const int32x4_t n = vshrq_n_s32(vsubq_s32(bits, vdupq_n_s32(0x3f3504f3)), 23);  // 0x3f3504f3: sqrt(1/2)
    *e = vcvtq_f32_s32(n);
    return vreinterpretq_f32_s32(vsubq_s32(bits, vshlq_n_s32(n, 23)));
  }
  static inline F if_finite(F x, F y) {
    return vbslq_f32(vcltq_f32(x, vdupq_n_f32(std::numeric_limits<float>::infinity())), y, x);
  }
  static inline F sqrt(F a) { return vsqrtq_f32(a); }
  static inline void transpose(const float* from, std::ptrdiff_t s, float* to, std::ptrdiff_t d) {
    const F a = load(from), b = load(from + s), c = load(from + 2 * s), e = load(from + 3 * s);
    const F ac = vzip1q_f32(a, c), ac2 = vzip2q_f32(a, c), be = vzip1q_f32(b, e), be2 = vzip2q_f32(b, e);
    store(to, vzip1q_f32(ac, be));
    store(to + d, vzip2q_f32(ac, be));
    store(to + 2 * d, vzip1q_f32(ac2, be2));
    store(to + 3 * d, vzip2q_f32(ac2, be2));
  }
};

#include "log_mel_kernels.inl"

const LogMelKernels kLogMelKernels = log_mel_kernels::kernels<MelLanes>();
}  // namespace neon
}  // namespace mmcore
#endif
