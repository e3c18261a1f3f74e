#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tensor_to_planes_kernels.h"

#define MMCORE_TARGET "avx2,fma,f16c"
#include "target_begin.h"
namespace mmcore {
namespace avx2 {
#include "lanes_avx2.h"

namespace planes {
struct V : Lanes {
  using Lanes::load;
  static inline F load(const std::uint8_t* p) { return load_bytes(p); }
  static inline F level(F a) { return min(max(a, set(0)), set(255)); }
  static inline __m128i words(F a) {
    const __m256i v = _mm256_cvtps_epi32(a);
    return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  }
  static inline void store_u8(std::uint8_t* p, F a) {
    const __m128i w = words(a);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(w, w));
  }
  static inline void store_u16(std::uint16_t* p, F a, int shift) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_sll_epi16(words(a), _mm_cvtsi32_si128(shift)));
  }
  static inline void split(const float* p, F* even, F* odd) {
    const F a = load(p), b = load(p + 8);
    const F low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
    *even = _mm256_shuffle_ps(low, high, 0x88);
    *odd = _mm256_shuffle_ps(low, high, 0xdd);
  }
};
}  // namespace planes

#include "tensor_to_planes_kernels.inl"
}  // namespace avx2
}  // namespace mmcore
#include "target_end.h"
#endif
