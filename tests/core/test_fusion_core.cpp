// weighted_fusion and its backward without Python: every instruction set that this machine can run against the
// formulas, written out below in double without a thought for speed.
//
// The Python tests hold the backend to torch on the machine they run on. This program holds it to the same tolerance
// on machines that run no torch here (ARM under QEMU, AVX-512 under Bochs) and under sanitizers. Whatever a call may
// not read is NaN, missing slots and the gaps between strided rows among it, and operands end where their allocation
// does; results begin as NaN, at every alignment, between guards that must stay as they were.
// Usage: test_fusion_core [N] runs every N-th case; N = 0: those alone that use threads. Exit status 0 and a last line
// "OK" if all is well.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "isa.h"
#include "mmcore/fusion.h"

// The driver asks for the instruction set in use, which is chosen once per process: here it asks this program.
namespace mmcore {
static Isa isa_under_test();
}
#define active_isa isa_under_test
#include "fusion.cpp"
#undef active_isa

namespace {

using mmcore::DType;
using mmcore::FusionAlign;
using mmcore::FusionFeature;
using mmcore::FusionGradients;
using mmcore::FusionMode;
using mmcore::FusionNorm;
using mmcore::FusionSpec;
using mmcore::GateKind;
using mmcore::Isa;
using mmcore::kMaxModalities;

Isa isa_in_use = Isa::kBase;

constexpr std::int64_t kGuard = 64;  // elements before and after each result that must stay as they were
constexpr unsigned char kGuardByte = 0xa5;

// Of eps times a value's magnitude, the sum of the absolute values of all that is added up in it: as stated, with the
// reasons, in tests/tolerances.py. In double the expected values are themselves off by as much: twice that.
constexpr double kRoundings = 4, kSum = 0.25;

const char* const kModes[] = {"sum", "softmax", "normalized"};
const char* const kNorms[] = {"no norm", "layer", "rms", "l2"};
const char* const kGateKinds[] = {"modality", "batch", "step", "channel"};
const char* const kMasks[] = {"none", "batch", "step"};
const char* const kAligns[] = {"none", "nearest", "linear", "mean", "mixed"};
const char* const kRates[] = {"equal", "up", "down", "one", "mixed"};
const char* const kContents[] = {"unit", "offset", "large", "small"};
const char* const kLayouts[] = {"contiguous", "padded", "transposed", "expanded"};

struct DTypes {
  const char* name;
  DType feature[3];  // in turn
  DType gates, out, compute;
};
const DTypes kDTypes[] = {
    {"f32", {DType::kF32, DType::kF32, DType::kF32}, DType::kF32, DType::kF32, DType::kF32},
    {"bf16", {DType::kBF16, DType::kBF16, DType::kBF16}, DType::kBF16, DType::kBF16, DType::kF32},
    {"f16", {DType::kF16, DType::kF16, DType::kF16}, DType::kF16, DType::kF16, DType::kF32},
    {"mixed", {DType::kF32, DType::kBF16, DType::kF16}, DType::kF32, DType::kF32, DType::kF32},
    {"halves", {DType::kBF16, DType::kF16, DType::kBF16}, DType::kF16, DType::kF32, DType::kF32},
    {"f64", {DType::kF64, DType::kF64, DType::kF64}, DType::kF64, DType::kF64, DType::kF64},
};

struct Shape {
  std::int64_t batch, length, depth;
};

// Depths around the vector lengths; steps beyond the chunks that the backward cuts them into; nothing at all.
const Shape kShapes[] = {
    {2, 3, 1},   {3, 1, 3},  {2, 4, 16},  {2, 5, 17}, {1, 3, 33}, {2, 2, 64}, {2, 3, 97}, {1, 2, 768},
    {1, 131, 5}, {2, 70, 3}, {1, 66, 35}, {0, 3, 7},  {2, 3, 0},  {2, 0, 9},  {3, 7, 31}, {1, 1, 15},
};
const int kCounts[] = {1, 2, 3, 5, 16};

struct Case {
  FusionMode mode = FusionMode::kSum;
  GateKind gates = GateKind::kModality;
  int mask = 0;
  FusionNorm norm = FusionNorm::kNone;
  bool affine = false;
  Shape shape{2, 3, 5};
  int count = 3, align = 0, rate = 0, dtypes = 0, content = 0, layout = 0, wanted = 0;
  double eps = 1e-5;
  bool threaded = false;
  std::uint64_t seed = 1;

  std::string name() const {
    char text[256];
    std::snprintf(text, sizeof text, "%s, gates per %s, mask %s, %s%s, M=%d (%d,%d,%d), align %s rate %s, %s, %s, %s",
                  kModes[static_cast<int>(mode)], kGateKinds[static_cast<int>(gates)], kMasks[mask],
                  kNorms[static_cast<int>(norm)], affine ? " affine" : "", count, static_cast<int>(shape.batch),
                  static_cast<int>(shape.length), static_cast<int>(shape.depth), kAligns[align], kRates[rate],
                  kDTypes[dtypes].name, kContents[content], kLayouts[layout]);
    return text;
  }
  FusionAlign align_of(int m) const { return static_cast<FusionAlign>(align < 4 ? align : m % 4); }
  std::int64_t length_of(int m) const {
    if (align_of(m) == FusionAlign::kNone) return shape.length;
    const int kind = rate < 4 ? rate : m % 3 + 1;
    const std::int64_t t = shape.length;
    const std::int64_t steps = kind == 0   ? t
                               : kind == 1 ? t * (m + 3) / (2 * m + 7)
                               : kind == 2 ? (m % 3 + 2) * t + m
                                           : 1;
    return std::max<std::int64_t>(1, steps);
  }
};

// ---- values

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  std::uint32_t bits() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::uint32_t>(state_ >> 32);
  }
  int below(int n) { return static_cast<int>(bits() % static_cast<std::uint32_t>(n)); }
  double uniform() { return bits() * 0x1p-32; }
  double normal() { return (uniform() + uniform() + uniform() + uniform() - 2) * std::sqrt(3.0); }

 private:
  std::uint64_t state_;
};

double decode(const unsigned char* p, DType dtype) {
  if (dtype == DType::kU8) return *p;
  if (dtype == DType::kF64) {
    double value;
    std::memcpy(&value, p, 8);
    return value;
  }
  std::uint32_t bits = 0;
  std::memcpy(&bits, p, dtype_size(dtype));  // both kinds of machine are little-endian
  if (dtype == DType::kBF16) bits <<= 16;
  if (dtype == DType::kF16) {
    const std::uint32_t sign = bits & 0x8000u;
    const bool finite = (bits & 0x7c00u) != 0x7c00u, is_nan = !finite && (bits & 0x3ffu) != 0;
    bits = (bits & 0x7fffu) << 13;
    float value;
    std::memcpy(&value, &bits, 4);
    value = finite ? value * 0x1p112f : is_nan ? NAN : INFINITY;
    return sign ? -value : value;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Some number of the type near `value`: cut off, not rounded.
void encode(unsigned char* p, DType dtype, double value) {
  if (dtype == DType::kU8) {
    *p = value != 0;
  } else if (dtype == DType::kF64) {
    std::memcpy(p, &value, 8);
  } else {
    float as_float = static_cast<float>(value);
    if (dtype == DType::kF16) as_float = std::fabs(as_float) * 0x1p-112f;
    std::uint32_t bits;
    std::memcpy(&bits, &as_float, 4);
    if (dtype == DType::kBF16) bits >>= 16;
    if (dtype == DType::kF16) bits = bits >> 13 | (value < 0 ? 0x8000u : 0u);
    std::memcpy(p, &bits, dtype_size(dtype));
  }
}

// Half the distance to the next number of the type: what its own rounding may be off by.
double half_unit(double value, DType dtype) {
  const int digits = dtype == DType::kF16 ? 11 : dtype == DType::kBF16 ? 8 : dtype == DType::kF32 ? 24 : 53;
  const int least = dtype == DType::kF16 ? -13 : dtype == DType::kF64 ? -1021 : -125;
  int exponent = 0;
  std::frexp(value, &exponent);
  return std::ldexp(0.5, std::max(exponent, least) - digits);
}

// ---- operands and results

struct Layout {
  std::int64_t batch, step, modality, elements;
};

Layout layout_of(int kind, std::int64_t batches, std::int64_t steps, std::int64_t modalities, std::int64_t row) {
  Layout s{};
  if (kind == 1) {
    s.modality = row + 3;
    s.step = modalities * s.modality + 5;
    s.batch = steps * s.step + 7;
  } else if (kind == 2) {
    s.batch = row;
    s.step = batches * s.batch;
    s.modality = steps * s.step;
  } else {
    s.modality = row;
    s.step = modalities * row;
    s.batch = kind == 3 ? 0 : steps * s.step;
  }
  if (batches * steps * modalities * row > 0) {
    s.elements = (batches - 1) * s.batch + (steps - 1) * s.step + (modalities - 1) * s.modality + row;
  }
  return s;
}

// Ends where the allocation does, so that a sanitizer sees a read too many. All NaN (a mask: true) until set.
struct Operand {
  DType dtype = DType::kF32;
  std::size_t lead = 0;  // bytes before the first element
  std::vector<unsigned char> bytes;

  Operand() = default;
  Operand(DType type, std::int64_t elements, std::int64_t before)
      : dtype(type),
        lead(static_cast<std::size_t>(before) * dtype_size(type)),
        bytes(lead + static_cast<std::size_t>(elements) * dtype_size(type), 0xff) {}
  unsigned char* at(std::int64_t i) { return bytes.data() + lead + static_cast<std::size_t>(i) * dtype_size(dtype); }
  void set(std::int64_t i, double value) { encode(at(i), dtype, value); }
  double get(std::int64_t i) { return decode(at(i), dtype); }
};

class Output {
 public:
  Output() = default;
  Output(DType dtype, std::int64_t elements, std::int64_t shift)
      : dtype_(dtype), bytes_(static_cast<std::size_t>(elements) * dtype_size(dtype)) {
    const std::size_t guard = static_cast<std::size_t>(kGuard) * dtype_size(dtype);
    storage_.assign(2 * guard + 64 + static_cast<std::size_t>(shift) * dtype_size(dtype) + bytes_, kGuardByte);
    const auto address = reinterpret_cast<std::uintptr_t>(storage_.data() + guard);
    begin_ = guard + (64 - address % 64) % 64 + static_cast<std::size_t>(shift) * dtype_size(dtype);
    std::memset(data(), 0xff, bytes_);
  }
  Output(Output&&) = default;  // keeps the address
  Output& operator=(Output&&) = default;
  unsigned char* data() { return storage_.data() + begin_; }
  DType dtype() const { return dtype_; }
  std::size_t bytes() const { return bytes_; }
  std::int64_t size() const { return static_cast<std::int64_t>(bytes_ / dtype_size(dtype_)); }
  bool guards_are_intact() const {
    auto guards = [&](std::size_t first, std::size_t end) {
      return std::all_of(storage_.begin() + static_cast<std::ptrdiff_t>(first),
                         storage_.begin() + static_cast<std::ptrdiff_t>(end),
                         [](unsigned char byte) { return byte == kGuardByte; });
    };
    return guards(0, begin_) && guards(begin_ + bytes_, storage_.size());
  }

 private:
  DType dtype_ = DType::kF32;
  std::size_t bytes_ = 0, begin_ = 0;
  std::vector<unsigned char> storage_;
};

// ---- one call, as the core sees it and as doubles

struct Problem {
  explicit Problem(const Case& c);

  std::int64_t steps(int m) const { return spec.feature[m].length; }
  bool there(std::int64_t b, std::int64_t t, int m) const {
    return mask[static_cast<std::size_t>((b * spec.length + t) * spec.count + m)] != 0;
  }
  // Which row of (rows, count, channels) gates holds those of step t.
  std::int64_t gate_row(std::int64_t b, std::int64_t t) const {
    return spec.gate_kind == GateKind::kModality ? 0 : spec.gate_kind == GateKind::kBatch ? b : b * spec.length + t;
  }
  std::int64_t channels() const { return spec.gate_kind == GateKind::kChannel ? spec.depth : 1; }

  FusionSpec spec;
  std::int64_t grad_batch_stride = 0, grad_step_stride = 0;
  const void* grad_data = nullptr;
  std::vector<Operand> operands;  // the memory that the addresses above are of

  std::vector<double> x[kMaxModalities], gates, gamma, beta, grad;  // contiguous
  std::vector<char> mask;                                           // (batch, length, count)
  std::vector<double> map[kMaxModalities];                          // A_m: (length, length_m)
  std::vector<char> read[kMaxModalities];                           // (batch, length_m): some step takes from it
};

// A by its definition: steps are intervals of equal length over the same time.
std::vector<double> time_map(FusionAlign align, std::int64_t length, std::int64_t source) {
  std::vector<double> map(static_cast<std::size_t>(length * source), 0.0);
  for (std::int64_t t = 0; t < length; ++t) {
    double* row = &map[static_cast<std::size_t>(t * source)];
    if (align == FusionAlign::kNone) {
      row[t] = 1;
    } else if (align == FusionAlign::kNearest) {
      for (std::int64_t s = 0; s < source; ++s) {  // s / source <= (t + 1/2) / length < (s + 1) / source
        row[s] = 2 * s * length <= (2 * t + 1) * source && (2 * t + 1) * source < 2 * (s + 1) * length;
      }
    } else if (align == FusionAlign::kLinear) {
      // between the middles of source steps, in units of 1 / (2 length) of one: no rounding before the division
      const std::int64_t unit = 2 * length, last = (source - 1) * unit;
      const std::int64_t at = std::min(std::max<std::int64_t>((2 * t + 1) * source - length, 0), last);
      for (std::int64_t s = 0; s < source; ++s) {
        const std::int64_t near = unit - std::abs(at - s * unit);
        row[s] = near > 0 ? static_cast<double>(near) / static_cast<double>(unit) : 0;
      }
    } else {
      double touched = 0;
      for (std::int64_t s = 0; s < source; ++s)
        touched += row[s] = s * length < (t + 1) * source && (s + 1) * length > t * source;
      for (std::int64_t s = 0; s < source; ++s) row[s] /= touched;
    }
  }
  return map;
}

Problem::Problem(const Case& c) {
  Random random(c.seed);
  const DTypes& types = kDTypes[c.dtypes];
  const std::int64_t batch = c.shape.batch, length = c.shape.length, depth = c.shape.depth;
  const int count = c.count;
  spec.count = count;
  spec.batch = batch, spec.length = length, spec.depth = depth;
  spec.compute = types.compute;
  spec.out_dtype = types.out;
  spec.mode = c.mode, spec.norm = c.norm, spec.eps = c.eps, spec.gate_kind = c.gates;
  operands.reserve(kMaxModalities + 5);  // addresses of operands must not change
  auto operand = [&](DType dtype, std::int64_t elements) -> Operand& {
    operands.emplace_back(dtype, elements, c.threaded ? 0 : random.below(3));
    return operands.back();
  };

  mask.assign(static_cast<std::size_t>(batch * length * count), 1);
  if (c.mask != 0 && batch * length > 0) {
    const std::int64_t rows = c.mask == 1 ? 1 : length;
    const Layout s = layout_of(c.layout, batch, rows, count, 1);
    Operand& o = operand(DType::kU8, s.elements);
    const bool all_missing = random.below(16) == 0;
    const std::int64_t empty = batch * rows / 2;
    for (std::int64_t i = 0; i < batch * rows; ++i) {
      for (int m = 0; m < count; ++m) {
        const bool is = !all_missing && (i == 0 && m == 0 ? true : i == empty ? false : random.uniform() < 0.6);
        o.set(i / rows * s.batch + i % rows * s.step + m * s.modality, is);
      }
    }
    spec.mask = o.at(0);
    spec.mask_stride[0] = s.batch, spec.mask_stride[1] = c.mask == 1 ? 0 : s.step, spec.mask_stride[2] = s.modality;
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t t = 0; t < length; ++t) {
        for (int m = 0; m < count; ++m) {
          mask[static_cast<std::size_t>((b * length + t) * count + m)] =
              o.get(b * s.batch + t * spec.mask_stride[1] + m * s.modality) != 0;
        }
      }
    }
  }

  for (int m = 0; m < count; ++m) {
    FusionFeature& f = spec.feature[m];
    f.dtype = types.feature[m % 3];
    f.align = c.align_of(m);
    f.length = c.length_of(m);
    map[m] = time_map(f.align, length, f.length);
    const Layout s = layout_of(c.layout, batch, f.length, 1, depth);
    f.batch_stride = s.batch, f.step_stride = s.step;
    Operand& o = operand(f.dtype, s.elements);
    f.x = o.at(0);
    read[m].assign(static_cast<std::size_t>(batch * f.length), 0);
    x[m].assign(static_cast<std::size_t>(batch * f.length * depth), NAN);
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t step = 0; step < f.length; ++step) {
        bool is = false;
        for (std::int64_t t = 0; t < length && !is; ++t) {
          is = there(b, t, m) && map[m][static_cast<std::size_t>(t * f.length + step)] != 0;
        }
        read[m][static_cast<std::size_t>(b * f.length + step)] = is;
        const double small[] = {0, 1e-7, 1e-3, 1};
        const double scale = c.content == 3 ? small[random.below(4)] : 1;
        for (std::int64_t d = 0; d < depth && is; ++d) {
          double value = scale * random.normal();
          if (c.content == 1) value += 1000;
          if (c.content == 2) value = f.dtype == DType::kF16 ? 100 * value : 1e4 * value;
          o.set(b * s.batch + step * s.step + d, value);
        }
      }
    }
    for (std::int64_t b = 0; b < batch; ++b) {  // by strides: of expanded rows the last value has stayed
      for (std::int64_t step = 0; step < f.length; ++step) {
        if (read[m][static_cast<std::size_t>(b * f.length + step)] == 0) continue;
        for (std::int64_t d = 0; d < depth; ++d) {
          x[m][static_cast<std::size_t>((b * f.length + step) * depth + d)] = o.get(b * s.batch + step * s.step + d);
        }
      }
    }
  }

  const bool per_channel = c.gates == GateKind::kChannel;
  // Logits up to where exp underflows; beside large features what is made of such weights does so too.
  const bool wide = random.below(4) == 0 && c.content == 0;
  Layout s = layout_of(per_channel ? c.layout : 0, batch, length, count, channels());
  const std::int64_t rows = c.gates == GateKind::kModality ? 1 : c.gates == GateKind::kBatch ? batch : batch * length;
  if (!per_channel) s.elements = rows * count;
  spec.gates_dtype = per_channel ? types.gates : types.compute;
  Operand& g = operand(spec.gates_dtype, s.elements);
  spec.gates = g.at(0);
  if (per_channel) spec.gate_stride[0] = s.batch, spec.gate_stride[1] = s.step, spec.gate_stride[2] = s.modality;
  gates.assign(static_cast<std::size_t>(rows * count * channels()), NAN);
  for (int pass = 0; pass < 2; ++pass) {
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t t = 0; t < length; ++t) {
        for (int m = 0; m < count; ++m) {
          if (!there(b, t, m)) continue;
          for (std::int64_t d = 0; d < channels(); ++d) {
            const std::int64_t at = (gate_row(b, t) * count + m) * channels() + d;
            const std::int64_t i = per_channel ? b * s.batch + t * s.step + m * s.modality + d : at;
            const double value = random.normal();
            if (pass == 0) {
              g.set(i, c.mode == FusionMode::kNormalized ? std::fabs(value) + 0.1 : (wide ? 40 : 2) * value);
            } else {
              gates[static_cast<std::size_t>(at)] = g.get(i);
            }
          }
        }
      }
    }
  }

  if (c.affine) {
    std::vector<double>* const values[] = {&gamma, &beta};
    const void** const addresses[] = {&spec.gamma, &spec.beta};
    for (int k = 0; k < 2; ++k) {
      Operand& o = operand(types.compute, count * depth);
      *addresses[k] = o.at(0);
      for (std::int64_t i = 0; i < count * depth; ++i) {
        o.set(i, random.normal());
        values[k]->push_back(o.get(i));
      }
    }
  }

  s = layout_of(c.layout, batch, length, 1, depth);
  Operand& o = operand(types.out, s.elements);
  grad_data = o.at(0);
  grad_batch_stride = s.batch, grad_step_stride = s.step;
  grad.assign(static_cast<std::size_t>(batch * length * depth), NAN);
  for (int pass = 0; pass < 2; ++pass) {
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t t = 0; t < length; ++t) {
        bool any = false;  // of a step where all is missing the gradient is not read either
        for (int m = 0; m < count; ++m) any = any || there(b, t, m);
        for (std::int64_t d = 0; d < depth && any; ++d) {
          const std::int64_t i = b * s.batch + t * s.step + d;
          if (pass == 0) {
            o.set(i, random.normal());
          } else {
            grad[static_cast<std::size_t>((b * length + t) * depth + d)] = o.get(i);
          }
        }
      }
    }
  }
}

// ---- the formulas

struct Values {
  std::vector<double> out, feature[kMaxModalities], gates, gamma, beta, part;
};

// Result and gradients in double. With `magnitude` every term counts with its absolute value and every difference is
// a sum: what a rounding of one unit anywhere in the formula can do to a value, in units of it.
Values evaluate(const Problem& p, bool magnitude) {
  const FusionSpec& spec = p.spec;
  const std::int64_t depth = spec.depth, channels = p.channels();
  const double n = static_cast<double>(depth);
  const double tiny = spec.compute == DType::kF64 ? 0x1p-970 : 0x1p-103;  // below it exp has no digits to ask for
  auto value = [&](double a) { return magnitude ? std::fabs(a) : a; };
  auto minus = [&](double a, double b) { return magnitude ? a + b : a - b; };
  auto size = [](std::int64_t a) { return static_cast<std::size_t>(a); };

  Values v;
  v.out.assign(size(spec.batch * spec.length * depth), 0.0);
  v.gates.assign(p.gates.size(), 0.0);
  v.part.assign(size(spec.batch * spec.count), 0.0);
  v.gamma.assign(p.gamma.size(), 0.0);
  v.beta.assign(p.beta.size(), 0.0);
  // of each source row: normalised, after gamma and beta, 1 / its length, dL/dn
  std::vector<double> hat[kMaxModalities], normed[kMaxModalities], inverse[kMaxModalities], dn[kMaxModalities];
  std::vector<char> is_short[kMaxModalities];  // l2 below eps: divided by eps, a constant
  for (int m = 0; m < spec.count; ++m) {
    const std::int64_t rows = spec.batch * p.steps(m);
    hat[m].assign(size(rows * depth), 0.0);
    normed[m] = dn[m] = v.feature[m] = hat[m];
    inverse[m].assign(size(rows), 1.0);
    is_short[m].assign(size(rows), 0);
    for (std::int64_t row = 0; row < rows; ++row) {
      if (!p.read[m][size(row)]) continue;
      const double* x = p.x[m].data() + row * depth;
      double mean = 0, mean_magnitude = 0, square = 0;
      if (spec.norm == FusionNorm::kLayer) {
        for (std::int64_t d = 0; d < depth; ++d) mean += x[d] / n, mean_magnitude += std::fabs(x[d]) / n;
      }
      for (std::int64_t d = 0; d < depth; ++d) square += (x[d] - mean) * (x[d] - mean);
      double r = 1;
      if (spec.norm == FusionNorm::kLayer || spec.norm == FusionNorm::kRms) r = 1 / std::sqrt(square / n + spec.eps);
      if (spec.norm == FusionNorm::kL2) {
        is_short[m][size(row)] = std::sqrt(square) < spec.eps;
        r = 1 / std::max(std::sqrt(square), spec.eps);
      }
      inverse[m][size(row)] = r;
      for (std::int64_t d = 0; d < depth; ++d) {
        const std::size_t i = size(row * depth + d), j = size(m * depth + d);
        hat[m][i] = minus(value(x[d]), magnitude ? mean_magnitude : mean) * r;
        normed[m][i] = p.gamma.empty() ? hat[m][i] : hat[m][i] * value(p.gamma[j]) + value(p.beta[j]);
      }
    }
  }

  std::vector<double> a(size(depth)), w(size(spec.count * channels)), q(w.size());
  for (std::int64_t b = 0; b < spec.batch; ++b) {
    for (std::int64_t t = 0; t < spec.length; ++t) {
      const double* gates = p.gates.data() + p.gate_row(b, t) * spec.count * channels;
      const double* grad = p.grad.data() + (b * spec.length + t) * depth;
      double* out = v.out.data() + (b * spec.length + t) * depth;
      std::vector<double> total(size(channels), 0.0), mixed(size(channels), 0.0);
      for (std::int64_t c = 0; c < channels; ++c) {
        double most = -INFINITY;
        for (int m = 0; m < spec.count; ++m) {
          if (p.there(b, t, m)) most = std::max(most, gates[m * channels + c]);
        }
        for (int m = 0; m < spec.count; ++m) {
          if (!p.there(b, t, m)) continue;
          const double g = gates[m * channels + c];
          total[size(c)] += spec.mode == FusionMode::kSoftmax ? std::exp(g - most) : g;
        }
        for (int m = 0; m < spec.count; ++m) {
          if (!p.there(b, t, m)) continue;
          const double g = gates[m * channels + c];
          double& weight = w[size(m * channels + c)];
          if (spec.mode == FusionMode::kSum) {
            weight = value(g);
          } else if (spec.mode == FusionMode::kNormalized) {
            weight = g / total[size(c)];
          } else {
            weight = std::exp(g - most) / total[size(c)];
            if (magnitude) weight = weight * (1 + most - g) + tiny;  // an error of the logit is one of exp's argument
          }
        }
      }
      std::fill(q.begin(), q.end(), 0.0);
      for (int m = 0; m < spec.count; ++m) {
        if (!p.there(b, t, m)) continue;
        std::fill(a.begin(), a.end(), 0.0);
        for (std::int64_t s = 0; s < p.steps(m); ++s) {
          double tap = p.map[m][size(t * p.steps(m) + s)];
          if (tap == 0) continue;
          // The core has one tap of two as 1 - the other, in double: all digits of a float, some less than a double's.
          if (magnitude && spec.compute == DType::kF64 && spec.feature[m].align == FusionAlign::kLinear) tap = 1;
          const std::int64_t row = (b * p.steps(m) + s) * depth;
          for (std::int64_t d = 0; d < depth; ++d) {
            a[size(d)] += tap * normed[m][size(row + d)];
            dn[m][size(row + d)] += tap * w[size(m * channels + (channels > 1 ? d : 0))] * value(grad[d]);
          }
        }
        for (std::int64_t d = 0; d < depth; ++d) {
          const std::size_t c = size(m * channels + (channels > 1 ? d : 0));
          out[d] += w[c] * a[size(d)];
          q[c] += value(grad[d]) * a[size(d)];
        }
        for (std::int64_t c = 0; c < channels; ++c) {
          const double wq = w[size(m * channels + c)] * q[size(m * channels + c)];
          mixed[size(c)] += wq;
          v.part[size(b * spec.count + m)] += wq;
        }
      }
      for (int m = 0; m < spec.count; ++m) {
        if (!p.there(b, t, m)) continue;
        for (std::int64_t c = 0; c < channels; ++c) {
          const double weight = w[size(m * channels + c)], of = q[size(m * channels + c)];
          v.gates[size((p.gate_row(b, t) * spec.count + m) * channels + c)] +=
              spec.mode == FusionMode::kSum       ? of
              : spec.mode == FusionMode::kSoftmax ? weight * minus(of, mixed[size(c)])
                                                  : minus(of, mixed[size(c)]) / total[size(c)];
        }
      }
    }
  }

  for (int m = 0; m < spec.count; ++m) {
    for (std::int64_t row = 0; row < spec.batch * p.steps(m); ++row) {
      if (!p.read[m][size(row)]) continue;
      const double* h = hat[m].data() + row * depth;
      const double* d_normed = dn[m].data() + row * depth;
      const double r = inverse[m][size(row)];
      double mean = 0, inner = 0;
      for (std::int64_t d = 0; d < depth; ++d) {
        const std::size_t j = size(m * depth + d);
        double u = d_normed[d];
        if (!p.gamma.empty()) {
          v.beta[j] += u;
          v.gamma[j] += u * h[d];
          u *= value(p.gamma[j]);
        }
        mean += u / n;
        inner += u * h[d];
      }
      for (std::int64_t d = 0; d < depth; ++d) {
        double u = p.gamma.empty() ? d_normed[d] : d_normed[d] * value(p.gamma[size(m * depth + d)]);
        if (spec.norm == FusionNorm::kLayer) u = minus(minus(u, mean), h[d] * inner / n);
        if (spec.norm == FusionNorm::kRms) u = minus(u, h[d] * inner / n);
        if (spec.norm == FusionNorm::kL2 && !is_short[m][size(row)]) u = minus(u, h[d] * inner);
        v.feature[m][size(row * depth + d)] = u * r;
      }
    }
  }
  return v;
}

// The formulas against themselves: the derivative of <G, F> along a random direction, by the gradients and by a
// difference quotient.
bool gradients_are_derivatives(const Problem& p, const Values& v, std::uint64_t seed) {
  Problem low = p, high = p;
  Random random(seed);
  constexpr double kStep = 0x1p-24;
  double expected = 0, scale = 0;
  auto move = [&](std::vector<double>& a, std::vector<double>& b, const std::vector<double>& gradient) {
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (std::isnan(a[i])) continue;
      const double unit = std::max(std::fabs(a[i]), 1e-8) * random.normal();
      a[i] -= kStep * unit;
      b[i] += kStep * unit;
      expected += unit * gradient[i];
      scale += std::fabs(unit * gradient[i]);
    }
  };
  for (int m = 0; m < p.spec.count; ++m) move(low.x[m], high.x[m], v.feature[m]);
  move(low.gates, high.gates, v.gates);
  move(low.gamma, high.gamma, v.gamma);
  move(low.beta, high.beta, v.beta);
  const std::vector<double> a = evaluate(low, false).out, b = evaluate(high, false).out;
  double found = 0, rounding = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(p.grad[i])) continue;
    found += p.grad[i] * (b[i] - a[i]) / (2 * kStep);
    rounding += std::fabs(p.grad[i] * a[i]) * 0x1p-50 / kStep;
  }
  return std::fabs(found - expected) <= 1e-6 * scale + rounding;
}

// ---- the check

struct Found {
  std::vector<std::pair<std::string, Output>> outputs;
  std::vector<const std::vector<double>*> oracle, magnitude;
  std::vector<double> terms;  // how many products one value sums up, those of the norm's statistics included
};

Found run(const Case& c, Problem& p, const Values& oracle, const Values& magnitude, int threads) {
  Found found;
  Random random(c.seed + 77);
  const FusionSpec& s = p.spec;
  std::int64_t longest = s.length, shortest = std::max<std::int64_t>(s.length, 1);
  for (int m = 0; m < s.count; ++m) {
    longest = std::max(longest, p.steps(m));
    shortest = std::min(shortest, p.steps(m));
  }
  const double norm = s.norm == FusionNorm::kNone ? 1 : static_cast<double>(s.depth);
  const double spread =
      static_cast<double>(std::max<std::int64_t>(2, longest / std::max<std::int64_t>(s.length, 1) + 1));
  auto output = [&](std::string name, DType dtype, const std::vector<double>& expected, const std::vector<double>& size,
                    double terms) -> void* {
    // An odd element away from a cache line, or on one: what is large is written past the caches from there alone.
    found.outputs.emplace_back(std::move(name), Output(dtype, static_cast<std::int64_t>(expected.size()),
                                                       c.threaded || random.below(3) == 0 ? 0 : 1 + random.below(18)));
    found.oracle.push_back(&expected);
    found.magnitude.push_back(&size);
    found.terms.push_back(terms);
    return found.outputs.back().second.data();
  };
  found.outputs.reserve(kMaxModalities + 5);
  void* out = output("result", s.out_dtype, oracle.out, magnitude.out, norm + s.count * spread);
  FusionGradients g;
  // all; features; gates and parts; the last feature and the affine parameters; all but the first feature; parts
  const int wanted = c.wanted;
  const double back = norm + spread + 2 * static_cast<double>(s.length / std::max<std::int64_t>(shortest, 1));
  for (int m = 0; m < s.count; ++m) {
    if (wanted == 2 || wanted == 5 || (wanted == 3 && m + 1 < s.count) || (wanted == 4 && m == 0)) continue;
    g.feature[m] = output("features[" + std::to_string(m) + "]", s.feature[m].dtype, oracle.feature[m],
                          magnitude.feature[m], back);
  }
  const double summed = s.gate_kind == GateKind::kModality ? static_cast<double>(s.batch * s.length)
                        : s.gate_kind == GateKind::kBatch  ? static_cast<double>(s.length)
                                                           : 1;
  const double inner = s.gate_kind == GateKind::kChannel ? 1 : static_cast<double>(s.depth);
  if (wanted == 0 || wanted == 2 || wanted == 4) {
    g.gates = output("gates", s.gates_dtype, oracle.gates, magnitude.gates, norm + inner * summed);
  }
  if (c.affine && (wanted == 0 || wanted == 3 || wanted == 4)) {
    const double steps = norm + static_cast<double>(s.batch * longest) * 2;
    g.gamma = output("gamma", s.compute, oracle.gamma, magnitude.gamma, steps);
    g.beta = output("beta", s.compute, oracle.beta, magnitude.beta, steps);
  }
  if (wanted == 0 || wanted == 2 || wanted == 4 || wanted == 5) {
    g.part = output("part", s.compute, oracle.part, magnitude.part, norm + static_cast<double>(s.length * s.depth));
  }
  mmcore::weighted_fusion(s, out, threads);
  mmcore::weighted_fusion_backward(s, p.grad_data, p.grad_batch_stride, p.grad_step_stride, g, threads);
  return found;
}

// What is wrong with the results, or nothing. `worst`: the largest error as a part of what is allowed.
std::string check(Found& found, DType compute, double* worst) {
  const double eps = compute == DType::kF64 ? 2 * 0x1p-52 : 0x1p-23;
  for (std::size_t k = 0; k < found.outputs.size(); ++k) {
    Output& output = found.outputs[k].second;
    const std::string& name = found.outputs[k].first;
    if (!output.guards_are_intact()) return name + ": wrote outside";
    const double unit = (kRoundings + kSum * std::sqrt(found.terms[k])) * eps;
    for (std::int64_t i = 0; i < output.size(); ++i) {
      const double got =
          decode(output.data() + static_cast<std::size_t>(i) * dtype_size(output.dtype()), output.dtype());
      const double expected = (*found.oracle[k])[static_cast<std::size_t>(i)];
      const double slack = unit * (*found.magnitude[k])[static_cast<std::size_t>(i)];
      double error = 0;
      if (std::isinf(got)) {  // too large for a half
        const bool is =
            output.dtype() == DType::kF16 && std::fabs(expected) + slack >= 65520 && (got > 0) == (expected > 0);
        error = is ? 0 : INFINITY;
      } else {
        const double beyond = std::fabs(got - expected) - half_unit(got, output.dtype());
        error = std::isnan(got) ? INFINITY : beyond <= 0 ? 0 : beyond / slack;
      }
      *worst = std::max(*worst, error);
      if (error <= 1) continue;
      char text[160];
      std::snprintf(text, sizeof text, "%s[%lld] is %.9g, expected %.9g within %.3g", name.c_str(),
                    static_cast<long long>(i), got, expected, slack);
      return text;
    }
  }
  return {};
}

bool same_bits(Found& a, Found& b) {
  for (std::size_t k = 0; k < a.outputs.size(); ++k) {
    Output &x = a.outputs[k].second, &y = b.outputs[k].second;
    if (x.bytes() != y.bytes() || (x.bytes() != 0 && std::memcmp(x.data(), y.data(), x.bytes()) != 0)) return false;
  }
  return true;
}

// ---- the cases

// Those that are large enough for threads: each other than the rest in what the threads share out.
std::vector<Case> threaded_cases() {
  std::vector<Case> cases;
  auto add = [&](FusionMode mode, GateKind gates, int mask, FusionNorm norm, bool affine, Shape shape, int count,
                 int align, int rate, int dtypes) {
    Case c;
    c.mode = mode, c.gates = gates, c.mask = mask, c.norm = norm, c.affine = affine, c.shape = shape;
    c.count = count, c.align = align, c.rate = rate, c.dtypes = dtypes;
    c.threaded = true;
    c.seed = cases.size() + 1;
    cases.push_back(c);
  };
  add(FusionMode::kSoftmax, GateKind::kModality, 2, FusionNorm::kLayer, true, {9, 70, 112}, 3, 0, 0, 0);
  add(FusionMode::kNormalized, GateKind::kStep, 1, FusionNorm::kNone, false, {5, 80, 97}, 3, 4, 4, 3);
  add(FusionMode::kSum, GateKind::kChannel, 2, FusionNorm::kRms, true, {7, 40, 160}, 2, 2, 2, 1);
  add(FusionMode::kSoftmax, GateKind::kChannel, 0, FusionNorm::kNone, false, {300, 3, 97}, 3, 0, 0, 2);
  add(FusionMode::kSoftmax, GateKind::kBatch, 2, FusionNorm::kL2, false, {3, 90, 64}, 5, 3, 2, 5);
  // gradients of 4 MiB, which are written past the caches
  add(FusionMode::kSum, GateKind::kBatch, 0, FusionNorm::kNone, false, {2, 520, 1024}, 1, 0, 0, 0);
  add(FusionMode::kSoftmax, GateKind::kStep, 2, FusionNorm::kLayer, true, {2, 520, 1024}, 1, 0, 0, 0);
  add(FusionMode::kSum, GateKind::kStep, 0, FusionNorm::kRms, false, {1, 2080, 1024}, 1, 0, 0, 1);
  return cases;
}

// Every mode, kind of gates, mask and norm with every other; the rest is drawn for each.
std::vector<Case> table() {
  std::vector<Case> cases;
  Random random(2024);
  for (int i = 0; i < 6 * 288; ++i) {
    Case c;
    c.mode = static_cast<FusionMode>(i % 3);
    c.gates = static_cast<GateKind>(i / 3 % 4);
    c.mask = i / 12 % 3;
    c.norm = static_cast<FusionNorm>(i / 36 % 4);
    c.affine = i / 144 % 2 != 0;
    c.shape = kShapes[random.below(sizeof kShapes / sizeof kShapes[0])];
    c.count = kCounts[random.below(5)];
    c.align = random.below(5);
    c.rate = random.below(5);
    c.dtypes = random.below(6);
    c.content = std::max(0, random.below(6) - 2);
    c.layout = random.below(4);
    c.wanted = std::max(0, random.below(8) - 2);
    c.eps = random.below(2) ? 1e-5 : 1e-3;
    c.seed = static_cast<std::uint64_t>(i) + 100;
    cases.push_back(c);
  }
  return cases;
}

}  // namespace

namespace mmcore {
static Isa isa_under_test() { return isa_in_use; }
}  // namespace mmcore

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  if (every < 0 || (argc > 1 && (argv[1][0] < '0' || argv[1][0] > '9'))) return 2;
  const std::vector<Isa> isas = mmcore::available_isas();
  std::vector<Case> all = threaded_cases();
  if (every != 0) {
    const std::vector<Case> rest = table();
    all.insert(all.end(), rest.begin(), rest.end());
  }
  std::vector<double> worst(isas.size(), 0.0);
  std::vector<std::string> worst_case(isas.size());
  int cases = 0, runs = 0, failures = 0;
  auto failed = [&](const char* what, const Case& c, const std::string& problem) {
    if (++failures <= 20) std::printf("FAILED %s, %s: %s\n", what, c.name().c_str(), problem.c_str());
  };
  for (std::size_t i = 0; i < all.size(); i += static_cast<std::size_t>(std::max(every, 1))) {
    const Case& c = all[i];
    Problem p(c);
    const std::vector<Operand> before = p.operands;
    const Values oracle = evaluate(p, false), magnitude = evaluate(p, true);
    ++cases;
    const bool is_double = p.spec.compute == DType::kF64;
    if (is_double && !gradients_are_derivatives(p, oracle, c.seed)) failed("formulas", c, "not a derivative");
    for (std::size_t k = 0; k < (is_double ? 1 : isas.size()); ++k) {  // there is one set of lanes of double
      isa_in_use = isas[k];
      Found found = run(c, p, oracle, magnitude, 1);
      ++runs;
      double error = 0;
      const std::string problem = check(found, p.spec.compute, &error);
      if (!problem.empty()) failed(mmcore::isa_name(isas[k]), c, problem);
      if (error > worst[k]) worst[k] = error, worst_case[k] = c.name();
      if (c.threaded) {
        Found again = run(c, p, oracle, magnitude, 3);
        if (!same_bits(found, again)) failed(mmcore::isa_name(isas[k]), c, "3 threads give other bits than 1");
      }
    }
    for (std::size_t k = 0; k < before.size(); ++k) {
      if (before[k].bytes != p.operands[k].bytes) failed("inputs", c, "modified");
    }
  }
  std::printf("instruction sets:");
  for (const Isa isa : isas) std::printf(" %s", mmcore::isa_name(isa));
  std::printf("\n");
  for (std::size_t k = 0; k < isas.size(); ++k) {
    std::printf("%s: worst error %.2f of the allowed (%s)\n", mmcore::isa_name(isas[k]), worst[k],
                worst_case[k].c_str());
  }
  std::printf("%d cases, %d runs, %d failures\n%s\n", cases, runs, failures, failures ? "FAILED" : "OK");
  return failures ? 1 : 0;
}
