// Functions that are made of a set of lanes' operations, for any set L; included inside a namespace for each instruction
// set.

namespace lane_functions {

template <typename L>
static MMCORE_INLINE typename L::F clamp_nan(typename L::F a, typename L::F low, typename L::F high) {
  return L::min(high, L::max(low, a));  // in this order NaN stays
}

template <typename L>
static MMCORE_INLINE typename L::F absolute(typename L::F a) {
  return L::max(L::sub(L::set(0), a), a);
}

// Multiplied twice by it, every number but 0 is beyond 1.
template <typename L>
static constexpr typename L::Real kHuge =
    sizeof(typename L::Real) == 8 ? typename L::Real(1e300) : typename L::Real(1e38f);

template <typename L>
static MMCORE_INLINE typename L::F steep(typename L::F a) {
  return L::mul(L::mul(a, L::set(kHuge<L>)), L::set(kHuge<L>));
}

// log(1 + e) for 0 <= e <= 1: 2 atanh(s), s = e / (2 + e) <= 1/3, whose series ends below 2^-25 of itself.
template <typename L>
static MMCORE_INLINE typename L::F log1p_unit(typename L::F e) {
  if constexpr (sizeof(typename L::Real) == 8) {
    return L::each([&](int i) { return std::log1p(e.v[i]); });
  } else {
    const auto s = L::div(e, L::add(L::set(2), e));
    const auto q = L::mul(s, s);
    auto y = L::set(2.0f / 15);
    y = L::fma(y, q, L::set(2.0f / 13));
    y = L::fma(y, q, L::set(2.0f / 11));
    y = L::fma(y, q, L::set(2.0f / 9));
    y = L::fma(y, q, L::set(2.0f / 7));
    y = L::fma(y, q, L::set(2.0f / 5));
    y = L::fma(y, q, L::set(2.0f / 3));
    y = L::fma(y, q, L::set(2.0f));
    return L::mul(y, s);
  }
}

template <typename L>
static MMCORE_INLINE typename L::Real largest(typename L::F a) {
  typename L::Real all[L::N];
  L::store(all, a);
  typename L::Real most = all[0];
  for (int i = 1; i < L::N; ++i) most = all[i] > most ? all[i] : most;
  return most;
}

template <typename L>
static constexpr typename L::Real kLowest =
    std::numeric_limits<typename L::Real>::lowest();  // not -inf: -inf less it is no NaN

}  // namespace lane_functions
