// Reads a header bit by bit, the most significant bit of each byte first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bytes.h"

namespace mmcore {

// Past the end it reads zeros and is no longer ok(): a header is read in one go and checked once.
class BitReader {
 public:
  // escaped: of a NAL unit, where a byte 3 after two zero bytes only keeps start codes out of the data.
  BitReader(Bytes bytes, bool escaped) : bytes_(bytes), escaped_(escaped) {}

  bool ok() const { return !overrun_; }

  // True if nothing but zeros is left.
  bool at_end() const {
    if (window_ & ((std::uint64_t{1} << held_) - 1)) return false;
    for (std::size_t i = at_; i < bytes_.size; ++i)
      if (bytes_[i]) return false;
    return true;
  }

  std::uint32_t bits(int count) {  // 0 to 32
    while (held_ < count) load_byte();
    held_ -= count;
    return static_cast<std::uint32_t>(window_ >> held_ & ((std::uint64_t{1} << count) - 1));
  }
  bool flag() { return bits(1) != 0; }
  void skip(unsigned count) {
    for (; count > 32 && ok(); count -= 32) bits(32);
    bits(static_cast<int>(count > 32 ? 32 : count));
  }

  // Exponential Golomb codes of H.264 and HEVC (ue(v), se(v)).
  std::uint32_t ue() {
    int zeros = 0;
    while (!flag()) {
      if (++zeros > 31 || overrun_) {
        overrun_ = true;
        return 0;
      }
    }
    return (std::uint32_t{1} << zeros) - 1 + bits(zeros);
  }
  std::int32_t se() {
    const std::uint32_t code = ue();
    const auto half = static_cast<std::int32_t>(code / 2 + code % 2);
    return code % 2 ? half : -half;
  }

 private:
  void load_byte() {
    if (escaped_ && zeros_ >= 2 && at_ < bytes_.size && bytes_[at_] == 3) {
      ++at_;
      zeros_ = 0;
    }
    std::uint8_t byte = 0;
    if (at_ < bytes_.size) {
      byte = bytes_[at_++];
      zeros_ = byte ? 0 : zeros_ + 1;
    } else {
      overrun_ = true;
    }
    window_ = window_ << 8 | byte;
    held_ += 8;
  }

  Bytes bytes_;
  std::size_t at_ = 0;
  std::uint64_t window_ = 0;  // its lowest held_ bits are still to be read
  int held_ = 0;
  int zeros_ = 0;  // zero bytes just loaded
  bool escaped_;
  bool overrun_ = false;
};

}  // namespace mmcore
