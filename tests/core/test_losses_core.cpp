// multi_task_loss without Python: every instruction set that this machine can run against losses written out below in
// double, without a thought for speed, and against the differences of those losses for the gradients: no derivative is
// written twice.
//
// The Python tests hold the backend to torch on the machine they run on. This program holds it on machines that run no
// torch here (ARM under QEMU) and under sanitizers. What has no label is NaN, operands end where their allocation does,
// and gradients begin as NaN between guards that must stay as they were.
// Usage: test_losses_core [N] runs every N-th case. Exit status 0 and a last line "OK" if all is well.
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
#include "mmcore/losses.h"

// The driver asks for the instruction set in use, which is chosen once per process: here it asks this program.
namespace mmcore {
static Isa isa_under_test();
}
#define active_isa isa_under_test
#include "losses.cpp"
#undef active_isa

namespace {

using mmcore::DType;
using mmcore::Isa;
using mmcore::LossHead;
using mmcore::LossKind;
using mmcore::LossReduction;
using mmcore::LossSpec;

Isa isa_in_use = Isa::kBase;

const char* const kKinds[] = {"cross_entropy", "bce", "mse", "l1", "smooth_l1", "huber", "kl", "cosine", "value"};
const char* const kReductions[] = {"mean", "sum", "none"};
const char* const kDTypes[] = {"u8", "f16", "bf16", "f32", "f64"};

std::uint32_t state = 1;
double uniform() {  // in [0, 1)
  state = state * 1664525u + 1013904223u;
  return (state >> 8) / 16777216.0;
}
double normal() { return (uniform() + uniform() + uniform() + uniform() - 2) * 1.7; }

struct Array {
  DType dtype = DType::kF32;
  std::vector<unsigned char> bytes;

  void make(DType t, std::size_t n) {
    dtype = t;
    bytes.assign(n * mmcore::dtype_size(t), 0);
  }
  void set(std::size_t i, double v) {
    const float f = static_cast<float>(v);
    const std::size_t at = i * mmcore::dtype_size(dtype);
    if (dtype == DType::kF64) std::memcpy(&bytes[at], &v, 8);
    if (dtype == DType::kF32) std::memcpy(&bytes[at], &f, 4);
    if (dtype == DType::kF16 || dtype == DType::kBF16) {
      const std::uint16_t h = dtype == DType::kF16 ? mmcore::float_to_half(f) : mmcore::float_to_bfloat16(f);
      std::memcpy(&bytes[at], &h, 2);
    }
  }
  double get(std::size_t i) const {
    const std::size_t at = i * mmcore::dtype_size(dtype);
    double d = 0;
    float f = 0;
    std::uint16_t h = 0;
    if (dtype == DType::kF64) {
      std::memcpy(&d, &bytes[at], 8);
      return d;
    }
    if (dtype == DType::kF32) {
      std::memcpy(&f, &bytes[at], 4);
      return f;
    }
    std::memcpy(&h, &bytes[at], 2);
    return dtype == DType::kF16 ? mmcore::half_to_float(h) : mmcore::bfloat16_to_float(h);
  }
};

struct Case {
  LossKind kind;
  LossReduction reduction;
  DType dtype;
  std::int64_t rows, columns;
  int mask;  // 0: none, 1: per row, 2: per unit
  bool weighted, smoothed, focal, soft, padded, in_place;

  std::string name() const {
    char text[200];
    std::snprintf(text, sizeof text, "%s %s %s %ldx%ld mask %d%s%s%s%s%s%s", kKinds[static_cast<int>(kind)],
                  kReductions[static_cast<int>(reduction)], kDTypes[static_cast<int>(dtype)], static_cast<long>(rows),
                  static_cast<long>(columns), mask, weighted ? " weighted" : "", smoothed ? " smoothed" : "",
                  focal ? " focal" : "", soft ? " soft" : "", padded ? " padded" : "", in_place ? " in place" : "");
    return text;
  }
};

// Loss of a unit of row x (targets t, label y) in double; z loss included.
double unit_loss(const LossHead& h, const double* x, const double* t, std::int64_t column, std::int64_t y,
                 const std::vector<double>& weight, double* z) {
  const std::int64_t n = h.columns;
  const mmcore::LossTask& task = h.task;
  *z = 0;
  auto lse = [&](const double* v, double cool) {
    double most = v[0] * cool, sum = 0;
    for (std::int64_t c = 1; c < n; ++c) most = std::max(most, v[c] * cool);
    for (std::int64_t c = 0; c < n; ++c) sum += std::exp(v[c] * cool - most);
    return most + std::log(sum);
  };
  switch (task.kind) {
    case LossKind::kCrossEntropy: {
      const double all = lse(x, 1);
      *z = task.z_loss * all * all;
      double loss = 0;
      const double e = task.label_smoothing;
      if (h.target_dtype == DType::kI64) {
        const double p = std::exp(x[y] - all);
        loss = (1 - e) * weight[static_cast<std::size_t>(y)] * (all - x[y]) * std::pow(1 - p, task.focal_gamma);
        for (std::int64_t c = 0; c < n; ++c) {
          loss += e / static_cast<double>(n) * weight[static_cast<std::size_t>(c)] * (all - x[c]);
        }
      } else {
        for (std::int64_t c = 0; c < n; ++c) {
          loss += weight[static_cast<std::size_t>(c)] * ((1 - e) * t[c] + e / static_cast<double>(n)) * (all - x[c]);
        }
      }
      return loss;
    }
    case LossKind::kKl: {
      const double tau = task.temperature, lx = lse(x, 1 / tau), lt = lse(t, 1 / tau);
      double loss = 0;
      for (std::int64_t c = 0; c < n; ++c) loss += std::exp(t[c] / tau - lt) * (t[c] / tau - lt - x[c] / tau + lx);
      return tau * tau * loss;
    }
    case LossKind::kCosine: {
      double xx = 0, tt = 0, xt = 0;
      for (std::int64_t c = 0; c < n; ++c) xx += x[c] * x[c], tt += t[c] * t[c], xt += x[c] * t[c];
      return 1 - xt / (std::max(std::sqrt(xx), 1e-8) * std::max(std::sqrt(tt), 1e-8));
    }
    default:
      break;
  }
  const double a = x[column], b = task.kind == LossKind::kValue ? 0 : t[column], d = std::fabs(a - b);
  const double p = weight[weight.size() == 1 ? 0 : static_cast<std::size_t>(column)];
  switch (task.kind) {
    case LossKind::kBce:
      return (1 - b) * a + (1 + (p - 1) * b) * (std::log1p(std::exp(-std::fabs(a))) + std::max(-a, 0.0));
    case LossKind::kMse:
      return d * d;
    case LossKind::kL1:
      return d;
    case LossKind::kSmoothL1:
      return d < task.beta ? d * d / (2 * task.beta) : d - task.beta / 2;
    case LossKind::kHuber:
      return d < task.beta ? d * d / 2 : task.beta * (d - task.beta / 2);
    default:
      return a;
  }
}

std::string run_case(const Case& c, int threads) {
  constexpr std::size_t kGuard = 64;
  state = 12345u + static_cast<std::uint32_t>(c.rows * 131 + c.columns);
  const bool is_double = c.dtype == DType::kF64;
  const DType compute = is_double ? DType::kF64 : DType::kF32;
  LossSpec spec;
  spec.count = 1;
  spec.compute = compute;
  LossHead& h = spec.head[0];
  h.task.kind = c.kind;
  h.task.reduction = c.reduction;
  h.task.beta = 0.7;
  h.task.temperature = 2;
  if (c.smoothed) h.task.label_smoothing = 0.1, h.task.z_loss = 0.01;
  if (c.focal) h.task.focal_gamma = 1.5;
  h.rows = c.rows;
  h.columns = c.columns;
  h.dtype = c.dtype;
  const bool classes = c.kind == LossKind::kCrossEntropy && !c.soft;
  h.target_dtype = classes ? DType::kI64 : c.rows % 2 == 0 ? c.dtype : compute;
  const std::int64_t stride = c.columns + (c.padded ? 5 : 0);
  const auto elements = static_cast<std::size_t>(c.rows == 0 ? 0 : (c.rows - 1) * stride + c.columns);
  const std::int64_t units = h.units();
  const std::int64_t per_row = h.task.by_row() ? 1 : c.columns;

  std::vector<std::uint8_t> mask(static_cast<std::size_t>(c.mask == 0 ? 0 : c.mask == 1 ? c.rows : units));
  for (auto& m : mask) m = uniform() < 0.7;
  auto there = [&](std::int64_t unit) {
    return c.mask == 0 || mask[static_cast<std::size_t>(c.mask == 1 ? unit / per_row : unit)] != 0;
  };
  if (c.mask != 0) {
    h.mask = mask.data();
    h.mask_inner = c.mask == 1 ? per_row : 1;
  }
  Array output, target, weight, up;
  output.make(c.dtype, elements);
  target.make(classes ? DType::kF64 : h.target_dtype, classes ? 0 : elements);
  std::vector<std::int64_t> labels(classes ? static_cast<std::size_t>(c.rows) : 0);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> x(static_cast<std::size_t>(c.rows * c.columns)), t(x.size());
  for (std::size_t i = 0; i < elements; ++i) {
    const auto row = static_cast<std::int64_t>(i) / stride, column = static_cast<std::int64_t>(i) % stride;
    const bool gap = column >= c.columns;
    const bool is = !gap && there(per_row == 1 ? row : row * c.columns + column);
    output.set(i, is ? 2 * normal() : nan);
    if (!classes) target.set(i, !is ? nan : c.kind == LossKind::kBce || c.soft ? uniform() : 2 * normal());
    if (gap) continue;
    x[static_cast<std::size_t>(row * c.columns + column)] = output.get(i);
    if (!classes) t[static_cast<std::size_t>(row * c.columns + column)] = target.get(i);
  }
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto y = static_cast<std::int64_t>(uniform() * static_cast<double>(c.columns));
    labels[i] = i % 5 == 3 ? -100 : i % 5 == 4 && !there(static_cast<std::int64_t>(i)) ? 1 << 20 : y;
  }
  std::vector<double> w{1.0};
  if (c.kind == LossKind::kCrossEntropy) w.assign(static_cast<std::size_t>(c.columns), 1.0);
  if (c.weighted) {
    w.resize(static_cast<std::size_t>(c.columns));
    weight.make(compute, w.size());
    for (std::size_t i = 0; i < w.size(); ++i) {
      weight.set(i, uniform() + 0.2);
      w[i] = weight.get(i);
    }
    h.weight = weight.bytes.data();
    h.weight_count = c.columns;
  }
  h.output = output.bytes.data();
  h.target = c.kind == LossKind::kValue ? nullptr
             : classes                  ? static_cast<const void*>(labels.data())
                                        : target.bytes.data();
  h.output_stride = stride;
  h.target_stride = classes ? 1 : stride;

  // what is expected
  struct Unit {
    double loss, z;
    bool is;
  };
  std::vector<Unit> expected(static_cast<std::size_t>(units));
  double sum = 0, sum_z = 0, total_weight = 0, count = 0;
  auto label_of = [&](std::int64_t row) { return classes ? labels[static_cast<std::size_t>(row)] : 0; };
  for (std::int64_t u = 0; u < units; ++u) {
    const std::int64_t row = u / per_row;
    Unit& unit = expected[static_cast<std::size_t>(u)];
    unit.is = there(u) && (!classes || label_of(row) != -100);
    if (!unit.is) continue;
    unit.loss = unit_loss(h, &x[static_cast<std::size_t>(row * c.columns)],
                          &t[static_cast<std::size_t>(row * c.columns)], u % per_row, label_of(row), w, &unit.z);
    sum += unit.loss;
    sum_z += unit.z;
    ++count;
    total_weight += classes ? w[static_cast<std::size_t>(label_of(row))] : 1;
  }
  const bool mean = c.reduction == LossReduction::kMean, none = c.reduction == LossReduction::kNone;
  const double divide = mean ? total_weight : 1, divide_z = mean ? count : 1;
  const double loss = none || count == 0 ? 0 : sum / divide + sum_z / divide_z;

  // the call
  std::vector<unsigned char> written;
  const std::size_t size = mmcore::dtype_size(c.dtype);
  Array gradient, unreduced, scalar, upstream;
  gradient.make(c.dtype, static_cast<std::size_t>(c.rows * c.columns) + 2 * kGuard);
  std::fill(gradient.bytes.begin(), gradient.bytes.end(), static_cast<unsigned char>(0xff));
  h.gradient = c.in_place ? output.bytes.data() : gradient.bytes.data() + kGuard * size;
  unreduced.make(compute, static_cast<std::size_t>(units));
  upstream.make(compute, static_cast<std::size_t>(units));
  for (std::size_t i = 0; i < static_cast<std::size_t>(units); ++i) upstream.set(i, uniform() + 0.5);
  if (none) h.unreduced = unreduced.bytes.data(), h.upstream = upstream.bytes.data();
  scalar.make(compute, 4);
  Array weights, log_vars;
  weights.make(compute, 1);
  log_vars.make(compute, 1);
  weights.set(0, 1.5);
  log_vars.set(0, 0.4);
  spec.weights = weights.bytes.data();
  spec.log_vars = log_vars.bytes.data();
  spec.grad_total = 0.75;
  const std::size_t real = mmcore::dtype_size(compute);
  spec.total = scalar.bytes.data();
  spec.losses = scalar.bytes.data() + real;
  spec.d_weights = scalar.bytes.data() + 2 * real;
  spec.d_log_vars = scalar.bytes.data() + 3 * real;
  mmcore::LossRange wrong;
  if (!mmcore::multi_task_loss(spec, threads, &wrong)) return "a class out of range where there is none";

  const double tolerance = is_double ? 1e-9 : 1e-5;
  auto close = [&](double got, double want, double scale) {
    return std::fabs(got - want) <= tolerance * (scale + 1e-3);
  };
  const double s = log_vars.get(0), lambda = weights.get(0), inner = std::exp(-s);
  const bool in = !none && count != 0;
  const double term = in ? inner * loss + s / 2 : 0;
  if (!close(scalar.get(1), loss, std::fabs(loss)))
    return "loss " + std::to_string(scalar.get(1)) + ", expected " + std::to_string(loss);
  if (!close(scalar.get(0), lambda * term, std::fabs(lambda * term) + std::fabs(loss))) return "total";
  if (!close(scalar.get(2), 0.75 * term, std::fabs(term) + std::fabs(loss))) return "gradient of the weight";
  if (!close(scalar.get(3), in ? 0.75 * lambda * (0.5 - inner * loss) : 0, std::fabs(loss) + 1))
    return "gradient of the log variance";
  for (std::int64_t u = 0; u < units; ++u) {
    const Unit& unit = expected[static_cast<std::size_t>(u)];
    const std::int64_t row = u / per_row;
    if (none) {
      const double got = unreduced.get(static_cast<std::size_t>(u)), want = unit.is ? unit.loss + unit.z : 0;
      if (!close(got, want, std::fabs(want) + 1)) return "unreduced loss " + std::to_string(u);
    }
    for (std::int64_t k = 0; k < (per_row == 1 ? c.columns : 1); ++k) {
      const std::int64_t column = per_row == 1 ? k : u % per_row;
      const auto at = static_cast<std::size_t>(row * c.columns + column);
      const double got = c.in_place ? output.get(at) : gradient.get(at + kGuard);
      double want = 0, scale = 0;
      if (unit.is) {
        std::vector<double> moved(x.begin() + row * c.columns, x.begin() + (row + 1) * c.columns);
        const double* target_row = &t[static_cast<std::size_t>(row * c.columns)];
        double side[2], side_z[2];
        constexpr double kStep = 1e-5;
        for (int j = 0; j < 2; ++j) {
          moved[static_cast<std::size_t>(column)] = x[at] + (j == 0 ? -kStep : kStep);
          side[j] = unit_loss(h, moved.data(), target_row, column, label_of(row), w, &side_z[j]);
        }
        const double d = (side[1] - side[0]) / (2 * kStep), dz = (side_z[1] - side_z[0]) / (2 * kStep);
        const double k_of = none ? upstream.get(static_cast<std::size_t>(u)) : 0.75 * lambda * inner;
        want = k_of * (d / (none ? 1 : divide) + dz / (none ? 1 : divide_z));
        scale = k_of / (none ? 1 : std::min(divide, divide_z)) * (1 + std::fabs(d) + std::fabs(dz));
        const bool kink = (c.kind == LossKind::kL1 && std::fabs(x[at] - t[at]) < 2 * kStep);
        if (kink) continue;
      }
      const double rounding = c.dtype == DType::kBF16 ? 0.005 : c.dtype == DType::kF16 ? 0.0006 : 0;
      const double tiny = c.dtype == DType::kF16 ? 6e-8 : 0;
      const double slack = (is_double ? 1e-6 : 1e-5) * scale + rounding * std::fabs(want) + tiny;
      if (!(std::fabs(got - want) <= slack)) {
        return "gradient " + std::to_string(at) + ": " + std::to_string(got) + ", expected " + std::to_string(want);
      }
    }
  }
  if (!c.in_place) {
    for (std::size_t i = 0; i < kGuard * size; ++i) {
      if (gradient.bytes[i] != 0xff || gradient.bytes[gradient.bytes.size() - 1 - i] != 0xff)
        return "a guard was written";
    }
  }
  return "";
}

std::vector<Case> table() {
  std::vector<Case> cases;
  const std::int64_t shapes[][2] = {{3, 1},  {5, 2},  {4, 3},  {7, 5},  {6, 8},  {5, 9},  {4, 15},   {4, 16},
                                    {3, 17}, {3, 31}, {2, 33}, {6, 64}, {5, 65}, {3, 97}, {2, 1025}, {0, 4}};
  std::uint32_t turn = 7;
  for (int kind = 0; kind <= static_cast<int>(LossKind::kValue); ++kind) {
    for (int reduction = 0; reduction < 3; ++reduction) {
      for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF64}) {
        for (const auto& shape : shapes) {
          turn = turn * 1664525u + 1013904223u;
          const std::uint32_t r = turn >> 8;
          Case c{};
          c.kind = static_cast<LossKind>(kind);
          c.reduction = static_cast<LossReduction>(reduction);
          c.dtype = dtype;
          c.rows = shape[0];
          c.columns = shape[1];
          if (c.kind == LossKind::kValue) {
            if (shape != shapes[0] || reduction == 2) continue;
            c.rows = c.columns = 1;
          }
          c.mask = c.kind == LossKind::kValue ? 0 : static_cast<int>(r % 3);
          if (c.kind == LossKind::kCrossEntropy) {
            c.soft = (r >> 3) % 4 == 0;
            c.focal = !c.soft && (r >> 5) % 4 == 0;
            c.smoothed = !c.focal && (r >> 7) % 2 == 0;
          }
          c.weighted = (c.kind == LossKind::kCrossEntropy || c.kind == LossKind::kBce) && (r >> 9) % 2 == 0;
          c.padded = (r >> 11) % 3 == 0;
          c.in_place = !c.padded && (r >> 13) % 3 == 0;
          cases.push_back(c);
        }
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
