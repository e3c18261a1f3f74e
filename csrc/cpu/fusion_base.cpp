#include <cmath>
#include <cstring>
#include <type_traits>

#include "fusion_kernels.h"

namespace mmcore {
namespace base {
#include "lanes_double.h"
#include "lanes_scalar.h"

#include "fusion_kernels.inl"

const FusionKernels kFusionKernels = {fusion::forward<Lanes>, fusion::backward<Lanes>};
const FusionKernels kFusionKernelsF64 = {fusion::forward<DoubleLanes>, fusion::backward<DoubleLanes>};
}  // namespace base
}  // namespace mmcore
