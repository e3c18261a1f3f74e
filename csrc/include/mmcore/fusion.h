// weighted_fusion: features of several modalities summed with weights, normalised, aligned and masked in one pass.
//
//   F[b, t] = sum_m w_m[b, t] * (A_m n_m[b])[t],   n_m = gamma_m * xhat_m + beta_m,   xhat_m = normalised x_m
//
// Contract
//   in    `count` features (batch, length_m, depth) of any of f32, bf16, f16 (or all f64), any strides but 1 between
//         channels; gates and mask by pointer and strides. Nothing is modified, nothing may overlap the results.
//   out   contiguous, every element written, a missing modality's gradient as 0.
//   Sums are made in `compute` (f32 or f64), in an order that depends on the extents alone: not on `threads`.
//   A missing modality is skipped, never multiplied by 0.
//   cost  forward: one read of each feature, one write. Backward: one read of each feature and of the gradient, one
//         write of each feature's gradient. Scratch: a few rows per thread; with gates per channel and alignment
//         (length, depth) per thread and aligned modality; with gradients of gamma and beta 2 * count * depth for
//         each of up to 32 blocks of rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mmcore/dtype.h"

namespace mmcore {

constexpr int kMaxModalities = 16;

enum class FusionMode : int { kSum = 0, kSoftmax = 1, kNormalized = 2 };
enum class FusionNorm : int { kNone = 0, kLayer = 1, kRms = 2, kL2 = 3 };
// How source steps become those of the result; see fusion_kernels.h for the maps.
enum class FusionAlign : int { kNone = 0, kNearest = 1, kLinear = 2, kMean = 3 };
// Which extents the gates have beside the modality.
enum class GateKind : int { kModality = 0, kBatch = 1, kStep = 2, kChannel = 3 };

struct FusionFeature {
  const void* x = nullptr;
  DType dtype = DType::kF32;
  std::int64_t length = 0;
  std::ptrdiff_t batch_stride = 0, step_stride = 0;  // elements
  FusionAlign align = FusionAlign::kNone;
};

struct FusionSpec {
  int count = 0;
  std::int64_t batch = 0, length = 0, depth = 0;
  FusionFeature feature[kMaxModalities];
  DType compute = DType::kF32;
  DType out_dtype = DType::kF32;
  FusionMode mode = FusionMode::kSum;
  FusionNorm norm = FusionNorm::kNone;
  double eps = 1e-5;
  GateKind gate_kind = GateKind::kModality;
  const void* gates = nullptr;       // of `compute`, contiguous; kChannel: of gates_dtype, with strides
  DType gates_dtype = DType::kF32;
  std::ptrdiff_t gate_stride[3] = {0, 0, 0};  // kChannel: batch, step, modality
  const std::uint8_t* mask = nullptr;         // null: all are there
  std::ptrdiff_t mask_stride[3] = {0, 0, 0};  // batch, step (0: the same for all), modality
  // Results lie in pages that were never written: the kernel's zeroes are in the caches, and writing past them is slower.
  bool fresh_results = false;
  const void* gamma = nullptr;  // (count, depth) of `compute`, contiguous; null: 1
  const void* beta = nullptr;  // likewise; null: 0
};

// What the backward writes; null for what is not wanted. All contiguous.
struct FusionGradients {
  void* feature[kMaxModalities] = {};  // (batch, length_m, depth) of the feature's dtype
  void* gates = nullptr;  // the gates' shape; of `compute`, kChannel: of gates_dtype
  void* gamma = nullptr;  // (count, depth) of `compute`
  void* beta = nullptr;
  void* part = nullptr;  // (batch, count) of `compute`: sum over t, d of w_m a_m G
};

// Both throw std::bad_alloc alone.
void weighted_fusion(const FusionSpec& spec, void* out, int threads);
// `grad` is (batch, length, depth) of out_dtype, by strides in elements, 1 between channels.
void weighted_fusion_backward(const FusionSpec& spec, const void* grad, std::ptrdiff_t grad_batch_stride,
                              std::ptrdiff_t grad_step_stride, const FusionGradients& gradients, int threads);

}  // namespace mmcore
