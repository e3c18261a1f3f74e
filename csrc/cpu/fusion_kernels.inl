// The fusion kernels, over a set of lanes L; included inside a namespace for each instruction set, where Lanes is
// defined.
//
// The gradient, derived once. G = dL/dF, H a row that stands for it, f a factor of it (f H = A_m^T (w_m G), one row of
// the source's grid; where each source step has one tap f = w_m a and H = G). With x' = x - mu, xhat = r x',
// n = gamma xhat + beta:
//   p      = <H, n>          = r <gamma H, x'> + <H, beta>
//   dbeta  = sum f H,   dgamma = sum f H xhat
//   u      = f gamma H
//   Layer  dx = r (u - mean(u) - xhat mean(u xhat)),   r = 1 / sqrt(var + eps)
//   RMS    dx = r (u - xhat mean(u xhat)),             r = 1 / sqrt(mean(x^2) + eps), mu = 0
//   L2     dx = r (u - xhat <u, xhat>),                r = 1 / |x|; below eps: dx = u / eps
// All three are alpha gamma H - delta - kappa x' with sums that one sweep over the row gives, p among them: that is why
// the gates' gradient costs nothing where G meets each source step once.
//   scalar gates   dlogit_m = w_m (p_m - P), dg_m = k_m (p_m - P) / S (normalized) or k_m p_m (sum), P = sum_j w_j p_j
//   gates per channel: the same with p_m(d) = G(d) a_m(d)

#include "sweep.inl"

namespace fusion {

using namespace sweeps;

template <typename L>
static inline DType real_dtype() {
  return sizeof(RealOf<L>) == 8 ? DType::kF64 : DType::kF32;
}

static inline const void* offset(const void* p, std::int64_t elements, DType dtype) {
  return static_cast<const char*>(p) + elements * static_cast<std::int64_t>(dtype_size(dtype));
}
static inline void* offset(void* p, std::int64_t elements, DType dtype) {
  return static_cast<char*>(p) + elements * static_cast<std::int64_t>(dtype_size(dtype));
}

static inline const void* source_row(const FusionFeature& f, std::int64_t b, std::int64_t s) {
  return offset(f.x, b * f.batch_stride + s * f.step_stride, f.dtype);
}

static inline float exponential(float x) { return ::expf(x); }
static inline double exponential(double x) { return ::exp(x); }

// ---- weights of one row: bit m of the result says that modality m is there

template <typename L>
static inline std::uint32_t available(const FusionSpec& s, std::int64_t b, std::int64_t t) {
  if (s.mask == nullptr) return (1u << s.count) - 1u;
  const std::uint8_t* k = s.mask + b * s.mask_stride[0] + t * s.mask_stride[1];
  std::uint32_t there = 0;
  for (int m = 0; m < s.count; ++m) there |= static_cast<std::uint32_t>(k[m * s.mask_stride[2]] != 0) << m;
  return there;
}

template <typename L>
static inline void row_weights(const FusionSpec& s, std::int64_t b, std::int64_t t, std::uint32_t there, RealOf<L>* w) {
  using R = RealOf<L>;
  const std::int64_t row = s.gate_kind == GateKind::kModality ? 0
                           : s.gate_kind == GateKind::kBatch  ? b
                                                              : b * s.length + t;
  const R* g = static_cast<const R*>(s.gates) + row * s.count;
  R total = 0;
  switch (s.mode) {
    case FusionMode::kSum:
      for (int m = 0; m < s.count; ++m) w[m] = there >> m & 1u ? g[m] : R(0);
      return;
    case FusionMode::kSoftmax: {
      R most = R(-1e30);
      for (int m = 0; m < s.count; ++m) {
        if ((there >> m & 1u) && !(g[m] <= most)) most = g[m];  // a NaN stays
      }
      for (int m = 0; m < s.count; ++m) {
        w[m] = there >> m & 1u ? exponential(g[m] - most) : R(0);
        total += w[m];
      }
      break;
    }
    case FusionMode::kNormalized:
      for (int m = 0; m < s.count; ++m) {
        w[m] = there >> m & 1u ? g[m] : R(0);
        total += w[m];
      }
      if (there != 0 && total == 0) {  // as division by it says: infinite, or not a number
        for (int m = 0; m < s.count; ++m) w[m] = there >> m & 1u ? w[m] / total : R(0);
        return;
      }
      break;
  }
  if (total == 0) return;  // all missing, or all logits -inf: every w is 0
  const R scale = R(1) / total;
  for (int m = 0; m < s.count; ++m) w[m] *= scale;
}

// Weights of consecutive rows, computed anew only where they can change.
template <typename L>
class RowWeights {
 public:
  explicit RowWeights(const FusionSpec& s)
      : spec_(s),
        per_step_(s.gate_kind == GateKind::kStep || (s.mask != nullptr && s.mask_stride[1] != 0)),
        per_batch_(s.gate_kind == GateKind::kBatch || (s.mask != nullptr && s.mask_stride[0] != 0)) {}
  inline void move(std::int64_t b, std::int64_t t) {
    if (valid_ && !per_step_ && (b == b_ || !per_batch_)) return;
    there = available<L>(spec_, b, t);
    if (spec_.gate_kind != GateKind::kChannel) row_weights<L>(spec_, b, t, there, w);
    b_ = b;
    valid_ = true;
  }
  std::uint32_t there = 0;
  RealOf<L> w[kMaxModalities];

 private:
  const FusionSpec& spec_;
  bool per_step_, per_batch_, valid_ = false;
  std::int64_t b_ = 0;
};

// ---- rows

template <typename L>
static inline bool plain(const FusionSpec& spec) {
  return spec.norm == FusionNorm::kNone && spec.gamma == nullptr;
}

template <typename L, typename T>
static inline void widen(const T* x, RealOf<L>* y, std::int64_t n) {
  sweep<L>(n, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA { io.store(y + i, io.load(x + i, L::set(0))); });
}

template <typename L>
static inline const RealOf<L>* widened(const void* x, DType dtype, RealOf<L>* scratch, std::int64_t n) {
  if (dtype == real_dtype<L>()) return static_cast<const RealOf<L>*>(x);
  visit<L>(dtype,
           [&](auto* type) { widen<L>(static_cast<const std::remove_pointer_t<decltype(type)>*>(x), scratch, n); });
  return scratch;
}

template <typename L>
struct Moments {
  RealOf<L> mean = 0, inverse = 1;
  bool short_l2 = false;  // |x| below eps: divided by eps
};

// The mean of the first elements: close enough to the mean to sum squared distances from it without cancellation.
// Of n elements' mean the mean of k of them is at most sqrt((n - k) / k) standard deviations away, so that the sum of
// squares is at most n / k times the one about the mean: 16, or none at all where k = n.
template <typename L, typename T>
static inline RealOf<L> nearby_mean(const T* x, std::int64_t n) {
  std::int64_t k = n / 16 > 64 ? n / 16 : 64;
  if (k > n) k = n;
  typename L::F sum[2] = {L::set(0), L::set(0)};
  sweep<L>(k, [&](std::int64_t i, auto io, int j)
                  MMCORE_INLINE_LAMBDA { sum[j] = L::add(sum[j], io.load(x + i, L::set(0))); });
  return L::sum(L::add(sum[0], sum[1])) / static_cast<RealOf<L>>(k);
}

// From sums of x - shift and its square.
template <typename L>
static inline Moments<L> moments_of(FusionNorm norm, double eps, std::int64_t n, RealOf<L> shift, RealOf<L> sum,
                                    RealOf<L> square) {
  using R = RealOf<L>;
  Moments<L> m;
  const double count = static_cast<double>(n);
  if (norm == FusionNorm::kLayer) {
    const double about = static_cast<double>(sum) / count;
    const double variance = static_cast<double>(square) / count - about * about;
    m.mean = static_cast<R>(static_cast<double>(shift) + about);
    m.inverse = static_cast<R>(1 / ::sqrt((variance < 0 ? 0 : variance) + eps));
  } else if (norm == FusionNorm::kRms) {
    m.inverse = static_cast<R>(1 / ::sqrt(static_cast<double>(square) / count + eps));
  } else {
    m.short_l2 = static_cast<double>(square) < eps * eps;
    m.inverse = static_cast<R>(1 / (m.short_l2 ? eps : ::sqrt(static_cast<double>(square))));
  }
  return m;
}

template <typename L, typename T>
static inline Moments<L> moments(FusionNorm norm, double eps, const T* x, std::int64_t n) {
  using F = typename L::F;
  const RealOf<L> shift = norm == FusionNorm::kLayer ? nearby_mean<L>(x, n) : RealOf<L>(0);
  const F k = L::set(shift);
  F sum[2] = {L::set(0), L::set(0)}, square[2] = {L::set(0), L::set(0)};
  sweep<L>(n, [&](std::int64_t i, auto io, int j) MMCORE_INLINE_LAMBDA {
    const F d = L::sub(io.load(x + i, k), k);
    sum[j] = L::add(sum[j], d);
    square[j] = L::fma(d, d, square[j]);
  });
  return moments_of<L>(norm, eps, n, shift, L::sum(L::add(sum[0], sum[1])), L::sum(L::add(square[0], square[1])));
}

// y (+)= c ((x - mean) inverse gamma + beta); gamma and beta both or neither.
// x + ahead is where the next row begins: memory is idle here, as x was read just before, and fetches it meanwhile.
template <typename L, typename T, bool kAffine, bool kAdd>
static inline void normalise_row(const T* x, std::ptrdiff_t ahead, const Moments<L>& m, RealOf<L> c,
                                 const RealOf<L>* gamma, const RealOf<L>* beta, RealOf<L>* y, std::int64_t n) {
  using F = typename L::F;
  const F zero = L::set(0), mean = L::set(m.mean), scale = L::set(c * m.inverse), weight = L::set(c);
  sweep<L>(n, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA {
    MMCORE_PREFETCH(x + ahead + i);
    const F d = L::sub(io.load(x + i, zero), mean);
    F v;
    if constexpr (kAffine) {
      v = L::mul(L::mul(d, scale), io.load(gamma + i, zero));
      v = L::fma(io.load(beta + i, zero), weight, v);
    } else {
      v = L::mul(d, scale);
    }
    if constexpr (kAdd) v = L::add(v, io.load(y + i, zero));
    io.store(y + i, v);
  });
}

template <typename L, typename T, bool kAdd>
static inline void scale_row(const T* x, RealOf<L> c, RealOf<L>* y, std::int64_t n) {
  using F = typename L::F;
  const F zero = L::set(0), weight = L::set(c);
  sweep<L>(n, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA {
    F v = L::mul(io.load(x + i, zero), weight);
    if constexpr (kAdd) v = L::fma(io.load(x + i, zero), weight, io.load(y + i, zero));
    io.store(y + i, v);
  });
}

// y (+)= c n_m[b, s]
template <typename L>
static void source_feature(const FusionSpec& spec, int m, std::int64_t b, std::int64_t s, RealOf<L> c, bool add,
                           RealOf<L>* y) {
  using R = RealOf<L>;
  const FusionFeature& f = spec.feature[m];
  const std::int64_t n = spec.depth;
  const void* row = source_row(f, b, s);
  const R* gamma = spec.gamma == nullptr ? nullptr : static_cast<const R*>(spec.gamma) + m * n;
  const R* beta = spec.beta == nullptr ? nullptr : static_cast<const R*>(spec.beta) + m * n;
  visit<L>(f.dtype, [&](auto* type) {
    const auto* x = static_cast<const std::remove_pointer_t<decltype(type)>*>(row);
    using T = std::remove_pointer_t<decltype(type)>;
    if (spec.norm == FusionNorm::kNone && gamma == nullptr) {
      return add ? scale_row<L, T, true>(x, c, y, n) : scale_row<L, T, false>(x, c, y, n);
    }
    Moments<L> at;
    if (spec.norm != FusionNorm::kNone) at = moments<L>(spec.norm, spec.eps, x, n);
    if (gamma != nullptr) {
      add ? normalise_row<L, T, true, true>(x, f.step_stride, at, c, gamma, beta, y, n)
          : normalise_row<L, T, true, false>(x, f.step_stride, at, c, gamma, beta, y, n);
    } else {
      add ? normalise_row<L, T, false, true>(x, f.step_stride, at, c, gamma, beta, y, n)
          : normalise_row<L, T, false, false>(x, f.step_stride, at, c, gamma, beta, y, n);
    }
  });
}

// a_m[b, t] as a row of reals: the feature's own memory where it is one, else y.
template <typename L>
static const RealOf<L>* aligned_feature(const FusionSpec& spec, int m, std::int64_t b, std::int64_t t, RealOf<L>* y) {
  using R = RealOf<L>;
  const FusionFeature& f = spec.feature[m];
  const Taps taps = fusion_taps(f.align, t, spec.length, f.length);
  if (taps.count == 1 && spec.norm == FusionNorm::kNone && spec.gamma == nullptr) {
    return widened<L>(source_row(f, b, taps.first), f.dtype, y, spec.depth);
  }
  for (std::int64_t i = 0; i < taps.count; ++i) {
    source_feature<L>(spec, m, b, taps.first + i, static_cast<R>(tap_weight(taps, f.align, i)), i > 0, y);
  }
  return y;
}

// ---- forward

template <typename L>
struct Term {
  const void* x;
  RealOf<L> weight;
};

template <typename L, typename T, typename To, int K, bool kAdd>
static inline void sum_terms(const Term<L>* terms, const RealOf<L>* sum, To* out, bool stream, std::int64_t n) {
  using F = typename L::F;
  F w[K];
  const T* x[K];
  for (int k = 0; k < K; ++k) {
    w[k] = L::set(terms[k].weight);
    x[k] = static_cast<const T*>(terms[k].x);
  }
  const F zero = L::set(0);
  sweep_out<L>(stream, n, [&](std::int64_t i, auto io, int, auto put) MMCORE_INLINE_LAMBDA {
    F v;
    if constexpr (kAdd) {
      v = L::fma(io.load(x[0] + i, zero), w[0], io.load(sum + i, zero));
    } else {
      v = L::mul(io.load(x[0] + i, zero), w[0]);
    }
    for (int k = 1; k < K; ++k) v = L::fma(io.load(x[k] + i, zero), w[k], v);
    put(out + i, v);
  });
}

template <typename L, typename T, typename To, bool kAdd>
static void sum_some(const Term<L>* terms, int count, const RealOf<L>* sum, To* out, bool stream, std::int64_t n) {
  switch (count) {
    case 1:
      return sum_terms<L, T, To, 1, kAdd>(terms, sum, out, stream, n);
    case 2:
      return sum_terms<L, T, To, 2, kAdd>(terms, sum, out, stream, n);
    case 3:
      return sum_terms<L, T, To, 3, kAdd>(terms, sum, out, stream, n);
    case 4:
      return sum_terms<L, T, To, 4, kAdd>(terms, sum, out, stream, n);
    case 5:
      return sum_terms<L, T, To, 5, kAdd>(terms, sum, out, stream, n);
    default:
      return sum_terms<L, T, To, 6, kAdd>(terms, sum, out, stream, n);
  }
}

// out = sum of weight x over the terms, at most 6 at a time, through `scratch`.
template <typename L, typename T, typename To>
static void sum_all(const Term<L>* terms, std::int64_t count, RealOf<L>* scratch, To* out, bool stream,
                    std::int64_t n) {
  stream = can_stream(out, stream);
  if (count <= 6) return sum_some<L, T, To, false>(terms, static_cast<int>(count), nullptr, out, stream, n);
  sum_some<L, T, RealOf<L>, false>(terms, 6, nullptr, scratch, false, n);
  std::int64_t k = 6;
  for (; count - k > 6; k += 6) sum_some<L, T, RealOf<L>, true>(terms + k, 6, scratch, scratch, false, n);
  sum_some<L, T, To, true>(terms + k, static_cast<int>(count - k), scratch, out, stream, n);
}

// A normalised row in the sum: weight ((x - mean) inverse gamma + beta), scale = weight inverse.
template <typename L>
struct NormalisedTerm {
  const void* x;
  std::ptrdiff_t ahead;
  RealOf<L> weight, scale, mean;
  const RealOf<L>*gamma, *beta;
};

template <typename L, typename T, typename To, int K, bool kAffine, bool kAdd>
static inline void sum_normalised(const NormalisedTerm<L>* terms, const RealOf<L>* sum, To* out, bool stream,
                                  std::int64_t n) {
  using F = typename L::F;
  F weight[K], scale[K], mean[K];
  const T* x[K];
  const RealOf<L>*gamma[K], *beta[K];
  std::ptrdiff_t ahead[K];
  for (int k = 0; k < K; ++k) {
    weight[k] = L::set(terms[k].weight);
    scale[k] = L::set(terms[k].scale);
    mean[k] = L::set(terms[k].mean);
    x[k] = static_cast<const T*>(terms[k].x);
    gamma[k] = terms[k].gamma;
    beta[k] = terms[k].beta;
    ahead[k] = terms[k].ahead;
  }
  const F zero = L::set(0);
  sweep_out<L>(stream, n, [&](std::int64_t i, auto io, int, auto put) MMCORE_INLINE_LAMBDA {
    F v = zero;
    if constexpr (kAdd) v = io.load(sum + i, zero);
    for (int k = 0; k < K; ++k) {
      MMCORE_PREFETCH(x[k] + ahead[k] + i);
      const F d = L::sub(io.load(x[k] + i, zero), mean[k]);
      if constexpr (kAffine) {
        v = L::fma(L::mul(d, scale[k]), io.load(gamma[k] + i, zero), v);
        v = L::fma(weight[k], io.load(beta[k] + i, zero), v);
      } else {
        v = L::fma(d, scale[k], v);
      }
    }
    put(out + i, v);
  });
}

template <typename L, typename T, typename To, bool kAffine, bool kAdd>
static void sum_some_normalised(const NormalisedTerm<L>* terms, int count, const RealOf<L>* sum, To* out, bool stream,
                                std::int64_t n) {
  switch (count) {
    case 1:
      return sum_normalised<L, T, To, 1, kAffine, kAdd>(terms, sum, out, stream, n);
    case 2:
      return sum_normalised<L, T, To, 2, kAffine, kAdd>(terms, sum, out, stream, n);
    case 3:
      return sum_normalised<L, T, To, 3, kAffine, kAdd>(terms, sum, out, stream, n);
    default:
      return sum_normalised<L, T, To, 4, kAffine, kAdd>(terms, sum, out, stream, n);
  }
}

// out = the sum of the terms, at most 4 at a time, through `scratch`.
template <typename L, typename T, bool kAffine>
static void sum_all_normalised(const NormalisedTerm<L>* terms, int count, RealOf<L>* scratch, T* out, bool stream,
                               std::int64_t n) {
  using R = RealOf<L>;
  stream = can_stream(out, stream);
  if (count <= 4) return sum_some_normalised<L, T, T, kAffine, false>(terms, count, nullptr, out, stream, n);
  sum_some_normalised<L, T, R, kAffine, false>(terms, 4, nullptr, scratch, false, n);
  int k = 4;
  for (; count - k > 4; k += 4) {
    sum_some_normalised<L, T, R, kAffine, true>(terms + k, 4, scratch, scratch, false, n);
  }
  sum_some_normalised<L, T, T, kAffine, true>(terms + k, count - k, scratch, out, stream, n);
}

// Weights of one vector of channels: w[m] of gates g + m * stride, 0 for what is not there. `total` as in `row_weights`.
template <typename L, typename T, typename Access>
static MMCORE_INLINE typename L::F channel_weights(const FusionSpec& s, const T* g, std::int64_t i, const Access& io,
                                                   std::uint32_t there, typename L::F* w) {
  using F = typename L::F;
  const F zero = L::set(0);
  F total = zero;
  if (s.mode == FusionMode::kSoftmax) {
    F most = L::set(RealOf<L>(-1e30));
    for (int m = 0; m < s.count; ++m) {
      if (!(there >> m & 1u)) continue;
      w[m] = io.load(g + m * s.gate_stride[2] + i, zero);
      most = L::max(w[m], most);
    }
    for (int m = 0; m < s.count; ++m) {
      if (!(there >> m & 1u)) continue;
      w[m] = L::exp(L::sub(w[m], most));
      total = L::add(total, w[m]);
    }
    total = L::if_zero(total, L::set(1));
  } else {
    for (int m = 0; m < s.count; ++m) {
      if (!(there >> m & 1u)) continue;
      w[m] = io.load(g + m * s.gate_stride[2] + i, L::set(1));
      total = L::add(total, w[m]);
    }
    if (s.mode == FusionMode::kSum) return L::set(1);
  }
  const F scale = L::div(L::set(1), total);
  for (int m = 0; m < s.count; ++m) {
    if (there >> m & 1u) w[m] = L::mul(w[m], scale);
  }
  return scale;
}

static inline const void* gate_row(const FusionSpec& s, std::int64_t b, std::int64_t t) {
  return offset(s.gates, b * s.gate_stride[0] + t * s.gate_stride[1], s.gates_dtype);
}

template <typename L, typename T, typename To>
static void fuse_channels(const FusionSpec& s, const T* g, std::uint32_t there, const RealOf<L>* const* a, To* out,
                          bool stream) {
  using F = typename L::F;
  sweep_out<L>(can_stream(out, stream), s.depth, [&](std::int64_t i, auto io, int, auto put) MMCORE_INLINE_LAMBDA {
    F w[kMaxModalities], sum = L::set(0);
    channel_weights<L>(s, g, i, io, there, w);
    for (int m = 0; m < s.count; ++m) {
      if (there >> m & 1u) sum = L::fma(w[m], io.load(a[m] + i, L::set(0)), sum);
    }
    put(out + i, sum);
  });
}

// One row where each modality's row is one normalised row of a feature of the result's dtype.
template <typename L, typename T>
static void forward_normalised(const FusionSpec& spec, std::int64_t b, std::int64_t t, const RowWeights<L>& weights,
                               RealOf<L>* scratch, T* out, bool stream) {
  using R = RealOf<L>;
  const std::int64_t n = spec.depth;
  NormalisedTerm<L> terms[kMaxModalities];
  int count = 0;
  for (int m = 0; m < spec.count; ++m) {
    if (!(weights.there >> m & 1u)) continue;
    const FusionFeature& f = spec.feature[m];
    const T* x = static_cast<const T*>(source_row(f, b, fusion_taps(f.align, t, spec.length, f.length).first));
    Moments<L> of;
    if (spec.norm != FusionNorm::kNone) of = moments<L>(spec.norm, spec.eps, x, n);
    const R w = weights.w[m];
    const R* gamma = spec.gamma == nullptr ? nullptr : static_cast<const R*>(spec.gamma) + m * n;
    const R* beta = spec.beta == nullptr ? nullptr : static_cast<const R*>(spec.beta) + m * n;
    terms[count++] = {x, f.step_stride, w, w * of.inverse, of.mean, gamma, beta};
  }
  spec.gamma != nullptr ? sum_all_normalised<L, T, true>(terms, count, scratch, out, stream, n)
                        : sum_all_normalised<L, T, false>(terms, count, scratch, out, stream, n);
}

template <typename L>
static void forward(const FusionSpec& spec, void* result, bool stream, std::int64_t first, std::int64_t end,
                    void* memory) {
  using R = RealOf<L>;
  const std::int64_t n = spec.depth, padded = fusion_padded(n);
  R* scratch = static_cast<R*>(memory);
  R* sum = scratch + spec.count * padded;
  bool direct = spec.gate_kind != GateKind::kChannel, one_tap = true;
  std::int64_t most_terms = 0;
  for (int m = 0; m < spec.count; ++m) {
    direct = direct && spec.feature[m].dtype == spec.out_dtype;
    one_tap =
        one_tap && (spec.feature[m].align == FusionAlign::kNone || spec.feature[m].align == FusionAlign::kNearest);
    most_terms +=
        spec.feature[m].align == FusionAlign::kMean ? (spec.feature[m].length + spec.length - 1) / spec.length + 1 : 2;
  }
  constexpr std::int64_t kTerms = 64;
  // Straight from the features' memory: sums of them, or of their normalised rows where each is one.
  const bool sum_rows = direct && plain<L>(spec) && most_terms <= kTerms;
  const bool sum_normalised_rows = direct && !plain<L>(spec) && one_tap;
  RowWeights<L> weights(spec);
  for (std::int64_t row = first; row < end; ++row) {
    const std::int64_t b = row / spec.length, t = row % spec.length;
    weights.move(b, t);
    void* out = offset(result, row * n, spec.out_dtype);
    if (weights.there == 0) {
      std::memset(out, 0, static_cast<std::size_t>(n) * dtype_size(spec.out_dtype));
      continue;
    }
    Term<L> terms[kTerms];
    int count = 0;
    if (sum_normalised_rows) {
      visit<L>(spec.out_dtype, [&](auto* type) {
        forward_normalised<L>(spec, b, t, weights, sum, static_cast<decltype(type)>(out), stream);
      });
      continue;
    }
    if (sum_rows) {
      for (int m = 0; m < spec.count; ++m) {
        if (!(weights.there >> m & 1u)) continue;
        const FusionFeature& f = spec.feature[m];
        const Taps taps = fusion_taps(f.align, t, spec.length, f.length);
        for (std::int64_t i = 0; i < taps.count; ++i) {
          const R part = weights.w[m] * static_cast<R>(tap_weight(taps, f.align, i));
          terms[count++] = {source_row(f, b, taps.first + i), part};
        }
      }
      visit<L>(spec.out_dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        sum_all<L, T, T>(terms, count, sum, static_cast<T*>(out), stream, n);
      });
      continue;
    }
    const R* a[kMaxModalities] = {};
    for (int m = 0; m < spec.count; ++m) {
      if (!(weights.there >> m & 1u)) continue;
      a[m] = aligned_feature<L>(spec, m, b, t, scratch + m * padded);
      terms[count++] = {a[m], weights.w[m]};
    }
    visit<L>(spec.out_dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if (spec.gate_kind == GateKind::kChannel) {
        visit<L>(spec.gates_dtype, [&](auto* gate) {
          fuse_channels<L>(spec, static_cast<const std::remove_pointer_t<decltype(gate)>*>(gate_row(spec, b, t)),
                           weights.there, a, static_cast<T*>(out), stream);
        });
      } else {
        sum_all<L, R, T>(terms, count, sum, static_cast<T*>(out), stream, n);
      }
    });
  }
  L::fence();
}

// ---- backward

// No norm: dx = f H; the result is <H, x>.
template <typename L, typename T, bool kDot, bool kWrite>
static inline RealOf<L> scale_and_dot(const RealOf<L>* h, const T* x, RealOf<L> f, T* dx, bool stream, std::int64_t n) {
  using F = typename L::F;
  const F zero = L::set(0), factor = L::set(f);
  F sum[2] = {zero, zero};
  sweep_out<L>(kWrite && stream, n, [&](std::int64_t i, auto io, int j, auto put) MMCORE_INLINE_LAMBDA {
    const F g = io.load(h + i, zero);
    if constexpr (kDot) sum[j] = L::fma(g, io.load(x + i, zero), sum[j]);
    if constexpr (kWrite) put(dx + i, L::mul(g, factor));
  });
  return kDot ? L::sum(L::add(sum[0], sum[1])) : RealOf<L>(0);
}

// What one row's gradient is made of: dx = alpha gamma H - delta - kappa (x - mean), p = <H, n>.
template <typename L>
struct RowGradient {
  RealOf<L> p = 0, alpha = 0, delta = 0, kappa = 0, mean = 0, factor = 1;
};

template <typename L, typename T, bool kAffine>
static inline RowGradient<L> row_gradient(const FusionSpec& spec, const RealOf<L>* h, const T* x, RealOf<L> f,
                                          const RealOf<L>* gamma, const RealOf<L>* beta) {
  using R = RealOf<L>;
  using F = typename L::F;
  const std::int64_t n = spec.depth;
  const F zero = L::set(0);
  const bool layer = spec.norm == FusionNorm::kLayer;
  const R shift = layer ? nearby_mean<L>(x, n) : R(0);
  const F k = L::set(shift);
  // sums of: x - k, its square, gamma H, gamma H (x - k), H beta
  F s[2][5];
  for (auto& set : s) {
    for (F& v : set) v = zero;
  }
  sweep<L>(n, [&](std::int64_t i, auto io, int j) MMCORE_INLINE_LAMBDA {
    F* sum = s[j];
    const F g = io.load(h + i, zero), d = L::sub(io.load(x + i, k), k);
    F u = g;
    if constexpr (kAffine) {
      u = L::mul(g, io.load(gamma + i, zero));
      sum[4] = L::fma(g, io.load(beta + i, zero), sum[4]);
    }
    sum[0] = L::add(sum[0], d);
    sum[1] = L::fma(d, d, sum[1]);
    sum[2] = L::add(sum[2], u);
    sum[3] = L::fma(u, d, sum[3]);
  });
  R sum[5];
  for (int v = 0; v < 5; ++v) sum[v] = L::sum(L::add(s[0][v], s[1][v]));
  Moments<L> m;
  if (spec.norm != FusionNorm::kNone) m = moments_of<L>(spec.norm, spec.eps, n, shift, sum[0], sum[1]);
  const R count = static_cast<R>(n), r = m.inverse;
  const R inner = layer ? sum[3] - sum[0] / count * sum[2] : sum[3];  // <gamma H, x - mean>
  RowGradient<L> g;
  g.p = r * inner + sum[4];
  g.mean = m.mean;
  g.factor = f;
  g.alpha = r * f;
  if (layer) g.delta = g.alpha * sum[2] / count;
  if (layer || spec.norm == FusionNorm::kRms) g.kappa = g.alpha * r * r * inner / count;
  if (spec.norm == FusionNorm::kL2 && !m.short_l2) g.kappa = g.alpha * r * r * inner;
  return g;
}

// One vector of one row of write_gradients.
template <typename L>
struct GradientWriter {
  using F = typename L::F;
  explicit GradientWriter(const RowGradient<L>& of)
      : alpha(L::set(of.alpha)),
        delta(L::set(of.delta)),
        kappa(L::set(of.kappa)),
        mean(L::set(of.mean)),
        factor(L::set(of.factor)) {}
  template <bool kAffine, bool kSums, bool kStream, typename T, typename Access>
  MMCORE_INLINE void step(std::int64_t i, const Access& io, const RealOf<L>* h, const T* x, std::ptrdiff_t ahead,
                          F gamma, T* dx, F& sum_gamma, F& sum_beta) const {
    MMCORE_PREFETCH(x + ahead + i);  // as in normalise_row
    const F zero = L::set(0);
    const F g = io.load(h + i, zero), d = L::sub(io.load(x + i, zero), mean), ag = L::mul(alpha, g);
    if (dx != nullptr) {
      F v;
      if constexpr (kAffine) {
        v = L::sub(L::mul(ag, gamma), delta);
      } else {
        v = L::sub(ag, delta);
      }
      v = L::sub(v, L::mul(kappa, d));
      if constexpr (kStream) {
        io.stream(dx + i, v);
      } else {
        io.store(dx + i, v);
      }
    }
    if constexpr (kSums) {
      sum_gamma = L::fma(ag, d, sum_gamma);
      sum_beta = L::fma(factor, g, sum_beta);
    }
  }
  F alpha, delta, kappa, mean, factor;
};

// Writes the gradients of kRows rows (dx[k] null: not wanted) and adds them to dgamma and dbeta. Two rows at a time
// halve the traffic of those sums.
template <typename L, typename T, bool kAffine, int kRows, bool kSums, bool kStream>
static inline void write_gradients(const RowGradient<L>* of, const RealOf<L>* const* h, const T* const* x,
                                   std::ptrdiff_t ahead, const RealOf<L>* gamma, T* const* dx, RealOf<L>* dgamma,
                                   RealOf<L>* dbeta, std::int64_t n) {
  using F = typename L::F;
  const GradientWriter<L> first(of[0]), second(of[kRows - 1]);
  const RealOf<L>*h0 = h[0], *h1 = h[kRows - 1];
  const T *x0 = x[0], *x1 = x[kRows - 1];
  T *dx0 = dx[0], *dx1 = dx[kRows - 1];
  sweep<L>(n, [=](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA {
    const F zero = L::set(0);
    F scale = zero, sum_gamma = zero, sum_beta = zero;
    if constexpr (kAffine) scale = io.load(gamma + i, zero);
    if constexpr (kSums) {
      sum_gamma = io.load(dgamma + i, zero);
      sum_beta = io.load(dbeta + i, zero);
    }
    first.template step<kAffine, kSums, kStream>(i, io, h0, x0, ahead, scale, dx0, sum_gamma, sum_beta);
    if constexpr (kRows == 2) {
      second.template step<kAffine, kSums, kStream>(i, io, h1, x1, ahead, scale, dx1, sum_gamma, sum_beta);
    }
    if constexpr (kSums) {
      io.store(dgamma + i, sum_gamma);
      io.store(dbeta + i, sum_beta);
    }
  });
}

// Where a row's gradient is computed: in place, or for 16-bit elements that are to go past the caches in `staging`, from
// where leave() takes whole lines to memory. Vector by vector those would fill a line in halves, which is slower than a
// plain store.
template <typename L, typename T>
struct Destination {
  Destination(void* row, void* staging, bool wanted, std::int64_t n) : row(static_cast<T*>(row)) {
    stream = can_stream(row, wanted && row != nullptr);
    staged = stream && sizeof(T) == 2 && n % 32 == 0;
    to = staged ? static_cast<T*>(staging) : this->row;
    stream = stream && sizeof(T) != 2;
  }
  void leave(std::int64_t n) const {
    if (staged) L::stream_bytes(row, to, n * static_cast<std::int64_t>(sizeof(T)));
  }
  T* row;
  T* to;
  bool stream, staged;
};

// Of modality m, which is there: what write_row needs of a source row whose f H = dL/dn is given. The result's p is
// <H, n>, if it is asked for or free. No norm: dx is written at once.
template <typename L>
static inline RowGradient<L> start_row(const FusionBackward& call, int m, const void* row, const RealOf<L>* h,
                                       RealOf<L> f, bool want_p, void* dx, void* staging, bool sums) {
  using R = RealOf<L>;
  const FusionSpec& spec = *call.spec;
  const std::int64_t n = spec.depth;
  RowGradient<L> result;
  if (dx == nullptr && !sums && !want_p) return result;
  visit<L>(spec.feature[m].dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* x = static_cast<const T*>(row);
    if (plain<L>(spec)) {
      const Destination<L, T> d(dx, staging, call.stream, n);
      result.p = dx == nullptr ? scale_and_dot<L, T, true, false>(h, x, f, d.to, d.stream, n)
                 : want_p      ? scale_and_dot<L, T, true, true>(h, x, f, d.to, d.stream, n)
                               : scale_and_dot<L, T, false, true>(h, x, f, d.to, d.stream, n);
      d.leave(n);
    } else if (spec.gamma != nullptr) {
      result = row_gradient<L, T, true>(spec, h, x, f, static_cast<const R*>(spec.gamma) + m * n,
                                        static_cast<const R*>(spec.beta) + m * n);
    } else {
      result = row_gradient<L, T, false>(spec, h, x, f, nullptr, nullptr);
    }
  });
  return result;
}

// The gradients of kRows rows after start_row; dx[k] all null: not wanted.
template <typename L, int kRows>
static inline void write_rows(const FusionBackward& call, int m, const RowGradient<L>* of, const void* const* rows,
                              const RealOf<L>* const* h, void* const* dx, void* staging, RealOf<L>* gamma_sum,
                              RealOf<L>* beta_sum) {
  using R = RealOf<L>;
  const FusionSpec& spec = *call.spec;
  const std::int64_t n = spec.depth;
  if (plain<L>(spec) || (dx[0] == nullptr && gamma_sum == nullptr)) return;
  const R* gamma = spec.gamma == nullptr ? nullptr : static_cast<const R*>(spec.gamma) + m * n;
  R* dgamma = gamma_sum == nullptr ? nullptr : gamma_sum + m * n;
  R* dbeta = beta_sum == nullptr ? nullptr : beta_sum + m * n;
  const std::ptrdiff_t ahead = spec.feature[m].step_stride * kRows;
  visit<L>(spec.feature[m].dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Destination<L, T> first(dx[0], staging, call.stream, n);
    const Destination<L, T> second(dx[kRows - 1], static_cast<T*>(staging) + fusion_padded(n), call.stream, n);
    const bool stream = first.stream && second.stream;
    T* const both[2] = {first.to, second.to};
    T* const* d = both;
    const T* x[kRows];
    for (int k = 0; k < kRows; ++k) x[k] = static_cast<const T*>(rows[k]);
    if (dgamma != nullptr) {  // never without gamma
      stream ? write_gradients<L, T, true, kRows, true, true>(of, h, x, ahead, gamma, d, dgamma, dbeta, n)
             : write_gradients<L, T, true, kRows, true, false>(of, h, x, ahead, gamma, d, dgamma, dbeta, n);
    } else if (gamma != nullptr) {
      stream ? write_gradients<L, T, true, kRows, false, true>(of, h, x, ahead, gamma, d, dgamma, dbeta, n)
             : write_gradients<L, T, true, kRows, false, false>(of, h, x, ahead, gamma, d, dgamma, dbeta, n);
    } else {
      stream ? write_gradients<L, T, false, kRows, false, true>(of, h, x, ahead, gamma, d, dgamma, dbeta, n)
             : write_gradients<L, T, false, kRows, false, false>(of, h, x, ahead, gamma, d, dgamma, dbeta, n);
    }
    first.leave(n);
    if (kRows == 2) second.leave(n);
  });
}

// Both at once, for one row; returns p.
template <typename L>
static RealOf<L> row_backward(const FusionBackward& call, int m, const void* row, const RealOf<L>* h, RealOf<L> f,
                              bool want_p, void* dx, void* staging, RealOf<L>* gamma_sum, RealOf<L>* beta_sum) {
  const RowGradient<L> of = start_row<L>(call, m, row, h, f, want_p, dx, staging, gamma_sum != nullptr);
  write_rows<L, 1>(call, m, &of, &row, &h, &dx, staging, gamma_sum, beta_sum);
  return of.p;
}

template <typename L, typename T>
static inline RealOf<L> dot_row(const T* g, const RealOf<L>* a, std::int64_t n) {
  using F = typename L::F;
  const F zero = L::set(0);
  F sum[2] = {zero, zero};
  sweep<L>(n, [&](std::int64_t i, auto io, int j)
                  MMCORE_INLINE_LAMBDA { sum[j] = L::fma(io.load(g + i, zero), io.load(a + i, zero), sum[j]); });
  return L::sum(L::add(sum[0], sum[1]));
}

// One step of the result with gates per channel: gates' gradients, w_m G to rows[m] (scratch) or dx[m] (a feature's
// gradient as it is), and the sums of w_m a_m G to part.
template <typename L, typename T>
static void channels_backward(const FusionSpec& s, const T* g, std::uint32_t there, const RealOf<L>* h,
                              const RealOf<L>* const* a, T* dgates, RealOf<L>* const* rows, RealOf<L>* const* dx,
                              bool stream, RealOf<L>* part) {
  using F = typename L::F;
  F sums[kMaxModalities];
  for (F& v : sums) v = L::set(0);
  const F zero = L::set(0);
  sweep_out<L>(stream, s.depth, [&](std::int64_t i, auto io, int, auto put) MMCORE_INLINE_LAMBDA {
    F w[kMaxModalities], q[kMaxModalities], mean = zero;
    const F scale = channel_weights<L>(s, g, i, io, there, w);
    const F grad = io.load(h + i, zero);
    for (int m = 0; m < s.count; ++m) {
      if (!(there >> m & 1u)) continue;
      q[m] = L::mul(grad, io.load(a[m] + i, zero));
      const F wq = L::mul(w[m], q[m]);
      mean = L::add(mean, wq);
      sums[m] = L::add(sums[m], wq);
      if (rows[m] != nullptr) io.store(rows[m] + i, L::mul(w[m], grad));
      if (dx[m] != nullptr) put(dx[m] + i, L::mul(w[m], grad));
    }
    if (dgates == nullptr) return;
    for (int m = 0; m < s.count; ++m) {
      F d = zero;
      if (there >> m & 1u) {
        d = s.mode == FusionMode::kSum       ? q[m]
            : s.mode == FusionMode::kSoftmax ? L::mul(w[m], L::sub(q[m], mean))
                                             : L::mul(scale, L::sub(q[m], mean));
      }
      put(dgates + m * s.depth + i, d);
    }
  });
  for (int m = 0; m < s.count; ++m) part[m] = L::sum(sums[m]);
}

template <typename L>
class Item {
 public:
  using R = RealOf<L>;

  Item(const FusionBackward& call, std::int64_t item, void* gamma, void* beta, void* memory)
      : call_(call),
        spec_(*call.spec),
        b_(item / call.chunks),
        c_(item % call.chunks),
        gamma_(static_cast<R*>(gamma)),
        beta_(static_cast<R*>(beta)),
        padded_(fusion_padded(call.spec->depth)) {
    R* p = static_cast<R*>(memory);
    for (int m = 0; m < spec_.count; ++m, p += padded_) a_row_[m] = p;
    for (int m = 0; m < spec_.count; ++m, p += padded_) w_row_[m] = p;
    grad_row_ = p;
    n_row_ = p + padded_;
    h_row_ = p + 2 * padded_;
    group_rows_ = p + 3 * padded_;
    p += (3 + kGroup) * padded_;
    bool aligned = false;
    for (int m = 0; m < spec_.count; ++m) aligned = aligned || spec_.feature[m].align != FusionAlign::kNone;
    if (aligned && spec_.gate_kind == GateKind::kChannel) {
      weighted_ = p;
      p += spec_.count * spec_.length * padded_;
    }
    weights_ = p;
    there_ = reinterpret_cast<std::uint32_t*>(p + spec_.count * spec_.length);
  }

  void run() {
    first_ = spec_.length;
    std::int64_t end = 0;
    for (int m = 0; m < spec_.count; ++m) {
      const FusionChunk& chunk = call_.chunk[m][c_];
      if (chunk.first_step < chunk.end_step) {
        first_ = chunk.first_step < first_ ? chunk.first_step : first_;
        end = chunk.end_step > end ? chunk.end_step : end;
      }
    }
    RowWeights<L> weights(spec_);
    for (std::int64_t t = first_; t < end; ++t) {
      weights.move(b_, t);
      there_[t - first_] = weights.there;
      for (int m = 0; m < spec_.count; ++m) weights_[(t - first_) * spec_.count + m] = weights.w[m];
    }
    if (spec_.gate_kind == GateKind::kChannel) {
      for (std::int64_t t = first_own(); t < end_own(); ++t) channels(t);
    } else {
      for (int m = 0; m < spec_.count; ++m) clear_p(m);
      bool same = false;
      for (int m = 0; m < spec_.count; ++m) same = same || spec_.feature[m].align == FusionAlign::kNone;
      if (same) {
        // With sums of gradients, as many rows of G as stay in the second cache beside them. Without, row by row.
        const std::int64_t fit = (128 << 10) / static_cast<std::int64_t>(sizeof(R)) / padded_;
        const std::int64_t group = gamma_ == nullptr ? 1 : fit < 2 ? 2 : fit > kGroup ? kGroup : fit;
        for (std::int64_t t = first_own(); t < end_own(); t += group) {
          same_steps(t, t + group < end_own() ? t + group : end_own());
        }
      }
    }
    for (int m = 0; m < spec_.count; ++m) {
      if (spec_.feature[m].align != FusionAlign::kNone) other_steps(m);
    }
  }

 private:
  // The chunk's own steps of the result: equal parts of them all.
  std::int64_t first_own() const { return c_ * spec_.length / call_.chunks; }
  std::int64_t end_own() const { return (c_ + 1) * spec_.length / call_.chunks; }

  const R* gradient(std::int64_t t, R* scratch) const {
    const void* row = offset(call_.grad, b_ * call_.grad_batch_stride + t * call_.grad_step_stride, spec_.out_dtype);
    return widened<L>(row, spec_.out_dtype, scratch, spec_.depth);
  }
  void* feature_gradient(int m, std::int64_t s) const {
    const FusionFeature& f = spec_.feature[m];
    void* d = call_.out.feature[m];
    return d == nullptr ? nullptr : offset(d, (b_ * f.length + s) * spec_.depth, f.dtype);
  }
  R* p_of(int m) const {
    const FusionChunk& chunk = call_.chunk[m][c_];
    return static_cast<R*>(call_.p[m]) + b_ * call_.p_length[m] + chunk.offset - chunk.first_step;
  }
  void clear_p(int m) const {
    if (!call_.want_p) return;
    const FusionChunk& chunk = call_.chunk[m][c_];
    for (std::int64_t t = chunk.first_step; t < chunk.end_step; ++t) p_of(m)[t] = 0;
  }
  void zero(void* row, std::int64_t n, DType dtype) const {
    if (row == nullptr) return;
    std::int64_t bytes = n * static_cast<std::int64_t>(dtype_size(dtype));
    char* p = static_cast<char*>(row);
    if (can_stream(row, call_.stream)) {
      for (; bytes >= 64; bytes -= 64, p += 64) {
        for (int i = 0; i < 64; i += static_cast<int>(sizeof(R)) * L::N)
          L::stream(reinterpret_cast<R*>(p + i), L::set(0));
      }
    }
    std::memset(p, 0, static_cast<std::size_t>(bytes));
  }

  // Steps [t, end) of all modalities that have the result's steps, one modality after the other, so that gamma, beta and
  // the sums of their gradients stay in the nearest cache while G comes from the next one.
  void same_steps(std::int64_t t, std::int64_t end) {
    const R* g[kGroup] = {};
    for (std::int64_t k = 0; k < end - t; ++k) {
      if (there_[t + k - first_] != 0) g[k] = gradient(t + k, group_rows_ + k * padded_);
    }
    for (int m = 0; m < spec_.count; ++m) {
      if (spec_.feature[m].align != FusionAlign::kNone) continue;
      std::int64_t k = 0;
      // Pairs where there are sums to add to.
      for (; gamma_ != nullptr && k + 2 <= end - t; k += 2) modality_rows<2>(m, t + k, g + k);
      for (; k < end - t; ++k) modality_rows<1>(m, t + k, g + k);
    }
  }

  template <int kRows>
  void modality_rows(int m, std::int64_t t, const R* const* g) {
    const FusionFeature& f = spec_.feature[m];
    const void* x[kRows];
    void* dx[kRows];
    RowGradient<L> of[kRows];
    bool all = true;
    for (int k = 0; k < kRows; ++k) {
      x[k] = source_row(f, b_, t + k);
      dx[k] = feature_gradient(m, t + k);
      if (there(m, t + k)) {
        of[k] = start_row<L>(call_, m, x[k], g[k], weight(m, t + k), call_.want_p, dx[k], n_row_, gamma_ != nullptr);
        if (call_.want_p) p_of(m)[t + k] = of[k].p;
      } else {
        all = false;
        zero(dx[k], spec_.depth, f.dtype);
      }
    }
    if (all) return write_rows<L, kRows>(call_, m, of, x, g, dx, n_row_, gamma_, beta_);
    for (int k = 0; k < kRows; ++k) {
      if (there(m, t + k)) write_rows<L, 1>(call_, m, &of[k], &x[k], &g[k], &dx[k], n_row_, gamma_, beta_);
    }
  }

  // Gates per channel at one step: their gradients, and those of the modalities that have the result's steps.
  void channels(std::int64_t t) {
    const std::uint32_t there = there_[t - first_];
    R part[kMaxModalities] = {};
    const std::int64_t n = spec_.depth;
    void* dgates = call_.out.gates == nullptr
                       ? nullptr
                       : offset(call_.out.gates, (b_ * spec_.length + t) * spec_.count * n, spec_.gates_dtype);
    R* rows[kMaxModalities] = {};
    R* direct[kMaxModalities] = {};
    if (there != 0) {
      const R* g = gradient(t, grad_row_);
      const R* a[kMaxModalities] = {};
      bool stream = call_.stream && can_stream(dgates, true) &&
                    n * static_cast<std::int64_t>(dtype_size(spec_.gates_dtype)) % 64 == 0;
      for (int m = 0; m < spec_.count; ++m) {
        if (!(there >> m & 1u)) continue;
        const FusionFeature& f = spec_.feature[m];
        a[m] = aligned_feature<L>(spec_, m, b_, t, a_row_[m]);
        if (f.align != FusionAlign::kNone) {
          rows[m] = weighted_ + (m * spec_.length + t) * padded_;
        } else if (plain<L>(spec_) && f.dtype == real_dtype<L>()) {
          direct[m] = static_cast<R*>(feature_gradient(m, t));
          stream = can_stream(direct[m], stream);
        } else {
          rows[m] = w_row_[m];
        }
      }
      visit<L>(spec_.gates_dtype, [&](auto* type) {
        channels_backward<L>(spec_, static_cast<const std::remove_pointer_t<decltype(type)>*>(gate_row(spec_, b_, t)),
                             there, g, a, static_cast<decltype(type)>(dgates), rows, direct, stream, part);
      });
    } else {
      zero(dgates, spec_.count * n, spec_.gates_dtype);
    }
    for (int m = 0; m < spec_.count; ++m) {
      const FusionFeature& f = spec_.feature[m];
      if (call_.want_p) p_of_step(m, t) = part[m];
      if (f.align != FusionAlign::kNone) continue;
      if (!(there >> m & 1u)) {
        zero(feature_gradient(m, t), n, f.dtype);
      } else if (rows[m] != nullptr) {
        row_backward<L>(call_, m, source_row(f, b_, t), rows[m], R(1), false, feature_gradient(m, t), n_row_, gamma_,
                        beta_);
      }
    }
  }
  // With gates per channel p holds w_m a_m G, by the result's steps.
  R& p_of_step(int m, std::int64_t t) const { return static_cast<R*>(call_.p[m])[b_ * call_.p_length[m] + t]; }

  // A modality of other steps: its rows of this chunk, each with the steps of the result that take from it.
  void other_steps(int m) {
    const FusionFeature& f = spec_.feature[m];
    const FusionChunk& chunk = call_.chunk[m][c_];
    const bool per_channel = spec_.gate_kind == GateKind::kChannel;
    const bool want_p = call_.want_p && !per_channel;
    const std::int64_t n = spec_.depth;
    std::int64_t low = chunk.first_step;
    R* p = want_p ? p_of(m) : nullptr;
    for (std::int64_t s = chunk.first; s < chunk.end; ++s) {
      for (; low < chunk.end_step; ++low) {  // steps before `low` take from earlier rows only
        const Taps taps = fusion_taps(f.align, low, spec_.length, f.length);
        if (taps.first + taps.count > s) break;
      }
      // Of the steps that take from s: how many are there, and the last of those.
      std::int64_t high = low, touching = 0, only = 0;
      for (; high < chunk.end_step; ++high) {
        if (fusion_taps(f.align, high, spec_.length, f.length).first > s) break;
        if (there_[high - first_] >> m & 1u) {
          ++touching;
          only = high;
        }
      }
      void* dx = feature_gradient(m, s);
      if (touching == 0) {
        zero(dx, n, f.dtype);
        continue;
      }
      const void* row = source_row(f, b_, s);
      const R* h = h_row_;
      R factor = 1;
      if (touching == 1) {
        const R c = tap(m, only, s);
        factor = c * weight(m, only);
        h = per_channel ? weighted_ + (m * spec_.length + only) * padded_ : gradient(only, grad_row_);
        if (per_channel) factor = c;
        const R found = row_backward<L>(call_, m, row, h, factor, want_p, dx, n_row_, gamma_, beta_);
        if (want_p) p[only] += c * found;
        continue;
      }
      const bool want_rows = dx != nullptr || gamma_ != nullptr;
      const R* feature = nullptr;
      if (want_p) {
        if (plain<L>(spec_)) {
          feature = widened<L>(row, f.dtype, n_row_, n);
        } else {
          source_feature<L>(spec_, m, b_, s, R(1), false, n_row_);
          feature = n_row_;
        }
      }
      bool add = false;
      for (std::int64_t t = low; t < high; ++t) {
        if (!(there_[t - first_] >> m & 1u)) continue;
        const R c = tap(m, t, s);
        const R* g = per_channel ? weighted_ + (m * spec_.length + t) * padded_ : gradient(t, grad_row_);
        if (want_p) p[t] += c * dot_row<L>(g, feature, n);
        const R k = per_channel ? c : c * weight(m, t);
        if (want_rows) {
          add ? scale_row<L, R, true>(g, k, h_row_, n) : scale_row<L, R, false>(g, k, h_row_, n);
        }
        add = true;
      }
      if (want_rows) row_backward<L>(call_, m, row, h, factor, false, dx, n_row_, gamma_, beta_);
    }
  }
  R tap(int m, std::int64_t t, std::int64_t s) const {
    const FusionFeature& f = spec_.feature[m];
    const Taps taps = fusion_taps(f.align, t, spec_.length, f.length);
    return static_cast<R>(tap_weight(taps, f.align, s - taps.first));
  }
  bool there(int m, std::int64_t t) const { return (there_[t - first_] >> m & 1u) != 0; }
  R weight(int m, std::int64_t t) const { return weights_[(t - first_) * spec_.count + m]; }

  const FusionBackward& call_;
  const FusionSpec& spec_;
  std::int64_t b_, c_, first_ = 0;
  R *gamma_, *beta_;
  std::int64_t padded_;
  R* a_row_[kMaxModalities];
  R* w_row_[kMaxModalities];
  R *grad_row_, *n_row_, *h_row_, *group_rows_, *weighted_ = nullptr, *weights_;
  std::uint32_t* there_;
};

template <typename L>
static void backward(const FusionBackward& call, std::int64_t item, void* gamma, void* beta, void* scratch) {
  Item<L>(call, item, gamma, beta, scratch).run();
  L::fence();
}

}  // namespace fusion
