#if defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "fusion_kernels.h"

namespace mmcore {
namespace neon {
#include "lanes_neon.h"

#include "fusion_kernels.inl"

const FusionKernels kFusionKernels = {fusion::forward<Lanes>, fusion::backward<Lanes>};
}  // namespace neon
}  // namespace mmcore
#endif
