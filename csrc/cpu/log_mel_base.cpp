#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "log_mel_kernels.h"

namespace mmcore {
namespace base {
#include "lanes_double.h"
#include "lanes_scalar.h"

template <typename L>
struct Transposing : L {
  using Real = typename L::Real;
  static inline void transpose(const Real* from, std::ptrdiff_t s, Real* to, std::ptrdiff_t d) {
    for (int i = 0; i < L::N; ++i) {
      for (int j = 0; j < L::N; ++j) to[j * d + i] = from[i * s + j];
    }
  }
  static inline typename L::F sqrt(typename L::F a) {
    return L::each([&](int i) { return std::sqrt(a.v[i]); });
  }
};

using MelDoubleLanes = Transposing<DoubleLanes>;

struct MelLanes : Transposing<Lanes> {
  static inline F split(F x, F* e) {
    F m;
    for (int i = 0; i < N; ++i) {
      std::int32_t bits;
      std::memcpy(&bits, &x.v[i], 4);
      const std::int32_t n = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3: sqrt(1/2)
      e->v[i] = static_cast<float>(n);
      bits = static_cast<std::int32_t>(static_cast<std::uint32_t>(bits) - (static_cast<std::uint32_t>(n) << 23));
      std::memcpy(&m.v[i], &bits, 4);
    }
    return m;
  }
  static inline F if_finite(F x, F y) {
    return each([&](int i) { return x.v[i] < std::numeric_limits<float>::infinity() ? y.v[i] : x.v[i]; });
  }
};

#include "log_mel_kernels.inl"

const LogMelKernels kLogMelKernels = log_mel_kernels::kernels<MelLanes>();
const LogMelKernels kLogMelKernelsF64 = log_mel_kernels::kernels<MelDoubleLanes>();
}  // namespace base
}  // namespace mmcore
