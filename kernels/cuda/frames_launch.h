// How the frames kernels are launched, as far as it needs no device: tests run it on the CPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>

#include "frames_body.h"

namespace mmcore::cuda {

// The most shared memory that blocks of kernels have been allowed, on each device.
class SharedLimits {
 public:
  // Calls set() if a block of the kernel may not ask for so many bytes yet. Never for fewer than before: what is set is
  // a limit, and a launch with more may come again.
  template <typename Set>
  void allow(int device, const void* kernel, std::size_t bytes, Set set) {
    std::size_t& most = most_[{device, kernel}];
    if (bytes <= most) return;
    set();
    most = bytes;
  }

 private:
  std::map<std::pair<int, const void*>, std::size_t> most_;
};

static_assert(kStageRows % kStripAlign == 0, "strips begin at multiples of kStageRows");

// Output rows of a strip: few enough strips that little is read twice, in a number that fills the device evenly.
inline int choose_strip_rows(int out_h, int blocks_per_strip, int resident) {
  int best = out_h;
  double best_cost = 0;
  for (int strips = 1; strips <= (out_h + kStageRows - 1) / kStageRows; ++strips) {
    const int rows = ((out_h + strips - 1) / strips + kStageRows - 1) / kStageRows * kStageRows;
    const std::int64_t total = static_cast<std::int64_t>((out_h + rows - 1) / rows) * blocks_per_strip;
    // a block also reads about an output row's worth above its strip and one below, and has a pipeline to fill
    const double cost = static_cast<double>((total + resident - 1) / resident) * (rows + 2.5);
    if (strips == 1 || cost < best_cost) {
      best = rows;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace mmcore::cuda
