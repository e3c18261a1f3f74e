// frames_to_tensor without Python: every instruction set that this machine can run against the base kernels.
//
// The Python tests hold the backend to the float64 oracle, on the machine they run on. This program carries that
// result to machines that run no torch here (ARM under QEMU, AVX-512 under Bochs): `fused` must agree with the base
// kernels to 1e-3 of a level, `rgb8` (and bytes that are not resized) to the bit, and the digest of those exact
// results is the same on every machine.
// Usage: test_frames_core [N] runs every N-th case. Exit status 0 and a last line "OK" if all cases agree.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "frames_plan.h"
#include "mmcore/frames.h"

using namespace mmcore;

namespace {

struct Format {
  const char* name;
  FormatDesc desc;
};

FormatDesc planar(int bits, int cw, int ch, ColorFamily family = ColorFamily::kYuv) {
  return {family, {{0, 0, 1}, {1, 0, 1}, {2, 0, 1}}, bits, 0, cw, ch};
}

const std::vector<Format> kFormats = {
    {"yuv420p", planar(8, 1, 1)},
    {"nv12", {ColorFamily::kYuv, {{0, 0, 1}, {1, 0, 2}, {1, 1, 2}}, 8, 0, 1, 1}},
    {"yuv422p10le", planar(10, 1, 0)},
    {"yuv444p12le", planar(12, 0, 0)},
    {"p010le", {ColorFamily::kYuv, {{0, 0, 1}, {1, 0, 2}, {1, 1, 2}}, 10, 6, 1, 1}},
    {"gray", {ColorFamily::kGray, {{0, 0, 1}, {}, {}}, 8, 0, 0, 0}},
    {"bgra", {ColorFamily::kRgb, {{0, 2, 4}, {0, 1, 4}, {0, 0, 4}}, 8, 0, 0, 0}},
    {"rgb24", {ColorFamily::kRgb, {{0, 0, 3}, {0, 1, 3}, {0, 2, 3}}, 8, 0, 0, 0}},
    {"gbrp10le", {ColorFamily::kRgb, {{2, 0, 1}, {0, 0, 1}, {1, 0, 1}}, 10, 0, 0, 0}},
};

struct Shape {
  int height, width, resize_h, resize_w, top, left, out_h, out_w;
};

// Identity, shrinking by small and large ratios, enlarging, crops, widths around the vector lengths, one pixel.
const std::vector<Shape> kShapes = {
    {9, 65, 9, 65, 0, 0, 9, 65},   {48, 86, 24, 43, 2, 5, 16, 31}, {70, 131, 8, 17, 0, 1, 8, 16},
    {7, 13, 21, 33, 0, 0, 21, 33}, {33, 63, 28, 56, 0, 0, 28, 56}, {40, 300, 4, 9, 0, 0, 4, 9},
    {1, 1, 5, 3, 0, 0, 5, 3},      {6, 97, 6, 97, 1, 3, 4, 17},    {12, 40, 12, 79, 0, 0, 12, 79},
    {3, 3000, 2, 3, 0, 0, 2, 3},
};

const char* const kInterpolations[] = {"nearest", "bilinear", "bicubic", "area"};
const char* const kDTypes[] = {"uint8", "float16", "bfloat16", "float32"};
constexpr std::size_t kSizes[] = {1, 2, 2, 4};
constexpr std::size_t kGuard = 64;  // elements before and after the output that must stay as they were

struct Frame {
  std::vector<std::vector<std::uint8_t>> storage;  // tight, so that a sanitizer sees a read past the last row
  std::vector<const std::uint8_t*> planes;
  std::vector<std::ptrdiff_t> pitches;
};

Frame make_frame(const FormatDesc& f, int height, int width, bool flip) {
  Frame frame;
  std::uint32_t state = 12345;
  const int size = f.bits + f.shift > 8 ? 2 : 1;
  for (int p = 0; p < 3; ++p) {
    std::ptrdiff_t rows = 0, samples = 0;
    for (int c = 0; c < (f.family == ColorFamily::kGray ? 1 : 3); ++c) {
      if (f.component[c].plane != p) continue;
      const bool chroma = f.family == ColorFamily::kYuv && c > 0;
      rows = chroma ? (height + f.log2_chroma_h) >> f.log2_chroma_h : height;
      samples = static_cast<std::ptrdiff_t>(chroma ? (width + f.log2_chroma_w) >> f.log2_chroma_w : width) *
                f.component[c].step;
    }
    if (rows == 0) break;
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(rows * samples * size));
    for (std::size_t i = 0; i < bytes.size(); i += static_cast<std::size_t>(size)) {
      state = state * 1664525u + 1013904223u;
      const std::uint32_t value = (state >> 16) % (1u << f.bits) << f.shift;
      std::memcpy(&bytes[i], &value, static_cast<std::size_t>(size));  // both kinds of machine are little-endian
    }
    frame.storage.push_back(std::move(bytes));
    const std::ptrdiff_t pitch = samples * size;
    frame.planes.push_back(frame.storage.back().data() + (flip ? (rows - 1) * pitch : 0));
    frame.pitches.push_back(flip ? -pitch : pitch);
  }
  frame.planes.resize(4);
  frame.pitches.resize(4);
  return frame;
}

float as_float(const std::uint8_t* p, DType dtype) {
  if (dtype == DType::kU8) return *p;
  std::uint32_t bits = 0;
  std::memcpy(&bits, p, kSizes[static_cast<int>(dtype)]);
  if (dtype == DType::kBF16) bits <<= 16;
  if (dtype == DType::kF16) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float value = exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(1.0f * mantissa, -24);
    return bits >> 15 ? -value : value;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

std::vector<std::uint8_t> run(const FramesSpec& spec, Isa isa, const Frame& frame, int layout) {
  const FramesPlan plan(spec, isa);
  const std::size_t count = static_cast<std::size_t>(3 * spec.out_h * spec.out_w);
  const std::size_t size = kSizes[static_cast<int>(spec.dtype)];
  std::vector<std::uint8_t> out((count + 2 * kGuard) * size, 0xa5);
  OutputDesc desc;
  desc.data = out.data() + kGuard * size;
  desc.frame_stride = static_cast<std::ptrdiff_t>(count);
  if (layout == 0) {
    desc.channel_stride = spec.out_h * spec.out_w, desc.row_stride = spec.out_w, desc.pixel_stride = 1;
  } else if (layout == 1) {
    desc.channel_stride = 1, desc.row_stride = 3 * spec.out_w, desc.pixel_stride = 3;
  } else {
    desc.patch_size = spec.out_h % 4 || spec.out_w % 4 ? 1 : 4;
  }
  frames_to_tensor(plan, frame.planes.data(), frame.pitches.data(), desc, 0);
  for (std::size_t i = 0; i < kGuard * size; ++i) {
    if (out[i] != 0xa5 || out[out.size() - 1 - i] != 0xa5) return {};
  }
  return {out.begin() + static_cast<std::ptrdiff_t>(kGuard * size),
          out.end() - static_cast<std::ptrdiff_t>(kGuard * size)};
}

// Largest difference in levels beyond what rounding to the dtype explains; an infinity for NaN.
double distance(const std::vector<std::uint8_t>& a, const std::vector<std::uint8_t>& b, DType dtype, double level) {
  const std::size_t size = kSizes[static_cast<int>(dtype)];
  const double ulp = dtype == DType::kF16 ? 0x1p-10 : dtype == DType::kBF16 ? 0x1p-7 : 0;
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); i += size) {
    const double x = as_float(&a[i], dtype), y = as_float(&b[i], dtype);
    const double slack = dtype == DType::kU8 ? 1 : ulp * std::fmax(std::fabs(x), std::fabs(y));
    const double d = (std::fabs(x - y) - slack) / level;
    if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
  }
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  if (every < 1) return 2;
  const std::vector<Isa> isas = available_isas();
  int number = 0, cases = 0, failures = 0;
  std::uint64_t digest = 14695981039346656037ull;
  for (const Format& format : kFormats) {
    for (std::size_t shape = 0; shape < kShapes.size(); ++shape) {
      const Shape& s = kShapes[shape];
      const Frame frame = make_frame(format.desc, s.height, s.width, shape % 2 == 1);
      for (int variant = 0; variant < 32; ++variant) {
        if (number++ % every != 0) continue;
        FramesSpec spec;
        spec.format = format.desc;
        spec.height = s.height, spec.width = s.width, spec.resize_h = s.resize_h, spec.resize_w = s.resize_w;
        spec.top = s.top, spec.left = s.left, spec.out_h = s.out_h, spec.out_w = s.out_w;
        spec.interpolation = static_cast<Interpolation>(variant % 4);
        spec.accuracy = static_cast<Accuracy>(variant / 4 % 2);
        spec.dtype = static_cast<DType>(variant / 8);
        // the rest is spread over the cases: each value of each meets each interpolation and dtype
        const int mix = variant / 4 + static_cast<int>(shape);
        spec.antialias = mix % 3 != 0;
        spec.chroma = static_cast<ChromaLocation>(mix % 4);
        spec.full_range = mix % 5 == 0;
        const int layout = mix % 3;
        double level = 1;
        if (spec.dtype != DType::kU8) {
          level = 1 / (255 * 0.25);
          for (int c = 0; c < 3; ++c) {
            spec.mul[c] = level, spec.add[c] = -2;
            spec.sub[c] = 127.5f, spec.div[c] = 63.75f;
          }
        }
        const bool resized = s.resize_h != s.height || s.resize_w != s.width;
        const bool exact = spec.accuracy == Accuracy::kRgb8 || (spec.dtype == DType::kU8 && !resized);
        const std::vector<std::uint8_t> expected = run(spec, Isa::kBase, frame, layout);
        if (exact) {
          for (std::uint8_t byte : expected) digest = (digest ^ byte) * 1099511628211ull;
        }
        for (const Isa isa : isas) {
          const std::vector<std::uint8_t> got = isa == Isa::kBase ? expected : run(spec, isa, frame, layout);
          ++cases;
          std::string problem;
          if (got.empty()) {
            problem = "wrote outside its output";
          } else if (exact ? got != expected : distance(got, expected, spec.dtype, level) > 1e-3) {
            problem =
                "off by " + std::to_string(distance(got, expected, spec.dtype, level)) + " levels beyond rounding";
          }
          if (problem.empty()) continue;
          if (++failures <= 20) {
            std::printf("FAILED %s %s %dx%d -> %dx%d crop %dx%d %s antialias=%d %s %s chroma=%d layout=%d: %s\n",
                        isa_name(isa), format.name, s.height, s.width, s.resize_h, s.resize_w, s.out_h, s.out_w,
                        kInterpolations[variant % 4], spec.antialias, exact ? "exact" : "fused", kDTypes[variant / 8],
                        static_cast<int>(spec.chroma), layout, problem.c_str());
          }
        }
      }
    }
  }
  std::printf("instruction sets:");
  for (const Isa isa : isas) std::printf(" %s", isa_name(isa));
  std::printf("\ndigest of the exact results: %016llx\n%d cases, %d failures\n%s\n",
              static_cast<unsigned long long>(digest), cases, failures, failures ? "FAILED" : "OK");
  return failures ? 1 : 0;
}
