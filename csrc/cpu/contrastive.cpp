#include "mmcore/contrastive.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "contrastive_kernels.h"
#include "parallel.h"
#include "thread_scratch.h"

namespace mmcore {

namespace {

// Below this many elements one thread is as fast as two: starting one costs some 20 us.
constexpr std::int64_t kThreadedElements = 1 << 17;

const ContrastiveKernels& kernels_for(DType compute) {
  if (compute == DType::kF64) return base::kContrastiveKernelsF64;
  switch (active_isa()) {
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx512:
      return avx512::kContrastiveKernels;
    case Isa::kAvx2:
      return avx2::kContrastiveKernels;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Isa::kNeon:
      return neon::kContrastiveKernels;
#endif
    default:
      return base::kContrastiveKernels;
  }
}

std::int64_t blocks_of(const ContrastiveTile& tile) { return (tile.rows + kContrastiveRows - 1) / kContrastiveRows; }

// work(block, its first row in the tile, its rows, address of its first element)
template <typename Work>
void for_blocks(const ContrastiveTile& tile, int threads, const Work& work) {
  const std::int64_t row_bytes = tile.batch * static_cast<std::int64_t>(dtype_size(tile.compute));
  parallel_for(blocks_of(tile), tile.rows * tile.batch < kThreadedElements ? 1 : threads, [&](std::int64_t k) {
    const std::int64_t row = k * kContrastiveRows;
    work(k, row, std::min(kContrastiveRows, tile.rows - row), static_cast<char*>(tile.y) + row * row_bytes);
  });
}

// sum exp(t (x - m)) and sum exp(t (x - m)) (x - m) of more elements, taken to the larger m of the two.
class Columns {
 public:
  Columns(double* states, std::int64_t batch, double scale)
      : most_(states + kColumnMost * batch),
        sum_(states + kColumnSum * batch),
        weighted_(states + kColumnWeighted * batch),
        batch_(batch),
        steepness_(std::fabs(scale)) {}

  template <typename R>
  void start(const R* most, const R* sum, const R* weighted) {
    for (std::int64_t j = 0; j < batch_; ++j) {
      most_[j] = static_cast<double>(most[j]);
      sum_[j] = static_cast<double>(sum[j]);
      weighted_[j] = static_cast<double>(weighted[j]);
    }
  }

  template <typename R>
  void add(const R* most, const R* sum, const R* weighted) {
    double last = 0, factor = 1;
    for (std::int64_t j = 0; j < batch_; ++j) {
      double m = static_cast<double>(most[j]), s = static_cast<double>(sum[j]), w = static_cast<double>(weighted[j]);
      const double rise = m - most_[j];
      if (rise != last) {  // blocks with one m for all their columns: mostly the same
        last = rise;
        factor = std::exp(-steepness_ * std::fabs(rise));
      }
      if (rise > 0) {
        weighted_[j] = w + factor * (weighted_[j] - rise * sum_[j]);
        sum_[j] = s + factor * sum_[j];
        most_[j] = m;
      } else {
        weighted_[j] += factor * (w + rise * s);
        sum_[j] += factor * s;
      }
    }
  }

 private:
  double *most_, *sum_, *weighted_;
  std::int64_t batch_;
  double steepness_;
};

template <typename R>
void statistics(const ContrastiveTile& tile, double* states, bool keep, int threads) {
  const std::int64_t batch = tile.batch, blocks = blocks_of(tile);
  const std::size_t size = static_cast<std::size_t>(3 * batch);
  std::unique_ptr<R[]> columns(new R[static_cast<std::size_t>(blocks) * size]);
  const ContrastiveKernels& kernels = kernels_for(tile.compute);
  for_blocks(tile, threads, [&](std::int64_t k, std::int64_t row, std::int64_t rows, void* y) {
    ClipBlock b;
    b.y = y;
    b.first = tile.first + row;
    b.rows = rows;
    b.batch = batch;
    b.scale = tile.scale;
    b.keep = keep;
    b.row_most = states + kRowMost * batch + b.first;
    b.row_sum = states + kRowSum * batch + b.first;
    b.row_weighted = states + kRowWeighted * batch + b.first;
    b.diagonal = states + kDiagonal * batch + b.first;
    b.reference = states + kReference * batch + k;
    R* own = columns.get() + static_cast<std::size_t>(k) * size;
    b.column_most = own;
    b.column_sum = own + batch;
    b.column_weighted = own + 2 * batch;
    kernels.clip_statistics(b);
  });
  Columns all(states, batch, tile.scale);
  for (std::int64_t k = 0; k < blocks; ++k) {
    const R* own = columns.get() + static_cast<std::size_t>(k) * size;
    if (tile.first == 0 && k == 0) {
      all.start(own, own + batch, own + 2 * batch);
    } else {
      all.add(own, own + batch, own + 2 * batch);
    }
  }
}

}  // namespace

void clip_statistics(const ContrastiveTile& tile, double* states, bool keep, int threads) {
  if (tile.compute == DType::kF64) {
    statistics<double>(tile, states, keep, threads);
  } else {
    statistics<float>(tile, states, keep, threads);
  }
}

ContrastiveSums clip_sums(const double* states, std::int64_t batch, double scale) {
  const double t = std::fabs(scale);
  auto state = [&](ClipState which, std::int64_t i) { return states[which * batch + i]; };
  ContrastiveSums sums;
  for (std::int64_t i = 0; i < batch; ++i) {
    // Less the diagonal at once: near the optimum the rest is small.
    const double x = state(kDiagonal, i);
    const double row = state(kRowMost, i) - x, column = state(kColumnMost, i) - x;
    const double row_sum = state(kRowSum, i), column_sum = state(kColumnSum, i);
    sums.loss += t * row + std::log(row_sum) + t * column + std::log(column_sum);
    sums.scale_slope += row + state(kRowWeighted, i) / row_sum + column + state(kColumnWeighted, i) / column_sum;
  }
  const double share = 1 / (2 * static_cast<double>(batch));
  sums.loss *= share;
  sums.scale_slope *= scale < 0 ? -share : share;
  return sums;
}

void clip_gradient(const ContrastiveTile& tile, const double* states, bool kept, int threads) {
  const std::int64_t batch = tile.batch;
  const ContrastiveKernels& kernels = kernels_for(tile.compute);
  for_blocks(tile, threads, [&](std::int64_t k, std::int64_t row, std::int64_t rows, void* y) {
    ClipGradientBlock b;
    b.y = y;
    b.first = tile.first + row;
    b.rows = rows;
    b.batch = batch;
    b.scale = tile.scale;
    b.reference = kept ? states[kReference * batch + k] : std::nan("");
    b.row_most = states + kRowMost * batch + b.first;
    b.row_sum = states + kRowSum * batch + b.first;
    b.column_most = states + kColumnMost * batch;
    b.column_sum = states + kColumnSum * batch;
    b.scratch = thread_scratch(static_cast<std::size_t>(2 * batch) * dtype_size(tile.compute));
    kernels.clip_gradient(b);
  });
}

ContrastiveSums siglip(const ContrastiveTile& tile, bool gradient, int threads) {
  std::vector<ContrastiveSums> of_row(static_cast<std::size_t>(tile.rows));
  const ContrastiveKernels& kernels = kernels_for(tile.compute);
  for_blocks(tile, threads, [&](std::int64_t, std::int64_t row, std::int64_t rows, void* y) {
    SiglipBlock b;
    b.y = y;
    b.first = tile.first + row;
    b.rows = rows;
    b.batch = tile.batch;
    b.scale = tile.scale;
    b.bias = tile.bias;
    b.gradient = gradient;
    b.sums = of_row.data() + row;
    kernels.siglip(b);
  });
  ContrastiveSums sums;
  for (const ContrastiveSums& s : of_row) {
    sums.loss += s.loss;
    sums.scale_slope += s.scale_slope;
    sums.bias_slope += s.bias_slope;
  }
  const double batch = static_cast<double>(tile.batch);
  return {sums.loss / batch, sums.scale_slope / batch, sums.bias_slope / batch};
}

}  // namespace mmcore
