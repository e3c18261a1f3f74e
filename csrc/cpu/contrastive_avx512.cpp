#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "contrastive_kernels.h"

#define MMCORE_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "target_begin.h"
namespace mmcore {
namespace avx512 {
#include "lanes_avx512.h"

#include "contrastive_kernels.inl"

const ContrastiveKernels kContrastiveKernels = contrastive::kernels<Lanes>();
}  // namespace avx512
}  // namespace mmcore
#include "target_end.h"
#endif
