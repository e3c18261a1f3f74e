// What Python asks about tensors before an op is called.
#include "torch_tensors.h"

namespace py = pybind11;

void register_torch_tensors(py::module_& m) {
  m.def("tensors_ready", &mmcore::tensors_ready,
        "Whether this torch lets the core read tensors itself (torch 2.10 and later).");
  m.def(
      "tensors_kind",
      [](const py::tuple& tensors, const py::object& tensor, const py::object& parameter) {
        return mmcore::tensors_kind(tensors, tensor, parameter);
      },
      py::arg("tensors"), py::arg("tensor"), py::arg("parameter"), py::pos_only(),
      "0: something else than None and plain tensors; 2: one of them requires a gradient; 1: none does.");
  m.def("tensors_key", &mmcore::tensors_key, py::arg("tensors"), py::pos_only(),
        "(bytes, addresses) of None and tensors: equal bytes for equal dtypes, devices, shapes, strides, alignments,"
        " requires_grad and shared addresses. None if one of them is no plain tensor.");
}
