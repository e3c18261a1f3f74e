#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "log_mel_kernels.h"

#define MMCORE_TARGET "avx2,fma,f16c"
#include "target_begin.h"
namespace mmcore {
namespace avx2 {
#include "lanes_avx2.h"

struct MelLanes : Lanes {
  static inline F split(F x, F* e) {
    const __m256i half_root = _mm256_set1_epi32(0x3f3504f3);  // sqrt(1/2)
    const __m256i bits = _mm256_castps_si256(x), n = _mm256_srai_epi32(_mm256_sub_epi32(bits, half_root), 23);
    *e = _mm256_cvtepi32_ps(n);
    return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(n, 23)));
  }
  static inline F if_finite(F x, F y) {
    return _mm256_blendv_ps(x, y, _mm256_cmp_ps(x, set(std::numeric_limits<float>::infinity()), _CMP_LT_OQ));
  }
  static inline F sqrt(F a) { return _mm256_sqrt_ps(a); }
  static inline void transpose(const float* from, std::ptrdiff_t s, float* to, std::ptrdiff_t d) {
    F r[8], t[8];
    for (int i = 0; i < 8; ++i) r[i] = load(from + i * s);
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      store(to + i * d, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
      store(to + (i + 4) * d, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
  }
};

#include "log_mel_kernels.inl"

const LogMelKernels kLogMelKernels = log_mel_kernels::kernels<MelLanes>();
}  // namespace avx2
}  // namespace mmcore
#include "target_end.h"
#endif
