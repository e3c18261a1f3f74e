// mmcore._cuda: the kernels for CUDA devices. Pointers and streams travel as integers, plans as the tables that
// mmcore._core makes, once as bytes and once by their address on the device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "frames.h"
#include "frames_output.h"

namespace py = pybind11;

namespace {

// Tables of a plan on one device. The caller keeps both memories alive while kernels run.
class DeviceTables {
 public:
  DeviceTables(const py::bytes& tables, std::uintptr_t address) : address_(address) {
    const std::string_view view = tables;
    if (view.size() < sizeof(header_)) throw std::invalid_argument("DeviceTables: too few bytes");
    std::memcpy(&header_, view.data(), sizeof(header_));
    if (static_cast<std::size_t>(header_.bytes) != view.size() || address % 16) {
      throw std::invalid_argument("DeviceTables: not the bytes of FramesPlan.device_tables, or not aligned to 16");
    }
  }
  const mmcore::FramesTables& header() const { return header_; }
  const std::uint8_t* address() const { return reinterpret_cast<const std::uint8_t*>(address_); }

 private:
  mmcore::FramesTables header_;
  std::uintptr_t address_;
};

using PlaneList = std::vector<std::pair<std::uintptr_t, std::int64_t>>;
// (tables, [(pointer, pitch in bytes) per plane], slot)
using FrameArgs = std::tuple<const DeviceTables*, PlaneList, std::int32_t>;

std::vector<mmcore::cuda::Frame> frames_of(const std::vector<FrameArgs>& args) {
  std::vector<mmcore::cuda::Frame> frames;
  frames.reserve(args.size());
  for (const auto& [tables, planes, slot] : args) {
    mmcore::cuda::Frame f;
    f.host = &tables->header();
    f.tables = tables->address();
    f.slot = slot;
    if (static_cast<int>(planes.size()) < f.host->num_planes) throw std::invalid_argument("frames: too few planes");
    for (int p = 0; p < f.host->num_planes; ++p) {
      f.planes[p] = reinterpret_cast<const std::uint8_t*>(planes[static_cast<std::size_t>(p)].first);
      f.pitches[p] = planes[static_cast<std::size_t>(p)].second;
    }
    frames.push_back(f);
  }
  for (const auto& f : frames) {
    const mmcore::FramesTables& first = *frames[0].host;
    if (f.host->out_h != first.out_h || f.host->out_w != first.out_w || f.host->dtype != first.dtype) {
      throw std::invalid_argument("frames: results of different sizes or dtypes");
    }
  }
  return frames;
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "mmcore's kernels for CUDA devices; no torch.";
  m.attr("__version__") = MMCORE_VERSION;
  py::class_<DeviceTables>(m, "DeviceTables", "A plan's tables on one device.")
      .def(py::init<const py::bytes&, std::uintptr_t>(), py::arg("tables"), py::arg("address"))
      .def_property_readonly(
          "streams", [](const DeviceTables& t) { return t.header().live != 0; },
          "Whether the streaming kernel takes such frames.");
  m.def(
      "scratch_bytes",
      [](const std::vector<FrameArgs>& frames) { return mmcore::cuda::scratch_bytes(frames_of(frames)); },
      py::arg("frames"), "Bytes of device memory that frames_to_tensor needs for these frames besides its output.");
  m.def(
      "frames_to_tensor",
      [](const std::vector<FrameArgs>& args, const Output& o, std::uintptr_t scratch, std::uintptr_t stream,
         int method) {
        const std::vector<mmcore::cuda::Frame> frames = frames_of(args);
        const mmcore::OutputDesc out = output_desc(o);
        py::gil_scoped_release release;
        mmcore::cuda::frames_to_tensor(frames, out, reinterpret_cast<void*>(scratch), stream,
                                       static_cast<mmcore::cuda::Method>(method));
      },
      py::arg("frames"), py::arg("output"), py::arg("scratch"), py::arg("stream"), py::arg("method") = 0,
      "Launch the conversion of frames, each (tables, [(pointer, pitch in bytes) per plane], slot), on a stream.");
}
