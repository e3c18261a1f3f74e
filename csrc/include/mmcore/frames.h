// frames_to_tensor: one pass from the planes of a decoded frame to a model's input tensor.
//
// Contract
//   in    up to four planes by pointer and pitch (bytes, may be negative), u8 or little-endian u16 samples,
//         described by FormatDesc. Only the rows and columns that the crop needs are read, never a byte past
//         the last sample of a row. Planes are not modified and must not overlap the output.
//   out   (3, out_h, out_w) values of one frame, written through OutputDesc's strides (in elements) or as ViT
//         patches. Every element of the frame's slot is written.
//   value level = clamp(color * matrix * resize(planes), 0, 255);  value = level * mul + add   (accuracy fused)
//         or the 8-bit RGB pipeline of accuracy rgb8, see frames_plan.h.
//   cost  O(rows * columns needed) reads, one write of the output; scratch of a few rows per thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mmcore/dtype.h"

namespace mmcore {

enum class Interpolation : int { kNearest = 0, kBilinear = 1, kBicubic = 2, kArea = 3 };
enum class Accuracy : int { kFused = 0, kRgb8 = 1 };
enum class ChromaLocation : int { kLeft = 0, kCenter = 1, kTopLeft = 2, kNearest = 3 };
enum class ColorFamily : int { kYuv = 0, kGray = 1, kRgb = 2 };

struct ComponentDesc {
  int plane = 0;   // which plane holds the component
  int offset = 0;  // first sample in a row, in samples
  int step = 1;    // distance to the next sample, in samples
};

struct FormatDesc {
  ColorFamily family = ColorFamily::kYuv;
  ComponentDesc component[3];  // Y,U,V / Y / R,G,B
  int bits = 8;                // significant bits; above 8 samples are u16
  int shift = 0;               // right shift of a stored sample
  int log2_chroma_w = 0;
  int log2_chroma_h = 0;
};

struct FramesSpec {
  FormatDesc format;
  int height = 0, width = 0;            // source, in pixels
  int resize_h = 0, resize_w = 0;       // size after the resize
  int top = 0, left = 0;                // crop inside the resized frame
  int out_h = 0, out_w = 0;
  Interpolation interpolation = Interpolation::kBilinear;
  bool antialias = true;
  ChromaLocation chroma = ChromaLocation::kLeft;
  double kr = 0.299, kb = 0.114;        // luma coefficients of the matrix
  bool full_range = false;
  bool has_color = false;                // accuracy fused: R, G, B levels become color * (R, G, B, 1)
  double color[3][4] = {{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}};
  bool horizontal_flip = false;          // of the result
  Accuracy accuracy = Accuracy::kFused;
  DType dtype = DType::kF32;
  double mul[3] = {1, 1, 1}, add[3] = {0, 0, 0};  // fused: value = level * mul + add
  float sub[3] = {0, 0, 0}, div[3] = {1, 1, 1};   // rgb8:  value = (level - sub) / div, in float32 ...
  bool scale_only = false;                        // ... or level * scale where no mean or std is given
  float scale = 1;
};

// Where a frame's values go. Strides are in elements. With patch_size > 0 the other strides are ignored.
struct OutputDesc {
  void* data = nullptr;  // first element of the whole batch
  std::ptrdiff_t frame_stride = 0, channel_stride = 0, row_stride = 0, pixel_stride = 1;
  int patch_size = 0, temporal_patch_size = 1, merge_size = 1;
};

class FramesPlan;  // the filters and coefficients of one (source, transform) pair; immutable, shared by threads

std::shared_ptr<const FramesPlan> make_frames_plan(const FramesSpec& spec);

// What a plan reads of a plane: rows, and samples of each.
struct PlaneRegion {
  int plane = 0, first_row = 0, rows = 0, first_sample = 0, samples = 0;
};
std::vector<PlaneRegion> plane_regions(const FramesPlan& plan);

// Convert one frame into slot `frame` of the output. `planes[p]`, `pitches[p]`: as FormatDesc counts them.
// Thread-safe; allocates only thread-local scratch. Throws std::bad_alloc alone.
void frames_to_tensor(const FramesPlan& plan, const std::uint8_t* const* planes, const std::ptrdiff_t* pitches,
                      const OutputDesc& out, std::int64_t frame);

// Convert `count` frames, `planes + 4 * i` and `pitches + 4 * i` each, into slots first_frame + i, on up to
// `threads` threads. The result does not depend on the number of threads.
void frames_to_tensor_batch(const FramesPlan& plan, const std::uint8_t* const* planes, const std::ptrdiff_t* pitches,
                            std::int64_t count, const OutputDesc& out, std::int64_t first_frame, int threads);

}  // namespace mmcore
