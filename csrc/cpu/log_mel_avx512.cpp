#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "log_mel_kernels.h"

#define MMCORE_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "target_begin.h"
namespace mmcore {
namespace avx512 {
#include "lanes_avx512.h"

struct MelLanes : Lanes {
  static inline F split(F x, F* e) {
    const __m512i half_root = _mm512_set1_epi32(0x3f3504f3);  // sqrt(1/2)
    const __m512i bits = _mm512_castps_si512(x), n = _mm512_srai_epi32(_mm512_sub_epi32(bits, half_root), 23);
    *e = _mm512_cvtepi32_ps(n);
    return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(n, 23)));
  }
  static inline F if_finite(F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, set(std::numeric_limits<float>::infinity()), _CMP_LT_OQ), x, y);
  }
  static inline F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static inline F low_pair(F a, F b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static inline F high_pair(F a, F b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static inline void transpose(const float* from, std::ptrdiff_t s, float* to, std::ptrdiff_t d) {
    F r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = load(from + i * s);
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    // r[4 g + c]: in each quarter j, column 4 j + c of rows 4 g ... 4 g + 3
    for (int i = 0; i < 16; i += 4) {
      r[i] = low_pair(t[i], t[i + 2]);
      r[i + 1] = high_pair(t[i], t[i + 2]);
      r[i + 2] = low_pair(t[i + 1], t[i + 3]);
      r[i + 3] = high_pair(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
      store(to + i * d, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
      store(to + (i + 8) * d, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
    }
  }
};

#include "log_mel_kernels.inl"

const LogMelKernels kLogMelKernels = log_mel_kernels::kernels<MelLanes>();
}  // namespace avx512
}  // namespace mmcore
#include "target_end.h"
#endif
