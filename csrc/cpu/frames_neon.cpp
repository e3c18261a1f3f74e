#if defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "frames_kernels.h"
#include "scalar_conversions.h"

namespace mmcore {
namespace neon {
constexpr Isa kIsa = Isa::kNeon;
#include "lanes_neon.h"
#include "simd_neon.h"

#include "frames_kernels.inl"
}  // namespace neon
}  // namespace mmcore
#endif
