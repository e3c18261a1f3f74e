// What the driver (log_mel.cpp) and the kernels (log_mel_kernels.inl, once per instruction set) share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "half.h"
#include "inline.h"
#include "isa.h"
#include "mmcore/log_mel.h"

namespace mmcore {

// Frames that are worked through at once, in groups of as many as a vector has lanes: their samples stay in L2, and
// those that frames share are laid out once.
constexpr std::int64_t kLogMelBlock = 64;

// One step of the Fourier transform: `radix` transforms of `length` points become one of radix * length.
struct FourierPass {
  std::int64_t radix = 1;
  std::int64_t length = 1;
  std::size_t twiddles = 0;  // index of the first of 3 * length * (radix - 1) numbers
  std::size_t roots = 0;     // for a radix without a kernel of its own: index of 3 * radix numbers
};

template <typename R>
struct LogMelNumbers {
  std::vector<R> window;    // (n_fft), 0 from win_length on; halved for an even n_fft, see spectrum()
  std::vector<R> twiddles;  // re, im and -im of each
  std::vector<R> split;     // cos and sin of 2 pi k / n_fft, k = 0 ... n_fft / 4
  std::vector<R> mel;       // weights of all filters, end to end
};

struct MelFilter {
  std::int64_t first = 0, count = 0;  // bins that it weighs
  std::size_t weights = 0;            // index of their weights
};

struct LogMelTables {
  LogMelOptions options;
  std::int64_t points = 0;  // of the complex transform: n_fft / 2, or n_fft if it is odd
  std::vector<FourierPass> passes;
  std::vector<std::int64_t> leaf;  // first input of each butterfly of the first pass
  std::int64_t largest_radix = 1;
  std::vector<MelFilter> filters;
  LogMelNumbers<float> single;
  LogMelNumbers<double> precise;

  std::int64_t bins() const { return options.n_fft / 2 + 1; }
  bool even() const { return options.n_fft % 2 == 0; }
};

// Consecutive frames of one row. R: the kernel's type.
struct LogMelBlock {
  const void* samples = nullptr;  // of R; frame i begins at i * hop; readable to the end of frame `rounded - 1`
  std::int64_t frames = 0;
  std::int64_t rounded = 0;  // frames, up to whole vectors
  void* out = nullptr;       // first mel of the first frame
  DType out_dtype = DType::kF32;
  std::int64_t mel_stride = 0, frame_stride = 0;  // elements; one of them is 1
  double most = 0;  // becomes the largest value, where the options have a dynamic range
};

struct LogMelKernels {
  std::int64_t lanes;
  std::size_t (*scratch_bytes)(const LogMelTables& tables);
  void (*block)(const LogMelTables& tables, LogMelBlock* block, void* scratch);
  void (*to_real)(DType dtype, const void* from, void* to, std::int64_t n);
  void (*fill)(DType dtype, void* to, std::int64_t n, double value);
  void (*raise)(DType dtype, void* values, std::int64_t n, double least);  // to at least `least`; NaN stays
};

namespace base {
extern const LogMelKernels kLogMelKernels;
extern const LogMelKernels kLogMelKernelsF64;
}  // namespace base
namespace avx2 {
extern const LogMelKernels kLogMelKernels;
}
namespace avx512 {
extern const LogMelKernels kLogMelKernels;
}
namespace neon {
extern const LogMelKernels kLogMelKernels;
}

}  // namespace mmcore
