// Torch tensors in C++ without libtorch: read and made through DLPack's C exchange API, which torch 2.10 and later offer
// on the type of the tensor. A call costs some 30 ns, against 0.1 us for each attribute read from Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "mmcore/dtype.h"

namespace mmcore {

// A dense CPU tensor as seen during one call. shape and strides belong to torch.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  bool is_bool = false;
  int ndim = 0;
  const std::int64_t* shape = nullptr;
  const std::int64_t* strides = nullptr;  // elements

  bool has_shape(std::initializer_list<std::int64_t> wanted) const;
  bool contiguous() const;
};

// Whether torch offers the API; false leaves everything to the Python path.
bool tensors_ready();

// Whether `object` is a torch.Tensor or Parameter, no subclass, on the CPU, strided, of a floating or bool dtype (or
// int64, if `integers`) and without torch's lazy negation; fills `view`. Never raises.
bool read_tensor(pybind11::handle object, TensorView* view, bool integers = false);

// 0: the tuple holds something else than None and objects of exactly the two types; 2: one of them requires a gradient;
// 1: none does.
int tensors_kind(const pybind11::tuple& tensors, pybind11::handle tensor_type, pybind11::handle parameter_type);

// (bytes, addresses) of None and plain tensors on any device: the bytes tell apart what differs in dtype, device, shape,
// strides, 16-byte alignment, requires_grad or in which tensors share an address. None if one cannot be described.
pybind11::object tensors_key(const pybind11::tuple& tensors);

// New contiguous tensor; its memory from the recycling pool if it is large. data receives its address; *fresh becomes
// true if its pages were never written.
pybind11::object make_tensor(const std::int64_t* shape, int ndim, DType dtype, void** data, bool* fresh);

}  // namespace mmcore
