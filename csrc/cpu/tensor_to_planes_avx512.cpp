#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tensor_to_planes_kernels.h"

#define MMCORE_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "target_begin.h"
namespace mmcore {
namespace avx512 {
#include "lanes_avx512.h"

namespace planes {
struct V : Lanes {
  using Lanes::load;
  static inline F load(const std::uint8_t* p) { return load_bytes(p); }
  static inline F level(F a) { return min(max(a, set(0)), set(255)); }
  static inline void store_u8(std::uint8_t* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(a)));
  }
  static inline void store_u16(std::uint16_t* p, F a, int shift) {
    const __m512i v = _mm512_sll_epi32(_mm512_cvtps_epi32(a), _mm_cvtsi32_si128(shift));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
  }
  static inline void split(const float* p, F* even, F* odd) {
    const __m512i at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const F a = load(p), b = load(p + 16);
    *even = _mm512_permutex2var_ps(a, at, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(at, _mm512_set1_epi32(1)), b);
  }
};
}  // namespace planes

#include "tensor_to_planes_kernels.inl"
}  // namespace avx512
}  // namespace mmcore
#include "target_end.h"
#endif
