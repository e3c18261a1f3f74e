// Element types that cross the core's interface.
#pragma once

#include <cstddef>

namespace mmcore {

enum class DType : int { kU8 = 0, kF16 = 1, kBF16 = 2, kF32 = 3, kF64 = 4, kI64 = 5 };

constexpr std::size_t dtype_size(DType t) {
  return t == DType::kU8 ? 1 : t == DType::kF32 ? 4 : t == DType::kF64 || t == DType::kI64 ? 8 : 2;
}

}  // namespace mmcore
