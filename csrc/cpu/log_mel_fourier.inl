// The Fourier transform of the log-mel kernels, over a set of lanes L: complex, decimated in time, of mixed radix, in
// place, each lane a frame of its own. Included inside a namespace for each instruction set.
//
// Of n = r_1 r_2 ... points, the first pass makes transforms of r_1 points of inputs that lie n / r_1 apart; each later
// one makes r transforms of `length` points one of r * length: y_{u length + k} = sum_t exp(-2 pi i (u length + k) t /
// (r length)) x_{t, k}, the twiddles exp(-2 pi i k t / (r length)) first, then a butterfly over t.

#include "sweep.inl"

namespace fourier {

using namespace sweeps;

template <typename R>
static MMCORE_INLINE const LogMelNumbers<R>& numbers_of(const LogMelTables& t) {
  if constexpr (sizeof(R) == 8) {
    return t.precise;
  } else {
    return t.single;
  }
}

// ---- complex numbers and transforms of a few of them, exp(-2 pi i / radix)

template <typename L>
struct Complex {
  typename L::F re, im;
};

template <typename L>
static MMCORE_INLINE Complex<L> operator+(Complex<L> a, Complex<L> b) {
  return {L::add(a.re, b.re), L::add(a.im, b.im)};
}
template <typename L>
static MMCORE_INLINE Complex<L> operator-(Complex<L> a, Complex<L> b) {
  return {L::sub(a.re, b.re), L::sub(a.im, b.im)};
}
// a + k b
template <typename L>
static MMCORE_INLINE Complex<L> plus_times(Complex<L> a, typename L::F k, Complex<L> b) {
  return {L::fma(k, b.re, a.re), L::fma(k, b.im, a.im)};
}
template <typename L>
static MMCORE_INLINE Complex<L> minus_i(Complex<L> a) {
  return {a.im, L::sub(L::set(0), a.re)};
}
// a - i b and a + i b
template <typename L>
static MMCORE_INLINE Complex<L> sub_i(Complex<L> a, Complex<L> b) {
  return {L::add(a.re, b.im), L::sub(a.im, b.re)};
}
template <typename L>
static MMCORE_INLINE Complex<L> add_i(Complex<L> a, Complex<L> b) {
  return {L::sub(a.re, b.im), L::add(a.im, b.re)};
}

template <typename L, int kRadix>
static MMCORE_INLINE void butterfly(Complex<L>* a) {
  using R = RealOf<L>;
  using C = Complex<L>;
  if constexpr (kRadix == 2) {
    const C b = a[1];
    a[1] = a[0] - b;
    a[0] = a[0] + b;
  } else if constexpr (kRadix == 3) {
    const auto half = L::set(R(-0.5)), root = L::set(R(0.86602540378443864676));
    const C sum = a[1] + a[2], d = a[1] - a[2];
    const C middle = plus_times<L>(a[0], half, sum), side{L::mul(root, d.re), L::mul(root, d.im)};
    a[0] = a[0] + sum;
    a[1] = sub_i<L>(middle, side);
    a[2] = add_i<L>(middle, side);
  } else if constexpr (kRadix == 4) {
    const C s02 = a[0] + a[2], d02 = a[0] - a[2], s13 = a[1] + a[3], d13 = a[1] - a[3];
    a[0] = s02 + s13;
    a[2] = s02 - s13;
    a[1] = sub_i<L>(d02, d13);
    a[3] = add_i<L>(d02, d13);
  } else if constexpr (kRadix == 5) {
    const auto c1 = L::set(R(0.30901699437494742410)), c2 = L::set(R(-0.80901699437494742410));
    const auto s1 = L::set(R(0.95105651629515357212)), s2 = L::set(R(0.58778525229247312917));
    const auto minus_s1 = L::set(R(-0.95105651629515357212));
    const C s14 = a[1] + a[4], d14 = a[1] - a[4], s23 = a[2] + a[3], d23 = a[2] - a[3];
    const C m1 = plus_times<L>(plus_times<L>(a[0], c1, s14), c2, s23);
    const C m2 = plus_times<L>(plus_times<L>(a[0], c2, s14), c1, s23);
    const C n1 = plus_times<L>(C{L::mul(s1, d14.re), L::mul(s1, d14.im)}, s2, d23);
    const C n2 = plus_times<L>(C{L::mul(s2, d14.re), L::mul(s2, d14.im)}, minus_s1, d23);
    a[0] = a[0] + s14 + s23;
    a[1] = sub_i<L>(m1, n1);
    a[4] = add_i<L>(m1, n1);
    a[2] = sub_i<L>(m2, n2);
    a[3] = add_i<L>(m2, n2);
  } else {
    static_assert(kRadix == 8, "a radix without a butterfly");
    const auto h = L::set(R(0.70710678118654752440)), minus_h = L::set(R(-0.70710678118654752440));
    C even[4] = {a[0], a[2], a[4], a[6]}, odd[4] = {a[1], a[3], a[5], a[7]};
    butterfly<L, 4>(even);
    butterfly<L, 4>(odd);
    // times exp(-2 pi i k / 8)
    odd[1] = {L::mul(h, L::add(odd[1].re, odd[1].im)), L::mul(h, L::sub(odd[1].im, odd[1].re))};
    odd[2] = minus_i<L>(odd[2]);
    odd[3] = {L::mul(h, L::sub(odd[3].im, odd[3].re)), L::mul(minus_h, L::add(odd[3].re, odd[3].im))};
    for (int k = 0; k < 4; ++k) {
      a[k] = even[k] + odd[k];
      a[k + 4] = even[k] - odd[k];
    }
  }
}

template <typename L>
static MMCORE_INLINE Complex<L> load_complex(const RealOf<L>* z, std::int64_t i) {
  return {L::load(z + 2 * L::N * i), L::load(z + 2 * L::N * i + L::N)};
}
template <typename L>
static MMCORE_INLINE void store_complex(RealOf<L>* z, std::int64_t i, Complex<L> a) {
  L::store(z + 2 * L::N * i, a.re);
  L::store(z + 2 * L::N * i + L::N, a.im);
}

// a times one of the tables' re, im, -im
template <typename L>
static MMCORE_INLINE Complex<L> times(Complex<L> a, typename L::F re, typename L::F im, typename L::F minus_im) {
  return {L::fma(a.im, minus_im, L::mul(a.re, re)), L::fma(a.re, im, L::mul(a.im, re))};
}

// Any radix, of inputs that are in `a` already: y_u = sum_t a_t exp(-2 pi i u t / radix)
template <typename L, typename Put>
static MMCORE_INLINE void any_butterfly(std::int64_t radix, const RealOf<L>* roots, const RealOf<L>* a, Put put) {
  for (std::int64_t u = 0; u < radix; ++u) {
    Complex<L> sum = load_complex<L>(a, 0);
    std::int64_t turn = 0;
    for (std::int64_t t = 1; t < radix; ++t) {
      turn += u;
      if (turn >= radix) turn -= radix;
      const RealOf<L>* w = roots + 3 * turn;
      const Complex<L> b = load_complex<L>(a, t);
      sum = {L::fma(b.re, L::set(w[0]), L::fma(b.im, L::set(w[2]), sum.re)),
             L::fma(b.re, L::set(w[1]), L::fma(b.im, L::set(w[0]), sum.im))};
    }
    put(u, sum);
  }
}

template <typename L, int kRadix, typename Input>
static void first_pass(const LogMelTables& t, const Input& input, RealOf<L>* z) {
  const std::int64_t count = t.points / kRadix;
  for (std::int64_t b = 0; b < count; ++b) {
    Complex<L> a[kRadix];
    for (int k = 0; k < kRadix; ++k) a[k] = input(t.leaf[static_cast<std::size_t>(b)] + k * count);
    butterfly<L, kRadix>(a);
    for (int k = 0; k < kRadix; ++k) store_complex<L>(z, b * kRadix + k, a[k]);
  }
}

template <typename L, int kRadix>
static void later_pass(const LogMelTables& t, const FourierPass& pass, RealOf<L>* z) {
  using F = typename L::F;
  const std::int64_t length = pass.length, whole = kRadix * length;
  const RealOf<L>* w = numbers_of<RealOf<L>>(t).twiddles.data() + pass.twiddles;
  for (std::int64_t k = 0; k < length; ++k, w += 3 * (kRadix - 1)) {
    for (std::int64_t at = k; at < t.points; at += whole) {
      Complex<L> a[kRadix];
      a[0] = load_complex<L>(z, at);
      for (int u = 1; u < kRadix; ++u) {
        const F re = L::set(w[3 * u - 3]), im = L::set(w[3 * u - 2]), minus_im = L::set(w[3 * u - 1]);
        a[u] = times<L>(load_complex<L>(z, at + u * length), re, im, minus_im);
      }
      butterfly<L, kRadix>(a);
      for (int u = 0; u < kRadix; ++u) store_complex<L>(z, at + u * length, a[u]);
    }
  }
}

template <typename L, typename Input>
static void first_pass_of_any(const LogMelTables& t, const Input& input, RealOf<L>* z, RealOf<L>* a) {
  const FourierPass& pass = t.passes[0];
  const std::int64_t radix = pass.radix, count = t.points / radix;
  const RealOf<L>* roots = numbers_of<RealOf<L>>(t).twiddles.data() + pass.roots;
  for (std::int64_t b = 0; b < count; ++b) {
    for (std::int64_t k = 0; k < radix; ++k) {
      store_complex<L>(a, k, input(t.leaf[static_cast<std::size_t>(b)] + k * count));
    }
    any_butterfly<L>(radix, roots, a, [&](std::int64_t u, Complex<L> y) { store_complex<L>(z, b * radix + u, y); });
  }
}

template <typename L>
static void later_pass_of_any(const LogMelTables& t, const FourierPass& pass, RealOf<L>* z, RealOf<L>* a) {
  const std::int64_t radix = pass.radix, length = pass.length;
  const RealOf<L>* all = numbers_of<RealOf<L>>(t).twiddles.data();
  const RealOf<L>* w = all + pass.twiddles;
  for (std::int64_t k = 0; k < length; ++k, w += 3 * (radix - 1)) {
    for (std::int64_t at = k; at < t.points; at += radix * length) {
      store_complex<L>(a, 0, load_complex<L>(z, at));
      for (std::int64_t u = 1; u < radix; ++u) {
        const RealOf<L>* v = w + 3 * (u - 1);
        store_complex<L>(a, u, times<L>(load_complex<L>(z, at + u * length), L::set(v[0]), L::set(v[1]), L::set(v[2])));
      }
      any_butterfly<L>(radix, all + pass.roots, a,
                       [&](std::int64_t u, Complex<L> y) { store_complex<L>(z, at + u * length, y); });
    }
  }
}

// z becomes the transform of input(0), input(1), ..., points of them.
template <typename L, typename Input>
static void transform(const LogMelTables& t, const Input& input, RealOf<L>* z, RealOf<L>* spare) {
  switch (t.passes[0].radix) {
    case 1:
      store_complex<L>(z, 0, input(0));
      break;
    case 2:
      first_pass<L, 2>(t, input, z);
      break;
    case 3:
      first_pass<L, 3>(t, input, z);
      break;
    case 4:
      first_pass<L, 4>(t, input, z);
      break;
    case 5:
      first_pass<L, 5>(t, input, z);
      break;
    case 8:
      first_pass<L, 8>(t, input, z);
      break;
    default:
      first_pass_of_any<L>(t, input, z, spare);
  }
  for (std::size_t i = 1; i < t.passes.size(); ++i) {
    const FourierPass& pass = t.passes[i];
    switch (pass.radix) {
      case 2:
        later_pass<L, 2>(t, pass, z);
        break;
      case 3:
        later_pass<L, 3>(t, pass, z);
        break;
      case 4:
        later_pass<L, 4>(t, pass, z);
        break;
      case 5:
        later_pass<L, 5>(t, pass, z);
        break;
      case 8:
        later_pass<L, 8>(t, pass, z);
        break;
      default:
        later_pass_of_any<L>(t, pass, z, spare);
    }
  }
}

}  // namespace fourier
