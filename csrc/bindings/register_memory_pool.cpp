// The recycling pool, handed to torch through DLPack: the tensor's deleter returns the block to the pool.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "dlpack.h"
#include "mmcore/memory_pool.h"

namespace py = pybind11;

namespace {

struct PooledTensor {
  mmcore::DLManagedTensor managed{};
  std::vector<std::int64_t> shape;
};

void release(mmcore::DLManagedTensor* t) {
  mmcore::pool_release(t->dl_tensor.data);
  delete static_cast<PooledTensor*>(t->manager_ctx);
}

py::capsule pool_empty(const std::vector<std::int64_t>& shape, int code, int bits) {
  std::uint64_t bytes = static_cast<std::uint64_t>(bits) / 8;
  for (std::int64_t extent : shape) {
    if (extent < 0) throw std::invalid_argument("pool_empty: negative extent");
    if (extent != 0 && bytes > (std::uint64_t{1} << 47) / static_cast<std::uint64_t>(extent)) throw std::bad_alloc();
    bytes *= static_cast<std::uint64_t>(extent);
  }
  auto t = std::make_unique<PooledTensor>();
  t->shape = shape;
  t->managed.dl_tensor = {nullptr,
                          {mmcore::kDLCPU, 0},
                          static_cast<std::int32_t>(shape.size()),
                          {static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1},
                          t->shape.data(),
                          nullptr,  // contiguous
                          0};
  t->managed.manager_ctx = t.get();
  t->managed.deleter = release;
  t->managed.dl_tensor.data = mmcore::pool_allocate(static_cast<std::size_t>(bytes));
  // A consumer renames the capsule and calls the deleter later; one that nobody consumed frees here.
  return py::capsule(&t.release()->managed, "dltensor", [](PyObject* capsule) {
    if (PyCapsule_IsValid(capsule, "dltensor")) {
      release(static_cast<mmcore::DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor")));
    }
  });
}

}  // namespace

void register_memory_pool(py::module_& m) {
  m.def("pool_empty", &pool_empty, py::arg("shape"), py::arg("code"), py::arg("bits"),
        "DLPack capsule of an uninitialised contiguous CPU tensor from the recycling pool.");
  m.def("pool_set_limit", &mmcore::pool_set_limit, py::arg("bytes"));
  m.def("pool_limit", &mmcore::pool_limit);
  m.def("pool_kept", &mmcore::pool_kept);
  m.def("pool_clear", &mmcore::pool_clear);
}
