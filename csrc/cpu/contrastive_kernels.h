// What the driver (contrastive.cpp) and the kernels (contrastive_kernels.inl, once per instruction set) share.
#pragma once

#include <cstdint>

#include "half.h"
#include "inline.h"
#include "isa.h"
#include "mmcore/contrastive.h"

namespace mmcore {

// Rows that are worked through at a time, so that the second sweep finds them in the caches.
constexpr std::int64_t kContrastiveRows = 64;

// Pointers to double are to the entry of the block's first row.
struct ClipBlock {
  void* y = nullptr;
  std::int64_t first = 0, rows = 0, batch = 0;
  double scale = 1;
  bool keep = false;
  double *row_most = nullptr, *row_sum = nullptr, *row_weighted = nullptr, *diagonal = nullptr;
  double* reference = nullptr;
  void *column_most = nullptr, *column_sum = nullptr,
       *column_weighted = nullptr;  // (batch) of `compute`, of these rows
};

struct ClipGradientBlock {
  void* y = nullptr;
  std::int64_t first = 0, rows = 0, batch = 0;
  double scale = 1;
  double reference = 0;  // NaN: y was not overwritten
  const double *row_most = nullptr, *row_sum = nullptr;
  const double *column_most = nullptr, *column_sum = nullptr;  // (batch)
  void* scratch = nullptr;                                     // 2 * batch of `compute`
};

struct SiglipBlock {
  void* y = nullptr;
  std::int64_t first = 0, rows = 0, batch = 0;
  double scale = 1, bias = 0;
  bool gradient = false;
  ContrastiveSums* sums = nullptr;  // of these rows, not yet over the batch
};

struct ContrastiveKernels {
  void (*clip_statistics)(const ClipBlock& block);
  void (*clip_gradient)(const ClipGradientBlock& block);
  void (*siglip)(const SiglipBlock& block);
};

namespace base {
extern const ContrastiveKernels kContrastiveKernels;
extern const ContrastiveKernels kContrastiveKernelsF64;
}  // namespace base
namespace avx2 {
extern const ContrastiveKernels kContrastiveKernels;
}
namespace avx512 {
extern const ContrastiveKernels kContrastiveKernels;
}
namespace neon {
extern const ContrastiveKernels kContrastiveKernels;
}

}  // namespace mmcore
