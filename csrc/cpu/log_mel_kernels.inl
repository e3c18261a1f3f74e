// The log-mel kernels, over a set of lanes L; included inside a namespace for each instruction set.
//
// A lane is a frame: every step is the scalar algorithm on vectors, and frames never mix. L has beside Lanes'
//   split(x, &e)         x = 2^e m for a positive normal x, m in [sqrt(1/2), sqrt(2)): gives m
//   if_finite(x, y)      y where x is finite, else x
//   sqrt(a)
//   transpose(from, from_stride, to, to_stride)   N x N numbers
//
// Samples are laid out once for a block, as x[q hop + p] at (p, q): sample j = a hop + p of frames i, i + 1, ... is the
// run (p, i + a), (p, i + a + 1), ..., so that overlapping frames share one copy.
//
// Fourier transform of real y of even length n, M = n / 2 points: z_m = y_2m + i y_2m+1, Z its complex transform;
//   2 X_k = E + W O,  2 conj X_{M-k} = E - W O,   E = Z_k + conj Z_{M-k},  O = -i (Z_k - conj Z_{M-k}),
//   W = exp(-2 pi i k / n);   the window is halved instead of E and O. For odd n, z = y.

#include "log_mel_fourier.inl"

namespace log_mel_kernels {

using namespace fourier;
using namespace sweeps;

static inline std::int64_t rounded_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// ln x for x > 0, at least the smallest normal number; infinity and NaN stay. The polynomial is that of Cephes' logf.
template <typename L>
static MMCORE_INLINE typename L::F log_positive(typename L::F x) {
  if constexpr (sizeof(typename L::Real) == 8) {
    return L::each([&](int i) { return std::log(x.v[i]); });
  } else {
    typename L::F e;
    const auto r = L::sub(L::split(x, &e), L::set(1));
    const auto z = L::mul(r, r);
    auto y = L::set(7.0376836292e-2f);
    y = L::fma(y, r, L::set(-1.1514610310e-1f));
    y = L::fma(y, r, L::set(1.1676998740e-1f));
    y = L::fma(y, r, L::set(-1.2420140846e-1f));
    y = L::fma(y, r, L::set(1.4249322787e-1f));
    y = L::fma(y, r, L::set(-1.6668057665e-1f));
    y = L::fma(y, r, L::set(2.0000714765e-1f));
    y = L::fma(y, r, L::set(-2.4999993993e-1f));
    y = L::fma(y, r, L::set(3.3333331174e-1f));
    y = L::mul(L::mul(y, r), z);
    y = L::fma(e, L::set(-2.12194440e-4f), y);
    y = L::fma(z, L::set(-0.5f), y);
    return L::if_finite(x, L::fma(e, L::set(0.693359375f), L::add(r, y)));
  }
}

// ---- the frames of one group

// What the first pass reads: sample j of every frame, filtered and windowed.
template <typename L, bool kFiltered>
struct Signal {
  using F = typename L::F;
  using R = RealOf<L>;
  const R* x;  // of the group
  const std::int32_t* where;  // of sample j - 1 at j; sample -1 is sample 0
  const R* window;
  F mean, minus_preemphasis;

  MMCORE_INLINE F operator()(std::int64_t j) const {
    F a = L::load(x + where[j + 1]);
    if constexpr (kFiltered) {
      const F before = L::sub(L::load(x + where[j]), mean);
      a = L::fma(minus_preemphasis, before, L::sub(a, mean));
    }
    return L::mul(a, L::set(window[j]));
  }
};

// |X_k|^p takes the place of Z_k's real part, for k = 0 ... n_fft / 2.
template <typename L, bool kMagnitude>
static void spectrum(const LogMelTables& t, RealOf<L>* z) {
  using F = typename L::F;
  using R = RealOf<L>;
  auto put = [&](std::int64_t k, F re, F im) MMCORE_INLINE_LAMBDA {
    const F power = L::fma(re, re, L::mul(im, im));
    if constexpr (kMagnitude) {
      L::store(z + 2 * L::N * k, L::sqrt(power));
    } else {
      L::store(z + 2 * L::N * k, power);
    }
  };
  if (!t.even()) {
    for (std::int64_t k = 0; k < t.bins(); ++k) {
      const Complex<L> a = load_complex<L>(z, k);
      put(k, a.re, a.im);
    }
    return;
  }
  const std::int64_t points = t.points;
  const R* w = numbers_of<R>(t).split.data();
  for (std::int64_t k = 0; 2 * k <= points; ++k) {
    const Complex<L> a = load_complex<L>(z, k), b = k == 0 ? a : load_complex<L>(z, points - k);
    const F cosine = L::set(w[2 * k]), sine = L::set(w[2 * k + 1]);
    const F e_re = L::add(a.re, b.re), e_im = L::sub(a.im, b.im);
    const F d_re = L::sub(a.re, b.re), d_im = L::add(a.im, b.im);
    const F o_re = L::sub(L::mul(cosine, d_im), L::mul(sine, d_re));
    const F o_im = L::fma(cosine, d_re, L::mul(sine, d_im));  // of -W O
    put(k, L::add(e_re, o_re), L::sub(e_im, o_im));
    put(points - k, L::sub(e_re, o_re), L::add(e_im, o_im));
  }
}

// What a filter's sum becomes, before the clamp to the dynamic range.
template <typename L>
struct Finish {
  using F = typename L::F;
  using R = RealOf<L>;
  bool logarithm;
  F floor, offset, factor, shift;

  explicit Finish(const LogMelOptions& o)
      : logarithm(o.logarithm),
        floor(L::set(static_cast<R>(o.floor))),
        offset(L::set(static_cast<R>(o.offset))),
        factor(L::set(static_cast<R>((o.logarithm ? o.log_scale : 1) / o.std))),
        shift(L::set(static_cast<R>(-o.mean / o.std))) {}

  MMCORE_INLINE F operator()(F sum) const {
    if (logarithm) sum = log_positive<L>(L::max(floor, L::add(sum, offset)));
    return L::fma(sum, factor, shift);
  }
};

// Where a group's scratch lies.
template <typename L>
struct Scratch {
  using R = RealOf<L>;
  std::int64_t columns, row, rows, mels;  // of the samples; n_mels up to whole vectors
  R *x, *z, *spare, *tile, *turned;
  std::int32_t* where;
  std::size_t bytes;

  Scratch(const LogMelTables& t, std::int64_t frames, void* memory) {
    const LogMelOptions& o = t.options;
    columns = frames + (o.win_length - 1) / o.hop_length;
    row = rounded_up(columns, L::N);
    rows = o.hop_length < o.win_length ? o.hop_length : o.win_length;
    mels = rounded_up(o.n_mels, L::N);
    std::size_t at = 0;
    auto take = [&](std::int64_t count, std::size_t size) {
      unsigned char* const p = memory == nullptr ? nullptr : static_cast<unsigned char*>(memory) + at;
      at += (static_cast<std::size_t>(count) * size + 63) / 64 * 64;
      return static_cast<void*>(p);
    };
    x = static_cast<R*>(take(rows * row, sizeof(R)));
    z = static_cast<R*>(take(2 * L::N * (t.points + 1), sizeof(R)));
    spare = static_cast<R*>(take(2 * L::N * t.largest_radix, sizeof(R)));
    tile = static_cast<R*>(take(L::N * mels, sizeof(R)));
    turned = static_cast<R*>(take(L::N * mels, sizeof(R)));
    where = static_cast<std::int32_t*>(take(o.n_fft + 1, sizeof(std::int32_t)));
    bytes = at;
  }
};

template <typename L>
static std::size_t scratch_bytes(const LogMelTables& t) {
  return Scratch<L>(t, kLogMelBlock, nullptr).bytes;
}

// Samples to their places; what no frame reads stays as it was.
template <typename L>
static void lay_out(const LogMelOptions& o, const RealOf<L>* samples, std::int64_t frames, const Scratch<L>& s) {
  const std::int64_t end = (frames - 1) * o.hop_length + o.win_length;
  for (std::int64_t q = 0; q < s.columns; q += L::N) {
    const bool whole = q + L::N <= s.columns;
    std::int64_t p = 0;
    if (whole) {
      for (; p + L::N <= s.rows && (q + L::N - 1) * o.hop_length + p + L::N <= end; p += L::N) {
        L::transpose(samples + q * o.hop_length + p, o.hop_length, s.x + p * s.row + q, s.row);
      }
    }
    const std::int64_t last = whole ? q + L::N : s.columns;
    for (std::int64_t column = q; column < last; ++column) {
      const std::int64_t at = column * o.hop_length;
      const std::int64_t stop = end - at < s.rows ? end - at : s.rows;
      for (std::int64_t i = p; i < stop; ++i) s.x[i * s.row + column] = samples[at + i];
    }
  }
}

// Every filter's value for the frames of a group, n of them, handed to put(mel, values).
template <typename L, typename Put>
static MMCORE_INLINE void filter(const LogMelTables& t, const RealOf<L>* z, const Finish<L>& finish, Put put) {
  const RealOf<L>* all = numbers_of<RealOf<L>>(t).mel.data();
  for (std::size_t m = 0; m < t.filters.size(); ++m) {
    const MelFilter& f = t.filters[m];
    const RealOf<L>* w = all + f.weights;
    const RealOf<L>* power = z + 2 * L::N * f.first;
    auto sum = L::set(0), other = L::set(0);
    std::int64_t k = 0;
    for (; k + 2 <= f.count; k += 2) {
      sum = L::fma(L::set(w[k]), L::load(power + 2 * L::N * k), sum);
      other = L::fma(L::set(w[k + 1]), L::load(power + 2 * L::N * (k + 1)), other);
    }
    if (k < f.count) sum = L::fma(L::set(w[k]), L::load(power + 2 * L::N * k), sum);
    put(static_cast<std::int64_t>(m), finish(L::add(sum, other)));
  }
}

template <typename L, typename T>
static MMCORE_INLINE void store_first(T* to, typename L::F a, int n) {
  if (n == L::N) {
    L::store(to, a);
  } else {
    L::store_part(to, a, n);
  }
}

// Of the n frames of a group; gives the largest value of each.
template <typename L, typename T>
static typename L::F write(const LogMelTables& t, const LogMelBlock& b, std::int64_t frame, int n,
                           const Finish<L>& finish, const Scratch<L>& s) {
  typename L::F most = L::set(-std::numeric_limits<RealOf<L>>::infinity());
  T* out = static_cast<T*>(b.out) + frame * b.frame_stride;
  if (b.frame_stride == 1) {
    filter<L>(t, s.z, finish, [&](std::int64_t m, typename L::F a) MMCORE_INLINE_LAMBDA {
      most = L::max(a, most);
      store_first<L>(out + m * b.mel_stride, a, n);
    });
    return most;
  }
  filter<L>(t, s.z, finish, [&](std::int64_t m, typename L::F a) MMCORE_INLINE_LAMBDA {
    most = L::max(a, most);
    L::store(s.tile + m * L::N, a);
  });
  const std::int64_t mels = t.options.n_mels;
  for (std::int64_t m = 0; m < s.mels; m += L::N) L::transpose(s.tile + m * L::N, L::N, s.turned + m, s.mels);
  for (int i = 0; i < n; ++i) {
    for (std::int64_t m = 0; m < mels; m += L::N) {
      const int size = static_cast<int>(mels - m < L::N ? mels - m : L::N);
      store_first<L>(out + i * b.frame_stride + m, L::load(s.turned + i * s.mels + m), size);
    }
  }
  return most;
}

template <typename L, bool kFiltered>
static void frames_of(const LogMelTables& t, LogMelBlock* b, const Scratch<L>& s) {
  using F = typename L::F;
  using R = RealOf<L>;
  const LogMelOptions& o = t.options;
  const Finish<L> finish(o);
  Signal<L, kFiltered> signal;
  signal.where = s.where;
  signal.window = numbers_of<R>(t).window.data();
  signal.minus_preemphasis = L::set(static_cast<R>(-o.preemphasis));
  signal.mean = L::set(0);
  R most = -std::numeric_limits<R>::infinity();
  for (std::int64_t frame = 0; frame < b->frames; frame += L::N) {
    const R* x = signal.x = s.x + frame;
    if (kFiltered && o.remove_dc) {
      F sum[4] = {L::set(0), L::set(0), L::set(0), L::set(0)};
      std::int64_t j = 0;
      for (; j + 4 <= o.win_length; j += 4) {
        for (int k = 0; k < 4; ++k) sum[k] = L::add(sum[k], L::load(x + s.where[j + k + 1]));
      }
      for (; j < o.win_length; ++j) sum[0] = L::add(sum[0], L::load(x + s.where[j + 1]));
      signal.mean = L::mul(L::add(L::add(sum[0], sum[1]), L::add(sum[2], sum[3])),
                           L::set(static_cast<R>(1.0 / static_cast<double>(o.win_length))));
    }
    if (t.even()) {
      transform<L>(
          t, [&](std::int64_t m) MMCORE_INLINE_LAMBDA { return Complex<L>{signal(2 * m), signal(2 * m + 1)}; }, s.z,
          s.spare);
    } else {
      transform<L>(
          t, [&](std::int64_t m) MMCORE_INLINE_LAMBDA { return Complex<L>{signal(m), L::set(0)}; }, s.z, s.spare);
    }
    if (o.magnitude) {
      spectrum<L, true>(t, s.z);
    } else {
      spectrum<L, false>(t, s.z);
    }
    const int n = static_cast<int>(b->frames - frame < L::N ? b->frames - frame : L::N);
    const F high = visit<L>(b->out_dtype, [&](auto* type) {
      return write<L, std::remove_pointer_t<decltype(type)>>(t, *b, frame, n, finish, s);
    });
    R all[L::N];
    L::store(all, high);
    for (int i = 0; i < n; ++i) most = all[i] > most ? all[i] : most;
  }
  b->most = static_cast<double>(most);
}

template <typename L>
static void block(const LogMelTables& t, LogMelBlock* b, void* memory) {
  const LogMelOptions& o = t.options;
  const Scratch<L> s(t, b->rounded, memory);
  lay_out<L>(o, static_cast<const RealOf<L>*>(b->samples), b->rounded, s);
  std::int64_t p = 0, a = 0;
  for (std::int64_t j = 0; j < o.n_fft; ++j) {
    // After the window the first sample stands in, times 0: it is one of the frame's own.
    s.where[j + 1] = j < o.win_length ? static_cast<std::int32_t>(p * s.row + a) : 0;
    if (++p == o.hop_length) p = 0, ++a;
  }
  s.where[0] = s.where[1];
  if (o.remove_dc || o.preemphasis != 0) {
    frames_of<L, true>(t, b, s);
  } else {
    frames_of<L, false>(t, b, s);
  }
}

// ---- arrays

template <typename L>
static void to_real(DType dtype, const void* from, void* to, std::int64_t n) {
  visit<L>(dtype, [&](auto* type) {
    const auto* x = static_cast<decltype(type)>(const_cast<void*>(from));
    auto* y = static_cast<RealOf<L>*>(to);
    sweep<L>(n, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA { io.store(y + i, io.load(x + i, L::set(0))); });
  });
}

template <typename L>
static void fill(DType dtype, void* to, std::int64_t n, double value) {
  visit<L>(dtype, [&](auto* type) {
    auto* y = static_cast<decltype(type)>(to);
    const auto a = L::set(static_cast<RealOf<L>>(value));
    sweep<L>(n, [&](std::int64_t i, auto io, int) MMCORE_INLINE_LAMBDA { io.store(y + i, a); });
  });
}

template <typename L>
static void raise(DType dtype, void* values, std::int64_t n, double least) {
  visit<L>(dtype, [&](auto* type) {
    auto* y = static_cast<decltype(type)>(values);
    const auto low = L::set(static_cast<RealOf<L>>(least));
    sweep<L>(n, [&](std::int64_t i, auto io, int)
                    MMCORE_INLINE_LAMBDA { io.store(y + i, L::max(low, io.load(y + i, low))); });
  });
}

template <typename L>
constexpr LogMelKernels kernels() {
  return {L::N, scratch_bytes<L>, block<L>, to_real<L>, fill<L>, raise<L>};
}

}  // namespace log_mel_kernels
