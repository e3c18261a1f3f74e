// mmcore._cuda: the kernels for CUDA devices. Pointers and streams travel as integers, plans as the tables that
// mmcore._core makes, once as bytes and once by their address on the device.
#include <cuda_runtime_api.h>
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

// (tables, [(pointer, pitch in bytes) per plane], slot)
using FrameArgs = std::tuple<const DeviceTables*, std::vector<std::pair<std::uintptr_t, std::int64_t>>, std::int32_t>;

mmcore::cuda::Frame frame_of(const DeviceTables* tables, std::size_t num_planes, std::int32_t slot) {
  mmcore::cuda::Frame f;
  f.host = &tables->header();
  f.tables = tables->address();
  f.slot = slot;
  if (static_cast<int>(num_planes) < f.host->num_planes) throw std::invalid_argument("frames: too few planes");
  return f;
}

void check_same_result(const std::vector<mmcore::cuda::Frame>& frames) {
  for (const auto& f : frames) {
    const mmcore::FramesTables& first = *frames[0].host;
    if (f.host->out_h != first.out_h || f.host->out_w != first.out_w || f.host->dtype != first.dtype) {
      throw std::invalid_argument("frames: results of different sizes or dtypes");
    }
  }
}

std::vector<mmcore::cuda::Frame> frames_of(const std::vector<FrameArgs>& args) {
  std::vector<mmcore::cuda::Frame> frames;
  frames.reserve(args.size());
  for (const auto& [tables, planes, slot] : args) {
    mmcore::cuda::Frame f = frame_of(tables, planes.size(), slot);
    for (std::size_t p = 0; p < static_cast<std::size_t>(f.host->num_planes); ++p) {
      f.planes[p] = reinterpret_cast<const std::uint8_t*>(planes[p].first);
      f.pitches[p] = planes[p].second;
    }
    frames.push_back(f);
  }
  check_same_result(frames);
  return frames;
}

// Groups are read with Python's own interface: pybind11's conversion of nested tuples takes 20 times as long, for 32
// groups longer than the kernel.
void expect(bool is_right) {
  if (!is_right) {
    throw std::invalid_argument("groups: expected (tables, ((pointer, pitch, frame pitch), ...), frames) in tuples");
  }
}

PyObject* const* three_items(PyObject* tuple) {
  expect(PyTuple_Check(tuple) && PyTuple_GET_SIZE(tuple) == 3);
  return &PyTuple_GET_ITEM(tuple, 0);
}

std::int64_t as_int64(PyObject* object) {
  const long long value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// (tables, ((pointer, pitch in bytes, bytes from a frame to the next) per plane), frames): frames of one kind at equal
// distances, in the slots after those of the group before.
std::vector<mmcore::cuda::Frame> frames_of(const py::list& groups) {
  std::vector<mmcore::cuda::Frame> frames;
  frames.reserve(groups.size());
  std::int32_t slot = 0;
  for (const py::handle group : groups) {
    PyObject* const* parts = three_items(group.ptr());
    const auto* tables = py::cast<const DeviceTables*>(py::handle(parts[0]));
    expect(tables && PyTuple_Check(parts[1]));
    mmcore::cuda::Frame f = frame_of(tables, static_cast<std::size_t>(PyTuple_GET_SIZE(parts[1])), slot);
    std::int64_t frame_pitch[3] = {};
    for (int p = 0; p < f.host->num_planes; ++p) {
      PyObject* const* plane = three_items(PyTuple_GET_ITEM(parts[1], p));
      f.planes[p] = reinterpret_cast<const std::uint8_t*>(PyLong_AsUnsignedLongLong(plane[0]));
      if (PyErr_Occurred()) throw py::error_already_set();
      f.pitches[p] = as_int64(plane[1]);
      frame_pitch[p] = as_int64(plane[2]);
    }
    for (std::int64_t left = as_int64(parts[2]); left > 0; --left) {
      f.slot = slot++;
      frames.push_back(f);
      for (int p = 0; p < f.host->num_planes; ++p) f.planes[p] += frame_pitch[p];
    }
  }
  check_same_result(frames);
  return frames;
}

template <typename Args>
void launch(const Args& args, const Output& o, std::uintptr_t scratch, std::uintptr_t stream, int method) {
  const std::vector<mmcore::cuda::Frame> frames = frames_of(args);
  const mmcore::OutputDesc out = output_desc(o);
  py::gil_scoped_release release;
  mmcore::cuda::frames_to_tensor(frames, out, reinterpret_cast<void*>(scratch), stream,
                                 static_cast<mmcore::cuda::Method>(method));
}

template <typename Args>
std::size_t scratch_bytes(const Args& args) {
  return mmcore::cuda::scratch_bytes(frames_of(args));
}

// Device that memory belongs to; kEverywhere for what every device can read, kUnknown for what CUDA did not allocate.
constexpr int kUnknown = -1, kEverywhere = -2;
int pointer_device(std::uintptr_t address) {
  cudaPointerAttributes a;
  if (cudaPointerGetAttributes(&a, reinterpret_cast<const void*>(address)) != cudaSuccess) {
    cudaGetLastError();  // ours to forget: it must not be found after someone's launch
    return kUnknown;
  }
  if (a.type == cudaMemoryTypeDevice) return a.device;
  return a.type == cudaMemoryTypeUnregistered ? kUnknown : kEverywhere;
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "mmcore's kernels for CUDA devices; no torch.";
  m.attr("__version__") = MMCORE_VERSION;
  py::class_<DeviceTables>(m, "DeviceTables", "A plan's tables on one device.")
      .def(py::init<const py::bytes&, std::uintptr_t>(), py::arg("tables"), py::arg("address"))
      .def_property_readonly(
          "needs_scratch", [](const DeviceTables& t) { return t.header().bytes_table.resample != 0; },
          "Whether frames_to_tensor needs scratch for such frames.")
      .def_property_readonly(
          "streams", [](const DeviceTables& t) { return t.header().live != 0; },
          "Whether the streaming kernel takes such frames.");
  m.def("scratch_bytes", &scratch_bytes<std::vector<FrameArgs>>, py::arg("frames"),
        "Bytes of device memory that frames_to_tensor needs for these frames besides its output.");
  m.def("frames_to_tensor", &launch<std::vector<FrameArgs>>, py::arg("frames"), py::arg("output"), py::arg("scratch"),
        py::arg("stream"), py::arg("method") = 0,
        "Launch the conversion of frames, each (tables, [(pointer, pitch in bytes) per plane], slot), on a stream.");
  m.def("groups_scratch_bytes", &scratch_bytes<py::list>, py::arg("groups"),
        "Bytes of device memory that groups_to_tensor needs for these groups besides its output.");
  m.def("groups_to_tensor", &launch<py::list>, py::arg("groups"), py::arg("output"), py::arg("scratch"),
        py::arg("stream"), py::arg("method") = 0,
        "As frames_to_tensor, of groups of frames that lie at equal distances and come out one after another: "
        "(tables, ((pointer, pitch, bytes to the next frame) per plane), frames), in tuples.");
  m.def("pointer_device", &pointer_device, py::arg("address"), py::call_guard<py::gil_scoped_release>(),
        "Device that an address belongs to; -1: to none, -2: to all (managed or pinned memory).");
}
