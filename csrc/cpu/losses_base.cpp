#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "losses_kernels.h"

namespace mmcore {
namespace base {
#include "lanes_double.h"
#include "lanes_scalar.h"

#include "losses_kernels.inl"

const LossKernels kLossKernels = {losses::rows<Lanes>, losses::elements<Lanes>};
const LossKernels kLossKernelsF64 = {losses::rows<DoubleLanes>, losses::elements<DoubleLanes>};
}  // namespace base
}  // namespace mmcore
