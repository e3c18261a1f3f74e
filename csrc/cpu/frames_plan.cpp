#include "frames_plan.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace mmcore {

namespace {

double triangle(double x) {
  x = std::fabs(x);
  return x < 1 ? 1 - x : 0;
}

// Keys' cubic. torch takes a = -1/2 with antialias, as Pillow does, and -3/4 without.
double cubic(double x, double a) {
  x = std::fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return 0;
}

void antialias_row(AxisTaps& taps, double scale, int i, bool bicubic) {
  const double width = bicubic ? 4 : 2;
  const double support = scale >= 1 ? width * 0.5 * scale : width * 0.5;
  const double center = scale * (i + 0.5), invscale = scale >= 1 ? 1 / scale : 1;
  const int first = std::max(static_cast<int>(center - support + 0.5), 0);
  int count = std::min(static_cast<int>(center + support + 0.5), taps.size_in) - first;
  count = std::min(count, static_cast<int>(std::ceil(support)) * 2 + 1);
  std::vector<double> w(std::max(count, 0));
  double total = 0;
  for (int j = 0; j < count; ++j) {
    const double x = (j + first - center + 0.5) * invscale;
    w[j] = bicubic ? cubic(x, -0.5) : triangle(x);
    total += w[j];
  }
  for (double& v : w) {
    v /= total;
    taps.max_weight = std::max(taps.max_weight, v);
  }
  taps.start.push_back(first);
  taps.weight.push_back(std::move(w));
}

// Without antialias: 2 or 4 taps around the centre, those outside the axis moved to its ends.
void plain_row(AxisTaps& taps, double scale, int i, bool bicubic) {
  double x = scale * (i + 0.5) - 0.5;
  if (!bicubic) x = std::max(x, 0.0);
  const int index = std::min(static_cast<int>(std::floor(x)), taps.size_in - 1);
  const double lambda = std::min(std::max(x - index, 0.0), 1.0);
  const int support = bicubic ? 2 : 1, first = std::max(index - support + 1, 0);
  const int count = std::min(index + support + 1, taps.size_in) - first;
  std::vector<double> w(count, 0.0);
  int at = 0;
  for (int j = 0; j < 2 * support; ++j) {
    const double d = j + 1 - support - lambda;
    const int input = index - support + 1 + j;
    if (input <= 0) {
      at = 0;
    } else if (input >= taps.size_in - 1) {
      at = count - 1;
    }
    w[at] += bicubic ? cubic(d, -0.75) : triangle(d);
    taps.max_weight = std::max(taps.max_weight, w[at]);  // of running sums, as torch's fixed-point path takes it
    ++at;
  }
  taps.start.push_back(first);
  taps.weight.push_back(std::move(w));
}

void area_row(AxisTaps& taps, int size_out, int i) {
  const std::int64_t in = taps.size_in;
  const int first = static_cast<int>(i * in / size_out);
  const int last = static_cast<int>(((i + 1) * in + size_out - 1) / size_out);
  taps.start.push_back(first);
  taps.weight.emplace_back(last - first, 1.0 / (last - first));
}

void nearest_row(AxisTaps& taps, int size_out, int i) {
  // torch's "nearest" in float32: its rounding is part of the contract
  const float scale = static_cast<float>(taps.size_in) / static_cast<float>(size_out);
  int index = static_cast<int>(std::floor(static_cast<float>(i) * scale));
  if (size_out == taps.size_in) index = i;
  if (size_out == 2 * taps.size_in) index = i >> 1;
  taps.start.push_back(std::min(index, taps.size_in - 1));
  taps.weight.emplace_back(1, 1.0);
}

// Drop weights too small to matter at either end; they would only widen the reads.
void trim(int& start, std::vector<double>& w) {
  constexpr double kTiny = 1e-12;
  while (w.size() > 1 && std::fabs(w.back()) < kTiny) w.pop_back();
  std::size_t lead = 0;
  while (lead + 1 < w.size() && std::fabs(w[lead]) < kTiny) ++lead;
  w.erase(w.begin(), w.begin() + static_cast<std::ptrdiff_t>(lead));
  start += static_cast<int>(lead);
}

void trim(AxisTaps& taps) {
  for (std::size_t i = 0; i < taps.start.size(); ++i) trim(taps.start[i], taps.weight[i]);
}

VerticalFilter vertical_filter(const AxisTaps& taps) {
  VerticalFilter f;
  for (std::size_t i = 0; i < taps.start.size(); ++i) {
    const auto& w = taps.weight[i];
    f.start.push_back(taps.start[i]);
    f.count.push_back(static_cast<int>(w.size()));
    f.offset.push_back(f.weight.size());
    for (double v : w) f.weight.push_back(static_cast<float>(v));
    f.max_count = std::max(f.max_count, static_cast<int>(w.size()));
  }
  for (std::size_t i = 0; i + 1 < f.start.size(); ++i) {
    const int seen = f.start[i] + f.count[i];
    // Upside-down or sparse rows (nearest) have none that come next in this sense.
    f.ahead.push_back(std::min(std::max(f.start[i + 1] + f.count[i + 1] - seen, 0), kMaxAhead));
  }
  f.ahead.push_back(0);
  return f;
}

// Where a window of `taps` inputs that holds an output's inputs starts: an output with fewer taps than the longest
// one has must not read far past the end of the row, so its window is moved back and begins with zero weights.
int padded_start(int start, int taps, int size_in) { return std::min(start, std::max(size_in - taps, 0)); }

// kDot weights. 8 lanes or more: per group of 8 outputs and chunk of 4 taps, 4 vectors of 8 with outputs i and
// i + 4 side by side, so that two levels of pairwise adds leave the 8 outputs in order. Else: [output][taps].
void dot_layout(HorizontalFilter& f, const AxisTaps& taps, int x0) {
  int longest = 1;
  for (const auto& w : taps.weight) longest = std::max(longest, static_cast<int>(w.size()));
  const int size_in = taps.last() - x0;
  f.kind = HorizontalKind::kDot;
  f.taps = (longest + 3) / 4 * 4;
  const int padded = (f.size + 15) / 16 * 16;
  f.start.assign(padded, 0);
  f.weight.assign(static_cast<std::size_t>(padded) * f.taps, 0.0f);
  for (int i = 0; i < f.size; ++i) {
    f.start[i] = padded_start(taps.start[i] - x0, f.taps, size_in);
    const int lead = taps.start[i] - x0 - f.start[i];
    for (int j = 0; j < static_cast<int>(taps.weight[i].size()); ++j) {
      const int k = lead + j;
      std::size_t at = static_cast<std::size_t>(i) * f.taps + k;
      if (f.lanes >= 8) {
        const std::size_t group = i / 8, lane = i % 8;
        at = ((group * (f.taps / 4) + k / 4) * 4 + lane % 4) * 8 + lane / 4 * 4 + k % 4;
      }
      f.weight[at] = static_cast<float>(taps.weight[i][j]);
    }
  }
}

// Chroma at the picture's own size: outputs i and i + 2 have the same weights, one input further on.
bool upsample2_layout(HorizontalFilter& f, const AxisTaps& taps, int x0) {
  auto repeats = [&](int i) { return taps.start[i + 2] == taps.start[i] + 1 && taps.weight[i + 2] == taps.weight[i]; };
  for (const auto& w : taps.weight) {
    if (w.size() > 2) return false;
  }
  // The first and last outputs may differ where chroma ends; the run between must be the rest.
  int begin = 0, end = f.size;
  while (begin < 3 && begin + 2 < f.size && !repeats(begin)) ++begin;
  while (end > f.size - 3 && end - 3 >= begin && !repeats(end - 3)) --end;
  for (int i = begin; i + 2 < end; ++i) {
    if (!repeats(i)) return false;
  }
  const int pairs = (end - begin) / 2;
  if (pairs < 4) return false;
  f.kind = HorizontalKind::kUpsample2;
  f.begin = begin;
  f.pairs = pairs;
  for (int phase = 0; phase < 2; ++phase) {
    f.pair_start[phase] = taps.start[begin + phase] - x0;
    for (std::size_t k = 0; k < taps.weight[begin + phase].size(); ++k) {
      f.pair[phase][k] = static_cast<float>(taps.weight[begin + phase][k]);
    }
  }
  for (int i = 0; i < f.size; ++i) {
    if (i >= begin && i < begin + 2 * pairs) continue;
    f.edge_output.push_back(i);
    f.edge_start.push_back(taps.start[i] - x0);
    f.edge_weight.push_back(static_cast<float>(taps.weight[i][0]));
    f.edge_weight.push_back(taps.weight[i].size() > 1 ? static_cast<float>(taps.weight[i][1]) : 0.0f);
  }
  return true;
}

HorizontalFilter horizontal_filter(const AxisTaps& taps, int x0, int lanes) {
  HorizontalFilter f;
  f.size = static_cast<int>(taps.start.size());
  f.lanes = lanes;
  if (taps.is_identity()) return f;
  if (upsample2_layout(f, taps, x0)) return f;
  int longest = 0, span = 0;
  for (const auto& w : taps.weight) longest = std::max(longest, static_cast<int>(w.size()));
  if (lanes > 1) {
    for (int g = 0; g < f.size; g += lanes) {
      int low = taps.start[g], high = 0;
      for (int i = g; i < std::min(g + lanes, f.size); ++i) {
        low = std::min(low, taps.start[i]);
        high = std::max(high, taps.start[i] + static_cast<int>(taps.weight[i].size()));
      }
      span = std::max(span, high - low);
    }
  }
  // A permute tap is 2 operations for `lanes` outputs. Over two registers it is as cheap only where one
  // instruction selects from both, which AVX2 lacks; dot products take over there and where taps are many.
  const bool two_registers = lanes != 8 && longest <= 6;
  if (lanes <= 1 || span > (two_registers ? 2 : 1) * lanes) {
    dot_layout(f, taps, x0);
    return f;
  }
  f.kind = HorizontalKind::kPermute;
  f.registers = span <= lanes ? 1 : 2;
  f.taps = longest;
  for (int g = 0; g < f.size; g += lanes) {
    int low = taps.start[g];
    for (int i = g; i < std::min(g + lanes, f.size); ++i) low = std::min(low, taps.start[i]);
    f.start.push_back(low - x0);
    for (int k = 0; k < f.taps; ++k) {
      for (int i = g; i < g + lanes; ++i) {
        const bool used = i < f.size && k < static_cast<int>(taps.weight[i].size());
        f.index.push_back(used ? taps.start[i] + k - low : 0);
        f.weight.push_back(used ? static_cast<float>(taps.weight[i][k]) : 0.0f);
      }
    }
  }
  return f;
}

// kBytes, where every 4 outputs read from 16 bytes.
bool bytes_layout(HorizontalFilter& f, const AxisTaps& taps, int x0, int lanes) {
  constexpr int kWindow = 16;
  const int size = static_cast<int>(taps.start.size()), size_in = taps.last() - x0;
  if (lanes == 0 || size_in < kWindow) return false;
  HorizontalFilter b;
  b.kind = HorizontalKind::kBytes;
  b.size = size;
  b.lanes = lanes;
  for (const auto& w : taps.weight) b.taps = std::max(b.taps, static_cast<int>(w.size()));
  const int groups = (size + lanes - 1) / lanes;
  b.bytes.assign(static_cast<std::size_t>(groups) * b.taps * lanes * 4, -1);
  b.weight.assign(static_cast<std::size_t>(groups) * b.taps * lanes, 0.0f);
  for (int four = 0; four < groups * lanes; four += 4) {
    int low = size_in, high = 0;
    for (int i = four; i < std::min(four + 4, size); ++i) {
      low = std::min(low, taps.start[i] - x0);
      high = std::max(high, taps.start[i] - x0 + static_cast<int>(taps.weight[i].size()));
    }
    low = std::min(low, size_in - kWindow);  // no byte past the row's end is read
    if (high - low > kWindow) return false;
    b.start.push_back(low);
    for (int i = four; i < std::min(four + 4, size); ++i) {
      for (int k = 0; k < static_cast<int>(taps.weight[i].size()); ++k) {
        const std::size_t at = (static_cast<std::size_t>(i / lanes) * b.taps + k) * lanes + i % lanes;
        b.bytes[4 * at] = static_cast<std::int8_t>(taps.start[i] - x0 + k - low);
        b.weight[at] = static_cast<float>(taps.weight[i][k]);
      }
    }
  }
  f = std::move(b);
  return true;
}

// Operations of one row through a horizontal filter per vector of outputs; a model, good to a third on AVX2.
double horizontal_cost(const HorizontalFilter& f) {
  switch (f.kind) {
    case HorizontalKind::kIdentity:
      return 0;
    case HorizontalKind::kUpsample2:
      return 4;
    case HorizontalKind::kPermute:
      return f.taps * (2 * f.registers + 1);
    case HorizontalKind::kBytes:
      return 3 * f.taps + 3;
    default:
      return 2.75 * f.taps + 9;
  }
}

// Which pass goes first. Samples summed first: 3 operations a tap over the columns read, then the horizontal
// filter once per output row. Bytes filtered first: once per row read, then 1 operation a tap over the columns
// written.
bool bytes_first(const VerticalFilter& v, const HorizontalFilter& bytes, const HorizontalFilter& other, int columns) {
  double taps = 0;
  for (int count : v.count) taps += count;
  const double rows_out = static_cast<double>(v.start.size()), rows_in = v.start.back() + v.count.back() - v.start[0];
  const double ratio = static_cast<double>(columns) / bytes.size;
  return rows_in * horizontal_cost(bytes) + 1.5 * taps < 3 * taps * ratio + rows_out * horizontal_cost(other);
}

}  // namespace

int fixed_point_precision(double max_weight) {
  // as torch and Pillow: the most bits for which the largest weight still fits 16 bits
  int precision = 0;
  for (; precision < 22; ++precision) {
    if (static_cast<int>(0.5 + max_weight * (1 << (precision + 1))) >= (1 << 15)) break;
  }
  return precision;
}

std::int16_t fixed_point(double w, int precision) {
  const double v = w * (1 << precision);
  return static_cast<std::int16_t>(v < 0 ? static_cast<int>(-0.5 + v) : static_cast<int>(0.5 + v));
}

namespace {

// The window form of BytesFilter; false where 4 outputs need more than 16 bytes.
bool bytes_windows(BytesFilter& h, const AxisTaps& columns, int x0) {
  constexpr int kLanes = 8, kWindow = 16;
  const int pairs = (h.taps + 1) / 2, groups = (h.size + kLanes - 1) / kLanes;
  std::vector<std::int8_t> bytes(static_cast<std::size_t>(groups) * pairs * kLanes * 4, -1);
  std::vector<std::int16_t> weight(static_cast<std::size_t>(groups) * pairs * kLanes * 2, 0);
  std::vector<int> start;
  for (int four = 0; four < groups * kLanes; four += 4) {
    const int end = std::min(four + 4, h.size);
    int low = four < end ? columns.start[four] : x0, high = low;
    for (int i = four; i < end; ++i) {
      low = std::min(low, columns.start[i]);
      high = std::max(high, columns.start[i] + static_cast<int>(columns.weight[i].size()));
    }
    if (high - low > kWindow) return false;
    start.push_back(low - x0);
    for (int i = four; i < end; ++i) {
      for (int k = 0; k < static_cast<int>(columns.weight[i].size()); ++k) {
        const std::size_t lane = (static_cast<std::size_t>(i / kLanes) * pairs + k / 2) * kLanes + i % kLanes;
        bytes[4 * lane + 2 * (k % 2)] = static_cast<std::int8_t>(columns.start[i] + k - low);
        weight[2 * lane + k % 2] = fixed_point(columns.weight[i][k], h.precision);
      }
    }
  }
  h.windows = true;
  h.start = std::move(start);
  h.bytes = std::move(bytes);
  h.weight = std::move(weight);
  return true;
}

BytesFilter bytes_filter(const AxisTaps& columns, int x0, int byte_lanes) {
  BytesFilter h;
  h.size = static_cast<int>(columns.start.size());
  h.precision = fixed_point_precision(columns.max_weight);
  h.taps = 1;
  for (const auto& w : columns.weight) h.taps = std::max(h.taps, static_cast<int>(w.size()));
  if (byte_lanes == 8 && bytes_windows(h, columns, x0)) return h;
  h.taps = (h.taps + 15) / 16 * 16;
  const int size_in = columns.last() - x0;
  const std::size_t padded = (columns.start.size() + 3) / 4 * 4;
  h.start.assign(padded, 0);
  h.weight.assign(padded * h.taps, 0);
  for (std::size_t i = 0; i < columns.start.size(); ++i) {
    h.start[i] = padded_start(columns.start[i] - x0, h.taps, size_in);
    const std::size_t lead = static_cast<std::size_t>(columns.start[i] - x0 - h.start[i]);
    for (std::size_t k = 0; k < columns.weight[i].size(); ++k) {
      h.weight[i * h.taps + lead + k] = fixed_point(columns.weight[i][k], h.precision);
    }
  }
  return h;
}

BytesStage bytes_stage(const AxisTaps& rows, const AxisTaps& columns, int y0, int x0, bool area, int byte_lanes) {
  BytesStage s;
  s.area = area;
  s.vertical = vertical_filter(rows);
  for (int& v : s.vertical.start) v -= y0;
  if (area) {
    for (std::size_t i = 0; i < columns.start.size(); ++i) {
      s.area_start.push_back(columns.start[i] - x0);
      s.area_count.push_back(static_cast<int>(columns.weight[i].size()));
    }
    return s;
  }
  s.vertical_precision = fixed_point_precision(rows.max_weight);
  for (const auto& w : rows.weight) {
    for (double v : w) s.vertical_weight.push_back(fixed_point(v, s.vertical_precision));
  }
  s.horizontal = bytes_filter(columns, x0, byte_lanes);
  return s;
}

// Raw component values to R, G, B levels 0-255: level_c = sum_j m[c][j] * raw_j + b[c].
void rgb_matrix(const FramesSpec& spec, double m[3][3], double b[3]) {
  const FormatDesc& f = spec.format;
  const double top = (1 << f.bits) - 1, unit = 1 << (f.bits - 8);
  for (int c = 0; c < 3; ++c) {
    b[c] = 0;
    for (int j = 0; j < 3; ++j) m[c][j] = 0;
  }
  if (f.family == ColorFamily::kRgb) {
    for (int c = 0; c < 3; ++c) m[c][c] = 255 / top;
    return;
  }
  // The order of these operations is the reference backend's: coefficients must round to the same floats.
  const double y_mul = spec.full_range ? 255 / top : 255 / (219 * unit), black = spec.full_range ? 0 : 16 * unit;
  const double c_mul = spec.full_range ? 255 / top : 255 / (224 * unit), middle = 128 * unit;
  const double kr = spec.kr, kb = spec.kb, kg = 1 - kr - kb;
  if (f.family == ColorFamily::kYuv) {
    m[0][2] = c_mul * (2 * (1 - kr));
    m[1][1] = c_mul * (-2 * kb * (1 - kb) / kg);
    m[1][2] = c_mul * (-2 * kr * (1 - kr) / kg);
    m[2][1] = c_mul * (2 * (1 - kb));
  }
  for (int c = 0; c < 3; ++c) {
    m[c][0] = y_mul;
    b[c] = -(black * y_mul + middle * (m[c][1] + m[c][2]));
  }
}

// ... and on through the colour matrix, in the reference backend's order of operations.
void level_matrix(const FramesSpec& spec, double m[3][3], double b[3]) {
  rgb_matrix(spec, m, b);
  if (!spec.has_color) return;
  double rgb[3][4];
  for (int c = 0; c < 3; ++c) {
    for (int j = 0; j < 3; ++j) rgb[c][j] = m[c][j];
    rgb[c][3] = b[c];
  }
  for (int c = 0; c < 3; ++c) {
    const double* w = spec.color[c];
    for (int j = 0; j < 3; ++j) m[c][j] = w[0] * rgb[0][j] + w[1] * rgb[1][j] + w[2] * rgb[2][j];
    b[c] = w[0] * rgb[0][3] + w[1] * rgb[1][3] + w[2] * rgb[2][3] + w[3];
  }
}

}  // namespace

Affine affine(const FramesSpec& spec, bool bytes) {
  double m[3][3], b[3];
  level_matrix(spec, m, b);
  Affine a;
  a.kind = spec.format.family == ColorFamily::kGray  ? Affine::Kind::kGray
           : spec.has_color                          ? Affine::Kind::kFull
           : spec.format.family == ColorFamily::kYuv ? Affine::Kind::kYuv
                                                     : Affine::Kind::kRgb;
  for (int c = 0; c < 3; ++c) {
    const double mul = bytes ? 1 : spec.mul[c], add = bytes ? 0 : spec.add[c];
    for (int j = 0; j < 3; ++j) a.m[c][j] = static_cast<float>(m[c][j] * mul);
    a.b[c] = static_cast<float>(b[c] * mul + add);
    const double ends[2] = {add, 255 * mul + add};
    a.lo[c] = static_cast<float>(std::min(ends[0], ends[1]));
    a.hi[c] = static_cast<float>(std::max(ends[0], ends[1]));
  }
  return a;
}

ConvertAxes convert_axes(const FramesSpec& spec, AxisTaps rows, AxisTaps columns) {
  const FormatDesc& f = spec.format;
  const bool yuv = f.family == ColorFamily::kYuv, replicate = spec.chroma == ChromaLocation::kNearest;
  ConvertAxes axes{{{rows, columns}, {rows, columns}}};
  if (yuv && f.log2_chroma_h) {
    axes.axis[1][0] = chroma_taps(rows, spec.height, spec.chroma == ChromaLocation::kTopLeft ? 0 : -0.25, replicate);
  }
  if (yuv && f.log2_chroma_w) {
    axes.axis[1][1] = chroma_taps(columns, spec.width, spec.chroma == ChromaLocation::kCenter ? -0.25 : 0, replicate);
  }
  for (auto& pair : axes.axis) {
    for (AxisTaps& taps : pair) trim(taps);
  }
  return axes;
}

namespace {

ConvertStage convert_stage(const FramesSpec& spec, AxisTaps rows, AxisTaps columns, const FramesKernels& kernels,
                           bool bytes) {
  const FormatDesc& f = spec.format;
  ConvertStage s;
  s.rows = static_cast<int>(rows.start.size());
  s.columns = static_cast<int>(columns.start.size());
  s.affine = affine(spec, bytes);
  const bool yuv = f.family == ColorFamily::kYuv;
  ConvertAxes axes = convert_axes(spec, std::move(rows), std::move(columns));
  auto& axis = axes.axis;
  int x0[2];
  for (int k = 0; k < 2; ++k) {
    s.vertical[k] = vertical_filter(axis[k][0]);
    x0[k] = axis[k][1].first();
    s.horizontal[k] = horizontal_filter(axis[k][1], x0[k], kernels.lanes);
    HorizontalFilter from_bytes;
    const bool planar_bytes = f.bits == 8 && f.component[yuv && k ? 1 : 0].step == 1;
    if (planar_bytes && s.horizontal[k].kind != HorizontalKind::kIdentity &&
        bytes_layout(from_bytes, axis[k][1], x0[k], kernels.byte_lanes) &&
        bytes_first(s.vertical[k], from_bytes, s.horizontal[k], axis[k][1].last() - x0[k])) {
      s.horizontal[k] = std::move(from_bytes);
    }
  }
  const int count = f.family == ColorFamily::kGray ? 1 : 3;
  for (int c = 0; c < count; ++c) {
    const ComponentDesc& d = f.component[c];
    const int k = yuv && c > 0 ? 1 : 0, columns_needed = axis[k][1].last() - x0[k];
    int stage = -1;
    for (std::size_t p = 0; p < s.planes.size(); ++p) {
      if (s.planes[p].plane == d.plane) stage = static_cast<int>(p);
    }
    // Components of one plane share its pass; a row of samples begins at the first one's first column.
    if (stage < 0) {
      stage = static_cast<int>(s.planes.size());
      s.planes.push_back({d.plane, x0[k] * d.step, 0, nullptr, s.horizontal[k].kind == HorizontalKind::kBytes});
    }
    PlaneStage& p = s.planes[static_cast<std::size_t>(stage)];
    p.sample_count = std::max(p.sample_count, (columns_needed - 1) * d.step + d.offset + 1);
    p.vertical = &s.vertical[k];
    s.components.push_back({stage, d.offset, d.step, columns_needed, &s.horizontal[k]});
  }
  return s;
}

}  // namespace

int AxisTaps::first() const { return *std::min_element(start.begin(), start.end()); }

int AxisTaps::last() const {
  int end = 0;
  for (std::size_t i = 0; i < start.size(); ++i) end = std::max(end, start[i] + static_cast<int>(weight[i].size()));
  return end;
}

bool AxisTaps::is_identity() const {
  for (std::size_t i = 0; i < start.size(); ++i) {
    if (start[i] != start[0] + static_cast<int>(i) || weight[i].size() != 1 || weight[i][0] != 1.0) return false;
  }
  return true;
}

AxisTaps resize_taps(int size_in, int size_out, int begin, int count, Interpolation interpolation, bool antialias) {
  AxisTaps all;
  all.size_in = size_in;
  const double scale = static_cast<double>(size_in) / size_out;
  const bool bicubic = interpolation == Interpolation::kBicubic;
  for (int i = 0; i < size_out; ++i) {
    if (size_in == size_out) {
      all.start.push_back(i);
      all.weight.emplace_back(1, 1.0);
    } else if (interpolation == Interpolation::kNearest) {
      nearest_row(all, size_out, i);
    } else if (interpolation == Interpolation::kArea) {
      area_row(all, size_out, i);
    } else if (antialias) {
      antialias_row(all, scale, i, bicubic);
    } else {
      plain_row(all, scale, i, bicubic);
    }
  }
  if (all.max_weight == 0) all.max_weight = 1;
  AxisTaps taps;
  taps.size_in = size_in;
  taps.max_weight = all.max_weight;
  taps.start.assign(all.start.begin() + begin, all.start.begin() + begin + count);
  taps.weight.assign(all.weight.begin() + begin, all.weight.begin() + begin + count);
  return taps;
}

AxisTaps chroma_taps(const AxisTaps& taps, int size_luma, double shift, bool replicate) {
  AxisTaps result;
  result.size_in = (size_luma + 1) / 2;
  for (std::size_t i = 0; i < taps.start.size(); ++i) {
    std::map<int, double> sum;
    for (std::size_t k = 0; k < taps.weight[i].size(); ++k) {
      const int x = taps.start[i] + static_cast<int>(k);
      const double w = taps.weight[i][k];
      if (replicate) {
        sum[x >> 1] += w;
        continue;
      }
      const double position = std::min(std::max(x * 0.5 + shift, 0.0), result.size_in - 1.0);
      const int low = static_cast<int>(position);
      const double lambda = position - low;
      sum[low] += w * (1 - lambda);
      if (lambda > 0) sum[low + 1] += w * lambda;
    }
    const int first = sum.begin()->first, last = sum.rbegin()->first;
    std::vector<double> w(static_cast<std::size_t>(last - first + 1), 0.0);
    for (const auto& [x, v] : sum) w[static_cast<std::size_t>(x - first)] = v;
    result.start.push_back(first);
    result.weight.push_back(std::move(w));
  }
  return result;
}

std::pair<AxisTaps, AxisTaps> output_taps(const FramesSpec& s) {
  std::pair<AxisTaps, AxisTaps> taps = {
      resize_taps(s.height, s.resize_h, s.top, s.out_h, s.interpolation, s.antialias),
      resize_taps(s.width, s.resize_w, s.left, s.out_w, s.interpolation, s.antialias)};
  if (s.horizontal_flip) {
    std::reverse(taps.second.start.begin(), taps.second.start.end());
    std::reverse(taps.second.weight.begin(), taps.second.weight.end());
  }
  return taps;
}

FramesPlan::FramesPlan(const FramesSpec& s, Isa isa) : spec(s), kernels(&frames_kernels(isa)) {
  const bool resized = s.resize_h != s.height || s.resize_w != s.width;
  bytes = s.accuracy == Accuracy::kRgb8 || (s.dtype == DType::kU8 && !resized);
  resample = bytes && resized;
  auto [rows, columns] = output_taps(s);
  if (resample) {
    const int y0 = rows.first(), y1 = rows.last(), x0 = columns.first(), x1 = columns.last();
    bytes_stage =
        mmcore::bytes_stage(rows, columns, y0, x0, s.interpolation == Interpolation::kArea, kernels->byte_lanes);
    rows = resize_taps(s.height, s.height, y0, y1 - y0, Interpolation::kNearest, false);
    columns = resize_taps(s.width, s.width, x0, x1 - x0, Interpolation::kNearest, false);
  }
  convert = convert_stage(s, rows, columns, *kernels, bytes);
  // convert_stage returned by value: its stages point into the old object's filters
  for (std::size_t c = 0; c < convert.components.size(); ++c) {
    const int k = s.format.family == ColorFamily::kYuv && c > 0 ? 1 : 0;
    convert.components[c].horizontal = &convert.horizontal[k];
    convert.planes[static_cast<std::size_t>(convert.components[c].plane_stage)].vertical = &convert.vertical[k];
  }
}

std::shared_ptr<const FramesPlan> make_frames_plan(const FramesSpec& spec) {
  return std::make_shared<const FramesPlan>(spec);
}

std::vector<PlaneRegion> plane_regions(const FramesPlan& plan) {
  std::vector<PlaneRegion> regions;
  for (const PlaneStage& p : plan.convert.planes) {
    const VerticalFilter& v = *p.vertical;
    int first = v.start[0], last = 0;
    for (std::size_t i = 0; i < v.start.size(); ++i) {
      first = std::min(first, v.start[i]);
      last = std::max(last, v.start[i] + v.count[i]);
    }
    regions.push_back({p.plane, first, last - first, p.sample_begin, p.sample_count});
  }
  return regions;
}

}  // namespace mmcore
