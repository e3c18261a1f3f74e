// What the driver (losses.cpp) and the kernels (losses_kernels.inl, once per instruction set) share.
#pragma once

#include <cstdint>

#include "half.h"
#include "inline.h"
#include "isa.h"
#include "mmcore/losses.h"
#include "prefetch.h"

namespace mmcore {

// What a unit's gradient is multiplied by: d total / d loss of the unit.
struct LossScale {
  double loss = 0;
  double z = 0;         // likewise for the unit's z loss
  bool stream = false;  // gradients are large: written past the caches
};

// Sums over the units of one block.
struct LossPartial {
  double loss = 0;
  double z = 0;
};

// Elements of a segment: heads whose losses are counted in elements are worked through in segments of a row at most.
constexpr std::int64_t kLossSegment = 4096;

// Elements of `compute` in a padded row of scratch.
static inline std::int64_t loss_padded(std::int64_t columns) { return (columns + 63) / 64 * 64; }

struct LossKernels {
  // Rows [first, end) of a head that counts rows. scratch: 2 padded rows, and a value for every 1024 columns.
  void (*rows)(const LossHead& head, const LossScale& scale, std::int64_t first, std::int64_t end, LossPartial* sums,
               void* scratch);
  // Elements [first, end) of row `row` of one that counts elements.
  void (*elements)(const LossHead& head, const LossScale& scale, std::int64_t row, std::int64_t first, std::int64_t end,
                   LossPartial* sums);
};

namespace base {
extern const LossKernels kLossKernels;
extern const LossKernels kLossKernelsF64;
}  // namespace base
namespace avx2 {
extern const LossKernels kLossKernels;
}
namespace avx512 {
extern const LossKernels kLossKernels;
}
namespace neon {
extern const LossKernels kLossKernels;
}

}  // namespace mmcore
