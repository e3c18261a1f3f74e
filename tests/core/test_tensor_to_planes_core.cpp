// tensor_to_planes without Python: every instruction set that this machine can run against the definition in double
// precision, and against the base kernels to the bit. The digest of the results is the same on every machine.
//
// The Python tests hold the backend to the float64 oracle, on the machine they run on. This program carries that
// result to machines that run no torch here (ARM under QEMU, AVX-512 under Bochs).
// Usage: test_tensor_to_planes_core [N] runs every N-th case. Exit status 0 and a last line "OK" if all cases agree.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "tensor_to_planes_kernels.h"

using namespace mmcore;

namespace {

struct Format {
  const char* name;
  FormatDesc desc;
  bool opaque;
};

FormatDesc planar(int bits, int cw, int ch, ColorFamily family = ColorFamily::kYuv) {
  return {family, {{0, 0, 1}, {1, 0, 1}, {2, 0, 1}}, bits, 0, cw, ch};
}

const std::vector<Format> kFormats = {
    {"yuv420p", planar(8, 1, 1), false},
    {"yuv422p10le", planar(10, 1, 0), false},
    {"yuv444p12le", planar(12, 0, 0), false},
    {"nv21", {ColorFamily::kYuv, {{0, 0, 1}, {1, 1, 2}, {1, 0, 2}}, 8, 0, 1, 1}, false},
    {"p010le", {ColorFamily::kYuv, {{0, 0, 1}, {1, 0, 2}, {1, 1, 2}}, 10, 6, 1, 1}, false},
    {"gray10le", {ColorFamily::kGray, {{0, 0, 1}, {}, {}}, 10, 0, 0, 0}, false},
    {"rgb24", {ColorFamily::kRgb, {{0, 0, 3}, {0, 1, 3}, {0, 2, 3}}, 8, 0, 0, 0}, false},
    {"bgra", {ColorFamily::kRgb, {{0, 2, 4}, {0, 1, 4}, {0, 0, 4}}, 8, 0, 0, 0}, true},
    {"gbrp10le", {ColorFamily::kRgb, {{2, 0, 1}, {0, 0, 1}, {1, 0, 1}}, 10, 0, 0, 0}, false},
};

// Sizes around the vectors' lengths, odd ones, and one of several bands.
const int kSizes[][2] = {{1, 1}, {2, 2}, {3, 17}, {7, 33}, {6, 31}, {5, 64}, {149, 35}, {4, 130}};
const char* const kDTypes[] = {"uint8", "float16", "bfloat16", "float32"};
constexpr std::size_t kGuard = 64;

struct Input {
  std::vector<std::uint8_t> storage;
  TensorDesc desc;
  std::vector<double> value;  // [frame][channel][y][x]
};

constexpr int kFrames = 2;

Input make_input(DType dtype, int height, int width, int layout) {
  Input in;
  const std::ptrdiff_t pixels = static_cast<std::ptrdiff_t>(height) * width;
  const std::size_t count = static_cast<std::size_t>(kFrames * 3 * pixels), size = dtype_size(dtype);
  in.storage.resize(count * size);
  in.value.resize(count);
  in.desc.data = in.storage.data();
  in.desc.frame_stride = layout == 2 ? pixels : 3 * pixels;
  in.desc.channel_stride = layout == 1 ? 1 : layout == 2 ? kFrames * pixels : pixels;
  in.desc.row_stride = layout == 1 ? 3 * width : width;
  in.desc.pixel_stride = layout == 1 ? 3 : 1;
  std::uint32_t state = 2463534242u;
  std::size_t at = 0;
  for (int t = 0; t < kFrames; ++t) {
    for (int c = 0; c < 3; ++c) {
      for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) {
          state ^= state << 13, state ^= state >> 17, state ^= state << 5;
          // Exact in float32, so that every compiler makes the same: -1 to 1, or a byte.
          const float v = dtype == DType::kU8 ? static_cast<float>(state >> 24)
                                              : static_cast<float>(static_cast<int>(state >> 8) - 0x800000) * 0x1p-23f;
          std::uint8_t* p =
              in.storage.data() + static_cast<std::size_t>(t * in.desc.frame_stride + c * in.desc.channel_stride +
                                                           y * in.desc.row_stride + x * in.desc.pixel_stride) *
                                      size;
          double exact = v;
          if (dtype == DType::kU8) {
            *p = static_cast<std::uint8_t>(v);
          } else if (dtype == DType::kF32) {
            std::memcpy(p, &v, 4);
          } else {
            const std::uint16_t bits = dtype == DType::kF16 ? float_to_half(v) : float_to_bfloat16(v);
            std::memcpy(p, &bits, 2);
            exact = dtype == DType::kF16 ? half_to_float(bits) : bfloat16_to_float(bits);
          }
          in.value[at++] = exact;
        }
      }
    }
  }
  return in;
}

int component_width(const PlanesSpec& s, int c) {
  const bool chroma = s.format.family == ColorFamily::kYuv && c > 0;
  return chroma ? (s.width + s.format.log2_chroma_w) >> s.format.log2_chroma_w : s.width;
}
int component_height(const PlanesSpec& s, int c) {
  const bool chroma = s.format.family == ColorFamily::kYuv && c > 0;
  return chroma ? (s.height + s.format.log2_chroma_h) >> s.format.log2_chroma_h : s.height;
}

// The definition: component c of a frame before the rounding.
double expected(const PlanesSpec& s, const double* frame, int c, int cy, int cx) {
  const double top = (1 << s.format.bits) - 1, unit = 1 << (s.format.bits - 8);
  auto level = [&](int channel, int y, int x) {
    const double v = frame[(static_cast<std::ptrdiff_t>(channel) * s.height + y) * s.width + x];
    return std::fmin(255, std::fmax(0, v * s.mul[channel] + s.add[channel]));
  };
  auto luma = [&](int y, int x) {
    return s.kr * level(0, y, x) + (1 - s.kr - s.kb) * level(1, y, x) + s.kb * level(2, y, x);
  };
  if (s.format.family == ColorFamily::kRgb) return level(c, cy, cx) * top / 255;
  if (c == 0) return s.full_range ? luma(cy, cx) * top / 255 : luma(cy, cx) * 219 * unit / 255 + 16 * unit;
  const bool on_x = s.chroma == ChromaLocation::kLeft || s.chroma == ChromaLocation::kTopLeft;
  const bool on_y = s.chroma == ChromaLocation::kTopLeft;
  struct Tap {
    int at;
    double weight;
  };
  auto taps = [](int i, int size, bool halved, bool on) {
    auto inside = [size](int at) { return at < 0 ? 0 : at >= size ? size - 1 : at; };
    if (!halved) return std::vector<Tap>{{i, 1.0}};
    if (!on) return std::vector<Tap>{{2 * i, 0.5}, {inside(2 * i + 1), 0.5}};
    return std::vector<Tap>{{inside(2 * i - 1), 0.25}, {2 * i, 0.5}, {inside(2 * i + 1), 0.25}};
  };
  const int channel = c == 1 ? 2 : 0;
  const double k = c == 1 ? s.kb : s.kr;
  double mean = 0;
  for (const Tap& v : taps(cy, s.height, s.format.log2_chroma_h == 1, on_y)) {
    for (const Tap& h : taps(cx, s.width, s.format.log2_chroma_w == 1, on_x)) {
      mean += v.weight * h.weight * (level(channel, v.at, h.at) - luma(v.at, h.at));
    }
  }
  const double range = s.full_range ? top : 224 * unit;
  return std::fmin(top, mean / (2 * (1 - k)) * range / 255 + (1 << (s.format.bits - 1)));
}

struct Output {
  std::vector<std::vector<std::uint8_t>> storage;  // per frame and plane, a guard before and after each row
  std::vector<std::uint8_t*> planes;
  std::vector<std::ptrdiff_t> pitches;
  std::vector<std::size_t> row_bytes;
};

Output make_output(const PlanesSpec& s) {
  Output out;
  const std::size_t size = s.format.bits + s.format.shift > 8 ? 2 : 1;
  out.planes.resize(4 * kFrames);
  out.pitches.resize(4 * kFrames);
  out.storage.resize(4 * kFrames);
  out.row_bytes.resize(4 * kFrames);
  for (int t = 0; t < kFrames; ++t) {
    for (int c = 0; c < (s.format.family == ColorFamily::kGray ? 1 : 3); ++c) {
      const ComponentDesc& d = s.format.component[c];
      const std::size_t i = static_cast<std::size_t>(4 * t + d.plane);
      const std::size_t bytes = static_cast<std::size_t>(component_width(s, c) * d.step) * size;
      out.row_bytes[i] = bytes;
      out.pitches[i] = static_cast<std::ptrdiff_t>(bytes + 2 * kGuard);
      out.storage[i].assign(static_cast<std::size_t>(component_height(s, c)) * (bytes + 2 * kGuard), 0xa5);
      out.planes[i] = out.storage[i].data() + kGuard;
    }
  }
  return out;
}

std::string check(const PlanesSpec& s, const Input& in, const Output& out) {
  const int size = s.format.bits + s.format.shift > 8 ? 2 : 1;
  for (std::size_t i = 0; i < out.storage.size(); ++i) {
    const std::size_t pitch = out.row_bytes[i] + 2 * kGuard;
    for (std::size_t at = 0; at < out.storage[i].size(); ++at) {
      const std::size_t x = at % pitch;
      if ((x < kGuard || x >= pitch - kGuard) && out.storage[i][at] != 0xa5) return "wrote outside of a row";
    }
  }
  const std::ptrdiff_t pixels = static_cast<std::ptrdiff_t>(s.height) * s.width;
  for (int t = 0; t < kFrames; ++t) {
    const double* frame = in.value.data() + 3 * pixels * t;
    for (int c = 0; c < (s.format.family == ColorFamily::kGray ? 1 : 3); ++c) {
      const ComponentDesc& d = s.format.component[c];
      const std::size_t plane = static_cast<std::size_t>(4 * t + d.plane);
      for (int y = 0; y < component_height(s, c); ++y) {
        for (int x = 0; x < component_width(s, c); ++x) {
          std::uint32_t got = 0;
          std::memcpy(&got, out.planes[plane] + y * out.pitches[plane] + (x * d.step + d.offset) * size,
                      static_cast<std::size_t>(size));
          if (got & ((1u << s.format.shift) - 1)) return "low bits are set";
          const double want = expected(s, frame, c, y, x);
          // float32 of values up to 4095, some ten roundings
          if (!(std::fabs((got >> s.format.shift) - want) <= 0.5 + 2e-3)) {
            return "component " + std::to_string(c) + " at " + std::to_string(y) + ", " + std::to_string(x) + ": " +
                   std::to_string(got >> s.format.shift) + ", expected " + std::to_string(want);
          }
          if (s.opaque && c == 0 && out.planes[plane][y * out.pitches[plane] + x * d.step + 3] != 255) {
            return "not opaque";
          }
        }
      }
    }
  }
  return "";
}

// What is not a number is black, what is infinite clamps, and the first such frame is told.
bool special_values(Isa isa) {
  PlanesSpec s;
  s.format = planar(8, 0, 0);
  s.height = 2, s.width = 37;
  for (int c = 0; c < 3; ++c) s.mul[c] = 255;
  for (const float v : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                        -std::numeric_limits<float>::infinity()}) {
    std::vector<float> values(static_cast<std::size_t>(kFrames * 3 * s.height * s.width), 0.0f);
    const std::ptrdiff_t pixels = s.height * s.width;
    for (int c = 0; c < 3; ++c) values[static_cast<std::size_t>(3 * pixels + c * pixels + pixels - 1)] = v;
    TensorDesc desc{values.data(), 3 * pixels, pixels, s.width, 1};
    Output out = make_output(s);
    if (tensor_to_planes(isa, s, desc, kFrames, out.planes.data(), out.pitches.data(), 2) != 1) return false;
    const std::uint8_t last = out.planes[4][out.pitches[4] + s.width - 1];
    if (last != (v > 0 ? 235 : 16)) return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  if (every < 1) return 2;
  const std::vector<Isa> isas = available_isas();
  int number = 0, cases = 0, failures = 0;
  std::uint64_t digest = 14695981039346656037ull;
  auto report = [&](Isa isa, const std::string& name, const std::string& problem) {
    ++cases;
    if (!problem.empty() && ++failures <= 20) {
      std::printf("FAILED %s %s: %s\n", isa_name(isa), name.c_str(), problem.c_str());
    }
  };
  for (const Format& format : kFormats) {
    for (const auto& size : kSizes) {
      for (int variant = 0; variant < 16; ++variant) {
        if (number++ % every != 0) continue;
        PlanesSpec s;
        s.format = format.desc;
        s.opaque = format.opaque;
        s.height = size[0], s.width = size[1];
        s.dtype = static_cast<DType>(variant % 4);
        s.chroma = static_cast<ChromaLocation>(variant / 4);
        const int mix = number % 7;
        s.full_range = mix % 2 == 1;
        s.kr = mix % 3 == 0 ? 0.2126 : 0.299, s.kb = mix % 3 == 0 ? 0.0722 : 0.114;
        for (int c = 0; c < 3 && s.dtype != DType::kU8; ++c) s.mul[c] = 140 + c, s.add[c] = 127 - c;
        const Input in = make_input(s.dtype, s.height, s.width, number % 3);
        const std::string name = std::string(format.name) + " " + std::to_string(s.height) + "x" +
                                 std::to_string(s.width) + " " + kDTypes[variant % 4] + " variant " +
                                 std::to_string(variant);
        Output base = make_output(s);
        for (const Isa isa : isas) {
          Output out = make_output(s);
          const std::int64_t wrong =
              tensor_to_planes(isa, s, in.desc, kFrames, out.planes.data(), out.pitches.data(), number % 2 + 1);
          std::string problem = wrong == -1 ? check(s, in, out) : "called a number infinite";
          if (isa == Isa::kBase) {
            base = std::move(out);
            for (const auto& plane : base.storage) {
              for (std::uint8_t byte : plane) digest = (digest ^ byte) * 1099511628211ull;
            }
          } else if (problem.empty() && out.storage != base.storage) {
            problem = "not the bytes of the base kernels";
          }
          report(isa, name, problem);
        }
      }
    }
  }
  for (const Isa isa : isas) report(isa, "special values", special_values(isa) ? "" : "wrong");
  std::printf("instruction sets:");
  for (const Isa isa : isas) std::printf(" %s", isa_name(isa));
  std::printf("\ndigest of the exact results: %016llx\n%d cases, %d failures\n%s\n",
              static_cast<unsigned long long>(digest), cases, failures, failures ? "FAILED" : "OK");
  return failures ? 1 : 0;
}
