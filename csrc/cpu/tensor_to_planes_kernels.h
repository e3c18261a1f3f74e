// What the driver (tensor_to_planes.cpp) and the kernels (tensor_to_planes_kernels.inl, once per instruction set) share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "half.h"
#include "inline.h"
#include "isa.h"
#include "mmcore/tensor_to_planes.h"

namespace mmcore {

// Floats before and after a row of scratch that kernels may read and write.
constexpr int kPlanesPadding = 64;

// How a level becomes a stored sample: round(level * scale + offset) in [0, top], shifted left.
struct SampleScale {
  float scale = 1, offset = 0, top = 255;
  int shift = 0;
};

struct LevelAffine {
  float mul[3], add[3];  // value to level
  float luma[3];  // weights of R, G, B in y
};

// How a row of chroma is made from a row of differences at the luma's size.
enum class ChromaRow {
  kFull,  // as it is
  kPair,  // d[2i] + d[2i + 1]
  kCosited  // d[2i - 1] + 2 d[2i] + d[2i + 1]
};

struct PlanesKernels {
  // Each by DType: rows of R, G and B, samples side by side.
  //
  // Luma into y (bytes, or 16-bit words if `wide`), and `weight` times B - y and R - y into db and dr, rows of scratch,
  // added to what is there if `add`. y may be null. False if a value is not finite.
  bool (*luma[4])(const void* const* src, const LevelAffine& a, const SampleScale& s, bool wide, float weight, bool add,
                  int n, void* y, float* db, float* dr);
  // R, G and B levels into samples. False if a value is not finite.
  bool (*rgb[4])(const void* const* src, const LevelAffine& a, const SampleScale& s, bool wide, int n,
                 void* const* dst);
  // n chroma samples of a row of differences, which is read one float before and after.
  void (*chroma)(const float* d, ChromaRow kind, const SampleScale& s, bool wide, int n, void* dst);
  // dst[x] = src[x * step]
  void (*gather[4])(const void* src, std::ptrdiff_t step, float* dst, int n);
  // dst = a0 b0 a1 b1 ... of 2, 3 or 4 rows
  void (*interleave_u8)(const std::uint8_t* const* src, int rows, std::uint8_t* dst, int n);
  void (*interleave_u16)(const std::uint16_t* const* src, int rows, std::uint16_t* dst, int n);
};

// tensor_to_planes on an instruction set of the caller's choice, which the machine must have.
std::int64_t tensor_to_planes(Isa isa, const PlanesSpec& spec, const TensorDesc& tensor, std::int64_t count,
                              std::uint8_t* const* planes, const std::ptrdiff_t* pitches, int threads);

namespace base {
extern const PlanesKernels kPlanesKernels;
}
namespace avx2 {
extern const PlanesKernels kPlanesKernels;
}
namespace avx512 {
extern const PlanesKernels kPlanesKernels;
}
namespace neon {
extern const PlanesKernels kPlanesKernels;
}

}  // namespace mmcore
