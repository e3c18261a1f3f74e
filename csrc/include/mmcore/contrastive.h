// contrastive_loss: all of CLIP's and SigLIP's losses that lies between the matrix products.
//
// The caller multiplies y = a b^T and dZ with b and a; z = s y, for SigLIP z = s y + bias, batch x batch.
//   clip    L = 1 / 2B sum_i (lse_j z_ij + lse_j z_ji - 2 z_ii)
//   siglip  L = 1 / B sum_ij softplus(i = j ? -z_ij : z_ij)
//
// Contract
//   tile  whole rows of y, contiguous, of `compute` (f32 or f64); all rows at once or one tile after another, from the
//         first on. Where said it is overwritten with dL/dy of those rows: dZ, s included.
//   Sums are made in an order that depends on the extents and tiles alone, not on `threads`.
//   cost  clip: two reads of y for the statistics, one read and write for dZ; siglip: one read, one write.
//         Scratch: three rows for each 64 rows of a tile.
#pragma once

#include <cstdint>

#include "mmcore/dtype.h"

namespace mmcore {

struct ContrastiveTile {
  void* y = nullptr;  // (rows, batch)
  std::int64_t first = 0, rows = 0, batch = 0;
  DType compute = DType::kF32;
  double scale = 1, bias = 0;
};

// What clip knows of each row and column of z, as rows of (kClipStates, batch). With t = |s|, x = y or, for s < 0, -y,
// and m a value no less than any x of the row (or column): sum exp(t (x - m)) and sum exp(t (x - m)) (x - m).
enum ClipState : int {
  kRowMost = 0,  // m
  kRowSum = 1,
  kColumnMost = 2,
  kColumnSum = 3,
  kRowWeighted = 4,
  kColumnWeighted = 5,
  kDiagonal = 6,   // x_ii
  kReference = 7,  // of each block of rows: m of exp(t (x - m)), which `keep` left in y; NaN: y is as it was
  kClipStates = 8
};

struct ContrastiveSums {
  double loss = 0, scale_slope = 0, bias_slope = 0;  // slopes: dL/ds, dL/dbias
};

// Fills the rows' states and brings the columns' up to date; the tile at first = 0 starts them. keep: the tile is all of
// y, and may be overwritten with what clip_gradient(kept = true) makes dZ of. Throws std::bad_alloc alone, as all here.
void clip_statistics(const ContrastiveTile& tile, double* states, bool keep, int threads);
// After the last tile.
ContrastiveSums clip_sums(const double* states, std::int64_t batch, double scale);
// Overwrites the tile with dZ. Reads the first four states, and with `kept` kReference.
void clip_gradient(const ContrastiveTile& tile, const double* states, bool kept, int threads);
// The tile's part of the sums; with `gradient` overwrites it with dZ.
ContrastiveSums siglip(const ContrastiveTile& tile, bool gradient, int threads);

}  // namespace mmcore
