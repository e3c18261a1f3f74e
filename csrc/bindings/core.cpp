// mmcore._core: registers the operations' bindings and what the build knows about itself.
#include <pybind11/pybind11.h>

#include "isa.h"

namespace py = pybind11;

void register_contrastive(py::module_& m);
void register_frames(py::module_& m);
void register_fusion(py::module_& m);
void register_log_mel(py::module_& m);
void register_losses(py::module_& m);
void register_memory_pool(py::module_& m);
void register_packets(py::module_& m);
void register_tensor_to_planes(py::module_& m);
void register_torch_tensors(py::module_& m);

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "mmcore's compiled core: raw pointers, extents and strides; no torch, no FFmpeg.";
  m.attr("__version__") = MMCORE_VERSION;
  m.attr("compiler") = MMCORE_COMPILER;
  m.def(
      "isa", [] { return std::string(mmcore::isa_name(mmcore::active_isa())); },
      "Instruction set in use: the fastest available, or the one that MMCORE_ISA names.");
  m.def(
      "available_isas",
      [] {
        py::list names;
        for (mmcore::Isa isa : mmcore::available_isas()) names.append(mmcore::isa_name(isa));
        return names;
      },
      "Instruction sets that this build holds and this machine runs, the slowest first.");
  register_contrastive(m);
  register_frames(m);
  register_fusion(m);
  register_log_mel(m);
  register_losses(m);
  register_memory_pool(m);
  register_packets(m);
  register_tensor_to_planes(m);
  register_torch_tensors(m);
}
