// log_mel: waveforms to log-mel spectrograms. Framing, filtering, window, Fourier transform, power, mel filters,
// logarithm and normalisation follow each other in the caches, for as many frames side by side as a vector has lanes.
//
//   y[m, f] = (clamp(scale ln(max(floor, offset + sum_k mel[m, k] |X_f[k]|^p))) - mean) / std
//
// Contract
//   in    rows of samples of f32, f16 or bf16, or f64, any distance between rows, 1 between samples. Not modified.
//   out   (rows, mels, frames), or (rows, frames, mels), contiguous, every element written.
//   Computed in double for f64 and in float otherwise. A frame's values depend on its own samples alone, but for the
//   clamp to the largest value of its row: a sample that is no number spoils the frames that hold it and no other.
//   Results do not depend on `threads`.
//   cost  one read of the samples, one write of the result (a dynamic range: one more read and write). Scratch per
//         thread: the samples of 64 frames twice, a transform and a spectrogram of one frame for every lane.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "mmcore/dtype.h"

namespace mmcore {

// Where frames lie, n samples long at distance h, in T samples.
enum class Framing : int {
  kCenter = 0,          // T / h + 1, the middle of the transform of frame i at i h
  kCenterDropLast = 1,  // T / h of them
  kSnipEdges = 2,       // 1 + (T - n) / h, frame i begins at i h
  kNoSnipEdges = 3      // (T + h / 2) / h, the middle of frame i at i h + h / 2
};

// What lies before the first sample and after the last one, for any length.
enum class Edge : int {
  kReflect = 0,    // ... 2 1 | 0 1 2 ...
  kSymmetric = 1,  // ... 1 0 | 0 1 2 ...
  kZeros = 2
};

struct LogMelOptions {
  std::int64_t n_fft = 400;  // points of the transform; those after the window's are 0
  std::int64_t win_length = 400;
  std::int64_t hop_length = 160;
  std::int64_t n_mels = 80;
  Framing framing = Framing::kCenter;
  Edge edge = Edge::kReflect;
  bool remove_dc = false;  // the mean of each frame is taken off first
  double preemphasis = 0;  // then this times the sample before it, which for the first one is itself
  bool magnitude = false;  // p = 1, else 2
  bool logarithm = true;
  double log_scale = 1;
  double floor = 1e-10, offset = 0;
  double dynamic_range = 0;  // below a row's largest value, in units of the scaled logarithm; 0: none
  double mean = 0, std = 1;
  bool pad_with_silence = true;  // frames that a row does not have are those of silence, else pad_value
  double pad_value = 0;          // before the normalisation
  bool time_major = false;       // (rows, frames, mels)
};

struct LogMelTables;

// The tables that depend on options alone. Shared by any number of threads.
class LogMelPlan {
 public:
  // window: (win_length). mel: (n_mels, n_fft / 2 + 1). Throws std::invalid_argument for extents that do not fit.
  LogMelPlan(const LogMelOptions& options, const double* window, const double* mel);
  ~LogMelPlan();
  LogMelPlan(const LogMelPlan&) = delete;
  LogMelPlan& operator=(const LogMelPlan&) = delete;

  const LogMelTables& tables() const { return *tables_; }

 private:
  std::unique_ptr<LogMelTables> tables_;
};

struct LogMelSpec {
  const void* waveform = nullptr;
  DType dtype = DType::kF32;
  std::int64_t rows = 0;
  std::int64_t samples = 0;      // of a row in memory
  std::ptrdiff_t row_stride = 0;  // elements
  const std::int64_t* lengths = nullptr;  // (rows) of each row, 0 to samples; null: samples
  std::int64_t pad_to = -1;               // rows are cut or filled up with zeros to it; -1: they stay as they are
  std::int64_t frames = 0;                // of the result
  void* out = nullptr;
  DType out_dtype = DType::kF32;  // f32, f16 or bf16; f64 for f64
};

// Frames of T samples.
std::int64_t log_mel_frames(const LogMelOptions& options, std::int64_t total);

// Throws std::bad_alloc alone.
void log_mel(const LogMelPlan& plan, const LogMelSpec& spec, int threads);

}  // namespace mmcore
