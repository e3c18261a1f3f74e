// Tables of the kernel of whole numbers, see kernels/cuda/frames_integer.h.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "frames_tables_block.h"

namespace mmcore {

namespace {

// An output's weights times `scale` as whole numbers. What rounding takes from one goes to the next, so that a flat
// picture loses nothing.
std::vector<int> whole_weights(const std::vector<double>& weights, double scale) {
  std::vector<int> whole;
  whole.reserve(weights.size());
  double rest = 0;
  for (double w : weights) {
    rest += w * scale;
    whole.push_back(static_cast<int>(std::rint(rest)));
    rest -= whole.back();
  }
  return whole;
}

// The largest power of 2 with which neither a weight leaves its three digits nor a sum, of samples up to `most`, 31
// bits. Weights whose absolute values sum to 1 keep 22 or 23 bits behind the point.
int integer_exponent(const AxisTaps& taps, double most) {
  constexpr int kMostWeight = 127 * 65536 + 127 * 256 + 127;
  constexpr double kMostSum = 2147483647;
  for (int exponent = 23;; --exponent) {
    bool fits = true;
    for (const auto& w : taps.weight) {
      double sum = 0;
      for (int whole : whole_weights(w, std::ldexp(1.0, exponent))) {
        sum += std::abs(whole);
        fits = fits && std::abs(whole) <= kMostWeight;
      }
      fits = fits && sum * most <= kMostSum;
    }
    if (fits) return exponent;
  }
}

// Column that stands at place k of a product's 32 when samples of `unit` bytes are taken apart, as integer_samples of
// frames_integer.h does it.
int integer_column(int unit, int k) {
  const int half = k / 16, quarter = k % 16 / 4, i = k % 4;
  return unit == 1 ? k : 16 * half + (unit == 2 ? i / 2 * 8 + 2 * quarter + i % 2 : 4 * i + quarter);
}

// `unit`: bytes from a component's sample to its next. Fragments as mma.m16n8k32 spreads them over the lanes of a warp:
// lane 4 g + q holds column g of the right factor, inputs 4 q ... 4 q + 3 and 16 more.
IntegerTable integer_table(TablesBlock& block, const AxisTaps& rows, const AxisTaps& columns, const Windows& octets,
                           int unit, int exponent, int steps) {
  IntegerTable t;
  t.steps = steps;
  std::size_t place[32] = {};  // of a column, in a fragment
  for (int k = 0; k < 32; ++k) {
    place[integer_column(unit, k)] = static_cast<std::size_t>(k % 16 / 4 * 8 + k % 4 + 4 * (k / 16));
  }
  constexpr std::size_t kDigit = 32 * 8;  // bytes of a fragment
  std::vector<std::int8_t> fragments(octets.first.size() * static_cast<std::size_t>(steps) * 3 * kDigit);
  for (std::size_t x = 0; x < columns.start.size(); ++x) {
    const int first = columns.start[x] - octets.first[x / 8];
    const std::vector<int> whole = whole_weights(columns.weight[x], std::ldexp(1.0, exponent));
    for (std::size_t i = 0; i < whole.size(); ++i) {
      const std::size_t input = static_cast<std::size_t>(first) + i;
      const std::size_t fragment = (x / 8 * static_cast<std::size_t>(steps) + input / 32) * 3;
      std::int8_t* to = fragments.data() + fragment * kDigit + x % 8 * 32 + place[input % 32];
      int rest = whole[i];
      to[2 * kDigit] = static_cast<std::int8_t>(rest & 0xff);
      rest = (rest - to[2 * kDigit]) / 256;
      to[kDigit] = static_cast<std::int8_t>(rest & 0xff);
      *to = static_cast<std::int8_t>((rest - to[kDigit]) / 256);
    }
  }
  t.column_first = block.put(octets.first);
  t.column_weight = block.put(fragments);

  const std::size_t n = rows.start.size();
  std::vector<std::int32_t> first, end, finished(static_cast<std::size_t>(rows.size_in) + 1);
  for (std::size_t y = 0; y < n; ++y) {
    first.push_back(rows.start[y] / 4 * 4);
    end.push_back(rows.start[y] + static_cast<std::int32_t>(rows.weight[y].size()));
    t.groups = std::max(t.groups, (end[y] - first[y] + 3) / 4);
  }
  for (std::size_t row = 0, y = 0; row < finished.size(); ++row) {
    while (y < n && end[y] <= static_cast<std::int32_t>(row)) ++y;
    finished[row] = static_cast<std::int32_t>(y);
  }
  t.row_first = block.put(first);
  t.row_end = block.put(end);
  t.finished = block.put(finished);
  return t;
}

// What a block needs to know of an output's rows.
std::int32_t integer_rows(TablesBlock& block, FramesTables& t, const ConvertAxes& axes, const int* exponent, int bits) {
  const bool gray = t.family == static_cast<int>(ColorFamily::kGray);
  const int groups[2] = {t.integer_table[0].groups, gray ? 0 : t.integer_table[t.chroma_axis].groups};
  t.integer_row_quads = 1 + groups[0] + groups[1];
  std::vector<float> all(static_cast<std::size_t>(t.out_h) * static_cast<std::size_t>(t.integer_row_quads) * 4, 0.0f);
  float* to = all.data();
  const double scale[2] = {std::ldexp(1.0, bits - 8 - exponent[0]), std::ldexp(1.0, bits - 8 - exponent[1])};
  for (std::size_t y = 0; y < static_cast<std::size_t>(t.out_h); ++y, to += 4 * t.integer_row_quads) {
    float* weight = to + 4;
    for (int k = 0; k < (gray ? 1 : 2); ++k) {  // of one axis, the same twice: components 1 and 2 have their own
      const int axis = k ? t.chroma_axis : 0;
      const AxisTaps& rows = axes.axis[axis][0];
      const std::int32_t first = rows.start[y] / 4 * 4;
      const std::int32_t end = rows.start[y] + static_cast<std::int32_t>(rows.weight[y].size());
      const std::int32_t own = (end - first + 3) / 4;
      std::memcpy(to + k, &first, sizeof(first));
      std::memcpy(to + 2 + k, &own, sizeof(own));
      for (std::size_t i = 0; i < rows.weight[y].size(); ++i) {
        // sums of 16-bit samples are of 256ths of what fills the 16 bits
        weight[static_cast<std::size_t>(rows.start[y] % 4) + i] = static_cast<float>(rows.weight[y][i] * scale[axis]);
      }
      weight += 4 * groups[k];
    }
  }
  return block.put(all);
}

// Rows of sums that a block needs at a time, wherever its strip of outputs begins: when a chunk's sums come, those of
// all outputs that were not finished before must still be there.
void integer_ring_rows(FramesTables& t, const ConvertAxes& axes) {
  const auto first_row = [&](int axis, int y) { return axes.axis[axis][0].start[static_cast<std::size_t>(y)] / 4 * 4; };
  int most[2] = {0, 0};
  for (int y0 = 0; y0 < t.out_h; y0 += kStripAlign) {
    int y = y0;
    for (int chunk = 0; y < t.out_h; ++chunk) {
      int ends[2], ready = t.out_h;
      for (int k = 0; k <= t.chroma_axis; ++k) {
        ends[k] = first_row(k, y0) + (chunk + 1) * t.integer_table[k].chunk_rows;
        most[k] = std::max(most[k], ends[k] - first_row(k, y));
        int done = y;
        while (done < t.out_h) {
          const std::size_t i = static_cast<std::size_t>(done);
          if (axes.axis[k][0].start[i] + static_cast<int>(axes.axis[k][0].weight[i].size()) > ends[k]) break;
          ++done;
        }
        ready = std::min(ready, done);
      }
      t.integer_most_quads = std::max(t.integer_most_quads, (ready - y) * t.integer_row_quads);
      y = ready;
    }
  }
  for (int k = 0; k <= t.chroma_axis; ++k) t.integer_table[k].ring_rows = (most[k] + 15) / 16 * 16;
}

// Cuts the output's columns so that a block's samples and sums fit the shared memory; false if that cannot be.
bool integer_tiles(FramesTables& t, const ConvertAxes& axes, const Windows* octet_windows,
                   std::vector<IntegerTile>& tiles) {
  constexpr std::size_t kMostShared = 94 << 10;  // of the 99 KB of a block on the smaller devices, beside IntegerBlock
  const int octets = (t.out_w + 7) / 8, groups = t.family == static_cast<int>(ColorFamily::kGray) ? 1 : 2;
  for (int num = (octets + t.integer_octets - 1) / t.integer_octets; num <= octets;
       num = num < 32 ? num + 1 : num * 2) {
    tiles.clear();
    t.integer_warps = 0;
    t.integer_table[0].pitch = t.integer_table[1].pitch = 16;
    const int width = (octets + num - 1) / num;
    for (int octet0 = 0; octet0 < octets; octet0 += width) {
      IntegerTile tile;
      tile.octet0 = octet0;
      tile.octet1 = std::min(octet0 + width, octets);
      for (int k = 0; k <= t.chroma_axis; ++k) {
        const AxisTaps& taps = axes.axis[k][1];
        int low = taps.size_in, high = 0, last = 0;
        for (int o = tile.octet0; o < tile.octet1; ++o) {
          low = std::min(low, octet_windows[k].first[static_cast<std::size_t>(o)]);
          last = std::max(last, octet_windows[k].first[static_cast<std::size_t>(o)]);
        }
        for (int x = tile.octet0 * 8; x < std::min(tile.octet1 * 8, t.out_w); ++x) {
          const std::size_t i = static_cast<std::size_t>(x);
          high = std::max(high, taps.start[i] + static_cast<int>(taps.weight[i].size()));
        }
        const int unit = t.step[k] * t.sample_bytes;  // step[1] is that of the chroma planes
        tile.column0[k] = low / 16 * 16;
        tile.bytes[k] = (high - tile.column0[k]) * unit;
        // whole windows, and an odd number of 16 bytes
        const int pitch = (last - tile.column0[k] + 32 * t.integer_table[k].steps) * unit;
        t.integer_table[k].pitch = std::max(t.integer_table[k].pitch, ((pitch + 15) / 16 | 1) * 16);
      }
      t.integer_warps = std::max(t.integer_warps, groups * (tile.octet1 - tile.octet0));
      tiles.push_back(tile);
    }
    if (integer_shared_bytes(2, integer_chunk_bytes(t), t.integer_most_quads, integer_ring_bytes(t)) <= kMostShared) {
      return true;
    }
  }
  return false;
}

}  // namespace

void make_integer_tables(TablesBlock& block, FramesTables& t, const ConvertAxes& axes, int bits, bool half_rows) {
  if (!separate_planes(t) || (t.sample_bytes == 1 && bits != 8)) return;
  bool dense = true;
  Windows octet_windows[2];
  int steps[2] = {1, 1}, exponent[2] = {0, 0};
  for (int k = 0; k <= t.chroma_axis; ++k) {
    const AxisTaps &rows = axes.axis[k][0], &columns = axes.axis[k][1];
    if (live_outputs(rows) == 0) return;
    double taps = 0;
    for (const auto& w : rows.weight) taps += static_cast<double>(w.size());
    dense = dense && taps >= rows.last() - rows.first() && rows.last() - rows.first() >= t.out_h;
    octet_windows[k] = windows(columns, 8, 16 / (t.step[k] * t.sample_bytes));
    for (std::size_t o = 0; o < octet_windows[k].first.size(); ++o) {
      steps[k] = std::max(steps[k], (octet_windows[k].chunk[o + 1] - octet_windows[k].chunk[o] + 1) / 2);
    }
  }
  t.integer_steps = std::max(steps[0], steps[1]) <= 4 ? 4 : 8;
  if (std::max(steps[0], steps[1]) > 8) return;
  for (int k = 0; k <= t.chroma_axis; ++k) {
    if (t.integer_steps == 8) steps[k] += steps[k] % 2;  // the kernel knows the even ones
    exponent[k] = integer_exponent(axes.axis[k][1], bits == 8 ? 255 : 256);
    t.integer_table[k] = integer_table(block, axes.axis[k][0], axes.axis[k][1], octet_windows[k],
                                       t.step[k] * t.sample_bytes, exponent[k], steps[k]);
  }
  t.integer_rows = integer_rows(block, t, axes, exponent, bits);
  t.integer_octets = t.sample_bytes == 1 && t.integer_steps == 4 ? 7 : 4;
  t.integer_table[0].chunk_rows = half_rows || t.family == static_cast<int>(ColorFamily::kGray) ? 32 : 16;
  t.integer_table[1].chunk_rows = 16;
  t.sample_lift = t.sample_bytes == 2 ? 16 - bits - t.shift : 0;
  t.sample_top = 0xffff << (16 - bits) & 0xffff;
  integer_ring_rows(t, axes);
  std::vector<IntegerTile> tiles;
  if (!integer_tiles(t, axes, octet_windows, tiles)) return;
  t.integer = 1;
  t.integer_dense = dense;
  t.num_integer_tiles = static_cast<std::int32_t>(tiles.size());
  t.integer_tiles = block.put(tiles);
}

}  // namespace mmcore
