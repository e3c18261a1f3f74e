// weighted_fusion and its backward: with addresses, extents and strides for any call, and with the tensors themselves for
// the usual ones, where reading them from Python would cost more than the op on small features.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "mmcore/fusion.h"
#include "torch_tensors.h"

namespace py = pybind11;

namespace {

using mmcore::FusionSpec;

template <typename T>
T item(const py::tuple& t, std::size_t i) {
  return t[i].cast<T>();
}

const void* address(std::uintptr_t value) { return reinterpret_cast<const void*>(value); }

// features: one (pointer, dtype, length, batch stride, step stride, align) each.
// gates: (pointer, dtype, kind, batch stride, step stride, modality stride). mask: (pointer, strides), or pointer 0.
FusionSpec read_spec(const py::tuple& extents, const py::tuple& features, const py::tuple& gates, const py::tuple& mask,
                     const py::tuple& norm, int mode, int compute, int out_dtype) {
  FusionSpec s;
  s.count = static_cast<int>(features.size());
  if (s.count < 1 || s.count > mmcore::kMaxModalities) throw std::invalid_argument("weighted_fusion: bad count");
  s.batch = item<std::int64_t>(extents, 0);
  s.length = item<std::int64_t>(extents, 1);
  s.depth = item<std::int64_t>(extents, 2);
  for (int m = 0; m < s.count; ++m) {
    const py::tuple f = features[static_cast<std::size_t>(m)];
    s.feature[m].x = address(item<std::uintptr_t>(f, 0));
    s.feature[m].dtype = static_cast<mmcore::DType>(item<int>(f, 1));
    s.feature[m].length = item<std::int64_t>(f, 2);
    s.feature[m].batch_stride = static_cast<std::ptrdiff_t>(item<std::int64_t>(f, 3));
    s.feature[m].step_stride = static_cast<std::ptrdiff_t>(item<std::int64_t>(f, 4));
    s.feature[m].align = static_cast<mmcore::FusionAlign>(item<int>(f, 5));
  }
  s.gates = address(item<std::uintptr_t>(gates, 0));
  s.gates_dtype = static_cast<mmcore::DType>(item<int>(gates, 1));
  s.gate_kind = static_cast<mmcore::GateKind>(item<int>(gates, 2));
  s.mask = static_cast<const std::uint8_t*>(address(item<std::uintptr_t>(mask, 0)));
  for (std::size_t i = 0; i < 3; ++i) {
    s.gate_stride[i] = static_cast<std::ptrdiff_t>(item<std::int64_t>(gates, 3 + i));
    s.mask_stride[i] = static_cast<std::ptrdiff_t>(item<std::int64_t>(mask, 1 + i));
  }
  s.norm = static_cast<mmcore::FusionNorm>(item<int>(norm, 0));
  s.eps = item<double>(norm, 1);
  s.gamma = address(item<std::uintptr_t>(norm, 2));
  s.beta = address(item<std::uintptr_t>(norm, 3));
  s.mode = static_cast<mmcore::FusionMode>(mode);
  s.compute = static_cast<mmcore::DType>(compute);
  s.out_dtype = static_cast<mmcore::DType>(out_dtype);
  return s;
}

using mmcore::DType;
using mmcore::TensorView;

// Index of a string among `names`, -1 if it is none of them.
int find_name(py::handle value, std::initializer_list<const char*> names) {
  if (!PyUnicode_Check(value.ptr())) return -1;
  int i = 0;
  for (const char* name : names) {
    if (PyUnicode_CompareWithASCIIString(value.ptr(), name) == 0) return i;
    ++i;
  }
  return -1;
}

int find_align(py::handle value) {
  if (value.is_none()) return 0;
  const int i = find_name(value, {"nearest", "linear", "mean"});
  return i < 0 ? -1 : i + 1;
}

// The tensors of a call: weights or None, norm_weight, norm_bias, probe, mask, then the features.
constexpr std::size_t kFeatures = 5;
constexpr std::int64_t kSmall = 1 << 16;  // elements below which one thread is enough, whatever the budget

struct Arguments {
  py::tuple tensors;
  py::object mode, norm, align, eps, length;
};

struct Call {
  FusionSpec spec;
  bool flat = false;
  TensorView view[kFeatures + mmcore::kMaxModalities];
  bool small = true;
};

const float kOnes[mmcore::kMaxModalities] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// Describes a call whose arguments fit each other and need no conversion. False for every other, which then takes the
// Python path: it converts, or says what is wrong. Must never accept what mmcore/ops/fusion.py refuses.
bool describe(const Arguments& a, Call* call) {
  FusionSpec& s = call->spec;
  const std::size_t size = a.tensors.size();
  if (size <= kFeatures || size > kFeatures + mmcore::kMaxModalities) return false;
  s.count = static_cast<int>(size - kFeatures);
  bool given[kFeatures];
  for (std::size_t i = 0; i < size; ++i) {
    const py::handle t = a.tensors[i];
    if (i < kFeatures) {
      given[i] = !t.is_none();
      if (!given[i]) continue;
    }
    if (!mmcore::read_tensor(t, &call->view[i])) return false;
    if (i != 4 && call->view[i].is_bool) return false;
  }
  const int mode = find_name(a.mode, {"sum", "softmax", "normalized"});
  const int norm = a.norm.is_none() ? 0 : find_name(a.norm, {"layer_norm", "rms_norm", "l2"}) + 1;
  if (mode < 0 || (norm == 0 && !a.norm.is_none())) return false;
  s.mode = static_cast<mmcore::FusionMode>(mode);
  s.norm = static_cast<mmcore::FusionNorm>(norm);
  if (!PyFloat_Check(a.eps.ptr())) return false;
  s.eps = PyFloat_AS_DOUBLE(a.eps.ptr());
  if (!(s.eps >= 0) || std::isinf(s.eps)) return false;

  const TensorView* x = call->view + kFeatures;
  call->flat = x[0].ndim == 2;
  if (!call->flat && x[0].ndim != 3) return false;
  const bool flat = call->flat;
  s.batch = x[0].shape[0];
  s.depth = x[0].shape[x[0].ndim - 1];
  const TensorView &weights = call->view[0], &mask = call->view[4];
  if (flat) {
    if (!a.length.is_none()) return false;
    s.length = 1;
  } else if (!a.length.is_none()) {
    if (!PyLong_CheckExact(a.length.ptr())) return false;
    s.length = PyLong_AsLongLong(a.length.ptr());
    if (s.length < 0) {
      PyErr_Clear();
      return false;
    }
  } else if (given[0] && weights.ndim >= 3) {
    s.length = weights.shape[1];
  } else if (given[4] && mask.ndim == 3) {
    s.length = mask.shape[1];
  } else {
    s.length = x[0].shape[1];
  }

  const bool one_align = a.align.is_none() || PyUnicode_Check(a.align.ptr());
  if (!one_align && !PyTuple_CheckExact(a.align.ptr()) && !PyList_CheckExact(a.align.ptr())) return false;
  if (!one_align && PySequence_Fast_GET_SIZE(a.align.ptr()) != s.count) return false;
  s.out_dtype = x[0].dtype;
  std::int64_t steps = s.length;
  for (int m = 0; m < s.count; ++m) {
    const TensorView& v = x[m];
    mmcore::FusionFeature& f = s.feature[m];
    if (v.dtype == DType::kF64 || v.ndim != x[0].ndim || v.shape[0] != s.batch || v.shape[v.ndim - 1] != s.depth ||
        (v.strides[v.ndim - 1] != 1 && s.depth > 1)) {
      return false;
    }
    const int align = find_align(one_align ? py::handle(a.align) : PySequence_Fast_GET_ITEM(a.align.ptr(), m));
    if (align < 0) return false;
    f.x = v.data;
    f.dtype = v.dtype;
    f.length = flat ? 1 : v.shape[1];
    f.batch_stride = static_cast<std::ptrdiff_t>(v.strides[0]);
    f.step_stride = flat ? 0 : static_cast<std::ptrdiff_t>(v.strides[1]);
    f.align = static_cast<mmcore::FusionAlign>(align);
    if (align == 0 ? f.length != s.length : f.length == 0) return false;
    if (v.dtype != s.out_dtype) s.out_dtype = DType::kF32;  // the widest of two different ones
    steps += f.length;
  }
  call->small = s.batch * steps * s.depth < kSmall;

  if (!given[0]) {
    s.gates = kOnes;
  } else {
    const int kind = flat && weights.ndim == 3 ? 3 : weights.ndim - 1;
    const bool fits = kind == 0   ? weights.has_shape({s.count})
                      : kind == 1 ? weights.has_shape({s.batch, s.count})
                      : kind == 2 ? weights.has_shape({s.batch, s.length, s.count})
                      : flat      ? weights.has_shape({s.batch, s.count, s.depth})
                                  : weights.has_shape({s.batch, s.length, s.count, s.depth});
    if (!fits || weights.dtype == DType::kF64) return false;
    if (kind < 3 ? weights.dtype != DType::kF32 || !weights.contiguous()
                 : weights.strides[weights.ndim - 1] != 1 && s.depth > 1) {
      return false;
    }
    s.gates = weights.data;
    s.gates_dtype = weights.dtype;
    s.gate_kind = static_cast<mmcore::GateKind>(kind);
    if (kind == 3) {
      s.gate_stride[0] = static_cast<std::ptrdiff_t>(weights.strides[0]);
      s.gate_stride[1] = flat ? 0 : static_cast<std::ptrdiff_t>(weights.strides[1]);
      s.gate_stride[2] = static_cast<std::ptrdiff_t>(weights.strides[weights.ndim - 2]);
    }
  }
  if (given[4]) {
    if (!mask.is_bool) return false;
    const bool per_step = mask.ndim == 3;
    if (per_step ? flat || !mask.has_shape({s.batch, s.length, s.count}) : !mask.has_shape({s.batch, s.count})) {
      return false;
    }
    s.mask = static_cast<const std::uint8_t*>(mask.data);
    s.mask_stride[0] = static_cast<std::ptrdiff_t>(mask.strides[0]);
    s.mask_stride[1] = per_step ? static_cast<std::ptrdiff_t>(mask.strides[1]) : 0;
    s.mask_stride[2] = static_cast<std::ptrdiff_t>(mask.strides[mask.ndim - 1]);
  }
  if (given[1] != given[2]) return false;
  for (std::size_t i = 1; i < 3 && given[1]; ++i) {
    const TensorView& v = call->view[i];
    if (v.dtype != DType::kF32 || !v.has_shape({s.count, s.depth}) || !v.contiguous()) return false;
    (i == 1 ? s.gamma : s.beta) = v.data;
  }
  if (given[3] && (call->view[3].dtype != DType::kF32 || !call->view[3].has_shape({s.batch, s.count}))) return false;
  const char* forced = std::getenv("MMCORE_BACKEND");
  return forced == nullptr || *forced == '\0';
}

int threads_for(const Call& call, const py::function& budget) { return call.small ? 1 : budget().cast<int>(); }

py::object forward(const Arguments& a, const py::function& budget) {
  Call call;
  if (!describe(a, &call)) return py::none();
  FusionSpec& s = call.spec;
  const std::int64_t shape[3] = {s.batch, s.length, s.depth}, flat_shape[2] = {s.batch, s.depth};
  void* data = nullptr;
  const int threads = threads_for(call, budget);
  py::object out =
      mmcore::make_tensor(call.flat ? flat_shape : shape, call.flat ? 2 : 3, s.out_dtype, &data, &s.fresh_results);
  {
    py::gil_scoped_release release;
    mmcore::weighted_fusion(s, data, threads);
  }
  return out;
}

py::object backward(const py::object& grad, const py::tuple& needs, const Arguments& a, const py::function& budget) {
  Call call;
  TensorView g;
  if (!describe(a, &call) || !mmcore::read_tensor(grad, &g)) return py::none();
  const FusionSpec& s = call.spec;
  const bool fits = call.flat ? g.has_shape({s.batch, s.depth}) : g.has_shape({s.batch, s.length, s.depth});
  if (!fits || g.dtype != s.out_dtype || (g.strides[g.ndim - 1] != 1 && s.depth > 1)) return py::none();
  if (needs.size() != a.tensors.size()) throw std::invalid_argument("fusion_backward: bad count");
  const int threads = threads_for(call, budget);
  py::tuple result(a.tensors.size());
  mmcore::FusionGradients out;
  auto make = [&](std::size_t i, DType dtype) {
    const TensorView& v = call.view[i];
    void* data = nullptr;
    result[i] = mmcore::make_tensor(v.shape, v.ndim, dtype, &data, &call.spec.fresh_results);
    return data;
  };
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = py::none();
  auto wanted = [&](std::size_t i) { return needs[i].ptr() == Py_True && !a.tensors[i].is_none(); };
  if (wanted(0)) out.gates = make(0, call.view[0].dtype);
  if (wanted(1) || wanted(2)) {  // the core makes both or neither
    out.gamma = make(1, DType::kF32);
    out.beta = make(2, DType::kF32);
  }
  if (wanted(3)) out.part = make(3, DType::kF32);
  for (int m = 0; m < s.count; ++m) {
    const std::size_t i = kFeatures + static_cast<std::size_t>(m);
    if (wanted(i)) out.feature[m] = make(i, s.feature[m].dtype);
  }
  {
    py::gil_scoped_release release;
    mmcore::weighted_fusion_backward(s, g.data, static_cast<std::ptrdiff_t>(g.strides[0]),
                                     call.flat ? 0 : static_cast<std::ptrdiff_t>(g.strides[1]), out, threads);
  }
  for (std::size_t i = 1; i < 3; ++i) {
    if (!wanted(i)) result[i] = py::none();
  }
  return std::move(result);
}

}  // namespace

void register_fusion(py::module_& m) {
  m.def(
      "weighted_fusion",
      [](const py::tuple& extents, const py::tuple& features, const py::tuple& gates, const py::tuple& mask,
         const py::tuple& norm, int mode, int compute, int out_dtype, std::uintptr_t out, int threads) {
        const FusionSpec spec = read_spec(extents, features, gates, mask, norm, mode, compute, out_dtype);
        py::gil_scoped_release release;
        mmcore::weighted_fusion(spec, reinterpret_cast<void*>(out), threads);
      },
      py::arg("extents"), py::arg("features"), py::arg("gates"), py::arg("mask"), py::arg("norm"), py::arg("mode"),
      py::arg("compute"), py::arg("out_dtype"), py::arg("out"), py::arg("threads"),
      "F = sum of w_m A_m norm(x_m); see csrc/include/mmcore/fusion.h.");
  m.def(
      "weighted_fusion_backward",
      [](const py::tuple& extents, const py::tuple& features, const py::tuple& gates, const py::tuple& mask,
         const py::tuple& norm, int mode, int compute, int out_dtype, const py::tuple& grad,
         const py::tuple& feature_gradients, const py::tuple& other_gradients, int threads) {
        const FusionSpec spec = read_spec(extents, features, gates, mask, norm, mode, compute, out_dtype);
        if (static_cast<int>(feature_gradients.size()) != spec.count) {
          throw std::invalid_argument("weighted_fusion_backward: bad count");
        }
        mmcore::FusionGradients g;
        auto pointer = [](const py::tuple& t, std::size_t i) {
          return reinterpret_cast<void*>(item<std::uintptr_t>(t, i));
        };
        for (int k = 0; k < spec.count; ++k) g.feature[k] = pointer(feature_gradients, static_cast<std::size_t>(k));
        g.gates = pointer(other_gradients, 0);
        g.gamma = pointer(other_gradients, 1);
        g.beta = pointer(other_gradients, 2);
        g.part = pointer(other_gradients, 3);
        const void* from = address(item<std::uintptr_t>(grad, 0));
        const auto batch_stride = static_cast<std::ptrdiff_t>(item<std::int64_t>(grad, 1));
        const auto step_stride = static_cast<std::ptrdiff_t>(item<std::int64_t>(grad, 2));
        py::gil_scoped_release release;
        mmcore::weighted_fusion_backward(spec, from, batch_stride, step_stride, g, threads);
      },
      py::arg("extents"), py::arg("features"), py::arg("gates"), py::arg("mask"), py::arg("norm"), py::arg("mode"),
      py::arg("compute"), py::arg("out_dtype"), py::arg("grad"), py::arg("feature_gradients"),
      py::arg("other_gradients"), py::arg("threads"),
      "Gradients of weighted_fusion; see csrc/include/mmcore/fusion.h.");
  m.def(
      "fusion_forward",
      [](const py::tuple& tensors, const py::object& mode, const py::object& norm, const py::object& align,
         const py::object& eps, const py::object& length,
         const py::function& budget) { return forward({tensors, mode, norm, align, eps, length}, budget); },
      py::arg("tensors"), py::arg("mode"), py::arg("norm"), py::arg("align"), py::arg("eps"), py::arg("length"),
      py::arg("budget"), py::pos_only(),
      "weighted_fusion of (weights, norm_weight, norm_bias, probe, mask, *features), or None if the call needs"
      " conversions or does not fit. budget() is the number of threads.");
  m.def(
      "fusion_backward",
      [](const py::object& grad, const py::tuple& needs, const py::tuple& tensors, const py::object& mode,
         const py::object& norm, const py::object& align, const py::object& eps, const py::object& length,
         const py::function& budget) {
        return backward(grad, needs, {tensors, mode, norm, align, eps, length}, budget);
      },
      py::arg("grad"), py::arg("needs"), py::arg("tensors"), py::arg("mode"), py::arg("norm"), py::arg("align"),
      py::arg("eps"), py::arg("length"), py::arg("budget"), py::pos_only(),
      "A gradient or None for each of the tensors, or None for all as fusion_forward.");
}
