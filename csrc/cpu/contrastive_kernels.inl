// The kernels of contrastive_loss, over a set of lanes L; included inside a namespace for each instruction set, where
// Lanes is defined.
//
// The gradients, derived once. P_row, P_col: softmax of z over rows, over columns; I the identity; z = s y + bias.
//   clip    dL/dz = (P_row + P_col - 2 I) / 2B
//           dL/ds = <dL/dz, y> = 1 / 2B sum_i (E_row,i[y] + E_col,i[y] - 2 y_ii),   E the mean under P
//   siglip  dL/dz = (sigmoid(z) - I) / B,   dL/ds = <dL/dz, y>,   dL/dbias = sum dL/dz
//           (softplus(-z) = softplus(z) - z on the diagonal, where it is computed as it stands, without cancellation)
//   dZ = dL/dy = s dL/dz
//
// clip's exponentials: with t = |s| and x = y or -y, z = t x, and both softmaxes are exp(t (x - m)) over its sum, for any
// m near the largest x. One m for a block of rows serves both, so that one exp does the work of four, wherever no
// row's and no column's largest z is further than kSharedRange below the block's: then what matters to each of them is
// far from underflow, and the rounding of t (x - m), which is relative, stays what it is for z itself. Every other block
// takes the largest of each row and of each column.

#include "lane_functions.inl"
#include "sweep.inl"

namespace contrastive {

using namespace lane_functions;
using namespace sweeps;

constexpr double kSharedRange = 32;
constexpr std::int64_t kChunk = 1024;  // columns that are summed in `compute` before their sum is added in double

// a, with 0 in lanes that are no elements.
template <typename L>
static MMCORE_INLINE typename L::F elements(const Whole<L>&, typename L::F a) {
  return a;
}
template <typename L>
static MMCORE_INLINE typename L::F elements(const Part<L>& io, typename L::F a) {
  RealOf<L> all[L::N] = {};
  L::store_part(all, a, io.n);
  return L::load(all);
}

// body(i, access, 0 or 1) over n elements in chunks; after each chunk done().
template <typename L, typename Body, typename Done>
static MMCORE_INLINE void chunks(std::int64_t n, Body body, Done done) {
  for (std::int64_t at = 0; at < n; at += kChunk) {
    sweep<L>(n - at < kChunk ? n - at : kChunk,
             [&](std::int64_t i, auto io, int k) MMCORE_INLINE_LAMBDA { body(at + i, io, k); });
    done();
  }
}

// Sums of a row, or of a part of it, in two sets of lanes; taken up in double.
template <typename L>
struct RowSum {
  typename L::F lanes[2] = {L::set(0), L::set(0)};
  double total = 0;
  MMCORE_INLINE void add(int k, typename L::F a) { lanes[k] = L::add(lanes[k], a); }
  MMCORE_INLINE void take() {
    total += static_cast<double>(L::sum(L::add(lanes[0], lanes[1])));
    lanes[0] = lanes[1] = L::set(0);
  }
};

// ---- clip

// kShared: row_most and column_most are all the same.
template <typename L, bool kShared>
static void clip_exponentials(const ClipBlock& b, bool keep) {
  using R = RealOf<L>;
  using F = typename L::F;
  const F flip = L::set(b.scale < 0 ? R(-1) : R(1)), t = L::set(static_cast<R>(std::fabs(b.scale)));
  const F zero = L::set(0);
  const R* column_most = static_cast<const R*>(b.column_most);
  R* column_sum = static_cast<R*>(b.column_sum);
  R* column_weighted = static_cast<R*>(b.column_weighted);
  for (std::int64_t r = 0; r < b.rows; ++r) {
    R* y = static_cast<R*>(b.y) + r * b.batch;
    const F most = L::set(static_cast<R>(b.row_most[r]));
    RowSum<L> sum, weighted;
    chunks<L>(
        b.batch,
        [&](std::int64_t i, auto io, int k) MMCORE_INLINE_LAMBDA {
          const F x = L::mul(flip, io.load(y + i, zero));
          const F d = L::sub(x, most);
          const F e = L::exp_bounded(L::mul(t, d));
          const F ed = L::mul(e, d);
          sum.add(k, elements<L>(io, e));
          weighted.add(k, elements<L>(io, ed));
          if constexpr (kShared) {
            io.store(column_sum + i, L::add(io.load(column_sum + i, zero), e));
            io.store(column_weighted + i, L::add(io.load(column_weighted + i, zero), ed));
            if (keep) io.store(y + i, e);
          } else {
            const F dc = L::sub(x, io.load(column_most + i, zero));
            const F ec = L::exp_bounded(L::mul(t, dc));
            io.store(column_sum + i, L::add(io.load(column_sum + i, zero), ec));
            io.store(column_weighted + i, L::fma(ec, dc, io.load(column_weighted + i, zero)));
          }
        },
        [&]() MMCORE_INLINE_LAMBDA {
          sum.take();
          weighted.take();
        });
    b.row_sum[r] = sum.total;
    b.row_weighted[r] = weighted.total;
  }
}

template <typename L>
static void clip_statistics(const ClipBlock& b) {
  using R = RealOf<L>;
  using F = typename L::F;
  const R sign = b.scale < 0 ? R(-1) : R(1);
  const F flip = L::set(sign), lowest = L::set(kLowest<L>), zero = L::set(0);
  R* column_most = static_cast<R*>(b.column_most);
  R* column_sum = static_cast<R*>(b.column_sum);
  R* column_weighted = static_cast<R*>(b.column_weighted);
  R high = kLowest<L>, low = std::numeric_limits<R>::max();
  for (std::int64_t r = 0; r < b.rows; ++r) {
    const R* y = static_cast<const R*>(b.y) + r * b.batch;
    F most[2] = {lowest, lowest};
    sweep<L>(b.batch, [&](std::int64_t i, auto io, int k) MMCORE_INLINE_LAMBDA {
      const F x = L::mul(flip, io.load(y + i, L::mul(flip, lowest)));
      most[k] = L::max(x, most[k]);  // skips NaN, which the sums will meet
      io.store(column_most + i, r == 0 ? L::max(x, lowest) : L::max(x, io.load(column_most + i, lowest)));
    });
    const R m = largest<L>(L::max(most[0], most[1]));
    b.row_most[r] = static_cast<double>(m);
    b.diagonal[r] = static_cast<double>(sign * y[b.first + r]);
    if (m > high) high = m;
    if (m < low) low = m;
  }
  F least = L::set(low);
  sweep<L>(b.batch, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA {
    least = L::min(io.load(column_most + i, least), least);
    io.store(column_sum + i, zero);
    io.store(column_weighted + i, zero);
  });
  low = -largest<L>(L::sub(zero, least));
  const double range = std::fabs(b.scale) * (static_cast<double>(high) - static_cast<double>(low));
  if (range <= kSharedRange) {
    for (std::int64_t r = 0; r < b.rows; ++r) b.row_most[r] = static_cast<double>(high);
    const F most = L::set(high);
    sweep<L>(b.batch, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA { io.store(column_most + i, most); });
    clip_exponentials<L, true>(b, b.keep);
  } else {
    clip_exponentials<L, false>(b, false);
  }
  *b.reference = b.keep && range <= kSharedRange ? static_cast<double>(high) : std::numeric_limits<double>::quiet_NaN();
}

template <typename L>
static void clip_gradient(const ClipGradientBlock& b) {
  using R = RealOf<L>;
  using F = typename L::F;
  const double t = std::fabs(b.scale), share = b.scale / (2 * static_cast<double>(b.batch));
  const bool kept = b.reference == b.reference;
  R* column_most = static_cast<R*>(b.scratch);
  R* column_share = column_most + b.batch;  // times the exponential: the column's part of dZ
  double shift = 0, factor = 1;
  for (std::int64_t j = 0; j < b.batch; ++j) {
    if (kept) {
      const double now = b.reference - b.column_most[j];
      if (now != shift) {  // mostly the same for all columns
        shift = now;
        factor = std::exp(t * now);
      }
    } else {
      column_most[j] = static_cast<R>(b.column_most[j]);
    }
    column_share[j] = static_cast<R>(share * factor / b.column_sum[j]);
  }
  const F zero = L::set(0), flip = L::set(b.scale < 0 ? R(-1) : R(1)), steep = L::set(static_cast<R>(t));
  for (std::int64_t r = 0; r < b.rows; ++r) {
    R* y = static_cast<R*>(b.y) + r * b.batch;
    const F row_share = L::set(static_cast<R>(share / b.row_sum[r]));
    if (kept) {
      sweep<L>(b.batch, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA {
        io.store(y + i, L::mul(io.load(y + i, zero), L::add(row_share, io.load(column_share + i, zero))));
      });
    } else {
      const F row_most = L::set(static_cast<R>(b.row_most[r]));
      sweep<L>(b.batch, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA {
        const F x = L::mul(flip, io.load(y + i, zero));
        const F row = L::exp_bounded(L::mul(steep, L::sub(x, row_most)));
        const F column = L::exp_bounded(L::mul(steep, L::sub(x, io.load(column_most + i, zero))));
        io.store(y + i, L::fma(row, row_share, L::mul(column, io.load(column_share + i, zero))));
      });
    }
    y[b.first + r] -= static_cast<R>(2 * share);
  }
}

// ---- siglip

template <typename L>
static void siglip(const SiglipBlock& b) {
  using R = RealOf<L>;
  using F = typename L::F;
  const F zero = L::set(0), one = L::set(1), huge = L::set(kHuge<L>);
  const F scale = L::set(static_cast<R>(b.scale)), bias = L::set(static_cast<R>(b.bias));
  const double share = b.scale / static_cast<double>(b.batch);
  const F each = L::set(static_cast<R>(share));
  for (std::int64_t r = 0; r < b.rows; ++r) {
    R* row = static_cast<R*>(b.y) + r * b.batch;
    const std::int64_t label = b.first + r;
    RowSum<L> loss, slope, weighted;
    auto negatives = [&](R* y, std::int64_t n) {
      chunks<L>(
          n,
          [&](std::int64_t i, auto io, int k) MMCORE_INLINE_LAMBDA {
            const F x = io.load(y + i, zero), z = L::fma(scale, x, bias);
            const F e = L::exp_bounded(L::sub(zero, L::max(L::sub(zero, z), z)));  // exp(-|z|)
            const F soft = L::add(L::max(zero, z), log1p_unit<L>(e));
            // 1 / (1 + e) where z > 0, else e / (1 + e); in this order NaN stays
            const F positive = L::min(one, L::max(zero, L::mul(L::mul(z, huge), huge)));
            const F p = L::div(L::max(e, positive), L::add(one, e));
            loss.add(k, elements<L>(io, soft));
            slope.add(k, elements<L>(io, p));
            weighted.add(k, elements<L>(io, L::mul(p, x)));
            if (b.gradient) io.store(y + i, L::mul(p, each));
          },
          [&]() MMCORE_INLINE_LAMBDA {
            loss.take();
            slope.take();
            weighted.take();
          });
    };
    const double x = static_cast<double>(row[label]), z = b.scale * x + b.bias;
    negatives(row, label);
    negatives(row + label + 1, b.batch - label - 1);
    const double e = std::exp(-std::fabs(z));
    const double p = -(z > 0 ? e : 1) / (1 + e);  // sigmoid(z) - 1
    if (b.gradient) row[label] = static_cast<R>(p * share);
    b.sums[r].loss = loss.total + std::log1p(e) + (z < 0 ? -z : 0);
    b.sums[r].scale_slope = weighted.total + p * x;
    b.sums[r].bias_slope = slope.total + p;
  }
}

template <typename L>
static constexpr ContrastiveKernels kernels() {
  return {clip_statistics<L>, clip_gradient<L>, siglip<L>};
}

}  // namespace contrastive
