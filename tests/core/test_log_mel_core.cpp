// log_mel without Python: every instruction set that this machine can run against the formulas written out below in
// double, with a Fourier transform by its definition.
//
// The Python tests hold the backend to numpy and transformers on the machine they run on. This program holds it on
// machines that run no torch here (ARM under QEMU, AVX-512 under Bochs) and under sanitizers. Samples end where their
// allocation does, what lies beyond a row's length is NaN, and results begin as NaN between guards that must stay.
// Usage: test_log_mel_core [N] runs every N-th case. Exit status 0 and a last line "OK" if all is well.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "half.h"
#include "isa.h"
#include "mmcore/log_mel.h"

// The driver asks for the instruction set in use, which is chosen once per process: here it asks this program.
namespace mmcore {
static Isa isa_under_test();
}
#define active_isa isa_under_test
#include "log_mel.cpp"
#undef active_isa

namespace {

using mmcore::DType;
using mmcore::Edge;
using mmcore::Framing;
using mmcore::Isa;
using mmcore::LogMelOptions;
using mmcore::LogMelSpec;

Isa isa_in_use = Isa::kBase;

const char* const kFramings[] = {"center", "center_drop_last", "snip_edges", "no_snip_edges"};
const char* const kEdges[] = {"reflect", "symmetric", "zeros"};
const char* const kDTypes[] = {"u8", "f16", "bf16", "f32", "f64"};

std::uint32_t state = 1;
double uniform() {  // in [0, 1)
  state = state * 1664525u + 1013904223u;
  return (state >> 8) / 16777216.0;
}

double read(DType dtype, const unsigned char* p) {
  double d = 0;
  float f = 0;
  std::uint16_t h = 0;
  switch (dtype) {
    case DType::kF64:
      std::memcpy(&d, p, 8);
      return d;
    case DType::kF32:
      std::memcpy(&f, p, 4);
      return f;
    default:
      std::memcpy(&h, p, 2);
      return dtype == DType::kF16 ? mmcore::half_to_float(h) : mmcore::bfloat16_to_float(h);
  }
}

void write(DType dtype, double d, unsigned char* p) {
  const auto f = static_cast<float>(d);
  if (dtype == DType::kF64) std::memcpy(p, &d, 8);
  if (dtype == DType::kF32) std::memcpy(p, &f, 4);
  if (dtype == DType::kF16 || dtype == DType::kBF16) {
    const std::uint16_t h = dtype == DType::kF16 ? mmcore::float_to_half(f) : mmcore::float_to_bfloat16(f);
    std::memcpy(p, &h, 2);
  }
}

struct Case {
  std::int64_t n_fft, win_length, hop_length, n_mels, samples;
  DType dtype, out_dtype;
  Framing framing;
  Edge edge;
  int rows;
  bool filtered, magnitude, logarithm, ranged, time_major, unequal, padded, more_frames, strided;

  std::string name() const {
    char text[300];
    std::snprintf(text, sizeof text, "%ld/%ld/%ld %ld mels, %d x %ld samples, %s to %s, %s %s%s%s%s%s%s%s%s%s%s",
                  static_cast<long>(n_fft), static_cast<long>(win_length), static_cast<long>(hop_length),
                  static_cast<long>(n_mels), rows, static_cast<long>(samples), kDTypes[static_cast<int>(dtype)],
                  kDTypes[static_cast<int>(out_dtype)], kFramings[static_cast<int>(framing)],
                  kEdges[static_cast<int>(edge)], filtered ? " filtered" : "", magnitude ? " magnitude" : "",
                  logarithm ? " log" : "", ranged ? " ranged" : "", time_major ? " time-major" : "",
                  unequal ? " unequal" : "", padded ? " padded" : "", more_frames ? " more frames" : "",
                  strided ? " strided" : "");
    return text;
  }
};

// The sample that stands at i: walks from the ends, as often as it takes.
double sample(const std::vector<double>& x, std::int64_t i, Edge edge) {
  const auto n = static_cast<std::int64_t>(x.size());
  if (edge == Edge::kZeros) return i < 0 || i >= n ? 0 : x[static_cast<std::size_t>(i)];
  if (n == 1) return x[0];
  const std::int64_t again = edge == Edge::kSymmetric ? 1 : 0;
  while (i < 0 || i >= n) i = i < 0 ? -i - again : 2 * n - 2 - i + again;
  return x[static_cast<std::size_t>(i)];
}

// Frames of one row, already filled up or cut: values (frame, mel), before the clamp and the normalisation.
std::vector<std::vector<double>> expected_frames(const LogMelOptions& o, const std::vector<double>& x,
                                                 const std::vector<double>& window, const std::vector<double>& mel) {
  const auto total = static_cast<std::int64_t>(x.size());
  const std::int64_t bins = o.n_fft / 2 + 1;
  std::int64_t count = 0, first = 0;
  switch (o.framing) {
    case Framing::kCenter:
    case Framing::kCenterDropLast:
      count = total / o.hop_length + (o.framing == Framing::kCenter ? 1 : 0);
      first = -(o.n_fft / 2) + (o.n_fft - o.win_length) / 2;
      break;
    case Framing::kSnipEdges:
      count = total < o.win_length ? 0 : 1 + (total - o.win_length) / o.hop_length;
      break;
    default:
      count = (total + o.hop_length / 2) / o.hop_length;
      first = o.hop_length / 2 - o.win_length / 2;
  }
  if (total == 0) count = 0;
  std::vector<double> cosines(static_cast<std::size_t>(o.n_fft)), sines(cosines.size());
  for (std::int64_t k = 0; k < o.n_fft; ++k) {
    const double angle = 2 * std::acos(-1.0) * static_cast<double>(k) / static_cast<double>(o.n_fft);
    cosines[static_cast<std::size_t>(k)] = std::cos(angle);
    sines[static_cast<std::size_t>(k)] = std::sin(angle);
  }
  std::vector<std::vector<double>> values;
  for (std::int64_t f = 0; f < count; ++f) {
    std::vector<double> y;
    double mean = 0;
    for (std::int64_t j = 0; j < o.win_length; ++j) {
      y.push_back(sample(x, first + f * o.hop_length + j, o.edge));
      mean += y.back() / static_cast<double>(o.win_length);
    }
    if (o.remove_dc) {
      for (double& v : y) v -= mean;
    }
    for (std::size_t j = y.size(); j-- > 0;) y[j] = (y[j] - o.preemphasis * y[j == 0 ? 0 : j - 1]) * window[j];
    std::vector<double> power;
    for (std::int64_t k = 0; k < bins; ++k) {
      double re = 0, im = 0;
      for (std::size_t j = 0; j < y.size(); ++j) {
        const auto turn = static_cast<std::size_t>(static_cast<std::int64_t>(j) * k % o.n_fft);
        re += y[j] * cosines[turn];
        im -= y[j] * sines[turn];
      }
      power.push_back(o.magnitude ? std::hypot(re, im) : re * re + im * im);
    }
    values.emplace_back();
    for (std::int64_t m = 0; m < o.n_mels; ++m) {
      double sum = 0;
      for (std::int64_t k = 0; k < bins; ++k) {
        sum += mel[static_cast<std::size_t>(m * bins + k)] * power[static_cast<std::size_t>(k)];
      }
      if (o.logarithm) sum = o.log_scale * std::log(std::max(o.floor, sum + o.offset));
      values.back().push_back(sum);
    }
  }
  return values;
}

std::string run_case(const Case& c, int threads) {
  constexpr std::size_t kGuard = 64;
  state = 12345u + static_cast<std::uint32_t>(c.samples * 131 + c.n_fft);
  LogMelOptions o;
  o.n_fft = c.n_fft;
  o.win_length = c.win_length;
  o.hop_length = c.hop_length;
  o.n_mels = c.n_mels;
  o.framing = c.framing;
  o.edge = c.edge;
  o.remove_dc = c.filtered;
  o.preemphasis = c.filtered ? 0.9 : 0;
  o.magnitude = c.magnitude;
  o.logarithm = c.logarithm;
  o.log_scale = c.logarithm ? 0.4342944819 : 1;
  o.floor = 1e-4;
  o.offset = c.filtered ? 1e-3 : 0;
  o.dynamic_range = c.ranged ? 0.7 : 0;
  o.mean = 0.25;
  o.std = 2;
  o.pad_with_silence = !c.unequal || c.ranged;
  o.pad_value = -0.5;
  o.time_major = c.time_major;
  const std::int64_t bins = c.n_fft / 2 + 1;
  std::vector<double> window, mel(static_cast<std::size_t>(c.n_mels * bins));
  for (std::int64_t j = 0; j < c.win_length; ++j) window.push_back(0.2 + uniform());
  for (std::int64_t m = 0; m < c.n_mels; ++m) {  // of 0, 1, 2 ... bins
    for (std::int64_t k = m % bins; k < std::min(bins, m % bins + m % 7); ++k) {
      mel[static_cast<std::size_t>(m * bins + k)] = uniform() / static_cast<double>(c.n_fft);
    }
  }
  if (c.n_mels > 2) mel[static_cast<std::size_t>(3 * bins - 1)] = 0.01;  // the last bin

  const std::size_t size = mmcore::dtype_size(c.dtype);
  const std::int64_t stride = c.samples + (c.strided ? 3 : 0);
  const auto elements = static_cast<std::size_t>(c.samples == 0 ? 0 : (c.rows - 1) * stride + c.samples);
  std::vector<unsigned char> memory(elements * size);
  std::vector<std::int64_t> lengths;
  for (int r = 0; r < c.rows; ++r) lengths.push_back(c.unequal ? (r * c.samples) / c.rows : c.samples);
  std::vector<std::vector<double>> rows(static_cast<std::size_t>(c.rows));
  for (std::size_t i = 0; i < elements; ++i) {
    const auto row = i / static_cast<std::size_t>(stride), at = i % static_cast<std::size_t>(stride);
    const bool is = at < static_cast<std::size_t>(lengths[row]);
    write(c.dtype, is ? uniform() - 0.4 : std::numeric_limits<double>::quiet_NaN(), &memory[i * size]);
    if (is) rows[row].push_back(read(c.dtype, &memory[i * size]));
  }

  LogMelSpec spec;
  spec.waveform = memory.data();
  spec.dtype = c.dtype;
  spec.rows = c.rows;
  spec.samples = c.samples;
  spec.row_stride = static_cast<std::ptrdiff_t>(stride);
  spec.lengths = c.unequal ? lengths.data() : nullptr;
  spec.pad_to = c.padded ? c.samples * 3 / 2 + 1 : -1;
  spec.frames = mmcore::log_mel_frames(o, c.padded ? spec.pad_to : c.samples);
  if (c.more_frames) spec.frames = spec.frames % 2 == 0 ? spec.frames + 5 : spec.frames * 2 / 3 + 1;
  spec.out_dtype = c.out_dtype;
  const std::size_t out_size = mmcore::dtype_size(c.out_dtype);
  const auto count = static_cast<std::size_t>(c.rows * c.n_mels * spec.frames);
  std::vector<unsigned char> out(count * out_size + 2 * kGuard, static_cast<unsigned char>(0xff));
  spec.out = out.data() + kGuard;
  const mmcore::LogMelPlan plan(o, window.data(), mel.data());
  mmcore::log_mel(plan, spec, threads);

  const double rounding = c.out_dtype == DType::kBF16 ? 0.004 : c.out_dtype == DType::kF16 ? 0.0005 : 0;
  const double tolerance = c.dtype == DType::kF64 ? 1e-9 : 1e-4;
  for (int r = 0; r < c.rows; ++r) {
    std::vector<double>& x = rows[static_cast<std::size_t>(r)];
    if (c.padded) x.resize(static_cast<std::size_t>(spec.pad_to), 0.0);
    const auto values = expected_frames(o, x, window, mel);
    const auto own = std::min(static_cast<std::int64_t>(values.size()), spec.frames);
    double largest = -std::numeric_limits<double>::infinity();
    for (std::int64_t f = 0; f < own; ++f) {
      for (const double v : values[static_cast<std::size_t>(f)]) largest = std::max(largest, v);
    }
    const double silence = o.logarithm ? o.log_scale * std::log(std::max(o.floor, o.offset)) : 0;
    for (std::int64_t f = 0; f < spec.frames; ++f) {
      for (std::int64_t m = 0; m < c.n_mels; ++m) {
        double want = f < own              ? values[static_cast<std::size_t>(f)][static_cast<std::size_t>(m)]
                      : o.pad_with_silence ? silence
                                           : o.pad_value;
        if (c.ranged) want = std::max(want, largest - o.dynamic_range);
        want = (want - o.mean) / o.std;
        const std::int64_t inside = c.time_major ? f * c.n_mels + m : m * spec.frames + f;
        const auto at = static_cast<std::size_t>(r * c.n_mels * spec.frames + inside);
        const double got = read(c.out_dtype, &out[kGuard + at * out_size]);
        if (!(std::fabs(got - want) <= tolerance + (tolerance + rounding) * std::fabs(want))) {
          return "row " + std::to_string(r) + ", frame " + std::to_string(f) + ", mel " + std::to_string(m) + ": " +
                 std::to_string(got) + ", expected " + std::to_string(want);
        }
      }
    }
  }
  for (std::size_t i = 0; i < kGuard; ++i) {
    if (out[i] != 0xff || out[out.size() - 1 - i] != 0xff) return "a guard was written";
  }
  return "";
}

std::vector<Case> table() {
  std::vector<Case> cases;
  // n_fft, win_length, hop_length; every radix, alone and together, and the settings of models last
  const std::int64_t transforms[][3] = {
      {1, 1, 1},     {2, 2, 1},    {3, 3, 2},       {4, 3, 1},       {5, 5, 7},      {6, 5, 2},    {8, 8, 3},
      {10, 9, 4},    {12, 12, 5},  {13, 13, 4},     {16, 15, 3},     {18, 17, 8},    {22, 20, 9},  {32, 32, 16},
      {40, 33, 17},  {49, 49, 10}, {60, 60, 33},    {64, 40, 16},    {77, 70, 20},   {80, 64, 15}, {100, 97, 100},
      {121, 99, 31}, {128, 65, 1}, {154, 154, 200}, {400, 400, 160}, {512, 400, 160}};
  const std::int64_t mels[] = {1, 3, 4, 7, 8, 15, 16, 17, 33, 80};
  std::uint32_t turn = 7;
  for (const auto& t : transforms) {
    for (const DType dtype : {DType::kF32, DType::kF64, DType::kF16, DType::kBF16}) {
      for (int part = 0; part < 5; ++part) {
        turn = turn * 1664525u + 1013904223u;
        const std::uint32_t r = turn >> 7;
        Case c{};
        c.n_fft = t[0];
        c.win_length = t[1];
        c.hop_length = t[2];
        c.n_mels = mels[r % 10];
        // frames that fill no vector, one and a bit, and several blocks
        const std::int64_t frames[] = {1, 5, 16, 21, 131};
        c.samples =
            part == 4 && t[0] > 128 ? 70 * t[2] : frames[part] * t[2] + t[1] - 1 - static_cast<std::int64_t>(r % 2);
        c.samples = std::max<std::int64_t>(c.samples, 1);
        c.dtype = dtype;
        const DType outs[] = {DType::kF32, DType::kF32, DType::kF16, DType::kBF16};
        c.out_dtype = dtype == DType::kF64 ? DType::kF64 : outs[(r >> 4) % 4];
        c.framing = static_cast<Framing>((r >> 6) % 4);
        c.edge = static_cast<Edge>((r >> 8) % 3);
        c.rows = 1 + static_cast<int>((r >> 10) % 3);
        c.filtered = (r >> 12) % 2 == 0;
        c.magnitude = (r >> 13) % 3 == 0;
        c.logarithm = (r >> 15) % 4 != 0;
        c.ranged = c.logarithm && (r >> 17) % 2 == 0;
        c.time_major = (r >> 18) % 2 == 0;
        c.unequal = (r >> 19) % 3 == 0;
        c.padded = (r >> 21) % 3 == 0;
        c.more_frames = (r >> 22) % 4 == 0;
        c.strided = (r >> 24) % 2 == 0;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

}  // namespace

namespace mmcore {
static Isa isa_under_test() { return isa_in_use; }
}  // namespace mmcore

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  if (every < 1) return 2;
  const std::vector<Isa> isas = mmcore::available_isas();
  const std::vector<Case> all = table();
  int cases = 0, runs = 0, failures = 0;
  for (std::size_t i = 0; i < all.size(); i += static_cast<std::size_t>(every)) {
    ++cases;
    const std::size_t sets = all[i].dtype == DType::kF64 ? 1 : isas.size();  // one set of lanes of double
    for (std::size_t k = 0; k < sets; ++k) {
      isa_in_use = isas[k];
      ++runs;
      const std::string problem = run_case(all[i], 1 + static_cast<int>(i % 2));
      if (!problem.empty() && ++failures <= 20) {
        std::printf("FAILED %s, %s: %s\n", mmcore::isa_name(isas[k]), all[i].name().c_str(), problem.c_str());
      }
    }
  }
  std::printf("instruction sets:");
  for (const Isa isa : isas) std::printf(" %s", mmcore::isa_name(isa));
  std::printf("\n%d cases, %d runs, %d failures\n%s\n", cases, runs, failures, failures ? "FAILED" : "OK");
  return failures ? 1 : 0;
}
