#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "fusion_kernels.h"

#define MMCORE_TARGET "avx2,fma,f16c"
#include "target_begin.h"
namespace mmcore {
namespace avx2 {
#include "lanes_avx2.h"

#include "fusion_kernels.inl"

const FusionKernels kFusionKernels = {fusion::forward<Lanes>, fusion::backward<Lanes>};
}  // namespace avx2
}  // namespace mmcore
#include "target_end.h"
#endif
