#include <cmath>
#include <cstring>

#include "frames_kernels.h"
#include "scalar_conversions.h"

namespace mmcore {
namespace base {
constexpr Isa kIsa = Isa::kBase;
#include "lanes_scalar.h"
#include "simd_scalar.h"

#include "frames_kernels.inl"
}  // namespace base
}  // namespace mmcore
