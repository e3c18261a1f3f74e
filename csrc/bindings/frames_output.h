// Where frames go, as Python describes it: (data pointer, frame, channel, row and pixel stride, patch_size,
// temporal_patch_size, merge_size).
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>

#include "mmcore/frames.h"

using Output = std::tuple<std::uintptr_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, int, int, int>;

inline mmcore::OutputDesc output_desc(const Output& o) {
  mmcore::OutputDesc d;
  d.data = reinterpret_cast<void*>(std::get<0>(o));
  d.frame_stride = static_cast<std::ptrdiff_t>(std::get<1>(o));
  d.channel_stride = static_cast<std::ptrdiff_t>(std::get<2>(o));
  d.row_stride = static_cast<std::ptrdiff_t>(std::get<3>(o));
  d.pixel_stride = static_cast<std::ptrdiff_t>(std::get<4>(o));
  d.patch_size = std::get<5>(o);
  d.temporal_patch_size = std::get<6>(o);
  d.merge_size = std::get<7>(o);
  return d;
}
