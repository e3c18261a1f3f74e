#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "contrastive_kernels.h"

namespace mmcore {
namespace base {
#include "lanes_double.h"
#include "lanes_scalar.h"

#include "contrastive_kernels.inl"

const ContrastiveKernels kContrastiveKernels = contrastive::kernels<Lanes>();
const ContrastiveKernels kContrastiveKernelsF64 = contrastive::kernels<DoubleLanes>();
}  // namespace base
}  // namespace mmcore
