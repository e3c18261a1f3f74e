#if defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "contrastive_kernels.h"

namespace mmcore {
namespace neon {
#include "lanes_neon.h"

#include "contrastive_kernels.inl"

const ContrastiveKernels kContrastiveKernels = contrastive::kernels<Lanes>();
}  // namespace neon
}  // namespace mmcore
#endif
