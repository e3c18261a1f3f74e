// tensor_to_planes: RGB tensors to the planes that a video encoder takes, the inverse of frames_to_tensor.
//
//   level_c = clamp(value_c * mul_c + add_c, 0, 255)                  c in R, G, B; NaN counts as 0
//   y       = Kr R + Kg G + Kb B,  Kg = 1 - Kr - Kb                   in levels
//   Y       = round(y * (white - black) / 255 + black)
//   U, V    = round(mean(B - y) / (2 (1 - Kb)) * chroma / 255 + middle), and R, Kr for V
//
// where mean is over the luma samples around a chroma sample (see ChromaLocation in frames.h). Sums are linear in the
// clamped levels, so it does not matter that they are taken before the matrix. Rounded once, half to even, undithered.
// Multiplies and adds are never contracted, so that every instruction set gives the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mmcore/dtype.h"
#include "mmcore/frames.h"

namespace mmcore {

struct PlanesSpec {
  FormatDesc format;
  int height = 0, width = 0;
  ChromaLocation chroma = ChromaLocation::kLeft;
  double kr = 0.299, kb = 0.114;
  bool full_range = false;
  bool opaque = false;             // packed RGB whose fourth sample is alpha: written as opaque
  DType dtype = DType::kF32;       // of the tensor: kU8, kF16, kBF16 or kF32
  double mul[3] = {1, 1, 1};
  double add[3] = {0, 0, 0};
};

// Where the tensor lies; strides in elements. Any of them may be 0.
struct TensorDesc {
  const void* data = nullptr;
  std::ptrdiff_t frame_stride = 0, channel_stride = 0, row_stride = 0, pixel_stride = 1;
};

// Converts `count` frames; planes and pitches (bytes) hold four entries for each, and only the samples of the format are
// written. The tensor and the planes must not overlap. Returns the number of the first frame with a NaN or an
// infinity, or -1. Throws std::invalid_argument for a format or dtype that it does not write.
std::int64_t tensor_to_planes(const PlanesSpec& spec, const TensorDesc& tensor, std::int64_t count,
                              std::uint8_t* const* planes, const std::ptrdiff_t* pitches, int threads);

}  // namespace mmcore
