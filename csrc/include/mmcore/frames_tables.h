// What a device kernel needs of one (source format and size, transform) pair: one block of bytes that begins with
// FramesTables and holds every table by its offset, so that one copy brings it to the device.
//
// The same taps as the CPU's plan, in layouts for threads that work side by side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "mmcore/frames.h"

namespace mmcore {

// Axis 0 is luma's (or the only one), axis 1 that of subsampled chroma. Offsets are in bytes from the block's start.
struct AxisTable {
  std::int32_t start = 0;    // int32[n]: first input of each output
  std::int32_t count = 0;    // int32[n]
  std::int32_t weight = 0;   // float; rows: [output][most], columns: [tap][output]
  std::int32_t most = 0;     // taps of the output that has most
};

// Streaming (see kernels/cuda/frames_body.h): every input row is read once and added to the outputs it touches.
struct StreamTable {
  std::int32_t row_weight = 0;  // float[input row + 1][kLiveStride]: weights for output unfinished[row] and those after
  std::int32_t row_end = 0;  // int32[out_h]: one past the last input row
  std::int32_t row_first = 0;  // int32[out_h]: first input row
  std::int32_t unfinished = 0;  // int32[input row]: first output that needs this row or a later one
  std::int32_t quads = 0;  // groups of 4 columns that an output reads
  std::int32_t quad_start = 0;  // int32[out_w]: column / 4
  std::int32_t quad_weight = 0;  // float4[quad][out_w]
};

// Output columns that one block makes, and the input columns of each axis that they need, in whole groups.
struct StreamTile {
  std::int32_t x0 = 0, x1 = 0;
  std::int32_t column0[2] = {0, 0}, column1[2] = {0, 0};
};

// Matrix products (see kernels/cuda/frames_matrix.h), in 16-bit floats: a weight is hi + lo, times a power of 2. Rows:
// 16 outputs times chunks of 16 inputs; columns: chunks of 16 inputs times 8 outputs.
struct MatrixTable {
  std::int32_t row_first = 0;  // int32[row tile]: first input row
  std::int32_t row_chunk = 0;  // int32[row tile + 1]: its first chunk
  std::int32_t row_weight = 0;  // uint4[chunk][hi, lo][lane]
  std::int32_t column_first = 0;  // int32[octet]: first input column, a multiple of 8
  std::int32_t column_chunk = 0;  // int32[octet + 1]
  std::int32_t column_weight = 0;  // uint4[chunk][lane]: hi, hi, lo, lo
  float scale = 1;  // what undoes the powers of 2, that of the samples among them
};

// Octets of output columns that one block makes, and for each axis the first input column and the groups of 64 samples
// of a plane that they need.
struct MatrixTile {
  std::int32_t octet0 = 0, octet1 = 0;
  std::int32_t column0[2] = {0, 0}, groups[2] = {0, 0};
};

// Products of whole numbers (see kernels/cuda/frames_integer.h). A weight of a column is a whole number times a power
// of 2, in three digits of 8 bits with a sign, most significant first. Rows come in groups of 4 that begin at multiples
// of 4; their weights undo the power of 2.
struct IntegerTable {
  std::int32_t column_first = 0;  // int32[octet]: first input column; its bytes begin at a multiple of 16
  std::int32_t column_weight = 0;  // uint2[octet][step][digit][lane]
  std::int32_t steps = 0;  // products of 32 columns that an octet takes
  std::int32_t row_first = 0;  // int32[out_h]: first input row, a multiple of 4
  std::int32_t row_end = 0;  // int32[out_h]: one past the last
  std::int32_t groups = 0;  // of 4 rows, most of an output
  std::int32_t finished = 0;  // int32[input row + 1]: outputs that need neither this row nor a later one
  std::int32_t chunk_rows = 0;  // input rows that a block takes at a time
  std::int32_t ring_rows = 0;  // rows of sums that it keeps, a multiple of 16
  std::int32_t pitch = 0;  // bytes from row to row of samples in shared memory
};

// Octets of output columns that one block makes, and for each axis the first input column and the bytes of a row.
struct IntegerTile {
  std::int32_t octet0 = 0, octet1 = 0;
  std::int32_t column0[2] = {0, 0}, bytes[2] = {0, 0};
};

// The resize on bytes of accuracy rgb8: the region of full-size RGB, then fixed-point sums, horizontally first.
struct BytesTable {
  std::int32_t resample = 0, area = 0;
  std::int32_t rows = 0, columns = 0;  // of the region
  std::int32_t row_precision = 0, column_precision = 0;
  AxisTable row, column;  // weights are int32; area has none
};

struct FramesTables {
  static constexpr int kLiveStride = 8;

  std::int32_t bytes = 0;  // of the block
  std::int32_t height = 0, width = 0, out_h = 0, out_w = 0;
  std::int32_t family = 0, num_planes = 0, sample_bytes = 1, shift = 0, sample_mask = 0xff;
  std::int32_t plane[3] = {}, offset[3] = {}, step[3] = {};  // of each component
  std::int32_t chroma_axis = 0;  // axis of components 1 and 2
  std::int32_t plane_samples[3] = {}, plane_rows[3] = {};  // extent of each plane

  alignas(16) float m[3][3] = {};  // with the next three fetched 16 bytes at a time
  float b[3] = {}, lo[3] = {}, hi[3] = {};
  std::int32_t round_bytes = 0;  // levels are rounded to bytes, multiplications and additions apart
  std::int32_t finish_bytes = 0;  // ... and the bytes normalised: (byte - sub) / div, or byte * scale
  float sub[3] = {}, div[3] = {};
  std::int32_t scale_only = 0;
  float scale = 1;
  std::int32_t dtype = 0;

  AxisTable rows[2], columns[2];  // of the conversion; with bytes_table.resample its outputs are the region
  std::int32_t convert_rows = 0, convert_columns = 0;
  BytesTable bytes_table;

  std::int32_t matrix = 0;  // whether it can be done so
  std::int32_t row_tiles = 0, num_matrix_tiles = 0, matrix_tiles = 0;  // MatrixTile[num_matrix_tiles]
  std::int32_t matrix_halves = 0;  // of shared memory, most of all tiles
  MatrixTable matrix_table[2];

  std::int32_t integer = 0;  // whether it can be done so, and ...
  std::int32_t integer_dense = 0;  // ... whether that reads little in vain
  std::int32_t integer_octets = 0, integer_steps = 0;  // most of a tile and an axis: 7 or 4, 4 or 8
  std::int32_t num_integer_tiles = 0, integer_tiles = 0;  // IntegerTile[num_integer_tiles]
  std::int32_t integer_warps = 0;  // of a block, most of all tiles
  std::int32_t integer_rows = 0;  // float4[out_h][integer_row_quads]: of luma and chroma row_first, groups, weights
  std::int32_t integer_row_quads = 0, integer_most_quads = 0;  // of an output, of all that a chunk finishes
  std::int32_t sample_lift = 0, sample_top = 0;  // 16-bit samples: the shift that fills the top bits, and their mask
  IntegerTable integer_table[2];

  // Streaming: 3 for at most 2 outputs of luma and 3 of chroma at a time, 7 for 5 and 7; 0: not for it.
  std::int32_t live = 0;
  std::int32_t group = 0;  // samples of a plane that a thread streams
  std::int32_t num_tiles = 0, tiles = 0;  // StreamTile[num_tiles]
  std::int32_t max_threads = 0, max_row_floats = 0;  // over the tiles
  StreamTable stream[2];
};

static_assert(offsetof(FramesTables, hi) == offsetof(FramesTables, m) + 15 * sizeof(float), "fetched in one go");

std::vector<std::uint8_t> make_frames_tables(const FramesSpec& spec);

#if defined(__CUDACC__)
#define MMCORE_SHARED_WITH_DEVICE __host__ __device__
#else
#define MMCORE_SHARED_WITH_DEVICE
#endif

// Position of 4 neighbouring columns in a row of shared memory: a gap after every 8 such groups keeps threads that
// read at a distance of 8 columns off each other's banks.
MMCORE_SHARED_WITH_DEVICE inline int skewed_quad(int quad) { return quad + (quad >> 3); }

// Groups of 4 columns in a row of shared memory: what is written, and what the last output's window reads beyond.
MMCORE_SHARED_WITH_DEVICE inline int stream_row_quads(const FramesTables& t, const StreamTile& tile, int axis) {
  return (tile.column1[axis] - tile.column0[axis] + 15) / 16 * 4 + t.stream[axis].quads;
}

// Shared memory of the matrix kernel, for each component of an axis: hi and lo, 16 rows each of so many 16-bit floats.
// 16 bytes more than the columns keep rows off each other's banks.
constexpr int kMatrixRows = 16, kMatrixGroup = 64;
MMCORE_SHARED_WITH_DEVICE inline int matrix_pitch(const MatrixTile& tile, int axis, int step) {
  return tile.groups[axis] * (kMatrixGroup / step) + 8;
}

// Shared memory of the integer kernel: rows of samples of every plane, for each of two chunks (stages) and more; what
// integer_rows says of the outputs that each finishes, and one more; and rows of sums of every component. 8 floats more
// than a multiple of 32 keep rows off each other's banks.
constexpr int kStripAlign = 4;  // outputs that a strip's first is a multiple of
MMCORE_SHARED_WITH_DEVICE constexpr int integer_pitch(int octets) { return (8 * octets + 31) / 32 * 32 + 8; }
MMCORE_SHARED_WITH_DEVICE inline int integer_chunk_bytes(const FramesTables& t) {
  const IntegerTable &luma = t.integer_table[0], &chroma = t.integer_table[t.chroma_axis];
  const int planes = t.family == static_cast<int>(ColorFamily::kGray) ? 0 : t.step[1] == 2 ? 1 : 2;
  return luma.chunk_rows * luma.pitch + planes * chroma.chunk_rows * chroma.pitch;
}
MMCORE_SHARED_WITH_DEVICE inline std::size_t integer_shared_bytes(int stages, int chunk_bytes, int quads,
                                                                  int ring_bytes) {
  return static_cast<std::size_t>(stages) * chunk_bytes + static_cast<std::size_t>(stages + 1) * quads * 16 +
         ring_bytes;
}
MMCORE_SHARED_WITH_DEVICE inline int integer_ring_bytes(const FramesTables& t) {
  const int luma = t.integer_table[0].ring_rows, chroma = t.integer_table[t.chroma_axis].ring_rows;
  const int rows = t.family == static_cast<int>(ColorFamily::kGray) ? luma : luma + 2 * chroma;
  return rows * integer_pitch(t.integer_octets) * 4;
}

}  // namespace mmcore
