// What the makers of device tables share: the block as it grows, and questions about taps.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "frames_plan.h"
#include "mmcore/frames_tables.h"

namespace mmcore {

// The block as it grows; every table begins at a multiple of 16 bytes.
class TablesBlock {
 public:
  TablesBlock() : bytes_((sizeof(FramesTables) + 15) / 16 * 16) {}
  template <typename T>
  std::int32_t put(const std::vector<T>& values) {
    const std::size_t at = bytes_.size(), size = values.size() * sizeof(T);
    bytes_.resize((at + size + 15) / 16 * 16);
    if (size) std::memcpy(bytes_.data() + at, values.data(), size);
    return static_cast<std::int32_t>(at);
  }
  std::vector<std::uint8_t> finish(FramesTables tables) {
    tables.bytes = static_cast<std::int32_t>(bytes_.size());
    std::memcpy(bytes_.data(), &tables, sizeof(tables));
    return std::move(bytes_);
  }

 private:
  std::vector<std::uint8_t> bytes_;
};

// Most outputs that one input row counts for; 0 where rows do not come in order.
int live_outputs(const AxisTaps& rows);

// Windows of inputs that `size` outputs at a time read, from a multiple of `align`, in chunks of 16.
struct Windows {
  std::vector<std::int32_t> first, chunk{0};
};

Windows windows(const AxisTaps& taps, int size, int align);

// The weight of an input for an output; 0 outside of either.
double weight_at(const AxisTaps& taps, int output, int input);

// Whether planes hold one component each, or two that take turns.
bool separate_planes(const FramesTables& t);

// Tables for products of whole numbers, where planes hold one component each, or two that take turns, and their rows are
// wanted in order. `half_rows`: chroma has half as many.
void make_integer_tables(TablesBlock& block, FramesTables& t, const ConvertAxes& axes, int bits, bool half_rows);

}  // namespace mmcore
