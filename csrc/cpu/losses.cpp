#include "mmcore/losses.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "losses_kernels.h"
#include "parallel.h"
#include "thread_scratch.h"

namespace mmcore {

namespace {

constexpr std::int64_t kThreadedElements = 1 << 16;  // below it one thread is as fast as two
constexpr std::int64_t kBlockElements = 1 << 14;     // whose sums are made apart, by whichever thread
constexpr std::size_t kStreamBytes = 4 << 20;        // gradients that the caches would not keep for their reader

const LossKernels& kernels_for(DType compute) {
  if (compute == DType::kF64) return base::kLossKernelsF64;
  switch (active_isa()) {
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx512:
      return avx512::kLossKernels;
    case Isa::kAvx2:
      return avx2::kLossKernels;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Isa::kNeon:
      return neon::kLossKernels;
#endif
    default:
      return base::kLossKernels;
  }
}

// What of a head has labels: how many units, and what divides a mean over them.
struct Labels {
  std::int64_t units = 0;
  double weight = 0;
};

template <typename R>
bool count_labels(const LossHead& h, Labels* found, std::int64_t* wrong) {
  const std::int64_t units = h.units();
  if (!h.classes()) {
    std::int64_t n = units;
    if (h.mask != nullptr) {
      n = 0;
      for (std::int64_t i = 0; i < units / h.mask_inner; ++i) n += h.mask[i] != 0 ? h.mask_inner : 0;
    }
    *found = {n, static_cast<double>(n)};
    return true;
  }
  const auto* labels = static_cast<const std::int64_t*>(h.target);
  const R* weight = static_cast<const R*>(h.weight);
  for (std::int64_t row = 0; row < units; ++row) {
    if (h.mask != nullptr && h.mask[row / h.mask_inner] == 0) continue;
    const std::int64_t y = labels[row * h.target_stride];
    if (y == h.task.ignore_index) continue;
    if (y < 0 || y >= h.columns) {
      *wrong = row;
      return false;
    }
    ++found->units;
    found->weight += weight == nullptr ? 1 : static_cast<double>(weight[y]);
  }
  return true;
}

// How a head's work is cut: into segments of rows, the same for any number of threads.
struct Cut {
  bool by_row = false;
  std::int64_t rows = 0, columns = 0;  // of the segments' grid
  std::int64_t parts = 1;              // segments of a row
  std::int64_t each = 1;               // rows in a block; parts > 1: 1
  std::int64_t blocks = 0;
};

Cut cut_of(const LossHead& h) {
  Cut c;
  c.by_row = h.task.by_row();
  c.rows = h.rows;
  c.columns = h.columns;
  if (!c.by_row) {
    const bool flat = h.output_stride == h.columns && (h.target == nullptr || h.target_stride == h.columns) &&
                      (h.weight == nullptr || h.weight_count == 1);
    if (flat) {  // rows mean nothing: one long one
      c.columns = h.rows * h.columns;
      c.rows = c.columns == 0 ? 0 : 1;
    }
    c.parts = std::max<std::int64_t>(1, (c.columns + kBlockElements - 1) / kBlockElements);
  }
  if (c.columns == 0) c.rows = 0;
  c.each = c.parts > 1 ? 1 : std::max<std::int64_t>(1, kBlockElements / std::max<std::int64_t>(1, c.columns));
  c.blocks = c.parts > 1 ? c.rows * c.parts : (c.rows + c.each - 1) / c.each;
  return c;
}

struct Item {
  int head;
  std::int64_t block;
};

template <typename R>
bool run(const LossSpec& spec, int threads, LossRange* wrong) {
  const int count = spec.count;
  Labels labels[kMaxTasks];
  for (int i = 0; i < count; ++i) {
    if (!count_labels<R>(spec.head[i], &labels[i], &wrong->row)) {
      wrong->head = i;
      return false;
    }
  }
  const R* lambda = static_cast<const R*>(spec.weights);
  const R* log_var = static_cast<const R*>(spec.log_vars);
  const R* upstream = static_cast<const R*>(spec.grad_losses);
  auto weight_of = [&](int i) { return lambda == nullptr ? 1.0 : static_cast<double>(lambda[i]); };
  // d total / d loss_i
  auto inner_of = [&](int i) {
    if (log_var == nullptr) return 1.0;
    return spec.head[i].task.uncertainty_scale * std::exp(-static_cast<double>(log_var[i]));
  };
  LossScale scale[kMaxTasks];
  LossHead heads[kMaxTasks];
  Cut cut[kMaxTasks];
  std::int64_t total_blocks = 0, elements = 0, widest = 0;
  std::size_t written = 0;
  for (int i = 0; i < count; ++i) {
    const LossHead& h = heads[i] = spec.head[i];
    if (h.gradient != nullptr && h.gradient != h.output) {
      written += static_cast<std::size_t>(h.rows * h.columns) * dtype_size(h.dtype);
    }
    const bool none = h.task.reduction == LossReduction::kNone;
    if (!none) {
      const double k =
          spec.grad_total * weight_of(i) * inner_of(i) + (upstream == nullptr ? 0.0 : static_cast<double>(upstream[i]));
      const bool mean = h.task.reduction == LossReduction::kMean;
      const bool nothing = labels[i].units == 0;
      scale[i].loss = nothing || (mean && labels[i].weight == 0) ? 0 : mean ? k / labels[i].weight : k;
      scale[i].z = nothing ? 0 : mean ? k / static_cast<double>(labels[i].units) : k;
    }
    cut[i] = cut_of(h);
    if (!cut[i].by_row) {
      heads[i].columns = cut[i].columns;
      if (cut[i].columns != h.columns || cut[i].rows <= 1) heads[i].rows = cut[i].rows;
    }
    total_blocks += cut[i].blocks;
    elements += h.rows * spec.head[i].columns;
    if (cut[i].by_row) widest = std::max(widest, h.columns);
  }
  const bool stream = written >= kStreamBytes && !spec.fresh_results;
  for (int i = 0; i < count; ++i) scale[i].stream = stream && heads[i].gradient != heads[i].output;

  Item few[128];
  LossPartial few_sums[128];
  std::vector<Item> many_items;
  std::vector<LossPartial> many_sums;
  Item* items = few;
  LossPartial* sums = few_sums;
  if (total_blocks > 128) {
    many_items.resize(static_cast<std::size_t>(total_blocks));
    many_sums.resize(static_cast<std::size_t>(total_blocks));
    items = many_items.data();
    sums = many_sums.data();
  }
  std::int64_t n = 0;
  for (int i = 0; i < count; ++i) {
    for (std::int64_t b = 0; b < cut[i].blocks; ++b) items[n++] = {i, b};
  }
  const std::size_t scratch = static_cast<std::size_t>(2 * loss_padded(widest) + widest / 1024 + 2) * sizeof(R);
  const LossKernels& kernels = kernels_for(spec.compute);
  parallel_for(total_blocks, elements < kThreadedElements ? 1 : threads, [&](std::int64_t k) {
    const int i = items[k].head;
    const std::int64_t b = items[k].block;
    const Cut& c = cut[i];
    const LossHead& h = heads[i];
    if (c.parts > 1) {
      const std::int64_t part = b % c.parts;
      // Whole lines of 64 bytes of any type, so that parts can be written past the caches.
      const std::int64_t size = (c.columns / c.parts + 64) / 64 * 64;
      const std::int64_t first = std::min(part * size, c.columns), end = std::min(first + size, c.columns);
      if (first < end) kernels.elements(h, scale[i], b / c.parts, first, end, &sums[k]);
      return;
    }
    const std::int64_t first = b * c.each, end = std::min(first + c.each, c.rows);
    if (c.by_row) {
      kernels.rows(h, scale[i], first, end, &sums[k], thread_scratch(scratch));
    } else {
      for (std::int64_t row = first; row < end; ++row) {
        kernels.elements(h, scale[i], row, 0, c.columns, &sums[k]);
      }
    }
  });

  double total = 0;
  n = 0;
  R* losses = static_cast<R*>(spec.losses);
  for (int i = 0; i < count; ++i) {
    double sum = 0, z = 0;
    for (std::int64_t b = 0; b < cut[i].blocks; ++b, ++n) {
      sum += sums[n].loss;
      z += sums[n].z;
    }
    const LossTask& task = spec.head[i].task;
    double loss = 0, d_weight = 0, d_log_var = 0;
    if (labels[i].units != 0 && task.reduction != LossReduction::kNone) {
      if (task.reduction == LossReduction::kMean) {
        loss = (labels[i].weight == 0 ? 0 : sum / labels[i].weight) + z / static_cast<double>(labels[i].units);
      } else {
        loss = sum + z;
      }
      double term = loss;
      if (log_var != nullptr) {
        const double scaled = inner_of(i) * loss;
        term = scaled + 0.5 * static_cast<double>(log_var[i]);
        d_log_var = spec.grad_total * weight_of(i) * (0.5 - scaled);
      }
      d_weight = spec.grad_total * term;
      total += weight_of(i) * term;
    }
    losses[i] = static_cast<R>(loss);
    if (spec.d_weights != nullptr) static_cast<R*>(spec.d_weights)[i] = static_cast<R>(d_weight);
    if (spec.d_log_vars != nullptr) static_cast<R*>(spec.d_log_vars)[i] = static_cast<R>(d_log_var);
  }
  *static_cast<R*>(spec.total) = static_cast<R>(total);
  return true;
}

}  // namespace

bool multi_task_loss(const LossSpec& spec, int threads, LossRange* wrong) {
  return spec.compute == DType::kF64 ? run<double>(spec, threads, wrong) : run<float>(spec, threads, wrong);
}

}  // namespace mmcore
