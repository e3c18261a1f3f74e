// multi_task_loss: the losses of several heads, their weighted sum and every gradient, in one pass over the outputs.
//
//   L = sum_i lambda_i loss_i,   or with log variances s:   sum_i lambda_i (c_i exp(-s_i) loss_i + s_i / 2)
//
// Contract
//   in    per head an output (rows, columns) of f32, bf16 or f16 (or all f64) and its target, any distance between
//         rows, 1 between columns. Nothing is modified but a gradient that is the output itself.
//   out   total, losses, and what is not null of the gradients; contiguous, every element written, 0 where there is no
//         label. A head's losses are counted in units: rows for cross entropy, KL and cosine, else elements.
//   Sums are made in `compute` by blocks and in double over them, in an order that depends on the extents alone: not on
//   `threads`. A unit without a label is skipped, never multiplied by 0. A head without labels adds nothing, gets 0.
//   cost  one read of outputs and targets, one write of the gradients. Scratch: two rows per thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mmcore/dtype.h"

namespace mmcore {

constexpr int kMaxTasks = 32;

enum class LossKind : int {
  kCrossEntropy = 0,
  kBce = 1,
  kMse = 2,
  kL1 = 3,
  kSmoothL1 = 4,
  kHuber = 5,
  kKl = 6,
  kCosine = 7,
  kValue = 8
};
enum class LossReduction : int { kMean = 0, kSum = 1, kNone = 2 };

// The numbers of a task; which of them count depends on the kind. See mmcore/ops/loss_task.py.
struct LossTask {
  LossKind kind = LossKind::kMse;
  LossReduction reduction = LossReduction::kMean;
  double label_smoothing = 0;
  std::int64_t ignore_index = -100;
  double z_loss = 0;
  double focal_gamma = 0;
  int class_dim = 1;
  double beta = 1;  // of smooth L1; delta of Huber
  double temperature = 1;
  double uncertainty_scale = 1;  // c

  bool by_row() const { return kind == LossKind::kCrossEntropy || kind == LossKind::kKl || kind == LossKind::kCosine; }
};

struct LossHead {
  LossTask task;
  std::int64_t rows = 0, columns = 0;
  const void* output = nullptr;
  DType dtype = DType::kF32;
  std::ptrdiff_t output_stride = 0;  // elements between rows
  const void* target = nullptr;  // i64 (rows) for classes; else (rows, columns); null for kValue
  DType target_dtype = DType::kF32;  // i64, the output's, or `compute`
  std::ptrdiff_t target_stride = 0;
  const std::uint8_t* mask = nullptr;  // one byte for `mask_inner` units on end, 0: no label; null: all have one
  std::int64_t mask_inner = 1;
  const void* weight = nullptr;  // of `compute`: class weights (columns), or the positive weight (columns or 1)
  std::int64_t weight_count = 0;
  void* gradient = nullptr;  // (rows, columns) contiguous of dtype; may be `output`; null: not wanted
  void* unreduced = nullptr;  // kNone: (units) of `compute`
  const void* upstream = nullptr;  // kNone: (units) of `compute`, dL/d unreduced; null: 0

  bool soft() const { return task.kind == LossKind::kCrossEntropy && target_dtype != DType::kI64; }
  bool classes() const { return task.kind == LossKind::kCrossEntropy && target_dtype == DType::kI64; }
  std::int64_t units() const { return task.by_row() ? rows : rows * columns; }
};

struct LossSpec {
  int count = 0;
  LossHead head[kMaxTasks];
  DType compute = DType::kF32;
  const void* weights = nullptr;  // (count) of `compute`; null: 1
  const void* log_vars = nullptr;  // (count) of `compute`
  double grad_total = 1;  // upstream gradients
  const void* grad_losses = nullptr;  // (count) of `compute`; null: 0
  bool fresh_results = false;  // gradients lie in pages that were never written
  void* total = nullptr;  // 1 of `compute`
  void* losses = nullptr;  // (count) of `compute`
  void* d_weights = nullptr;  // likewise; null: not wanted
  void* d_log_vars = nullptr;
};

// Where a target class is out of range: nothing is written then.
struct LossRange {
  int head = -1;
  std::int64_t row = 0;
};

// False for a class out of range. Throws std::bad_alloc alone.
bool multi_task_loss(const LossSpec& spec, int threads, LossRange* wrong);

}  // namespace mmcore
