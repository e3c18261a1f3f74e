// Bindings of tensor_to_planes: addresses, extents and strides of the tensor and of the frames' planes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "mmcore/tensor_to_planes.h"

namespace py = pybind11;

namespace {

// (address, dtype, frame, channel, row and pixel stride in elements)
using Source = std::tuple<std::uintptr_t, int, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

std::int64_t convert(const Source& tensor, std::array<int, 2> size,
                     const std::vector<std::vector<std::tuple<std::uintptr_t, std::int64_t>>>& frames, int family,
                     const std::vector<std::array<int, 3>>& components, int bits, int shift,
                     std::array<int, 2> log2_chroma, bool opaque, int chroma, std::array<double, 2> kr_kb,
                     bool full_range, std::array<double, 3> mul, std::array<double, 3> add, int threads) {
  mmcore::PlanesSpec s;
  s.format.family = static_cast<mmcore::ColorFamily>(family);
  std::size_t num_planes = 0;
  for (std::size_t i = 0; i < components.size() && i < 3; ++i) {
    s.format.component[i] = {components[i][0], components[i][1], components[i][2]};
    num_planes = std::max(num_planes, static_cast<std::size_t>(components[i][0]) + 1);
  }
  s.format.bits = bits;
  s.format.shift = shift;
  s.format.log2_chroma_w = log2_chroma[0];
  s.format.log2_chroma_h = log2_chroma[1];
  s.height = size[0];
  s.width = size[1];
  s.chroma = static_cast<mmcore::ChromaLocation>(chroma);
  s.kr = kr_kb[0];
  s.kb = kr_kb[1];
  s.full_range = full_range;
  s.opaque = opaque;
  s.dtype = static_cast<mmcore::DType>(std::get<1>(tensor));
  for (int c = 0; c < 3; ++c) {
    s.mul[c] = mul[static_cast<std::size_t>(c)];
    s.add[c] = add[static_cast<std::size_t>(c)];
  }
  mmcore::TensorDesc t;
  t.data = reinterpret_cast<const void*>(std::get<0>(tensor));
  t.frame_stride = static_cast<std::ptrdiff_t>(std::get<2>(tensor));
  t.channel_stride = static_cast<std::ptrdiff_t>(std::get<3>(tensor));
  t.row_stride = static_cast<std::ptrdiff_t>(std::get<4>(tensor));
  t.pixel_stride = static_cast<std::ptrdiff_t>(std::get<5>(tensor));
  // The Python layer checks what users pass; this keeps a wrong call of the core from writing out of bounds.
  const bool ok = s.height > 0 && s.width > 0 && bits >= 8 && bits + shift <= 16 && num_planes >= 1 &&
                  num_planes <= 4 && components.size() == (s.format.family == mmcore::ColorFamily::kGray ? 1u : 3u);
  if (!ok) throw std::invalid_argument("tensor_to_planes: inconsistent sizes");
  std::vector<std::uint8_t*> planes(4 * frames.size());
  std::vector<std::ptrdiff_t> pitches(4 * frames.size());
  for (std::size_t i = 0; i < frames.size(); ++i) {
    if (frames[i].size() < num_planes) throw std::invalid_argument("tensor_to_planes: too few planes");
    for (std::size_t p = 0; p < num_planes; ++p) {
      planes[4 * i + p] = reinterpret_cast<std::uint8_t*>(std::get<0>(frames[i][p]));
      pitches[4 * i + p] = static_cast<std::ptrdiff_t>(std::get<1>(frames[i][p]));
    }
  }
  py::gil_scoped_release release;
  return mmcore::tensor_to_planes(s, t, static_cast<std::int64_t>(frames.size()), planes.data(), pitches.data(),
                                  threads);
}

}  // namespace

void register_tensor_to_planes(py::module_& m) {
  m.def("tensor_to_planes", &convert, py::kw_only(), py::arg("tensor"), py::arg("size"), py::arg("frames"),
        py::arg("family"), py::arg("components"), py::arg("bits"), py::arg("shift"), py::arg("log2_chroma"),
        py::arg("opaque"), py::arg("chroma"), py::arg("kr_kb"), py::arg("full_range"), py::arg("mul"), py::arg("add"),
        py::arg("threads"),
        "Write frames of a tensor into planes, a (pointer, pitch in bytes) each; the number of the first frame with a"
        " value that is not finite, or -1.");
}
