#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "contrastive_kernels.h"

#define MMCORE_TARGET "avx2,fma,f16c"
#include "target_begin.h"
namespace mmcore {
namespace avx2 {
#include "lanes_avx2.h"

#include "contrastive_kernels.inl"

const ContrastiveKernels kContrastiveKernels = contrastive::kernels<Lanes>();
}  // namespace avx2
}  // namespace mmcore
#include "target_end.h"
#endif
