// The table of SIMD kernels of frames_to_tensor, one instance per instruction set.
//
// Rows of floats that kernels exchange are scratch: 64-byte aligned and padded, so a kernel may read kRowPadding
// floats past the end (finite values there) and write up to the next multiple of 16. Rows of planes and of the
// output are the caller's memory and are never touched outside [0, n).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "isa.h"

namespace mmcore {

constexpr int kRowPadding = 64;

// How a horizontal filter is laid out; chosen per filter from its scale and the lanes of the ISA.
enum class HorizontalKind {
  kIdentity,   // output i is input i
  kPermute,    // `lanes` outputs read at most `lanes` (registers=1) or 2*lanes (registers=2) neighbouring inputs
  kUpsample2,  // twice as many outputs as inputs: the even and the odd ones have one pair of weights each
  kBytes,      // as kPermute, straight from a row of bytes: 4 outputs read from a window of 16 bytes
  kDot,        // `taps` contiguous inputs per output, padded to a multiple of 4 with zero weights
};

struct HorizontalFilter {
  HorizontalKind kind = HorizontalKind::kIdentity;
  int size = 0;       // outputs
  int taps = 0;
  int lanes = 0;
  int registers = 0;  // kPermute
  // kPermute: per group of lanes; kBytes: per 4 outputs; kDot: per output, padded to a multiple of 16
  std::vector<int> start;
  std::vector<std::int32_t> index;  // kPermute: [group][tap][lane]
  std::vector<std::int8_t> bytes;   // kBytes: [group][tap][4 * lane], byte of the window, -1, -1, -1 per lane
  std::vector<float> weight;      // kPermute, kBytes: [group][tap][lane]; kDot: see dot_layout in frames_plan.cpp
  // kUpsample2: output begin + 2 * j + phase is pair[phase][0] * in[at] + pair[phase][1] * in[at + 1] with
  // at = pair_start[phase] + j, for j in [0, pairs). The few outputs before and after, next to the ends of the
  // row, are sums of `edge_weight` over inputs from `edge_start`.
  int begin = 0, pairs = 0;
  int pair_start[2] = {0, 0};
  float pair[2][2] = {{0, 0}, {0, 0}};
  std::vector<int> edge_output, edge_start;
  std::vector<float> edge_weight;  // two per edge output
};

// out_c = clamp(sum_j m[c][j] * component_j + b[c], lo[c], hi[c])
struct Affine {
  enum class Kind { kYuv, kGray, kRgb, kFull } kind = Kind::kYuv;  // which entries of m are not zero
  float m[3][3] = {}, b[3] = {}, lo[3] = {}, hi[3] = {};
};

// 8-bit fixed-point horizontal filter: (sum weight * byte + half) >> precision, clamped to a byte.
struct BytesFilter {
  int size = 0;
  int taps = 0;
  int precision = 0;
  // Where every 4 outputs read from a window of 16 bytes: taps come in pairs, [group of 8][pair][lane], with the
  // bytes b, -1, b', -1 and the weights w, w' per lane and one start per 4 outputs. Else: taps is a multiple of
  // 16, [output][tap], one start per output. Padded with zero weights.
  bool windows = false;
  std::vector<int> start;
  std::vector<std::int8_t> bytes;
  std::vector<std::int16_t> weight;
};

struct FramesKernels {
  Isa isa;
  int lanes;       // of kPermute filters; 1: none
  int byte_lanes;  // of kBytes filters; 0: none
  // dst[x] = sum_k weight[k] * (rows[k][x] >> shift). rows[taps ... taps + ahead) are those that the next call
  // will read for the first time: fetched into the cache on the way.
  void (*vertical_u8)(const std::uint8_t* const* rows, const float* weight, int taps, int ahead, float* dst, int n);
  void (*vertical_u16)(const std::uint16_t* const* rows, const float* weight, int taps, int ahead, int shift,
                       float* dst, int n);
  // src, dst: padded scratch
  void (*vertical_f32)(const float* const* rows, const float* weight, int taps, float* dst, int n);
  // kBytes only; null where the instruction set has no byte shuffle. `next`, a row like src, is fetched into the
  // cache on the way.
  void (*horizontal_bytes)(const std::uint8_t* src, const std::uint8_t* next, const HorizontalFilter& filter,
                           float* dst);
  void (*horizontal)(const float* src, const HorizontalFilter& filter, float* dst);
  // dst[x] = src[x * step]
  void (*pick)(const float* src, int step, float* dst, int n);
  void (*affine_f32)(const float* const* src, const Affine& a, float* const* dst, int n);
  void (*affine_f16)(const float* const* src, const Affine& a, std::uint16_t* const* dst, int n);
  void (*affine_bf16)(const float* const* src, const Affine& a, std::uint16_t* const* dst, int n);
  // Rounds to the nearest even; multiplies and adds apart, so that every ISA gives the same bytes.
  void (*affine_u8)(const float* const* src, const Affine& a, std::uint8_t* const* dst, int n);
  // (byte - sub) / div, or byte * scale
  void (*normalize_f32)(const std::uint8_t* src, float sub, float div, bool scale_only, float* dst, int n);
  void (*normalize_f16)(const std::uint8_t* src, float sub, float div, bool scale_only, std::uint16_t* dst, int n);
  void (*normalize_bf16)(const std::uint8_t* src, float sub, float div, bool scale_only, std::uint16_t* dst, int n);
  // src may be read up to kRowPadding bytes past its end
  void (*bytes_horizontal)(const std::uint8_t* src, const BytesFilter& filter, std::uint8_t* dst);
  void (*bytes_vertical)(const std::uint8_t* const* rows, const std::int16_t* weight, int taps, int precision,
                         std::uint8_t* dst, int n);
  // dst = a0 b0 c0 a1 b1 c1 ...
  void (*interleave_u8)(const std::uint8_t* const* src, std::uint8_t* dst, int n);
  void (*interleave_u16)(const std::uint16_t* const* src, std::uint16_t* dst, int n);
  void (*interleave_f32)(const float* const* src, float* dst, int n);
};

const FramesKernels& frames_kernels(Isa isa);

namespace base {
extern const FramesKernels kFramesKernels;
}
namespace avx2 {
extern const FramesKernels kFramesKernels;
}
namespace avx512 {
extern const FramesKernels kFramesKernels;
}
namespace neon {
extern const FramesKernels kFramesKernels;
}

}  // namespace mmcore
