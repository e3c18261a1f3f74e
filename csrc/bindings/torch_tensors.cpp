#include "torch_tensors.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "dlpack.h"
#include "mmcore/memory_pool.h"

namespace py = pybind11;

namespace mmcore {

namespace {

constexpr std::size_t kPooledBytes = 512 << 10;  // smaller ones stay in the heap, whose pages are warm
constexpr int kMaxDims = 8;

struct Torch {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  PyObject* is_neg = nullptr;
  const DLPackExchangeAPI* api = nullptr;
};

Torch find_torch() {
  Torch t;
  try {
    const py::object tensor = py::module_::import("torch").attr("Tensor");
    const py::object parameter = py::module_::import("torch.nn").attr("Parameter");
    if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) return t;
    const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
    const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api == nullptr) {
      PyErr_Clear();
      return t;
    }
    if (api->version.major != 1 || api->dltensor_from_py_object_no_sync == nullptr) return t;
    t.tensor = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());  // for the life of the process
    t.parameter = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
    t.is_neg = PyUnicode_InternFromString("is_neg");
    t.api = api;
  } catch (const py::error_already_set&) {
  }
  return t;
}

const Torch& torch() {
  static const Torch found = find_torch();
  return found;
}

// Followed by the elements, unless those are in the pool.
struct alignas(64) Owned {
  DLManagedTensorVersioned managed{};
  std::int64_t extents[2 * kMaxDims];
  bool pooled = false;
};

void release(DLManagedTensorVersioned* t) {
  auto* owned = static_cast<Owned*>(t->manager_ctx);
  if (owned->pooled) pool_release(t->dl_tensor.data);
  owned->~Owned();
  ::operator delete(owned, std::align_val_t(alignof(Owned)));
}

}  // namespace

bool TensorView::has_shape(std::initializer_list<std::int64_t> wanted) const {
  if (ndim != static_cast<int>(wanted.size())) return false;
  const std::int64_t* have = shape;
  for (std::int64_t extent : wanted) {
    if (*have++ != extent) return false;
  }
  return true;
}

bool TensorView::contiguous() const {
  std::int64_t step = 1;
  for (int i = ndim; i-- > 0;) {
    if (shape[i] != 1 && strides[i] != step) return false;
    step *= shape[i];
  }
  return true;
}

bool tensors_ready() { return torch().api != nullptr; }

bool read_tensor(py::handle object, TensorView* view, bool integers) {
  const Torch& t = torch();
  if (t.api == nullptr) return false;
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type != t.tensor && type != t.parameter) return false;
  DLTensor d;
  if (t.api->dltensor_from_py_object_no_sync(object.ptr(), &d) != 0) {
    PyErr_Clear();
    return false;
  }
  if (d.device.device_type != kDLCPU || d.dtype.lanes != 1 || (d.strides == nullptr && d.ndim > 0)) return false;
  // Torch's lazy negation is seen on imaginary parts of conjugates, every other element of memory: one odd stride rules
  // it out, without a call.
  bool every_other = true;
  for (int i = 0; i < d.ndim; ++i) every_other = every_other && (d.shape[i] == 1 || d.strides[i] % 2 == 0);
  if (every_other) {
    PyObject* negated = PyObject_CallMethodNoArgs(object.ptr(), t.is_neg);
    if (negated == nullptr) PyErr_Clear();
    Py_XDECREF(negated);
    if (negated != Py_False) return false;
  }
  view->is_bool = d.dtype.code == kDLBool && d.dtype.bits == 8;
  if (d.dtype.code == kDLFloat && d.dtype.bits == 32) {
    view->dtype = DType::kF32;
  } else if (d.dtype.code == kDLBfloat && d.dtype.bits == 16) {
    view->dtype = DType::kBF16;
  } else if (d.dtype.code == kDLFloat && d.dtype.bits == 16) {
    view->dtype = DType::kF16;
  } else if (d.dtype.code == kDLFloat && d.dtype.bits == 64) {
    view->dtype = DType::kF64;
  } else if (view->is_bool) {
    view->dtype = DType::kU8;
  } else if (integers && d.dtype.code == kDLInt && d.dtype.bits == 64) {
    view->dtype = DType::kI64;
  } else {
    return false;
  }
  view->data = static_cast<char*>(d.data) + d.byte_offset;
  view->ndim = d.ndim;
  view->shape = d.shape;
  view->strides = d.strides;
  return true;
}

int tensors_kind(const py::tuple& tensors, py::handle tensor_type, py::handle parameter_type) {
  static PyObject* const name = PyUnicode_InternFromString("requires_grad");
  int kind = 1;
  for (const py::handle t : tensors) {
    if (t.is_none()) continue;
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(t.ptr()));
    if (type != tensor_type.ptr() && type != parameter_type.ptr()) return 0;
    if (kind == 2) continue;
    PyObject* requires_grad = PyObject_GetAttr(t.ptr(), name);
    if (requires_grad == nullptr) throw py::error_already_set();
    if (requires_grad == Py_True) kind = 2;
    Py_DECREF(requires_grad);
  }
  return kind;
}

namespace {

template <typename T>
void append(std::string* bytes, T value) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof value);
}

// False if the object is no tensor that can be described.
bool append_description(py::handle object, std::string* key, std::uintptr_t* address) {
  static PyObject* const name = PyUnicode_InternFromString("requires_grad");
  const Torch& t = torch();
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type != t.tensor && type != t.parameter) return false;
  DLTensor d;
  if (t.api->dltensor_from_py_object_no_sync(object.ptr(), &d) != 0 || (d.strides == nullptr && d.ndim > 0)) {
    PyErr_Clear();
    return false;
  }
  PyObject* requires_grad = PyObject_GetAttr(object.ptr(), name);
  if (requires_grad == nullptr) throw py::error_already_set();
  Py_DECREF(requires_grad);
  *address = reinterpret_cast<std::uintptr_t>(d.data) + d.byte_offset;
  append(key, d.dtype);
  append(key, d.device);
  append(key, d.ndim);
  append(key, static_cast<std::uint8_t>((requires_grad == Py_True ? 2 : 0) | (*address % 16 == 0 ? 1 : 0)));
  key->append(reinterpret_cast<const char*>(d.shape), sizeof(std::int64_t) * static_cast<std::size_t>(d.ndim));
  key->append(reinterpret_cast<const char*>(d.strides), sizeof(std::int64_t) * static_cast<std::size_t>(d.ndim));
  return true;
}

}  // namespace

py::object tensors_key(const py::tuple& tensors) {
  if (!tensors_ready()) return py::none();
  const std::size_t count = tensors.size();
  std::string key;
  key.reserve(96 * count);
  std::vector<std::uintptr_t> addresses(count);
  bool shared = false;
  for (std::size_t i = 0; i < count; ++i) {
    const py::handle object = PyTuple_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(i));
    if (object.is_none()) {
      key.push_back('\0');
      addresses[i] = ~static_cast<std::uintptr_t>(i);  // an address that nothing has
      continue;
    }
    key.push_back('\1');
    if (!append_description(object, &key, &addresses[i])) return py::none();
    for (std::size_t k = 0; k < i && !shared; ++k) shared = addresses[k] == addresses[i];
  }
  if (shared) {
    for (std::uintptr_t address : addresses) {
      const auto first = std::find(addresses.begin(), addresses.end(), address) - addresses.begin();
      append(&key, static_cast<std::uint32_t>(first));
    }
  }
  py::list pointers(count);
  for (std::size_t i = 0; i < count; ++i) {
    PyList_SET_ITEM(pointers.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromUnsignedLongLong(addresses[i]));
  }
  return py::make_tuple(py::bytes(key), std::move(pointers));
}

py::object make_tensor(const std::int64_t* shape, int ndim, DType dtype, void** data, bool* fresh) {
  std::size_t bytes = dtype_size(dtype);
  for (int i = 0; i < ndim; ++i) bytes *= static_cast<std::size_t>(shape[i]);
  const bool pooled = bytes >= kPooledBytes;
  bool recycled = true;
  void* const elements = pooled ? pool_allocate(bytes, &recycled) : nullptr;
  *fresh = *fresh || !recycled;
  Owned* owned;
  try {
    owned = new (::operator new(sizeof(Owned) + (pooled ? 0 : bytes), std::align_val_t(alignof(Owned)))) Owned;
  } catch (...) {
    if (pooled) pool_release(elements);
    throw;
  }
  owned->pooled = pooled;
  DLTensor& d = owned->managed.dl_tensor;
  d.data = pooled ? elements : static_cast<void*>(owned + 1);
  std::int64_t step = 1;
  for (int i = ndim; i-- > 0;) {
    owned->extents[i] = shape[i];
    owned->extents[kMaxDims + i] = step;
    step *= shape[i];
  }
  d.device = {kDLCPU, 0};
  d.ndim = ndim;
  const std::uint8_t bits = static_cast<std::uint8_t>(8 * dtype_size(dtype));
  d.dtype = {dtype == DType::kBF16 ? kDLBfloat : kDLFloat, bits, 1};
  d.shape = owned->extents;
  d.strides = owned->extents + kMaxDims;
  owned->managed.version = {1, 0};
  owned->managed.manager_ctx = owned;
  owned->managed.deleter = release;
  *data = d.data;
  void* result = nullptr;
  if (torch().api->managed_tensor_to_py_object_no_sync(&owned->managed, &result) != 0) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(result));
}

}  // namespace mmcore
