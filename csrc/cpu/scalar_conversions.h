// Scalar forms of the byte filters that the SIMD sets do in hardware, for the sets that lack it. No state.
#pragma once

#include <cstdint>
#include <cstring>

#include "frames_kernels.h"
#include "half.h"
#include "prefetch.h"

namespace mmcore {

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
