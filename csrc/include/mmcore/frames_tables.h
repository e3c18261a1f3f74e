// What a device kernel needs of one (source format and size, transform) pair: one block of bytes that begins with
// FramesTables and holds every table by its offset, so that one copy brings it to the device.
//
// The same taps as the CPU's plan, in layouts for threads that work side by side.
#pragma once

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

  float m[3][3] = {}, b[3] = {}, lo[3] = {}, hi[3] = {};
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

  // Streaming: 3 for at most 2 outputs of luma and 3 of chroma at a time, 7 for 5 and 7; 0: not for it.
  std::int32_t live = 0;
  std::int32_t group = 0;  // samples of a plane that a thread streams
  std::int32_t num_tiles = 0, tiles = 0;  // StreamTile[num_tiles]
  std::int32_t max_threads = 0, max_row_floats = 0;  // over the tiles
  StreamTable stream[2];
};

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

}  // namespace mmcore
