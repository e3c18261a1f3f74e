// contrastive_loss by addresses: its matrices and states are torch's.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "mmcore/contrastive.h"

namespace py = pybind11;

namespace {

mmcore::ContrastiveTile tile_of(std::uintptr_t y, std::int64_t first, std::int64_t rows, std::int64_t batch,
                                int compute, double scale, double bias) {
  mmcore::ContrastiveTile tile;
  tile.y = reinterpret_cast<void*>(y);
  tile.first = first;
  tile.rows = rows;
  tile.batch = batch;
  tile.compute = static_cast<mmcore::DType>(compute);
  tile.scale = scale;
  tile.bias = bias;
  return tile;
}

}  // namespace

void register_contrastive(py::module_& m) {
  m.attr("CLIP_STATES") = static_cast<int>(mmcore::kClipStates);
  m.def(
      "clip_statistics",
      [](std::uintptr_t y, std::int64_t first, std::int64_t rows, std::int64_t batch, int compute, double scale,
         std::uintptr_t states, bool keep, int threads) {
        py::gil_scoped_release release;
        mmcore::clip_statistics(tile_of(y, first, rows, batch, compute, scale, 0), reinterpret_cast<double*>(states),
                                keep, threads);
      },
      py::arg("y"), py::arg("first"), py::arg("rows"), py::arg("batch"), py::arg("compute"), py::arg("scale"),
      py::arg("states"), py::arg("keep"), py::arg("threads"));
  m.def(
      "clip_sums",
      [](std::uintptr_t states, std::int64_t batch, double scale) {
        const mmcore::ContrastiveSums s = mmcore::clip_sums(reinterpret_cast<const double*>(states), batch, scale);
        return py::make_tuple(s.loss, s.scale_slope, s.bias_slope);
      },
      py::arg("states"), py::arg("batch"), py::arg("scale"));
  m.def(
      "clip_gradient",
      [](std::uintptr_t y, std::int64_t first, std::int64_t rows, std::int64_t batch, int compute, double scale,
         std::uintptr_t states, bool kept, int threads) {
        py::gil_scoped_release release;
        mmcore::clip_gradient(tile_of(y, first, rows, batch, compute, scale, 0),
                              reinterpret_cast<const double*>(states), kept, threads);
      },
      py::arg("y"), py::arg("first"), py::arg("rows"), py::arg("batch"), py::arg("compute"), py::arg("scale"),
      py::arg("states"), py::arg("kept"), py::arg("threads"));
  m.def(
      "siglip",
      [](std::uintptr_t y, std::int64_t first, std::int64_t rows, std::int64_t batch, int compute, double scale,
         double bias, bool gradient, int threads) {
        mmcore::ContrastiveSums s;
        {
          py::gil_scoped_release release;
          s = mmcore::siglip(tile_of(y, first, rows, batch, compute, scale, bias), gradient, threads);
        }
        return py::make_tuple(s.loss, s.scale_slope, s.bias_slope);
      },
      py::arg("y"), py::arg("first"), py::arg("rows"), py::arg("batch"), py::arg("compute"), py::arg("scale"),
      py::arg("bias"), py::arg("gradient"), py::arg("threads"));
}
