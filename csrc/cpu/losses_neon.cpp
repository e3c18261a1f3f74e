#if defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "losses_kernels.h"

namespace mmcore {
namespace neon {
#include "lanes_neon.h"

#include "losses_kernels.inl"

const LossKernels kLossKernels = {losses::rows<Lanes>, losses::elements<Lanes>};
}  // namespace neon
}  // namespace mmcore
#endif
