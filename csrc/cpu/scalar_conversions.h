// Scalar forms of what the SIMD sets do in hardware, for the sets that lack it. No state, no exceptions.
#pragma once

#include <cstdint>
#include <cstring>

#include "frames_kernels.h"

#if defined(__GNUC__)
#define MMCORE_PREFETCH(address) __builtin_prefetch(address)
#elif defined(_M_X64)
#include <xmmintrin.h>
#define MMCORE_PREFETCH(address) _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0)
#else
#define MMCORE_PREFETCH(address) static_cast<void>(address)
#endif

namespace mmcore {

// Round to nearest even, as the F16C instruction does; NaN keeps its sign and becomes quiet.
inline std::uint16_t float_to_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits >= 0x47800000u) {  // 65536 and above, infinity, NaN
    return static_cast<std::uint16_t>(sign | (bits > 0x7f800000u ? 0x7e00u : 0x7c00u));
  }
  if (bits < 0x38800000u) {  // below 2^-14: the result is subnormal; adding 0.5 puts its last bit at the float's
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return static_cast<std::uint16_t>(sign | (bits - 0x3f000000u));
  }
  const std::uint32_t rounded = bits + 0xfffu + ((bits >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline std::uint16_t float_to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void bytes_horizontal_scalar(const std::uint8_t* src, const BytesFilter& f, std::uint8_t* dst) {
  for (int i = 0; i < f.size; ++i) {
    const std::uint8_t* x = src + f.start[static_cast<std::size_t>(i)];
    const std::int16_t* w = &f.weight[static_cast<std::size_t>(i) * f.taps];
    std::int32_t sum = 1 << (f.precision - 1);
    for (int k = 0; k < f.taps; ++k) sum += w[k] * x[k];
    sum >>= f.precision;
    dst[i] = static_cast<std::uint8_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
  }
}

inline void bytes_vertical_scalar(const std::uint8_t* const* rows, const std::int16_t* weight, int taps, int precision,
                                  std::uint8_t* dst, int n) {
  constexpr int kBlock = 64;  // rows and dst are padded scratch: whole blocks
  for (int x = 0; x < n; x += kBlock) {
    std::int32_t sum[kBlock];
    for (int j = 0; j < kBlock; ++j) sum[j] = 1 << (precision - 1);
    for (int k = 0; k < taps; ++k) {
      const std::int32_t w = weight[k];
      const std::uint8_t* row = rows[k] + x;
      for (int j = 0; j < kBlock; ++j) sum[j] += w * row[j];
    }
    for (int j = 0; j < kBlock; ++j) {
      const std::int32_t v = sum[j] >> precision;
      dst[x + j] = static_cast<std::uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
    }
  }
}

}  // namespace mmcore
