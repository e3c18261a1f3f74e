#include "mmcore/fusion.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "fusion_kernels.h"
#include "parallel.h"
#include "thread_scratch.h"

namespace mmcore {

namespace {

// Below this many elements one thread is as fast as two: starting one costs some 20 us.
constexpr std::int64_t kThreadedElements = 1 << 18;
constexpr std::int64_t kBlockElements = 1 << 15;  // of the forward: enough to make taking a block cheap
constexpr std::int64_t kChunkSteps = 64;          // of the backward
constexpr std::int64_t kSumBlocks = 32;           // partial sums of dgamma and dbeta
constexpr std::size_t kStreamBytes = 4 << 20;     // results that the caches would not keep for their reader

const FusionKernels& kernels_for(const FusionSpec& spec) {
  if (spec.compute == DType::kF64) return base::kFusionKernelsF64;
  switch (active_isa()) {
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx512:
      return avx512::kFusionKernels;
    case Isa::kAvx2:
      return avx2::kFusionKernels;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Isa::kNeon:
      return neon::kFusionKernels;
#endif
    default:
      return base::kFusionKernels;
  }
}

int worth_threads(const FusionSpec& spec, int threads) {
  std::int64_t steps = spec.length;
  for (int m = 0; m < spec.count; ++m) steps += spec.feature[m].length;
  return spec.batch * steps * spec.depth < kThreadedElements ? 1 : threads;
}

bool aligned(const FusionSpec& spec) {
  return std::any_of(spec.feature, spec.feature + spec.count,
                     [](const FusionFeature& f) { return f.align != FusionAlign::kNone; });
}

// From p, the parts of <G, a_m> found chunk by chunk, to the gates' gradients and the modalities' parts in the loss.
template <typename R>
class Gates {
 public:
  Gates(const FusionSpec& spec, const FusionBackward& call) : spec_(spec), call_(call) {
    if (spec.gate_kind == GateKind::kModality && call.out.gates != nullptr) {
      sums_.assign(static_cast<std::size_t>(spec.batch * spec.count), 0.0);
    }
  }

  void batch_element(std::int64_t b) {
    const int count = spec_.count;
    const bool per_channel = spec_.gate_kind == GateKind::kChannel;
    std::vector<R> p(static_cast<std::size_t>(spec_.length * count), R(0));
    for (int m = 0; m < count; ++m) {
      const R* from = static_cast<const R*>(call_.p[m]) + b * call_.p_length[m];
      for (std::int64_t c = 0; c < call_.chunks; ++c) {
        const FusionChunk& chunk = call_.chunk[m][c];
        for (std::int64_t t = chunk.first_step; t < chunk.end_step; ++t) {
          p[static_cast<std::size_t>(t * count + m)] += from[chunk.offset + t - chunk.first_step];
        }
      }
    }
    double part[kMaxModalities] = {}, gates[kMaxModalities] = {};
    for (std::int64_t t = 0; t < spec_.length; ++t) {
      const R* row = &p[static_cast<std::size_t>(t * count)];
      if (per_channel) {
        for (int m = 0; m < count; ++m) part[m] += static_cast<double>(row[m]);
        continue;
      }
      double w[kMaxModalities], scale = 1;
      const std::uint32_t there = weights(b, t, w, &scale);
      double mean = 0;
      for (int m = 0; m < count; ++m) {
        if (!(there >> m & 1u)) continue;
        const double wp = w[m] * static_cast<double>(row[m]);
        part[m] += wp;
        mean += wp;
      }
      for (int m = 0; m < count; ++m) {
        double d = 0;
        if (there >> m & 1u) {
          const double p_m = static_cast<double>(row[m]);
          d = spec_.mode == FusionMode::kSum       ? p_m
              : spec_.mode == FusionMode::kSoftmax ? w[m] * (p_m - mean)
                                                   : scale * (p_m - mean);
        }
        gates[m] += d;
        if (spec_.gate_kind == GateKind::kStep && call_.out.gates != nullptr) {
          static_cast<R*>(call_.out.gates)[(b * spec_.length + t) * count + m] = static_cast<R>(d);
        }
      }
    }
    for (int m = 0; m < count; ++m) {
      if (call_.out.part != nullptr) static_cast<R*>(call_.out.part)[b * count + m] = static_cast<R>(part[m]);
      if (call_.out.gates == nullptr) continue;
      if (spec_.gate_kind == GateKind::kBatch) {
        static_cast<R*>(call_.out.gates)[b * count + m] = static_cast<R>(gates[m]);
      } else if (spec_.gate_kind == GateKind::kModality) {
        sums_[static_cast<std::size_t>(b * count + m)] = gates[m];
      }
    }
  }

  void finish() {
    if (sums_.empty() && !(spec_.gate_kind == GateKind::kModality && call_.out.gates != nullptr)) return;
    for (int m = 0; m < spec_.count; ++m) {
      double sum = 0;
      for (std::int64_t b = 0; b < spec_.batch; ++b) sum += sums_[static_cast<std::size_t>(b * spec_.count + m)];
      static_cast<R*>(call_.out.gates)[m] = static_cast<R>(sum);
    }
  }

 private:
  // As row_weights in fusion_kernels.inl, in double; scale is 1 / the sum of gates for mode normalized.
  std::uint32_t weights(std::int64_t b, std::int64_t t, double* w, double* scale) const {
    const int count = spec_.count;
    std::uint32_t there = (1u << count) - 1u;
    if (spec_.mask != nullptr) {
      there = 0;
      for (int m = 0; m < count; ++m) {
        const bool is = spec_.mask[b * spec_.mask_stride[0] + t * spec_.mask_stride[1] + m * spec_.mask_stride[2]] != 0;
        there |= static_cast<std::uint32_t>(is) << m;
      }
    }
    const std::int64_t row = spec_.gate_kind == GateKind::kModality ? 0
                             : spec_.gate_kind == GateKind::kBatch  ? b
                                                                    : b * spec_.length + t;
    const R* g = static_cast<const R*>(spec_.gates) + row * count;
    double most = -1e30, total = 0;
    for (int m = 0; m < count; ++m) {
      w[m] = there >> m & 1u ? static_cast<double>(g[m]) : 0.0;
      if ((there >> m & 1u) && !(w[m] <= most)) most = w[m];
    }
    if (spec_.mode == FusionMode::kSum) return there;
    for (int m = 0; m < count; ++m) {
      if (spec_.mode == FusionMode::kSoftmax && (there >> m & 1u)) w[m] = std::exp(w[m] - most);
      total += w[m];
    }
    if (there == 0 || (total == 0 && spec_.mode == FusionMode::kSoftmax)) return there;
    *scale = 1 / total;
    for (int m = 0; m < count; ++m) {
      if (there >> m & 1u) w[m] /= total;
    }
    return there;
  }

  const FusionSpec& spec_;
  const FusionBackward& call_;
  std::vector<double> sums_;  // kModality: per batch element
};

template <typename R>
void finish_gates(const FusionSpec& spec, const FusionBackward& call, int threads) {
  Gates<R> gates(spec, call);
  const std::int64_t steps = std::max<std::int64_t>(spec.length, 1);
  const std::int64_t each = std::max<std::int64_t>(1, 1024 / steps);  // batch elements at a time
  parallel_for((spec.batch + each - 1) / each, spec.batch * steps > 8192 ? threads : 1, [&](std::int64_t i) {
    for (std::int64_t b = i * each; b < std::min((i + 1) * each, spec.batch); ++b) gates.batch_element(b);
  });
  gates.finish();
}

template <typename R>
void add_blocks(const R* blocks, std::int64_t count, std::int64_t size, R* sum) {
  for (std::int64_t i = 0; i < size; ++i) sum[i] = R(0);
  for (std::int64_t k = 0; k < count; ++k) {
    for (std::int64_t i = 0; i < size; ++i) sum[i] += blocks[2 * k * size + i];
  }
}

template <typename R>
void backward(const FusionSpec& spec, FusionBackward& call, int threads) {
  const FusionGradients& out = call.out;
  const int count = spec.count;
  const bool any_aligned = aligned(spec), per_channel = spec.gate_kind == GateKind::kChannel;
  std::int64_t longest = spec.length;
  for (int m = 0; m < count; ++m) longest = std::max(longest, spec.feature[m].length);
  call.chunks = any_aligned && per_channel ? 1 : std::max<std::int64_t>(1, (longest + kChunkSteps - 1) / kChunkSteps);
  std::vector<FusionChunk> chunks(static_cast<std::size_t>(count * call.chunks));
  std::int64_t p_total = 0;
  for (int m = 0; m < count; ++m) {
    const FusionFeature& f = spec.feature[m];
    FusionChunk* chunk = &chunks[static_cast<std::size_t>(m * call.chunks)];
    call.chunk[m] = chunk;
    std::int64_t at = 0;
    for (std::int64_t c = 0; c < call.chunks; ++c) {
      FusionChunk& k = chunk[c];
      k.first = c * f.length / call.chunks;
      k.end = (c + 1) * f.length / call.chunks;
      if (f.align == FusionAlign::kNone) {
        k.first_step = k.first;
        k.end_step = k.end;
      } else if (k.first < k.end) {
        k.first_step = first_touch(f.align, k.first, spec.length, f.length);
        k.end_step = std::max(k.first_step, end_touch(f.align, k.end - 1, spec.length, f.length));
      }
      k.offset = at;
      at += k.end_step - k.first_step;
    }
    call.p_length[m] = at;
    p_total += at * spec.batch;
  }
  std::size_t written = 0;
  for (int m = 0; m < count; ++m) {
    const FusionFeature& f = spec.feature[m];
    if (out.feature[m] == nullptr) continue;
    written += static_cast<std::size_t>(spec.batch * f.length * spec.depth) * dtype_size(f.dtype);
  }
  if (per_channel && out.gates != nullptr) {
    written += static_cast<std::size_t>(spec.batch * spec.length * count * spec.depth) * dtype_size(spec.gates_dtype);
  }
  call.stream = written >= kStreamBytes && !spec.fresh_results;
  call.want_p = (out.gates != nullptr && !per_channel) || out.part != nullptr;
  std::unique_ptr<R[]> p(call.want_p ? new R[static_cast<std::size_t>(p_total)] : nullptr);
  R* next = p.get();
  for (int m = 0; m < count && call.want_p; ++m) {
    call.p[m] = next;
    next += call.p_length[m] * spec.batch;
  }

  const std::int64_t items = spec.batch * call.chunks;
  const bool sums = out.gamma != nullptr;
  const std::int64_t blocks = sums ? std::min(items, kSumBlocks) : items;
  const std::int64_t size = count * spec.depth;
  std::unique_ptr<R[]> partial(sums ? new R[static_cast<std::size_t>(2 * blocks * size)] : nullptr);
  const std::int64_t padded = fusion_padded(spec.depth);
  const std::int64_t scratch = (2 * count + 3 + kGroup) * padded +
                               (any_aligned && per_channel ? count * spec.length * padded : 0) +
                               (count + 1) * (spec.length + 1);
  const FusionKernels& kernels = kernels_for(spec);
  parallel_for(blocks, threads, [&](std::int64_t k) {
    R* gamma = sums ? &partial[static_cast<std::size_t>(2 * k * size)] : nullptr;
    R* beta = sums ? gamma + size : nullptr;
    if (sums) std::memset(gamma, 0, static_cast<std::size_t>(2 * size) * sizeof(R));
    void* memory = thread_scratch(static_cast<std::size_t>(scratch) * sizeof(R));
    for (std::int64_t i = k * items / blocks; i < (k + 1) * items / blocks; ++i) {
      kernels.backward(call, i, gamma, beta, memory);
    }
  });
  if (sums) {
    add_blocks(partial.get(), blocks, size, static_cast<R*>(out.gamma));
    add_blocks(partial.get() + size, blocks, size, static_cast<R*>(out.beta));
  }
  if (call.want_p) finish_gates<R>(spec, call, threads);
}

}  // namespace

void weighted_fusion(const FusionSpec& spec, void* out, int threads) {
  const std::int64_t rows = spec.batch * spec.length;
  if (rows == 0 || spec.depth == 0) return;
  const std::size_t scratch = static_cast<std::size_t>(spec.count + 1) *
                              static_cast<std::size_t>(fusion_padded(spec.depth)) * dtype_size(spec.compute);
  const bool stream =
      static_cast<std::size_t>(rows * spec.depth) * dtype_size(spec.out_dtype) >= kStreamBytes && !spec.fresh_results;
  threads = worth_threads(spec, threads);
  const std::int64_t each =
      threads == 1 ? rows : std::max<std::int64_t>(1, kBlockElements / (spec.depth * (spec.count + 1)));
  const FusionKernels& kernels = kernels_for(spec);
  parallel_for((rows + each - 1) / each, threads, [&](std::int64_t i) {
    kernels.forward(spec, out, stream, i * each, std::min(rows, (i + 1) * each), thread_scratch(scratch));
  });
}

void weighted_fusion_backward(const FusionSpec& spec, const void* grad, std::ptrdiff_t grad_batch_stride,
                              std::ptrdiff_t grad_step_stride, const FusionGradients& gradients, int threads) {
  if (spec.depth == 0) {  // no terms: every sum is 0, and nothing else has elements
    const std::size_t size = dtype_size(spec.compute);
    const std::int64_t rows = spec.gate_kind == GateKind::kModality ? 1
                              : spec.gate_kind == GateKind::kBatch  ? spec.batch
                                                                    : spec.batch * spec.length;
    if (gradients.gates != nullptr && spec.gate_kind != GateKind::kChannel) {
      std::memset(gradients.gates, 0, static_cast<std::size_t>(rows * spec.count) * size);
    }
    if (gradients.part != nullptr) {
      std::memset(gradients.part, 0, static_cast<std::size_t>(spec.batch * spec.count) * size);
    }
    return;
  }
  FusionBackward call;
  call.spec = &spec;
  call.grad = grad;
  call.grad_batch_stride = grad_batch_stride;
  call.grad_step_stride = grad_step_stride;
  call.out = gradients;
  threads = worth_threads(spec, threads);
  if (spec.compute == DType::kF64) {
    backward<double>(spec, call, threads);
  } else {
    backward<float>(spec, call, threads);
  }
}

}  // namespace mmcore
