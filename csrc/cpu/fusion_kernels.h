// What the driver (fusion.cpp) and the kernels (fusion_kernels.inl, once per instruction set) share.
#pragma once

#include <cstdint>

#include "half.h"
#include "inline.h"
#include "isa.h"
#include "mmcore/fusion.h"
#include "prefetch.h"

namespace mmcore {

// The taps of one step of the result: `count` source steps from `first` on, as weights of A_m's row.
struct Taps {
  std::int64_t first = 0, count = 1;
  double weight[2] = {1, 0};  // kMean: weight[0] for all
};

// A_m's rows, in integers so that every machine agrees. Steps are intervals of equal length over the same time:
//   nearest  the source step that holds the middle of t
//   linear   between the middles of source steps, the first and last of which reach to the ends
//   mean     all source steps that t touches
// Internal linkage: these are compiled for several instruction sets.
static inline Taps fusion_taps(FusionAlign align, std::int64_t t, std::int64_t length, std::int64_t source) {
  Taps taps;
  switch (align) {
    case FusionAlign::kNone:
      taps.first = t;
      break;
    case FusionAlign::kNearest: {
      const std::int64_t s = (2 * t + 1) * source / (2 * length);
      taps.first = s < source ? s : source - 1;
      break;
    }
    case FusionAlign::kLinear: {
      std::int64_t at = (2 * t + 1) * source - length;  // position of t's middle among the sources', times 2 * length
      if (at < 0) at = 0;
      const std::int64_t rest = at % (2 * length);
      taps.first = at / (2 * length);
      if (taps.first >= source - 1) {
        taps.first = source - 1;
      } else if (rest != 0) {
        taps.count = 2;
        taps.weight[1] = static_cast<double>(rest) / static_cast<double>(2 * length);
        taps.weight[0] = 1 - taps.weight[1];
      }
      break;
    }
    case FusionAlign::kMean:
      taps.first = t * source / length;
      taps.count = ((t + 1) * source + length - 1) / length - taps.first;
      taps.weight[0] = 1.0 / static_cast<double>(taps.count);
      break;
  }
  return taps;
}

static inline double tap_weight(const Taps& taps, FusionAlign align, std::int64_t i) {
  return align == FusionAlign::kMean ? taps.weight[0] : taps.weight[i];
}

// First step of the result that takes from source step s or a later one; `length` if none does.
static inline std::int64_t first_touch(FusionAlign align, std::int64_t s, std::int64_t length, std::int64_t source) {
  std::int64_t low = 0, high = length;  // taps move forward with t
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    const Taps taps = fusion_taps(align, middle, length, source);
    if (taps.first + taps.count > s) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// One past the last step of the result that takes from source step s or an earlier one.
static inline std::int64_t end_touch(FusionAlign align, std::int64_t s, std::int64_t length, std::int64_t source) {
  std::int64_t low = 0, high = length;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (fusion_taps(align, middle, length, source).first > s) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The rows of one backward call are worked through in items: chunk c of the steps of batch element b, of every
// modality. An aligned stream is cut at its own steps; a step of the result that takes from two chunks gets a partial
// p from each, kept apart until both are there.
struct FusionChunk {
  std::int64_t first = 0, end = 0;  // of the modality's own steps
  std::int64_t first_step = 0, end_step = 0;  // steps of the result that take from them
  std::int64_t offset = 0;  // where their p begin among the batch element's
};

struct FusionBackward {
  const FusionSpec* spec = nullptr;
  const void* grad = nullptr;
  std::ptrdiff_t grad_batch_stride = 0, grad_step_stride = 0;
  FusionGradients out;
  bool want_p = false;
  bool stream = false;  // features' gradients are large: written past the caches
  std::int64_t chunks = 1;  // per batch element
  const FusionChunk* chunk[kMaxModalities] = {};  // [c]
  void* p[kMaxModalities] = {};  // (batch, p_length) of `compute`: <G, a_m>
  std::int64_t p_length[kMaxModalities] = {};
};

// Elements of `compute` in a padded row of scratch.
static inline std::int64_t fusion_padded(std::int64_t depth) { return (depth + 15) / 16 * 16; }

// Rows of G that the backward keeps at hand, at most.
constexpr std::int64_t kGroup = 16;

struct FusionKernels {
  // Rows [first, end) of batch * length; stream: the result is written past the caches. scratch: (count + 1) padded
  // rows.
  void (*forward)(const FusionSpec& spec, void* out, bool stream, std::int64_t first, std::int64_t end, void* scratch);
  // Item `item` of batch * chunks. scratch: (2 * count + 3 + kGroup) padded rows; gates per channel with alignment: another
  // count * length; last count * (length + 2) values. gamma, beta: accumulators (count, depth), or null.
  void (*backward)(const FusionBackward& call, std::int64_t item, void* gamma, void* beta, void* scratch);
};

namespace base {
extern const FusionKernels kFusionKernels;
extern const FusionKernels kFusionKernelsF64;
}  // namespace base
namespace avx2 {
extern const FusionKernels kFusionKernels;
}
namespace avx512 {
extern const FusionKernels kFusionKernels;
}
namespace neon {
extern const FusionKernels kFusionKernels;
}

}  // namespace mmcore
