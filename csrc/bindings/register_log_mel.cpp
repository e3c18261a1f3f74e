// log_mel with addresses, extents and strides, and its plans.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <stdexcept>

#include "mmcore/log_mel.h"

namespace py = pybind11;

namespace {

using mmcore::LogMelOptions;
using mmcore::LogMelPlan;
using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;

std::unique_ptr<LogMelPlan> make_plan(const Doubles& window, const Doubles& mel, std::int64_t n_fft,
                                      std::int64_t hop_length, int framing, int edge, bool remove_dc,
                                      double preemphasis, bool magnitude, bool logarithm, double log_scale,
                                      double floor, double offset, double dynamic_range, double mean, double std,
                                      bool pad_with_silence, double pad_value, bool time_major) {
  if (window.ndim() != 1 || mel.ndim() != 2 || mel.shape(1) != n_fft / 2 + 1) {
    throw std::invalid_argument("LogMelPlan: expected a window and filters (n_mels, n_fft / 2 + 1)");
  }
  LogMelOptions o;
  o.n_fft = n_fft;
  o.win_length = window.shape(0);
  o.hop_length = hop_length;
  o.n_mels = mel.shape(0);
  o.framing = static_cast<mmcore::Framing>(framing);
  o.edge = static_cast<mmcore::Edge>(edge);
  o.remove_dc = remove_dc;
  o.preemphasis = preemphasis;
  o.magnitude = magnitude;
  o.logarithm = logarithm;
  o.log_scale = log_scale;
  o.floor = floor;
  o.offset = offset;
  o.dynamic_range = dynamic_range;
  o.mean = mean;
  o.std = std;
  o.pad_with_silence = pad_with_silence;
  o.pad_value = pad_value;
  o.time_major = time_major;
  return std::make_unique<LogMelPlan>(o, window.data(), mel.data());
}

}  // namespace

void register_log_mel(py::module_& m) {
  py::class_<LogMelPlan>(m, "LogMelPlan", "Tables of log_mel for one kind of spectrogram.")
      .def(py::init(&make_plan), py::kw_only(), py::arg("window"), py::arg("mel"), py::arg("n_fft"),
           py::arg("hop_length"), py::arg("framing"), py::arg("edge"), py::arg("remove_dc"), py::arg("preemphasis"),
           py::arg("magnitude"), py::arg("logarithm"), py::arg("log_scale"), py::arg("floor"), py::arg("offset"),
           py::arg("dynamic_range"), py::arg("mean"), py::arg("std"), py::arg("pad_with_silence"), py::arg("pad_value"),
           py::arg("time_major"));
  m.def(
      "log_mel",
      [](const LogMelPlan& plan, std::uintptr_t waveform, int dtype, std::int64_t rows, std::int64_t samples,
         std::int64_t row_stride, std::uintptr_t lengths, std::int64_t pad_to, std::int64_t frames, std::uintptr_t out,
         int out_dtype, int threads) {
        mmcore::LogMelSpec spec;
        spec.waveform = reinterpret_cast<const void*>(waveform);
        spec.dtype = static_cast<mmcore::DType>(dtype);
        spec.rows = rows;
        spec.samples = samples;
        spec.row_stride = static_cast<std::ptrdiff_t>(row_stride);
        spec.lengths = reinterpret_cast<const std::int64_t*>(lengths);
        spec.pad_to = pad_to;
        spec.frames = frames;
        spec.out = reinterpret_cast<void*>(out);
        spec.out_dtype = static_cast<mmcore::DType>(out_dtype);
        py::gil_scoped_release release;
        mmcore::log_mel(plan, spec, threads);
      },
      py::arg("plan"), py::arg("waveform"), py::arg("dtype"), py::arg("rows"), py::arg("samples"),
      py::arg("row_stride"), py::arg("lengths"), py::arg("pad_to"), py::arg("frames"), py::arg("out"),
      py::arg("out_dtype"), py::arg("threads"),
      "Log-mel spectrograms of rows of samples; see csrc/include/mmcore/log_mel.h.");
}
