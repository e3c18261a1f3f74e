// V: sixteen lanes of AVX-512 (F, BW, VL, DQ). Included inside a namespace, under that target.
namespace eight {
#include "lanes_avx2.h"
#include "simd_avx2.h"
}  // namespace eight

struct V : Lanes {
  static constexpr int kPermuteLanes = 16;
  static constexpr int kByteLanes = 8;
  static inline F from_u8(const std::uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static inline F from_u16(const std::uint16_t* p, int shift) {
    const __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_cvtepi32_ps(_mm512_srl_epi32(v, _mm_cvtsi32_si128(shift)));
  }
  // Lane i is p[index[i]]; the indices reach 16 floats with one register, 32 with two.
  static inline F permute(const float* p, const std::int32_t* index, int registers) {
    const __m512i at = _mm512_loadu_si512(index);
    return registers == 1 ? _mm512_permutexvar_ps(at, load(p)) : _mm512_permutex2var_ps(load(p), at, load(p + 16));
  }
  // Four vectors as 64 bytes, saturated.
  static inline void store_u8x4(std::uint8_t* p, F a, F b, F c, F d) {
    const F all[4] = {a, b, c, d};
    for (int j = 0; j < 4; ++j) {
      const __m512i v = _mm512_max_epi32(_mm512_cvtps_epi32(all[j]), _mm512_setzero_si512());
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16 * j), _mm512_cvtusepi32_epi8(v));
    }
  }
  // a0 b0 a1 b1 ...
  static inline void store_interleaved(float* p, F a, F b) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    store(p, _mm512_permutex2var_ps(a, low, b));
    store(p + 16, _mm512_permutex2var_ps(a, high, b));
  }
  // Outputs 8 at a time: the adds across lanes, not the products, are what a dot product waits for.
  static void dot(const float* src, const HorizontalFilter& f, float* dst) { eight::V::dot(src, f, dst); }
  static void horizontal_bytes(const std::uint8_t* src, const std::uint8_t* next, const HorizontalFilter& f,
                               float* dst) {
    eight::V::horizontal_bytes(src, next, f, dst);
  }
  static void bytes_horizontal(const std::uint8_t* src, const BytesFilter& f, std::uint8_t* dst) {
    eight::V::bytes_horizontal(src, f, dst);
  }
  static void bytes_vertical(const std::uint8_t* const* rows, const std::int16_t* weight, int taps, int precision,
                             std::uint8_t* dst, int n) {
    eight::V::bytes_vertical(rows, weight, taps, precision, dst, n);
  }
};
