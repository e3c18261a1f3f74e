// The filters and coefficients of one (source format and size, transform) pair, as the kernels read them.
//
// Resizing is linear, so one matrix per axis and plane holds it: resize rows (as torch defines them), times the
// linear chroma upsampling to the luma grid for subsampled planes, restricted to the rows and columns that the
// crop keeps. Built in double, rounded to float once.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "frames_kernels.h"
#include "mmcore/frames.h"

namespace mmcore {

// One axis: output i is sum_k weight[i][k] * input[start[i] + k]. Weights are untrimmed doubles.
struct AxisTaps {
  int size_in = 0;
  std::vector<int> start;
  std::vector<std::vector<double>> weight;
  double max_weight = 0;  // over the whole axis, as torch's fixed-point path wants it

  int first() const;  // first input needed
  int last() const;   // one past the last input needed
  bool is_identity() const;  // output i is exactly input first() + i
};

// The rows [begin, begin + count) of torch's interpolation matrix from size_in to size_out.
AxisTaps resize_taps(int size_in, int size_out, int begin, int count, Interpolation interpolation, bool antialias);

// `taps` act on a luma axis of length size_luma; the same acting on the chroma axis, of length
// ceil(size_luma / 2): taps times linear upsampling (position of luma x on the chroma axis: x / 2 + shift), or
// times replication.
AxisTaps chroma_taps(const AxisTaps& taps, int size_luma, double shift, bool replicate);

// Rows and columns of the result, the latter mirrored where the spec says so.
std::pair<AxisTaps, AxisTaps> output_taps(const FramesSpec& spec);

// What rows and columns mean for luma (or the only axis) and for chroma: axis[luma, chroma][rows, columns], without
// weights too small to matter.
struct ConvertAxes {
  AxisTaps axis[2][2];
};
ConvertAxes convert_axes(const FramesSpec& spec, AxisTaps rows, AxisTaps columns);

// Component values to levels (bytes) or to the transform's values.
Affine affine(const FramesSpec& spec, bool bytes);

// Weights of a resize on bytes, as torch and Pillow take them.
int fixed_point_precision(double max_weight);
std::int16_t fixed_point(double weight, int precision);

constexpr int kMaxAhead = 16;

struct VerticalFilter {
  std::vector<int> start, count;
  std::vector<int> ahead;  // rows after start + count that the next output is the first to read
  std::vector<std::size_t> offset;  // into weight
  std::vector<float> weight;
  int max_count = 0;
};

struct PlaneStage {
  int plane = 0;
  int sample_begin = 0, sample_count = 0;  // of a row, in samples; the part that the columns need
  const VerticalFilter* vertical = nullptr;
  // Rows are filtered horizontally from bytes as they come, a few kept, and summed; else samples are summed first.
  bool horizontal_first = false;
};

struct ComponentStage {
  int plane_stage = 0;
  int offset = 0, step = 1;  // inside the plane stage's row of samples
  int columns = 0;
  const HorizontalFilter* horizontal = nullptr;
};

// Planes to three rows of raw component values at the stage's output size, then the affine to RGB.
struct ConvertStage {
  int rows = 0, columns = 0;
  VerticalFilter vertical[2];      // luma, chroma
  HorizontalFilter horizontal[2];
  std::vector<PlaneStage> planes;
  std::vector<ComponentStage> components;
  Affine affine;
};

// Fixed-point 8-bit resampling, as torch and Pillow do it: horizontal first, bytes in between.
struct BytesStage {
  bool area = false;
  VerticalFilter vertical;  // start and count; weight only for area (1/count is applied at the end)
  std::vector<std::int16_t> vertical_weight;
  int vertical_precision = 0;
  BytesFilter horizontal;
  std::vector<int> area_start, area_count;  // columns, when area
};

class FramesPlan {
 public:
  explicit FramesPlan(const FramesSpec& spec, Isa isa = active_isa());
  FramesPlan(const FramesPlan&) = delete;
  FramesPlan& operator=(const FramesPlan&) = delete;

  FramesSpec spec;
  const FramesKernels* kernels;
  ConvertStage convert;
  bool bytes = false;   // through 8-bit RGB (accuracy rgb8, or uint8 at the source's size)
  bool resample = false;  // ... and resized there
  BytesStage bytes_stage;
};

}  // namespace mmcore
