#include "mmcore/frames_tables.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "frames_plan.h"
#include "frames_tables_block.h"
#include "half.h"

namespace mmcore {

int live_outputs(const AxisTaps& rows) {
  std::vector<int> change(static_cast<std::size_t>(rows.last()) + 1, 0);
  for (std::size_t i = 0; i < rows.start.size(); ++i) {
    const int end = rows.start[i] + static_cast<int>(rows.weight[i].size());
    if (i > 0) {
      const int end_before = rows.start[i - 1] + static_cast<int>(rows.weight[i - 1].size());
      if (rows.start[i] < rows.start[i - 1] || end < end_before) return 0;
    }
    ++change[static_cast<std::size_t>(rows.start[i])];
    --change[static_cast<std::size_t>(end)];
  }
  int live = 0, most = 0;
  for (int d : change) most = std::max(most, live += d);
  return most;
}

Windows windows(const AxisTaps& taps, int size, int align) {
  Windows w;
  const int n = static_cast<int>(taps.start.size());
  for (int i0 = 0; i0 < n; i0 += size) {
    int low = taps.size_in, high = 0;
    for (int i = i0; i < std::min(i0 + size, n); ++i) {
      low = std::min(low, taps.start[static_cast<std::size_t>(i)]);
      high = std::max(high, taps.start[static_cast<std::size_t>(i)] +
                                static_cast<int>(taps.weight[static_cast<std::size_t>(i)].size()));
    }
    low = low / align * align;
    w.first.push_back(low);
    w.chunk.push_back(w.chunk.back() + (high - low + 15) / 16);
  }
  return w;
}

double weight_at(const AxisTaps& taps, int output, int input) {
  if (output >= static_cast<int>(taps.start.size())) return 0;
  const auto& w = taps.weight[static_cast<std::size_t>(output)];
  const int k = input - taps.start[static_cast<std::size_t>(output)];
  return k < 0 || k >= static_cast<int>(w.size()) ? 0 : w[static_cast<std::size_t>(k)];
}

bool separate_planes(const FramesTables& t) {
  if (t.offset[0] != 0 || t.step[0] != 1) return false;
  for (int c = 1; t.family != static_cast<int>(ColorFamily::kGray) && c < 3; ++c) {
    if (t.plane[c] == t.plane[0]) return false;
    if (t.step[c] != (t.plane[1] == t.plane[2] ? 2 : 1) || t.offset[c] >= t.step[c]) return false;
  }
  return true;
}

namespace {

std::int32_t longest(const AxisTaps& taps) {
  std::size_t most = 1;
  for (const auto& w : taps.weight) most = std::max(most, w.size());
  return static_cast<std::int32_t>(most);
}

std::vector<std::int32_t> counts(const AxisTaps& taps) {
  std::vector<std::int32_t> result;
  for (const auto& w : taps.weight) result.push_back(static_cast<std::int32_t>(w.size()));
  return result;
}

// Weights as `convert` makes them; [output][most], or [tap][output] where threads lie side by side along the axis.
template <typename T, typename Convert>
AxisTable axis_table(TablesBlock& block, const AxisTaps& taps, int origin, bool transposed, Convert convert) {
  AxisTable table;
  table.most = longest(taps);
  const std::size_t n = taps.start.size(), most = static_cast<std::size_t>(table.most);
  std::vector<std::int32_t> start;
  for (int s : taps.start) start.push_back(s - origin);
  std::vector<T> weight(n * most, T(0));
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < taps.weight[i].size(); ++k) {
      weight[transposed ? k * n + i : i * most + k] = convert(taps.weight[i][k]);
    }
  }
  table.start = block.put(start);
  table.count = block.put(counts(taps));
  table.weight = block.put(weight);
  return table;
}

AxisTable float_axis(TablesBlock& block, const AxisTaps& taps, bool transposed) {
  return axis_table<float>(block, taps, 0, transposed, [](double w) { return static_cast<float>(w); });
}

StreamTable stream_table(TablesBlock& block, const AxisTaps& rows, const AxisTaps& columns) {
  StreamTable t;
  const std::size_t inputs = static_cast<std::size_t>(rows.size_in), stride = FramesTables::kLiveStride;
  std::vector<float> weight((inputs + 1) * stride, 0.0f);  // one more: the row after the last is fetched too
  std::vector<std::int32_t> end, first, unfinished(inputs);
  for (std::size_t y = 0; y < rows.start.size(); ++y) {
    first.push_back(rows.start[y]);
    end.push_back(rows.start[y] + static_cast<std::int32_t>(rows.weight[y].size()));
  }
  for (std::size_t row = 0, y = 0; row < inputs; ++row) {
    while (y < end.size() && end[y] <= static_cast<std::int32_t>(row)) ++y;
    unfinished[row] = static_cast<std::int32_t>(y);
  }
  for (std::size_t y = 0; y < rows.start.size(); ++y) {
    for (std::size_t k = 0; k < rows.weight[y].size(); ++k) {
      const std::size_t row = static_cast<std::size_t>(rows.start[y]) + k;
      weight[row * stride + y - static_cast<std::size_t>(unfinished[row])] = static_cast<float>(rows.weight[y][k]);
    }
  }
  t.row_weight = block.put(weight);
  t.row_end = block.put(end);
  t.row_first = block.put(first);
  t.unfinished = block.put(unfinished);

  const std::size_t n = columns.start.size();
  std::vector<std::int32_t> start;
  for (std::size_t x = 0; x < n; ++x) {
    start.push_back(columns.start[x] / 4);
    const int count = columns.start[x] % 4 + static_cast<int>(columns.weight[x].size());
    t.quads = std::max(t.quads, (count + 3) / 4);
  }
  std::vector<float> quads(static_cast<std::size_t>(t.quads) * n * 4, 0.0f);
  for (std::size_t x = 0; x < n; ++x) {
    for (std::size_t k = 0; k < columns.weight[x].size(); ++k) {
      const std::size_t at = static_cast<std::size_t>(columns.start[x] % 4) + k;
      quads[(at / 4 * n + x) * 4 + at % 4] = static_cast<float>(columns.weight[x][k]);
    }
  }
  t.quad_start = block.put(start);
  t.quad_weight = block.put(quads);
  return t;
}

// Columns that a thread's samples of a plane stand for.
int columns_of_group(const FramesTables& t, int plane) {
  for (int c = 0; c < 3; ++c) {
    if (t.plane[c] == plane) return t.group / t.step[c];
  }
  return t.group;
}

int axis_of_plane(const FramesTables& t, int plane) { return plane == 0 ? 0 : t.chroma_axis; }

// Cuts the output's columns so that a block has at most `most` threads; false if not even one column fits.
bool stream_tiles(FramesTables& t, const ConvertAxes& axes, std::vector<StreamTile>& tiles, int most) {
  const int n = t.out_w;
  for (int num = 1; num <= n; num = num < 8 ? num + 1 : num * 2) {
    tiles.clear();
    t.max_threads = t.max_row_floats = 0;
    const int width = (n + num - 1) / num;
    for (int x0 = 0; x0 < n; x0 += width) {
      StreamTile tile;
      tile.x0 = x0;
      tile.x1 = std::min(x0 + width, n);
      int quads[2] = {0, 0};
      for (int k = 0; k < 2; ++k) {
        const AxisTaps& taps = axes.axis[k][1];
        int low = taps.size_in, high = 0;
        for (int x = tile.x0; x < tile.x1; ++x) {
          const std::size_t i = static_cast<std::size_t>(x);
          low = std::min(low, taps.start[i]);
          high = std::max(high, taps.start[i] + static_cast<int>(taps.weight[i].size()));
        }
        tile.column0[k] = low / 16 * 16;  // 16 columns are a multiple of 16 bytes in every format
        tile.column1[k] = high;
        quads[k] = stream_row_quads(t, tile, k);
      }
      int threads = 0, floats = 0;
      for (int p = 0; p < t.num_planes; ++p) {
        const int k = axis_of_plane(t, p), per_group = columns_of_group(t, p);
        const int groups = (tile.column1[k] - tile.column0[k] + per_group - 1) / per_group;
        threads += (groups + 31) / 32 * 32;
      }
      for (int c = 0; c < (t.family == static_cast<int>(ColorFamily::kGray) ? 1 : 3); ++c) {
        floats += 4 * (skewed_quad(quads[c ? t.chroma_axis : 0] - 1) + 1);
      }
      t.max_threads = std::max(t.max_threads, threads);
      t.max_row_floats = std::max(t.max_row_floats, floats);
      tiles.push_back(tile);
    }
    if (t.max_threads <= most) return true;
  }
  return false;
}

// Planes that hold one component each, or two that take turns, whose rows are wanted densely and in order.
void make_streaming(TablesBlock& block, FramesTables& t, const ConvertAxes& axes) {
  if (!separate_planes(t)) return;
  int live[2] = {0, 0};
  for (int k = 0; k <= t.chroma_axis; ++k) {
    const AxisTaps& rows = axes.axis[k][0];
    live[k] = live_outputs(rows);
    // Below a scale of 1.5 most rows would be kept in registers for nothing.
    const double scale = static_cast<double>(axes.axis[0][0].last() - axes.axis[0][0].first()) / t.out_h;
    double taps = 0;
    for (const auto& w : rows.weight) taps += static_cast<double>(w.size());
    if (live[k] == 0 || scale < 1.5 || taps < rows.last() - rows.first()) return;
  }
  if (live[0] > 5 || live[1] > 7) return;
  t.live = live[0] <= 2 && live[1] <= 3 ? 3 : 7;
  t.group = t.sample_bytes == 1 && t.live == 3 ? 16 : 8;
  for (int k = 0; k <= t.chroma_axis; ++k) {
    t.stream[k] = stream_table(block, axes.axis[k][0], axes.axis[k][1]);
  }
  if (t.chroma_axis == 0) t.stream[1] = t.stream[0];
  std::vector<StreamTile> tiles;
  if (!stream_tiles(t, axes, tiles, t.group == 16 ? 256 : 512)) {
    t.live = 0;
    return;
  }
  t.num_tiles = static_cast<std::int32_t>(tiles.size());
  t.tiles = block.put(tiles);
}

// A weight times 2^exponent as the sum of two 16-bit floats: 22 bits of it.
struct SplitWeight {
  std::uint16_t hi = 0, lo = 0;
};

SplitWeight split_weight(double weight, int exponent) {
  const double scaled = std::ldexp(weight, exponent);
  SplitWeight w;
  w.hi = float_to_half(static_cast<float>(scaled));
  w.lo = float_to_half(static_cast<float>(scaled - half_to_float(w.hi)));
  return w;
}

// The power of 2 that brings an axis' largest weight just below 2^15.
int weight_exponent(const AxisTaps& taps) {
  double most = 0;
  for (const auto& w : taps.weight) {
    for (double v : w) most = std::max(most, std::fabs(v));
  }
  int exponent = 0;
  std::frexp(most, &exponent);  // most < 2^exponent
  return 15 - exponent;
}

// Fragments as mma.m16n8k16 spreads them over the lanes of a warp: lane 4 g + q holds rows (columns) g and g + 8 of
// the one factor and inputs 2 q, 2 q + 1, 2 q + 8 and 2 q + 9, two to a register.
MatrixTable matrix_table(TablesBlock& block, const AxisTaps& rows, const AxisTaps& columns) {
  MatrixTable t;
  const int row_exponent = weight_exponent(rows), column_exponent = weight_exponent(columns);
  const auto register_of = [](std::uint16_t low, std::uint16_t high) {
    return static_cast<std::uint32_t>(low) | static_cast<std::uint32_t>(high) << 16;
  };
  const Windows row_windows = windows(rows, kMatrixRows, 1), column_windows = windows(columns, 8, 8);
  std::vector<std::uint32_t> fragments;
  for (std::size_t tile = 0; tile < row_windows.first.size(); ++tile) {
    for (int chunk = 0; chunk < row_windows.chunk[tile + 1] - row_windows.chunk[tile]; ++chunk) {
      for (bool lo : {false, true}) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int r = 0; r < 4; ++r) {
            const int y = static_cast<int>(tile) * kMatrixRows + lane / 4 + 8 * (r % 2);
            const int input = row_windows.first[tile] + 16 * chunk + 2 * (lane % 4) + 8 * (r / 2);
            const SplitWeight a = split_weight(weight_at(rows, y, input), row_exponent);
            const SplitWeight b = split_weight(weight_at(rows, y, input + 1), row_exponent);
            fragments.push_back(lo ? register_of(a.lo, b.lo) : register_of(a.hi, b.hi));
          }
        }
      }
    }
  }
  t.row_first = block.put(row_windows.first);
  t.row_chunk = block.put(row_windows.chunk);
  t.row_weight = block.put(fragments);
  fragments.clear();
  for (std::size_t octet = 0; octet < column_windows.first.size(); ++octet) {
    for (int chunk = 0; chunk < column_windows.chunk[octet + 1] - column_windows.chunk[octet]; ++chunk) {
      for (int lane = 0; lane < 32; ++lane) {
        const int x = static_cast<int>(octet) * 8 + lane / 4;
        SplitWeight w[4];
        for (int i = 0; i < 4; ++i) {
          const int input = column_windows.first[octet] + 16 * chunk + 2 * (lane % 4) + 8 * (i / 2) + i % 2;
          w[i] = split_weight(weight_at(columns, x, input), column_exponent);
        }
        fragments.insert(fragments.end(), {register_of(w[0].hi, w[1].hi), register_of(w[2].hi, w[3].hi),
                                           register_of(w[0].lo, w[1].lo), register_of(w[2].lo, w[3].lo)});
      }
    }
  }
  t.column_first = block.put(column_windows.first);
  t.column_chunk = block.put(column_windows.chunk);
  t.column_weight = block.put(fragments);
  // samples are taken for 16-bit floats below the normal ones: 2^-24 times their value
  t.scale = static_cast<float>(std::ldexp(1.0, 24 - row_exponent - column_exponent));
  return t;
}

int matrix_halves(const FramesTables& t, const MatrixTile& tile) {
  int halves = 0;
  for (int c = 0; c < (t.family == static_cast<int>(ColorFamily::kGray) ? 1 : 3); ++c) {
    halves += 2 * kMatrixRows * matrix_pitch(tile, c ? t.chroma_axis : 0, t.step[c]);
  }
  return halves;
}

// Planes that hold one component each, or two that take turns, of up to 10 bits.
void make_matrix(TablesBlock& block, FramesTables& t, const ConvertAxes& axes, int bits) {
  constexpr int kMostHalves = 36 << 10;  // 72 KB: three blocks on a multiprocessor with 227
  if (bits > 10 || !separate_planes(t)) return;
  Windows column_windows[2];
  for (int k = 0; k <= t.chroma_axis; ++k) {
    t.matrix_table[k] = matrix_table(block, axes.axis[k][0], axes.axis[k][1]);
    column_windows[k] = windows(axes.axis[k][1], 8, 8);
  }
  const int octets = (t.out_w + 7) / 8;
  for (int num = 1; num <= octets; num = num < 32 ? num + 1 : num * 2) {
    std::vector<MatrixTile> tiles;
    t.matrix_halves = 0;
    const int width = (octets + num - 1) / num;
    for (int octet0 = 0; octet0 < octets; octet0 += width) {
      MatrixTile tile;
      tile.octet0 = octet0;
      tile.octet1 = std::min(octet0 + width, octets);
      for (int k = 0; k <= t.chroma_axis; ++k) {
        int low = axes.axis[k][1].size_in, high = 0;
        for (int o = tile.octet0; o < tile.octet1; ++o) {
          const std::size_t i = static_cast<std::size_t>(o);
          low = std::min(low, column_windows[k].first[i]);
          high = std::max(
              high, column_windows[k].first[i] + 16 * (column_windows[k].chunk[i + 1] - column_windows[k].chunk[i]));
        }
        tile.column0[k] = low / 16 * 16;
        const int step = t.step[k], columns = kMatrixGroup / step;  // step[1] is that of the chroma planes
        tile.groups[k] = (high - tile.column0[k] + columns - 1) / columns;
      }
      t.matrix_halves = std::max(t.matrix_halves, matrix_halves(t, tile));
      tiles.push_back(tile);
    }
    if (t.matrix_halves <= kMostHalves) {
      t.matrix = 1;
      t.row_tiles = (t.out_h + kMatrixRows - 1) / kMatrixRows;
      t.num_matrix_tiles = static_cast<std::int32_t>(tiles.size());
      t.matrix_tiles = block.put(tiles);
      return;
    }
  }
}

}  // namespace

std::vector<std::uint8_t> make_frames_tables(const FramesSpec& s) {
  TablesBlock block;
  FramesTables t;
  const FormatDesc& f = s.format;
  const bool resized = s.resize_h != s.height || s.resize_w != s.width;
  const bool bytes = s.accuracy == Accuracy::kRgb8 || (s.dtype == DType::kU8 && !resized);
  t.height = s.height;
  t.width = s.width;
  t.out_h = s.out_h;
  t.out_w = s.out_w;
  t.family = static_cast<int>(f.family);
  t.sample_bytes = f.bits + f.shift > 8 ? 2 : 1;
  t.shift = f.shift;
  t.sample_mask = t.sample_bytes == 1 ? 0xff : 0xffff >> f.shift;
  const bool yuv = f.family == ColorFamily::kYuv;
  t.chroma_axis = yuv ? 1 : 0;
  for (int c = 0; c < 3; ++c) {
    const ComponentDesc& d = f.component[f.family == ColorFamily::kGray ? 0 : c];
    t.plane[c] = d.plane;
    t.offset[c] = d.offset;
    t.step[c] = d.step;
    const bool chroma = yuv && c > 0;
    const int columns = chroma ? (s.width + (1 << f.log2_chroma_w) - 1) >> f.log2_chroma_w : s.width;
    const int rows = chroma ? (s.height + (1 << f.log2_chroma_h) - 1) >> f.log2_chroma_h : s.height;
    t.num_planes = std::max(t.num_planes, d.plane + 1);
    if (d.plane < 3) {
      t.plane_samples[d.plane] = std::max(t.plane_samples[d.plane], (columns - 1) * d.step + d.offset + 1);
      t.plane_rows[d.plane] = rows;
    }
  }
  const Affine a = affine(s, bytes);
  std::memcpy(t.m, a.m, sizeof(t.m));
  std::memcpy(t.b, a.b, sizeof(t.b));
  std::memcpy(t.lo, a.lo, sizeof(t.lo));
  std::memcpy(t.hi, a.hi, sizeof(t.hi));
  t.round_bytes = bytes || s.dtype == DType::kU8;
  t.finish_bytes = bytes && s.dtype != DType::kU8;
  for (int c = 0; c < 3; ++c) {
    t.sub[c] = s.sub[c];
    t.div[c] = s.div[c];
  }
  t.scale_only = s.scale_only;
  t.scale = s.scale;
  t.dtype = static_cast<int>(s.dtype);

  auto [rows, columns] = output_taps(s);
  if (bytes && resized) {
    const int y0 = rows.first(), y1 = rows.last(), x0 = columns.first(), x1 = columns.last();
    BytesTable& b = t.bytes_table;
    b.resample = 1;
    b.area = s.interpolation == Interpolation::kArea;
    b.rows = y1 - y0;
    b.columns = x1 - x0;
    b.row_precision = fixed_point_precision(rows.max_weight);
    b.column_precision = fixed_point_precision(columns.max_weight);
    b.row = axis_table<std::int32_t>(block, rows, y0, false, [&](double w) { return fixed_point(w, b.row_precision); });
    b.column = axis_table<std::int32_t>(block, columns, x0, true,
                                        [&](double w) { return fixed_point(w, b.column_precision); });
    rows = resize_taps(s.height, s.height, y0, y1 - y0, Interpolation::kNearest, false);
    columns = resize_taps(s.width, s.width, x0, x1 - x0, Interpolation::kNearest, false);
  }
  t.convert_rows = static_cast<std::int32_t>(rows.start.size());
  t.convert_columns = static_cast<std::int32_t>(columns.start.size());
  const ConvertAxes axes = convert_axes(s, std::move(rows), std::move(columns));
  for (int k = 0; k < 2; ++k) {
    t.rows[k] = float_axis(block, axes.axis[k][0], false);
    t.columns[k] = float_axis(block, axes.axis[k][1], true);
  }
  if (!bytes) {
    make_streaming(block, t, axes);
    make_integer_tables(block, t, axes, f.bits, yuv && f.log2_chroma_h);
  }
  if (!t.bytes_table.resample) make_matrix(block, t, axes, f.bits);
  return block.finish(t);
}

}  // namespace mmcore
