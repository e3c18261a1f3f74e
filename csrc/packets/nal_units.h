// Finds the NAL units of H.264 and HEVC packets, and what both formats' supplemental messages (SEI) are about.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bytes.h"

namespace mmcore {

// Walks the NAL units of a packet, each without its length or start code.
class NalUnits {
 public:
  // length_size: bytes of the length before each unit (1 to 4, in MP4 and Matroska); 0 if start codes separate them.
  NalUnits(Bytes packet, int length_size) : rest_(packet), length_size_(length_size) {
    if (length_size_ == 0) rest_ = after_start_code(rest_);
  }

  // The next unit, which has at least one byte; false at the end, or where lengths do not fit: then damaged().
  bool next(Bytes& unit) {
    do {
      if (!(length_size_ ? next_by_length(unit) : next_by_start_code(unit))) return false;
    } while (unit.size == 0);
    return true;
  }
  bool damaged() const { return damaged_; }

 private:
  bool next_by_length(Bytes& unit) {
    if (rest_.size == 0) return false;
    const auto prefix = static_cast<std::size_t>(length_size_);
    std::size_t length = 0;
    for (std::size_t i = 0; i < prefix && i < rest_.size; ++i) length = length << 8 | rest_[i];
    damaged_ = rest_.size < prefix || length > rest_.size - prefix;
    if (damaged_) return false;
    unit = rest_.from(prefix, length);
    rest_ = rest_.from(prefix + length);
    return true;
  }

  bool next_by_start_code(Bytes& unit) {
    if (rest_.size == 0) return false;
    const Bytes after = after_start_code(rest_);
    unit = rest_;
    // The code's three bytes; zeros that stand before it are stuffing, which does no harm at a unit's end.
    if (after.data) unit.size = static_cast<std::size_t>(after.data - rest_.data) - 3;
    rest_ = after;
    return true;
  }

  // What follows the first 00 00 01; data is null if there is none.
  static Bytes after_start_code(Bytes b) {
    // A one is rarer than a zero, so memchr passes over most of the data at once.
    for (std::size_t i = 2; i < b.size; ++i) {
      const void* one = std::memchr(b.data + i, 1, b.size - i);
      if (!one) break;
      i = static_cast<std::size_t>(static_cast<const std::uint8_t*>(one) - b.data);
      if (b[i - 1] == 0 && b[i - 2] == 0) return {b.data + i + 1, b.size - i - 1};
    }
    return {};
  }

  Bytes rest_;
  int length_size_;
  bool damaged_ = false;
};

// True if all messages of a unit concern nothing but the picture they come with. payload: the unit without its header.
//
// Others, such as recovery points or the orientation for display, stay in force for later pictures.
bool sei_of_this_picture_only(Bytes payload);

}  // namespace mmcore
