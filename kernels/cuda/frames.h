// frames_to_tensor on a CUDA device: planes in device memory to the tensor, the same contract and taps as the CPU's
// (csrc/include/mmcore/frames.h).
//
// Contract
//   in      per frame up to three planes by device pointer and pitch (bytes, may be negative) and the address of its
//           FramesTables on the device. Rows are read in whole groups of up to 16 bytes that begin inside the row;
//           nothing past a row's last sample is read.
//   out     through OutputDesc, as on the CPU; frame i goes to slot `slot`.
//   stream  everything is launched on it; nothing is copied, allocated or waited for, so launches can be captured.
//   errors  std::runtime_error with CUDA's words.
#pragma once

#include <cstdint>
#include <vector>

#include "mmcore/frames.h"
#include "mmcore/frames_tables.h"

namespace mmcore::cuda {

struct Frame {
  const std::uint8_t* planes[3] = {};
  std::int64_t pitches[3] = {};
  const FramesTables* host = nullptr;   // what the kernel's shape depends on
  const std::uint8_t* tables = nullptr; // the same on the device
  std::int32_t slot = 0;
};

// Bytes of device memory that frames_to_tensor needs besides: the full-size RGB of resizes on bytes.
std::size_t scratch_bytes(const std::vector<Frame>& frames);

enum class Method : int { kAuto = 0, kGather = 1, kStream = 2, kMatrix = 3, kInteger = 4 };

// Whether kAuto takes whole-number products where they read little in vain. Not measured on a GPU yet: until then no.
constexpr bool kIntegerByDefault = false;

// The way a frame is converted: the wanted one where it can be, kAuto where RGB bytes are resized. Measured on an H200:
// streaming wins where few outputs are live (bilinear, area), the products for bicubic and where nothing is shrunk.
// Devices before compute capability 8.0 do not take kInteger.
inline Method method_of(const FramesTables& t, Method wanted, bool byte_products = true) {
  if (t.bytes_table.resample) return Method::kAuto;
  if (t.integer && byte_products) {
    if (wanted == Method::kInteger || (wanted == Method::kAuto && kIntegerByDefault && t.integer_dense)) {
      return Method::kInteger;
    }
  }
  if (wanted == Method::kInteger) wanted = Method::kAuto;
  if (wanted == Method::kGather || (t.live == 0 && t.matrix == 0)) return Method::kGather;
  if (wanted == Method::kAuto) wanted = t.live == 3 ? Method::kStream : Method::kMatrix;
  if (wanted == Method::kMatrix) return t.matrix ? Method::kMatrix : Method::kStream;
  return t.live ? Method::kStream : Method::kGather;
}

void frames_to_tensor(const std::vector<Frame>& frames, const OutputDesc& out, void* scratch, std::uintptr_t stream,
                      Method method = Method::kAuto);

}  // namespace mmcore::cuda
