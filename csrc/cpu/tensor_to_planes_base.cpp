#include <cmath>
#include <cstring>
#include <limits>

#include "tensor_to_planes_kernels.h"

namespace mmcore {
namespace base {
#include "lanes_scalar.h"

namespace planes {
struct V : Lanes {
  using Lanes::load;
  static inline F load(const std::uint8_t* p) { return load_bytes(p); }
  static inline F level(F a) { return min(max(a, set(0)), set(255)); }
  static inline void store_u8(std::uint8_t* p, F a) {
    for (int i = 0; i < N; ++i) p[i] = static_cast<std::uint8_t>(std::lrintf(a.v[i]));
  }
  static inline void store_u16(std::uint16_t* p, F a, int shift) {
    for (int i = 0; i < N; ++i) p[i] = static_cast<std::uint16_t>(std::lrintf(a.v[i]) << shift);
  }
  static inline void split(const float* p, F* even, F* odd) {
    *even = {{p[0], p[2], p[4], p[6]}};
    *odd = {{p[1], p[3], p[5], p[7]}};
  }
};
}  // namespace planes

#include "tensor_to_planes_kernels.inl"
}  // namespace base
}  // namespace mmcore
