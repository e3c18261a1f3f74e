// The loss kernels, over a set of lanes L; included inside a namespace for each instruction set, where Lanes is defined.
//
// Losses and their derivatives d loss / d x, each derived once; d = x - t:
//   mse       d^2                                       2 d
//   l1        |d|                                       sign d
//   smooth l1 m (|d| - m / 2) / beta, m = min(|d|, beta)  clamp(d / beta, -1, 1)
//   huber     m (|d| - m / 2), m = min(|d|, delta)        clamp(d, -delta, delta)
//   bce       (1 - t) x + (1 + (P - 1) t) softplus(-x)    (1 + (P - 1) t) sigmoid(x) - P t
//             softplus(-x) = log1p(e) + max(-x, 0), sigmoid(x) = (x < 0 ? e : 1) / (1 + e), e = exp(-|x|)
//   cross entropy of classes, w class weights, W their sum, eps smoothing, C columns, p = softmax(x), y the label:
//             (1 - eps) w_y (lse - x_y) + eps / C sum_c w_c (lse - x_c)
//             p_c ((1 - eps) w_y + eps W / C) - eps w_c / C - (1 - eps) w_y [c = y]
//   ... of probabilities q, q' = (1 - eps) q + eps / C, v = w q':
//             sum_c v_c (lse - x_c)                     p_c sum v - v_c
//   ... focal, r = 1 - p_y: w_y r^g (lse - x_y)         w_y (r^g - g r^(g-1) p_y ln p_y) (p_c - [c = y])
//             (d r / d x_c = p_y (p_c - [c = y]), d ln p_y / d x_c = [c = y] - p_c)
//   z loss    zeta lse^2                                2 zeta lse p_c
//   kl        tau^2 sum_c q_c (ln q_c - ln p_c)         tau (p_c - q_c),   p, q softmax of x / tau, t / tau
//   cosine    1 - <x, t> / (n_x n_t), n = max(|.|, eps)   -t / (n_x n_t) + cos x / n_x^2 (without it where |x| <= eps)
//
// Cross entropy reads a row once: by blocks of 1024 columns, e = exp(x - m) is kept in scratch, which stays in L2, with m;
// the second sweep scales each block by exp(m - lse). m need not be the largest value, only no less than it by more than
// kSlack: it begins with the largest of the first few, and a block that goes beyond is done again.

#include "lane_functions.inl"
#include "sweep.inl"

namespace losses {

using namespace lane_functions;
using namespace sweeps;

constexpr std::int64_t kBlock = 1024;
constexpr float kSlack = 20;  // e^20 is far from the ends of float32
constexpr double kCosineEps = 1e-8;

// ---- losses of elements: value and slope from x and t

template <typename L>
struct Pair {
  typename L::F value, slope;
};

template <typename L, LossKind K>
struct Element {
  using F = typename L::F;
  using R = RealOf<L>;
  R beta, inverse;
  explicit Element(const LossTask& task) : beta(static_cast<R>(task.beta)), inverse(static_cast<R>(1 / task.beta)) {}
  MMCORE_INLINE Pair<L> operator()(F x, F t, F positive) const {
    if constexpr (K == LossKind::kValue) return {x, L::set(1)};
    if constexpr (K == LossKind::kBce) {
      const F one = L::set(1), zero = L::set(0);
      const F e = L::exp_bounded(L::sub(zero, absolute<L>(x)));
      const F minus = L::max(L::set(0), L::sub(zero, x));
      const F scaled = L::fma(L::sub(positive, one), t, one);  // 1 + (P - 1) t
      const F soft = L::add(log1p_unit<L>(e), minus);
      const F step = clamp_nan<L>(steep<L>(x), zero, one);
      const F sigmoid = L::div(L::max(step, e), L::add(one, e));
      return {L::fma(scaled, soft, L::mul(L::sub(one, t), x)), L::sub(L::mul(scaled, sigmoid), L::mul(positive, t))};
    }
    const F d = L::sub(x, t);
    if constexpr (K == LossKind::kMse) return {L::mul(d, d), L::add(d, d)};
    const F a = absolute<L>(d);
    if constexpr (K == LossKind::kL1) return {a, clamp_nan<L>(steep<L>(d), L::set(-1), L::set(1))};
    const F m = L::min(L::set(beta), a);
    const F value = L::mul(m, L::sub(a, L::mul(L::set(R(0.5)), m)));
    if constexpr (K == LossKind::kSmoothL1) {
      return {L::mul(value, L::set(inverse)), clamp_nan<L>(L::mul(d, L::set(inverse)), L::set(-1), L::set(1))};
    } else {
      return {value, clamp_nan<L>(d, L::set(-beta), L::set(beta))};
    }
  }
};

// Elements [first, end) of a row, all with a label unless `mask` says otherwise byte by byte. upstream: per element.
template <typename L, LossKind K, bool kMasked, typename T, typename U>
static double span(const Element<L, K>& op, std::int64_t n, const T* x, const U* t, const RealOf<L>* positive,
                   bool one_positive, const std::uint8_t* mask, const RealOf<L>* upstream, double scale, T* gradient,
                   RealOf<L>* unreduced, bool stream) {
  using F = typename L::F;
  using R = RealOf<L>;
  const F zero = L::set(0), one = L::set(1), k = L::set(static_cast<R>(scale));
  const F same_positive = positive != nullptr && one_positive ? L::set(*positive) : one;
  const bool by_column = positive != nullptr && !one_positive;
  double total = 0;
  for (std::int64_t at = 0; at < n; at += kBlock) {
    F sum[2] = {zero, zero};
    const std::int64_t size = n - at < kBlock ? n - at : kBlock;
    sweep_out<L>(stream, size, [&](std::int64_t i, auto io, int j, auto put) MMCORE_INLINE_LAMBDA {
      i += at;
      F a = io.load(x + i, zero), b = zero;
      if constexpr (K != LossKind::kValue) b = io.load(t + i, zero);
      F there = one;
      if constexpr (kMasked) {
        std::uint8_t bytes[L::N];
        if constexpr (std::is_same_v<decltype(io), Whole<L>>) {
          std::memcpy(bytes, mask + i, sizeof bytes);
        } else {
          std::memset(bytes, 0, sizeof bytes);
          std::memcpy(bytes, mask + i, static_cast<std::size_t>(io.n));
        }
        there = L::load_bytes(bytes);
        a = L::keep(there, a);
        b = L::keep(there, b);
      }
      const F p = by_column ? io.load(positive + i, one) : same_positive;
      Pair<L> found = op(a, b, p);
      if constexpr (kMasked) {
        found.value = L::keep(there, found.value);
        found.slope = L::keep(there, found.slope);
      }
      if constexpr (!std::is_same_v<decltype(io), Whole<L>>) {
        // What fills the vector up is no element.
        R all[L::N];
        L::store(all, found.value);
        for (int lane = io.n; lane < L::N; ++lane) all[lane] = 0;
        found.value = L::load(all);
      }
      sum[j] = L::add(sum[j], found.value);
      if (unreduced != nullptr) io.store(unreduced + i, found.value);
      if (gradient != nullptr) {
        F factor = upstream != nullptr ? io.load(upstream + i, zero) : k;
        if constexpr (kMasked) factor = L::keep(there, factor);
        put(gradient + i, L::mul(found.slope, factor));
      }
    });
    total += static_cast<double>(L::sum(L::add(sum[0], sum[1])));
  }
  return total;
}

template <typename L, LossKind K, typename T, typename U>
static void elements_of(const LossHead& h, const LossScale& scale, std::int64_t row, std::int64_t first,
                        std::int64_t end, LossPartial* sums) {
  using R = RealOf<L>;
  const Element<L, K> op(h.task);
  const T* x = static_cast<const T*>(h.output) + row * h.output_stride;
  const U* t = static_cast<const U*>(h.target) + (h.target == nullptr ? 0 : row * h.target_stride);
  const std::int64_t base = row * h.columns;  // of the row's units
  T* gradient = h.gradient == nullptr ? nullptr : static_cast<T*>(h.gradient) + base;
  R* unreduced = h.unreduced == nullptr ? nullptr : static_cast<R*>(h.unreduced) + base;
  const R* upstream = h.upstream == nullptr ? nullptr : static_cast<const R*>(h.upstream) + base;
  const R* positive = static_cast<const R*>(h.weight);
  const bool one_positive = h.weight_count == 1;
  auto run = [&](auto masked, std::int64_t from, std::int64_t to, const std::uint8_t* mask) {
    const bool stream = can_stream(gradient + from, scale.stream && gradient != nullptr);
    sums->loss += span<L, K, decltype(masked)::value, T, U>(
        op, to - from, x + from, t == nullptr ? nullptr : t + from,
        positive == nullptr || one_positive ? positive : positive + from, one_positive, mask,
        upstream == nullptr ? nullptr : upstream + from, scale.loss, gradient == nullptr ? nullptr : gradient + from,
        unreduced == nullptr ? nullptr : unreduced + from, stream);
    if (stream) L::fence();
  };
  if (h.mask == nullptr) {
    run(std::false_type{}, first, end, nullptr);
  } else if (h.mask_inner == 1) {
    run(std::true_type{}, first, end, h.mask + base + first);
  } else {  // runs of units that share a mask's byte
    for (std::int64_t i = first; i < end;) {
      const std::int64_t entry = (base + i) / h.mask_inner;
      std::int64_t to = (entry + 1) * h.mask_inner - base;
      if (to > end) to = end;
      if (h.mask[entry] != 0) {
        run(std::false_type{}, i, to, nullptr);
      } else {
        const std::size_t n = static_cast<std::size_t>(to - i);
        if (gradient != nullptr) std::memset(static_cast<void*>(gradient + i), 0, n * sizeof(T));
        if (unreduced != nullptr) std::memset(unreduced + i, 0, n * sizeof(R));
      }
      i = to;
    }
  }
}

template <typename L, typename T, typename U>
static void elements_of_kind(const LossHead& h, const LossScale& scale, std::int64_t row, std::int64_t first,
                             std::int64_t end, LossPartial* sums) {
  switch (h.task.kind) {
    case LossKind::kBce:
      return elements_of<L, LossKind::kBce, T, U>(h, scale, row, first, end, sums);
    case LossKind::kMse:
      return elements_of<L, LossKind::kMse, T, U>(h, scale, row, first, end, sums);
    case LossKind::kL1:
      return elements_of<L, LossKind::kL1, T, U>(h, scale, row, first, end, sums);
    case LossKind::kSmoothL1:
      return elements_of<L, LossKind::kSmoothL1, T, U>(h, scale, row, first, end, sums);
    case LossKind::kHuber:
      return elements_of<L, LossKind::kHuber, T, U>(h, scale, row, first, end, sums);
    default:
      return elements_of<L, LossKind::kValue, T, U>(h, scale, row, first, end, sums);
  }
}

// ---- losses of rows

template <typename L, typename T>
static MMCORE_INLINE RealOf<L> load_one(const T* p) {
  RealOf<L> all[L::N];
  L::store(all, L::load_part(p, 1, L::set(0)));
  return all[0];
}

template <typename L>
static MMCORE_INLINE void store_one(f16* p, RealOf<L> a) {
  L::store_part(p, L::set(a), 1);
}
template <typename L>
static MMCORE_INLINE void store_one(bf16* p, RealOf<L> a) {
  L::store_part(p, L::set(a), 1);
}
template <typename L>
static MMCORE_INLINE void store_one(RealOf<L>* p, RealOf<L> a) {
  *p = a;
}

// How the columns beside the label count: not at all, alike, by class weights, by probabilities.
enum class Spread { kNone, kEven, kWeighted, kSoft };

template <typename L, Spread S, typename T, typename U>
struct CrossEntropyRow {
  using F = typename L::F;
  using R = RealOf<L>;

  // One row: its loss and z loss without their scales; its gradient unless null. y: the label (kSoft: unused).
  static void run(const LossHead& h, const T* x, const U* q, std::int64_t y, double k_loss, double k_z, T* gradient,
                  bool stream, R* e, R* block_most, double* loss, double* z) {
    const std::int64_t n = h.columns;
    const R* weight = static_cast<const R*>(h.weight);
    const double smoothing = h.task.label_smoothing;
    const F zero = L::set(0), minus_infinity = L::set(-std::numeric_limits<R>::infinity());
    const F keep_q = L::set(static_cast<R>(1 - smoothing)),
            share = L::set(static_cast<R>(smoothing / static_cast<double>(n)));
    // v_c: how much each column counts beside the label, times C / eps for kEven and kWeighted
    auto spread = [&](std::int64_t i, auto io) MMCORE_INLINE_LAMBDA {
      if constexpr (S == Spread::kSoft) {
        const F v = L::fma(keep_q, io.load(q + i, zero), share);
        return weight == nullptr ? v : L::mul(v, io.load(weight + i, zero));
      } else {
        return io.load(weight + i, zero);
      }
    };
    R most = largest<L>(n < L::N ? L::load_part(x, static_cast<int>(n), minus_infinity) : L::load(x));
    if (!(most > kLowest<L>)) most = kLowest<L>;
    double total = 0, v_sum = 0, v_x = 0;
    for (std::int64_t at = 0, b = 0; at < n;) {
      const std::int64_t size = n - at < kBlock ? n - at : kBlock;
      const T* xb = x + at;
      F high[2] = {L::set(most), L::set(most)};
      const F m = L::set(most);
      F sum[2] = {zero, zero}, vs[2] = {zero, zero}, vx[2] = {zero, zero};
      sweep<L>(size, [&](std::int64_t i, auto io, int j) MMCORE_INLINE_LAMBDA {
        MMCORE_PREFETCH(reinterpret_cast<const char*>(xb + i) + 4096);
        const F value = io.load(xb + i, minus_infinity);
        high[j] = L::max(value, high[j]);
        const F d = L::sub(value, m);
        const F a = L::exp_bounded(d);
        io.store(e + at + i, a);
        sum[j] = L::add(sum[j], a);
        if constexpr (S == Spread::kEven) {
          if constexpr (std::is_same_v<decltype(io), Whole<L>>) {
            vx[j] = L::add(vx[j], d);
          } else {
            vx[j] = L::add(vx[j], L::sub(io.load(xb + i, m), m));
          }
        } else if constexpr (S != Spread::kNone) {
          F v = spread(at + i, io);
          if constexpr (!std::is_same_v<decltype(io), Whole<L>>) {
            R all[L::N];  // the share of columns that do not exist
            L::store(all, v);
            for (int lane = io.n; lane < L::N; ++lane) all[lane] = 0;
            v = L::load(all);
          }
          const F dx = L::sub(io.load(xb + i, m), m);
          vs[j] = L::add(vs[j], v);
          vx[j] = L::fma(v, dx, vx[j]);
        }
      });
      const R now = largest<L>(L::max(high[0], high[1]));
      if (now > most + kSlack) {  // once more, against the block's largest value
        total *= std::exp(static_cast<double>(most) - static_cast<double>(now));
        most = now;
        continue;
      }
      block_most[b] = most;
      total += static_cast<double>(L::sum(L::add(sum[0], sum[1])));
      if constexpr (S != Spread::kNone) {
        const double of_block =
            S == Spread::kEven ? static_cast<double>(size) : static_cast<double>(L::sum(L::add(vs[0], vs[1])));
        v_sum += of_block;
        v_x += static_cast<double>(L::sum(L::add(vx[0], vx[1]))) + of_block * static_cast<double>(most);
      }
      at += size;
      ++b;
    }
    const double lse = static_cast<double>(most) + std::log(total);
    const double w_y = S == Spread::kSoft ? 0 : weight == nullptr ? 1 : static_cast<double>(weight[y]);
    double at_label = 0, each = 0, of_p = 0;  // gradient: p of_p - each v - at_label [c = y]
    if constexpr (S == Spread::kSoft) {
      *loss = lse * v_sum - v_x;
      of_p = k_loss * v_sum;
      each = k_loss;
    } else {
      const double log_p = static_cast<double>(load_one<L>(x + y)) - lse;
      if (h.task.focal_gamma != 0) {
        const double g = h.task.focal_gamma, p_y = std::exp(log_p), r = -std::expm1(log_p);
        const double power = r > 0 ? std::pow(r, g) : r == r ? 0 : r;  // a NaN stays
        *loss = -w_y * power * log_p;
        const double slope = r > 0 ? power - g * std::pow(r, g - 1) * p_y * log_p : power;
        of_p = at_label = k_loss * w_y * slope;
      } else {
        const double part = smoothing / static_cast<double>(n);
        *loss = -(1 - smoothing) * w_y * log_p;
        of_p = at_label = k_loss * (1 - smoothing) * w_y;
        if constexpr (S != Spread::kNone) {
          *loss += part * (lse * v_sum - v_x);
          of_p += k_loss * part * v_sum;
          each = k_loss * part;
        }
      }
    }
    *z = h.task.z_loss * lse * lse;
    of_p += k_z * 2 * h.task.z_loss * lse;
    if (gradient == nullptr) return;
    const F v_scale = L::set(static_cast<R>(each));
    for (std::int64_t at = 0, b = 0; at < n; at += kBlock, ++b) {
      const std::int64_t size = n - at < kBlock ? n - at : kBlock;
      const F f = L::set(static_cast<R>(std::exp(static_cast<double>(block_most[b]) - lse) * of_p));
      sweep_out<L>(stream, size, [&](std::int64_t i, auto io, int, auto put) MMCORE_INLINE_LAMBDA {
        i += at;
        F g = L::mul(io.load(e + i, zero), f);
        if constexpr (S == Spread::kEven) {
          g = L::sub(g, v_scale);
        } else if constexpr (S != Spread::kNone) {
          g = L::sub(g, L::mul(v_scale, spread(i, io)));
        }
        put(gradient + i, g);
      });
    }
    if constexpr (S != Spread::kSoft) {
      const double p_y = static_cast<double>(e[y]) * std::exp(static_cast<double>(block_most[y / kBlock]) - lse);
      const double v_y = S == Spread::kEven ? 1 : S == Spread::kNone ? 0 : static_cast<double>(weight[y]);
      store_one<L>(gradient + y, static_cast<R>(p_y * of_p - each * v_y - at_label));
    }
  }
};

template <typename L, typename T, typename U>
static void kl_row(const LossHead& h, const T* x, const U* t, double k, T* gradient, RealOf<L>* scratch, double* loss) {
  using F = typename L::F;
  using R = RealOf<L>;
  const std::int64_t n = h.columns;
  R *p = scratch, *q = scratch + loss_padded(n);
  const F zero = L::set(0), minus_infinity = L::set(-std::numeric_limits<R>::infinity());
  const F lowest = L::set(kLowest<L>);
  F high_x[2] = {lowest, lowest}, high_t[2] = {lowest, lowest};
  sweep<L>(n, [&](std::int64_t i, auto io, int j) MMCORE_INLINE_LAMBDA {
    high_x[j] = L::max(io.load(x + i, minus_infinity), high_x[j]);
    high_t[j] = L::max(io.load(t + i, minus_infinity), high_t[j]);
  });
  const F mx = L::set(largest<L>(L::max(high_x[0], high_x[1]))), mt = L::set(largest<L>(L::max(high_t[0], high_t[1])));
  const F cool = L::set(static_cast<R>(1 / h.task.temperature));
  double p_sum = 0, q_sum = 0, q_d = 0;
  for (std::int64_t at = 0; at < n; at += kBlock) {
    const std::int64_t size = n - at < kBlock ? n - at : kBlock;
    F ps[2] = {zero, zero}, qs[2] = {zero, zero}, qd[2] = {zero, zero};
    sweep<L>(size, [&](std::int64_t i, auto io, int j) MMCORE_INLINE_LAMBDA {
      i += at;
      const F a = L::mul(L::sub(io.load(x + i, minus_infinity), mx), cool);
      const F b = L::mul(L::sub(io.load(t + i, minus_infinity), mt), cool);
      const F ea = L::exp_bounded(a), eb = L::exp_bounded(b);
      io.store(p + i, ea);
      io.store(q + i, eb);
      ps[j] = L::add(ps[j], ea);
      qs[j] = L::add(qs[j], eb);
      qd[j] = L::add(qd[j], L::keep(eb, L::mul(eb, L::sub(b, a))));  // 0 ln 0 = 0
    });
    p_sum += static_cast<double>(L::sum(L::add(ps[0], ps[1])));
    q_sum += static_cast<double>(L::sum(L::add(qs[0], qs[1])));
    q_d += static_cast<double>(L::sum(L::add(qd[0], qd[1])));
  }
  const double tau = h.task.temperature;
  *loss = tau * tau * (q_d / q_sum - std::log(q_sum) + std::log(p_sum));
  if (gradient == nullptr) return;
  const F of_p = L::set(static_cast<R>(k * tau / p_sum)), of_q = L::set(static_cast<R>(k * tau / q_sum));
  sweep<L>(n, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA {
    io.store(gradient + i, L::sub(L::mul(io.load(p + i, zero), of_p), L::mul(io.load(q + i, zero), of_q)));
  });
}

template <typename L, typename T, typename U>
static void cosine_row(const LossHead& h, const T* x, const U* t, double k, T* gradient, double* loss) {
  using F = typename L::F;
  using R = RealOf<L>;
  const std::int64_t n = h.columns;
  const F zero = L::set(0);
  double xx = 0, tt = 0, xt = 0;
  for (std::int64_t at = 0; at < n; at += kBlock) {
    const std::int64_t size = n - at < kBlock ? n - at : kBlock;
    F sx[2] = {zero, zero}, st[2] = {zero, zero}, sc[2] = {zero, zero};
    sweep<L>(size, [&](std::int64_t i, auto io, int j) MMCORE_INLINE_LAMBDA {
      const F a = io.load(x + at + i, zero), b = io.load(t + at + i, zero);
      sx[j] = L::fma(a, a, sx[j]);
      st[j] = L::fma(b, b, st[j]);
      sc[j] = L::fma(a, b, sc[j]);
    });
    xx += static_cast<double>(L::sum(L::add(sx[0], sx[1])));
    tt += static_cast<double>(L::sum(L::add(st[0], st[1])));
    xt += static_cast<double>(L::sum(L::add(sc[0], sc[1])));
  }
  auto length = [](double square) { return square <= kCosineEps * kCosineEps ? kCosineEps : std::sqrt(square); };
  const double nx = length(xx), nt = length(tt), cosine = xt / (nx * nt);
  *loss = 1 - cosine;
  if (gradient == nullptr) return;
  const bool is_short = xx <= kCosineEps * kCosineEps;
  const F of_t = L::set(static_cast<R>(-k / (nx * nt))),
          of_x = L::set(static_cast<R>(is_short ? 0 : k * cosine / (nx * nx)));
  sweep<L>(n, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA {
    io.store(gradient + i, L::fma(io.load(x + i, zero), of_x, L::mul(io.load(t + i, zero), of_t)));
  });
}

template <typename L, typename T, typename U>
static void rows_of(const LossHead& h, const LossScale& scale, std::int64_t first, std::int64_t end, LossPartial* sums,
                    void* memory) {
  using R = RealOf<L>;
  R* scratch = static_cast<R*>(memory);
  R* block_most = scratch + 2 * loss_padded(h.columns);
  const bool classes = h.classes();
  const auto* labels = static_cast<const std::int64_t*>(h.target);
  bool streamed = false;
  for (std::int64_t row = first; row < end; ++row) {
    T* gradient = h.gradient == nullptr ? nullptr : static_cast<T*>(h.gradient) + row * h.columns;
    R* unreduced = h.unreduced == nullptr ? nullptr : static_cast<R*>(h.unreduced) + row;
    std::int64_t y = 0;
    bool there = h.mask == nullptr || h.mask[row / h.mask_inner] != 0;
    if (classes) {
      y = labels[row * h.target_stride];
      there = there && y != h.task.ignore_index;
    }
    if (!there) {
      if (gradient != nullptr)
        std::memset(static_cast<void*>(gradient), 0, static_cast<std::size_t>(h.columns) * sizeof(T));
      if (unreduced != nullptr) *unreduced = 0;
      continue;
    }
    const double up = h.upstream == nullptr ? 1 : static_cast<double>(static_cast<const R*>(h.upstream)[row]);
    const double k = h.upstream == nullptr ? scale.loss : up, k_z = h.upstream == nullptr ? scale.z : up;
    const T* x = static_cast<const T*>(h.output) + row * h.output_stride;
    const U* t = classes ? nullptr : static_cast<const U*>(h.target) + row * h.target_stride;
    double loss = 0, z = 0;
    if (h.task.kind == LossKind::kKl) {
      kl_row<L, T, U>(h, x, t, k, gradient, scratch, &loss);
    } else if (h.task.kind == LossKind::kCosine) {
      cosine_row<L, T, U>(h, x, t, k, gradient, &loss);
    } else {
      const bool stream = can_stream(gradient, scale.stream && gradient != nullptr);
      streamed = streamed || stream;
      auto run = [&](auto spread) {
        CrossEntropyRow<L, decltype(spread)::value, T, U>::run(h, x, t, y, k, k_z, gradient, stream, scratch,
                                                               block_most, &loss, &z);
      };
      if (!classes) {
        run(std::integral_constant<Spread, Spread::kSoft>{});
      } else if (h.task.label_smoothing == 0) {
        run(std::integral_constant<Spread, Spread::kNone>{});
      } else if (h.weight == nullptr) {
        run(std::integral_constant<Spread, Spread::kEven>{});
      } else {
        run(std::integral_constant<Spread, Spread::kWeighted>{});
      }
    }
    sums->loss += loss;
    sums->z += z;
    if (unreduced != nullptr) *unreduced = static_cast<R>(loss + z);
  }
  if (streamed) L::fence();
}

// fn(T*, U*) with the element types of output and target.
template <typename L, typename Fn>
static inline void visit_both(const LossHead& h, Fn fn) {
  visit<L>(h.dtype, [&](auto* x) {
    using T = std::remove_pointer_t<decltype(x)>;
    if constexpr (std::is_same_v<T, RealOf<L>>) {
      fn(x, x);
    } else if (h.target_dtype == h.dtype) {
      fn(x, x);
    } else {
      fn(x, static_cast<RealOf<L>*>(nullptr));
    }
  });
}

template <typename L>
static void rows(const LossHead& h, const LossScale& scale, std::int64_t first, std::int64_t end, LossPartial* sums,
                 void* scratch) {
  visit_both<L>(h, [&](auto* x, auto* t) {
    rows_of<L, std::remove_pointer_t<decltype(x)>, std::remove_pointer_t<decltype(t)>>(h, scale, first, end, sums,
                                                                                       scratch);
  });
}

template <typename L>
static void elements(const LossHead& h, const LossScale& scale, std::int64_t row, std::int64_t first, std::int64_t end,
                     LossPartial* sums) {
  visit_both<L>(h, [&](auto* x, auto* t) {
    elements_of_kind<L, std::remove_pointer_t<decltype(x)>, std::remove_pointer_t<decltype(t)>>(h, scale, row, first,
                                                                                                end, sums);
  });
}

}  // namespace losses
