#include "mmcore/log_mel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "log_mel_kernels.h"
#include "parallel.h"
#include "thread_scratch.h"

namespace mmcore {

namespace {

constexpr std::int64_t kThreadedSamples = 1 << 16;  // below it a second thread costs more than it does
constexpr std::int64_t kRaiseAtOnce = 1 << 15;      // elements that one thread takes
constexpr double kTwoPi = 6.283185307179586476925;

const LogMelKernels& kernels_for(DType dtype) {
  if (dtype == DType::kF64) return base::kLogMelKernelsF64;
  switch (active_isa()) {
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx512:
      return avx512::kLogMelKernels;
    case Isa::kAvx2:
      return avx2::kLogMelKernels;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Isa::kNeon:
      return neon::kLogMelKernels;
#endif
    default:
      return base::kLogMelKernels;
  }
}

// ---- tables

// Factors in the order of the passes. Eights first: the first pass multiplies by no twiddles, and eights are the widest.
std::vector<std::int64_t> factors_of(std::int64_t points) {
  std::vector<std::int64_t> rest;
  for (std::int64_t p = 3; p * p <= points; p += 2) {
    for (; points % p == 0; points /= p) rest.push_back(p);
  }
  int twos = 0;
  for (; points % 2 == 0; points /= 2) ++twos;
  if (points > 1) rest.push_back(points);
  std::vector<std::int64_t> factors;
  for (; twos > 4 || twos == 3; twos -= 3) factors.push_back(8);
  for (; twos >= 2; twos -= 2) factors.push_back(4);
  if (twos == 1) factors.push_back(2);
  factors.insert(factors.end(), rest.begin(), rest.end());
  if (factors.empty()) factors.push_back(1);
  return factors;
}

bool has_butterfly(std::int64_t radix) { return radix <= 5 || radix == 8; }

// exp(-2 pi i k / n), exact at the quarters.
void root_of_unity(std::int64_t k, std::int64_t n, double* re, double* im) {
  k %= n;
  const std::int64_t quarter = 4 * k / n, rest = 4 * k - quarter * n;  // rest / (4 n) of a turn beyond it
  const double angle = kTwoPi * static_cast<double>(rest) / static_cast<double>(4 * n);
  const double c = std::cos(angle), s = std::sin(angle);
  const double cosines[] = {c, -s, -c, s}, sines[] = {s, c, -s, -c};
  *re = cosines[quarter];
  *im = -sines[quarter];
}

void push_root(std::int64_t k, std::int64_t n, std::vector<double>* to) {
  double re = 0, im = 0;
  root_of_unity(k, n, &re, &im);
  to->insert(to->end(), {re, im, -im});
}

void plan_transform(LogMelTables* t) {
  const std::int64_t points = t->points;
  std::vector<double>& twiddles = t->precise.twiddles;
  std::int64_t length = 1;
  const std::vector<std::int64_t> factors = factors_of(points);
  for (const std::int64_t radix : factors) {
    FourierPass pass;
    pass.radix = radix;
    pass.length = length;
    pass.twiddles = twiddles.size();
    for (std::int64_t k = 0; length > 1 && k < length; ++k) {
      for (std::int64_t u = 1; u < radix; ++u) push_root(k * u, length * radix, &twiddles);
    }
    pass.roots = twiddles.size();
    if (!has_butterfly(radix)) {
      for (std::int64_t u = 0; u < radix; ++u) push_root(u, radix, &twiddles);
    }
    t->largest_radix = std::max(t->largest_radix, radix);
    t->passes.push_back(pass);
    length *= radix;
  }
  // The transform of the last pass's branch u has inputs u, u + radix, ...; that of the pass before likewise in them.
  const std::int64_t leaves = points / factors[0];
  for (std::int64_t b = 0; b < leaves; ++b) {
    std::int64_t first = 0, stride = 1, block = leaves, rest = b;
    for (std::size_t i = factors.size(); i-- > 1;) {
      block /= factors[i];
      first += rest / block * stride;
      rest %= block;
      stride *= factors[i];
    }
    t->leaf.push_back(first);
  }
}

void plan_filters(const double* mel, LogMelTables* t) {
  const std::int64_t bins = t->bins();
  for (std::int64_t m = 0; m < t->options.n_mels; ++m, mel += bins) {
    MelFilter f;
    f.weights = t->precise.mel.size();
    std::int64_t end = bins;
    while (f.first < bins && mel[f.first] == 0) ++f.first;
    while (end > f.first && mel[end - 1] == 0) --end;
    if (end == f.first) f.first = end = 0;
    f.count = end - f.first;
    t->precise.mel.insert(t->precise.mel.end(), mel + f.first, mel + end);
    t->filters.push_back(f);
  }
}

void round_to_single(const std::vector<double>& from, std::vector<float>* to) {
  for (const double x : from) to->push_back(static_cast<float>(x));
}

// ---- samples

double sample_at(DType dtype, const void* p, std::int64_t i) {
  switch (dtype) {
    case DType::kF64:
      return static_cast<const double*>(p)[i];
    case DType::kF16:
      return half_to_float(static_cast<const f16*>(p)[i].bits);
    case DType::kBF16:
      return bfloat16_to_float(static_cast<const bf16*>(p)[i].bits);
    default:
      return static_cast<const float*>(p)[i];
  }
}

// The sample that stands at i, any number, for T samples; -1: a zero.
std::int64_t folded(std::int64_t i, std::int64_t total, Edge edge) {
  if (i >= 0 && i < total) return i;
  if (edge == Edge::kZeros) return -1;
  const std::int64_t period = edge == Edge::kReflect ? std::max<std::int64_t>(1, 2 * (total - 1)) : 2 * total;
  i %= period;
  if (i < 0) i += period;
  return i < total ? i : edge == Edge::kReflect ? period - i : period - 1 - i;
}

std::int64_t first_sample(const LogMelOptions& o) {
  switch (o.framing) {
    case Framing::kSnipEdges:
      return 0;
    case Framing::kNoSnipEdges:
      return o.hop_length / 2 - o.win_length / 2;
    default:
      return (o.n_fft - o.win_length) / 2 - o.n_fft / 2;
  }
}

// A row: its samples, those there are, and those that count, which zeros fill up.
struct Row {
  const unsigned char* samples;
  std::int64_t there, total, frames;
};

// Samples [first, first + n) of a row, and zeros up to `room`.
template <typename R>
void stage(const LogMelKernels& kernels, const Row& row, DType dtype, Edge edge, std::int64_t first, std::int64_t n,
           std::int64_t room, R* to) {
  const std::int64_t begin = std::min(std::max<std::int64_t>(first, 0), row.there);
  const std::int64_t end = std::max(begin, std::min(first + n, row.there));
  auto outside = [&](std::int64_t i) {
    const std::int64_t at = folded(i, row.total, edge);
    to[i - first] = at < 0 || at >= row.there ? R(0) : static_cast<R>(sample_at(dtype, row.samples, at));
  };
  if (begin == end) {
    for (std::int64_t i = first; i < first + n; ++i) outside(i);
  } else {
    for (std::int64_t i = first; i < begin; ++i) outside(i);
    kernels.to_real(dtype, row.samples + static_cast<std::size_t>(begin) * dtype_size(dtype), to + (begin - first),
                    end - begin);
    for (std::int64_t i = end; i < first + n; ++i) outside(i);
  }
  std::fill(to + n, to + room, R(0));
}

// ---- the op

template <typename R>
class Run {
 public:
  Run(const LogMelPlan& plan, const LogMelSpec& spec, int threads)
      : t_(plan.tables()),
        o_(t_.options),
        spec_(spec),
        kernels_(kernels_for(sizeof(R) == 8 ? DType::kF64 : DType::kF32)),
        first_(first_sample(o_)),
        threads_(spec.rows * spec.frames * o_.hop_length < kThreadedSamples ? 1 : threads),
        mel_stride_(o_.time_major ? 1 : spec.frames),
        frame_stride_(o_.time_major ? o_.n_mels : 1),
        staged_(round_up((kLogMelBlock - 1) * o_.hop_length + o_.win_length, 16)),
        scratch_(static_cast<std::size_t>(staged_) * sizeof(R) + kernels_.scratch_bytes(t_)) {}

  void operator()() {
    if (spec_.rows == 0 || spec_.frames == 0) return;
    if (needs_silence()) silence_ = value_of_silence();
    const std::int64_t blocks = (spec_.frames + kLogMelBlock - 1) / kLogMelBlock;
    const bool ranged = o_.dynamic_range > 0;
    std::vector<double> most(ranged ? static_cast<std::size_t>(spec_.rows * blocks) : 0);
    parallel_for(spec_.rows * blocks, threads_, [&](std::int64_t i) {
      const double found = block(i / blocks, i % blocks * kLogMelBlock);
      if (ranged) most[static_cast<std::size_t>(i)] = found;
    });
    if (!ranged) return;
    const std::int64_t elements = o_.n_mels * spec_.frames;
    const std::int64_t parts = (elements + kRaiseAtOnce - 1) / kRaiseAtOnce;
    parallel_for(spec_.rows * parts, threads_, [&](std::int64_t i) {
      const std::int64_t row = i / parts, begin = i % parts * kRaiseAtOnce;
      const auto from = most.begin() + row * blocks;
      const double largest = *std::max_element(from, from + blocks);
      if (largest == -std::numeric_limits<double>::infinity()) return;  // a row without frames
      kernels_.raise(spec_.out_dtype, at(row, begin), std::min(kRaiseAtOnce, elements - begin),
                     largest - o_.dynamic_range / o_.std);
    });
  }

 private:
  static std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

  unsigned char* at(std::int64_t row, std::int64_t element) const {
    return static_cast<unsigned char*>(spec_.out) +
           static_cast<std::size_t>(row * o_.n_mels * spec_.frames + element) * dtype_size(spec_.out_dtype);
  }

  Row row_of(std::int64_t i) const {
    Row row;
    row.samples = static_cast<const unsigned char*>(spec_.waveform) +
                  i * spec_.row_stride * static_cast<std::ptrdiff_t>(dtype_size(spec_.dtype));
    row.there = spec_.lengths == nullptr ? spec_.samples : spec_.lengths[i];
    row.total = spec_.pad_to < 0 ? row.there : spec_.pad_to;
    row.there = std::min(row.there, row.total);
    row.frames = std::min(log_mel_frames(o_, row.total), spec_.frames);
    return row;
  }

  bool needs_silence() const {
    for (std::int64_t i = 0; i < spec_.rows; ++i) {
      const Row row = row_of(i);
      if (row.frames < spec_.frames || row.there < row.total) return true;
    }
    return false;
  }

  // The kernel's own value, so that frames of zeros need not be transformed.
  double value_of_silence() const {
    unsigned char* const memory = static_cast<unsigned char*>(thread_scratch(scratch_));
    R* const samples = reinterpret_cast<R*>(memory);
    std::fill(samples, samples + staged_, R(0));
    std::vector<R> out(static_cast<std::size_t>(o_.n_mels));
    LogMelBlock b;
    b.samples = samples;
    b.frames = 1;
    b.rounded = kernels_.lanes;
    b.out = out.data();
    b.out_dtype = sizeof(R) == 8 ? DType::kF64 : DType::kF32;
    b.mel_stride = 1;
    b.frame_stride = o_.n_mels;
    kernels_.block(t_, &b, memory + static_cast<std::size_t>(staged_) * sizeof(R));
    return static_cast<double>(out[0]);
  }

  void fill(std::int64_t row, std::int64_t frame, std::int64_t count, double value) const {
    if (count <= 0) return;
    if (o_.time_major) {
      kernels_.fill(spec_.out_dtype, at(row, frame * o_.n_mels), count * o_.n_mels, value);
      return;
    }
    for (std::int64_t m = 0; m < o_.n_mels; ++m) {
      kernels_.fill(spec_.out_dtype, at(row, m * spec_.frames + frame), count, value);
    }
  }

  // Frames from `frame` on, at most a block; gives the largest value of those that the row has.
  double block(std::int64_t i, std::int64_t frame) const {
    const Row row = row_of(i);
    const std::int64_t size = std::min(kLogMelBlock, spec_.frames - frame);
    const std::int64_t own = std::min(size, std::max<std::int64_t>(0, row.frames - frame));
    fill(i, frame + own, size - own, o_.pad_with_silence ? silence_ : (o_.pad_value - o_.mean) / o_.std);
    if (own == 0) return -std::numeric_limits<double>::infinity();
    const std::int64_t rounded = round_up(own, kernels_.lanes);
    const std::int64_t first = first_ + frame * o_.hop_length;
    const std::int64_t count = (own - 1) * o_.hop_length + o_.win_length;
    const std::int64_t room = (rounded - 1) * o_.hop_length + o_.win_length;
    if (first >= row.there && first + count <= row.total) {
      fill(i, frame, own, silence_);
      return silence_;
    }
    unsigned char* const memory = static_cast<unsigned char*>(thread_scratch(scratch_));
    LogMelBlock b;
    if (dtype_size(spec_.dtype) == sizeof(R) && first >= 0 && first + room <= row.there) {
      b.samples = row.samples + static_cast<std::size_t>(first) * sizeof(R);
    } else {
      R* const staged = reinterpret_cast<R*>(memory);
      stage(kernels_, row, spec_.dtype, o_.edge, first, count, room, staged);
      b.samples = staged;
    }
    b.frames = own;
    b.rounded = rounded;
    b.out = at(i, frame * frame_stride_);
    b.out_dtype = spec_.out_dtype;
    b.mel_stride = mel_stride_;
    b.frame_stride = frame_stride_;
    kernels_.block(t_, &b, memory + static_cast<std::size_t>(staged_) * sizeof(R));
    return b.most;
  }

  const LogMelTables& t_;
  const LogMelOptions& o_;
  const LogMelSpec& spec_;
  const LogMelKernels& kernels_;
  std::int64_t first_;
  int threads_;
  std::int64_t mel_stride_, frame_stride_;
  std::int64_t staged_;  // numbers of R that one block needs
  std::size_t scratch_;
  double silence_ = 0;
};

}  // namespace

LogMelPlan::LogMelPlan(const LogMelOptions& options, const double* window, const double* mel)
    : tables_(std::make_unique<LogMelTables>()) {
  if (options.win_length < 1 || options.n_fft < options.win_length || options.hop_length < 1 || options.n_mels < 1) {
    throw std::invalid_argument("log_mel: extents that do not fit each other");
  }
  LogMelTables* t = tables_.get();
  t->options = options;
  t->points = t->even() ? options.n_fft / 2 : options.n_fft;
  std::vector<double>& numbers = t->precise.window;
  numbers.assign(static_cast<std::size_t>(options.n_fft), 0.0);
  for (std::int64_t i = 0; i < options.win_length; ++i) {
    numbers[static_cast<std::size_t>(i)] = window[i] * (t->even() ? 0.5 : 1.0);
  }
  plan_transform(t);
  for (std::int64_t k = 0; 4 * k <= options.n_fft; ++k) {
    double re = 0, im = 0;
    root_of_unity(k, options.n_fft, &re, &im);
    t->precise.split.insert(t->precise.split.end(), {re, -im});
  }
  plan_filters(mel, t);
  round_to_single(t->precise.window, &t->single.window);
  round_to_single(t->precise.twiddles, &t->single.twiddles);
  round_to_single(t->precise.split, &t->single.split);
  round_to_single(t->precise.mel, &t->single.mel);
}

LogMelPlan::~LogMelPlan() = default;

std::int64_t log_mel_frames(const LogMelOptions& o, std::int64_t total) {
  if (total <= 0) return 0;
  switch (o.framing) {
    case Framing::kCenter:
      return total / o.hop_length + 1;
    case Framing::kCenterDropLast:
      return total / o.hop_length;
    case Framing::kSnipEdges:
      return total < o.win_length ? 0 : 1 + (total - o.win_length) / o.hop_length;
    default:
      return (total + o.hop_length / 2) / o.hop_length;
  }
}

void log_mel(const LogMelPlan& plan, const LogMelSpec& spec, int threads) {
  if (spec.dtype == DType::kF64) {
    Run<double>(plan, spec, threads)();
  } else {
    Run<float>(plan, spec, threads)();
  }
}

}  // namespace mmcore
