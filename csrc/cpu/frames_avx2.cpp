#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "frames_kernels.h"
#include "scalar_conversions.h"

#define MMCORE_TARGET "avx2,fma,f16c"
#include "target_begin.h"
namespace mmcore {
namespace avx2 {
constexpr Isa kIsa = Isa::kAvx2;
#include "lanes_avx2.h"
#include "simd_avx2.h"

#include "frames_kernels.inl"
}  // namespace avx2
}  // namespace mmcore
#include "target_end.h"
#endif
