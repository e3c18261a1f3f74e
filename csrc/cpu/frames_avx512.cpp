#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "frames_kernels.h"
#include "scalar_conversions.h"

#define MMCORE_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "target_begin.h"
namespace mmcore {
namespace avx512 {
constexpr Isa kIsa = Isa::kAvx512;
#include "lanes_avx512.h"
#include "simd_avx512.h"

#include "frames_kernels.inl"
}  // namespace avx512
}  // namespace mmcore
#include "target_end.h"
#endif
