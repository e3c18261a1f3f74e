// A run of bytes that someone else owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mmcore {

struct Bytes {
  const std::uint8_t* data = nullptr;
  std::size_t size = 0;

  std::uint8_t operator[](std::size_t i) const { return data[i]; }
  // From `first` on, at most `count` bytes; empty if there are none.
  Bytes from(std::size_t first, std::size_t count = SIZE_MAX) const {
    if (first >= size) return {};
    return {data + first, count < size - first ? count : size - first};
  }
};

}  // namespace mmcore
