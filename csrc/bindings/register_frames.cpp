// Bindings of frames_to_tensor: plans are built from keyword arguments, pointers travel as integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "copy_rows.h"
#include "frames_output.h"
#include "mmcore/frames.h"
#include "mmcore/frames_tables.h"

namespace py = pybind11;

namespace {

using mmcore::FramesSpec;

struct Plan {
  std::shared_ptr<const mmcore::FramesPlan> plan;
  FramesSpec spec;
  int num_planes = 0;
};

Plan make_plan(int family, const std::vector<std::array<int, 3>>& components, int bits, int shift,
               std::array<int, 2> log2_chroma, std::array<int, 2> source, std::array<int, 2> resize,
               std::array<int, 4> crop, int interpolation, bool antialias, int chroma, std::array<double, 2> kr_kb,
               bool full_range, int accuracy, int dtype, std::array<double, 3> mul, std::array<double, 3> add,
               const std::optional<std::array<std::array<float, 3>, 2>>& sub_div, float scale,
               const std::optional<std::array<std::array<double, 4>, 3>>& color, bool horizontal_flip) {
  FramesSpec s;
  s.format.family = static_cast<mmcore::ColorFamily>(family);
  Plan p;
  for (std::size_t i = 0; i < components.size() && i < 3; ++i) {
    s.format.component[i] = {components[i][0], components[i][1], components[i][2]};
    p.num_planes = std::max(p.num_planes, components[i][0] + 1);
  }
  s.format.bits = bits;
  s.format.shift = shift;
  s.format.log2_chroma_w = log2_chroma[0];
  s.format.log2_chroma_h = log2_chroma[1];
  s.height = source[0];
  s.width = source[1];
  s.resize_h = resize[0];
  s.resize_w = resize[1];
  s.top = crop[0];
  s.left = crop[1];
  s.out_h = crop[2];
  s.out_w = crop[3];
  s.interpolation = static_cast<mmcore::Interpolation>(interpolation);
  s.antialias = antialias;
  s.chroma = static_cast<mmcore::ChromaLocation>(chroma);
  s.kr = kr_kb[0];
  s.kb = kr_kb[1];
  s.full_range = full_range;
  s.accuracy = static_cast<mmcore::Accuracy>(accuracy);
  s.dtype = static_cast<mmcore::DType>(dtype);
  for (int c = 0; c < 3; ++c) {
    s.mul[c] = mul[c];
    s.add[c] = add[c];
    if (sub_div) {
      s.sub[c] = (*sub_div)[0][c];
      s.div[c] = (*sub_div)[1][c];
    }
  }
  s.has_color = color.has_value();
  for (int c = 0; color && c < 3; ++c) std::copy((*color)[c].begin(), (*color)[c].end(), s.color[c]);
  s.horizontal_flip = horizontal_flip;
  s.scale_only = !sub_div;
  s.scale = scale;
  // The Python layer checks what users pass; this keeps a wrong call of the core from reading out of bounds.
  const bool ok = s.height > 0 && s.width > 0 && s.resize_h > 0 && s.resize_w > 0 && s.out_h > 0 && s.out_w > 0 &&
                  s.top >= 0 && s.left >= 0 && s.top + s.out_h <= s.resize_h && s.left + s.out_w <= s.resize_w &&
                  bits >= 8 && bits + shift <= 16 && p.num_planes >= 1 && p.num_planes <= 4 &&
                  components.size() == (s.format.family == mmcore::ColorFamily::kGray ? 1u : 3u);
  if (!ok) throw std::invalid_argument("FramesPlan: inconsistent sizes");
  p.spec = s;
  p.plan = mmcore::make_frames_plan(s);
  return p;
}

// Sequence of (pointer, pitch) pairs, one per plane.
void read_planes(const Plan& p, const py::sequence& planes, const std::uint8_t** pointers, std::ptrdiff_t* pitches) {
  if (static_cast<int>(planes.size()) < p.num_planes) throw std::invalid_argument("FramesPlan: too few planes");
  for (int i = 0; i < p.num_planes; ++i) {
    const py::sequence pair = planes[static_cast<std::size_t>(i)];
    pointers[i] = reinterpret_cast<const std::uint8_t*>(pair[0].cast<std::uintptr_t>());
    pitches[i] = pair[1].cast<std::ptrdiff_t>();
  }
}

// (source, pitch there, target, pitch there, bytes of a row, rows); pitches in bytes, may be negative
using Rows = std::tuple<std::uintptr_t, std::int64_t, std::uintptr_t, std::int64_t, std::int64_t, std::int64_t>;

void copy_rows(const std::vector<Rows>& blocks) {
  for (const auto& [source, source_pitch, target, target_pitch, bytes, rows] : blocks) {
    if (bytes < 0 || rows < 0) throw std::invalid_argument("copy_rows: negative extent");
  }
  py::gil_scoped_release release;
  for (const auto& [source, source_pitch, target, target_pitch, bytes, rows] : blocks) {
    mmcore::copy_rows(reinterpret_cast<const std::uint8_t*>(source), static_cast<std::ptrdiff_t>(source_pitch),
                      reinterpret_cast<std::uint8_t*>(target), static_cast<std::ptrdiff_t>(target_pitch),
                      static_cast<std::size_t>(bytes), static_cast<std::ptrdiff_t>(rows));
  }
}

}  // namespace

void register_frames(py::module_& m) {
  py::class_<Plan>(m, "FramesPlan", "Filters and coefficients of one (source, transform) pair; immutable.")
      .def(py::init(&make_plan), py::kw_only(), py::arg("family"), py::arg("components"), py::arg("bits"),
           py::arg("shift"), py::arg("log2_chroma"), py::arg("source"), py::arg("resize"), py::arg("crop"),
           py::arg("interpolation"), py::arg("antialias"), py::arg("chroma"), py::arg("kr_kb"), py::arg("full_range"),
           py::arg("accuracy"), py::arg("dtype"), py::arg("mul"), py::arg("add"), py::arg("sub_div"), py::arg("scale"),
           py::arg("color") = py::none(), py::arg("horizontal_flip") = false, py::call_guard<py::gil_scoped_release>())
      .def(
          "device_tables",
          [](const Plan& self) {
            std::vector<std::uint8_t> tables;
            {
              py::gil_scoped_release release;
              tables = mmcore::make_frames_tables(self.spec);
            }
            return py::bytes(reinterpret_cast<const char*>(tables.data()), tables.size());
          },
          "The plan as device kernels read it: bytes to copy to the device as they are.")
      .def(
          "regions",
          [](const Plan& self) {
            std::vector<std::tuple<int, int, int, int, int>> regions;
            for (const mmcore::PlaneRegion& r : mmcore::plane_regions(*self.plan)) {
              regions.emplace_back(r.plane, r.first_row, r.rows, r.first_sample, r.samples);
            }
            return regions;
          },
          "What is read of each plane that is read: (plane, first row, rows, first sample, samples).")
      .def(
          "convert_frame",
          [](const Plan& self, const py::sequence& planes, const Output& output, std::int64_t index) {
            const std::uint8_t* pointers[4] = {};
            std::ptrdiff_t pitches[4] = {};
            // av.VideoFrame.planes: each has buffer_ptr and line_size
            if (static_cast<int>(planes.size()) < self.num_planes) {
              throw std::invalid_argument("FramesPlan: too few planes");
            }
            for (int i = 0; i < self.num_planes; ++i) {
              const py::object plane = planes[static_cast<std::size_t>(i)];
              pointers[i] = reinterpret_cast<const std::uint8_t*>(plane.attr("buffer_ptr").cast<std::uintptr_t>());
              pitches[i] = plane.attr("line_size").cast<std::ptrdiff_t>();
            }
            const mmcore::OutputDesc out = output_desc(output);
            py::gil_scoped_release release;
            mmcore::frames_to_tensor(*self.plan, pointers, pitches, out, index);
          },
          py::arg("planes"), py::arg("output"), py::arg("index"),
          "Convert one av.VideoFrame's planes into slot `index` of the output.")
      .def(
          "convert",
          [](const Plan& self, const py::sequence& frames, const Output& output, std::int64_t first, int threads) {
            const std::size_t count = frames.size();
            std::vector<const std::uint8_t*> pointers(4 * count);
            std::vector<std::ptrdiff_t> pitches(4 * count);
            for (std::size_t i = 0; i < count; ++i) read_planes(self, frames[i], &pointers[4 * i], &pitches[4 * i]);
            const mmcore::OutputDesc out = output_desc(output);
            py::gil_scoped_release release;
            mmcore::frames_to_tensor_batch(*self.plan, pointers.data(), pitches.data(),
                                           static_cast<std::int64_t>(count), out, first, threads);
          },
          py::arg("frames"), py::arg("output"), py::arg("first"), py::arg("threads"),
          "Convert frames, each a sequence of (pointer, pitch in bytes) per plane, into slots from `first` on.");
  m.def("copy_rows", &copy_rows, py::arg("blocks"),
        "Copy blocks of rows, each (source, pitch, target, pitch, bytes of a row, rows), which must not overlap.");
}
