// multi_task_loss: with addresses, extents and strides for any call, and with the tensors themselves for the usual ones,
// where reading them from Python would cost more than the op on small heads.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#include "mmcore/losses.h"
#include "torch_tensors.h"

namespace py = pybind11;

namespace {

using mmcore::DType;
using mmcore::LossHead;
using mmcore::LossKind;
using mmcore::LossReduction;
using mmcore::LossSpec;
using mmcore::LossTask;
using mmcore::TensorView;

template <typename T>
T item(const py::tuple& t, std::size_t i) {
  return t[i].cast<T>();
}

void* address(const py::tuple& t, std::size_t i) { return reinterpret_cast<void*>(item<std::uintptr_t>(t, i)); }

// (task, rows, columns, (output, dtype, stride), (target, dtype, stride), (mask, inner), (weight, count), gradient,
//  unreduced, upstream)
LossHead read_head(const py::tuple& t) {
  LossHead h;
  h.task = item<LossTask>(t, 0);
  h.rows = item<std::int64_t>(t, 1);
  h.columns = item<std::int64_t>(t, 2);
  const py::tuple output = t[3], target = t[4], mask = t[5], weight = t[6];
  h.output = address(output, 0);
  h.dtype = static_cast<DType>(item<int>(output, 1));
  h.output_stride = static_cast<std::ptrdiff_t>(item<std::int64_t>(output, 2));
  h.target = address(target, 0);
  h.target_dtype = static_cast<DType>(item<int>(target, 1));
  h.target_stride = static_cast<std::ptrdiff_t>(item<std::int64_t>(target, 2));
  h.mask = static_cast<const std::uint8_t*>(address(mask, 0));
  h.mask_inner = item<std::int64_t>(mask, 1);
  h.weight = address(weight, 0);
  h.weight_count = item<std::int64_t>(weight, 1);
  h.gradient = address(t, 7);
  h.unreduced = address(t, 8);
  h.upstream = address(t, 9);
  return h;
}

// What one head of a call with tensors is made of.
struct View {
  TensorView output, target, mask, weight;
  std::int64_t unit_shape[8];
  int unit_dims = 0;
};

bool requires_grad(py::handle tensor) {
  static PyObject* const name = PyUnicode_InternFromString("requires_grad");
  PyObject* value = PyObject_GetAttr(tensor.ptr(), name);
  if (value == nullptr) throw py::error_already_set();
  Py_DECREF(value);
  return value == Py_True;
}

// Describes a head whose arguments fit each other and need no conversion. False for every other, which then takes the
// Python path: it converts, or says what is wrong. Must never accept what mmcore/ops/losses.py refuses.
bool describe_head(py::handle task, py::handle output, py::handle target, py::handle mask, View* v, LossHead* h) {
  static PyObject* const core = PyUnicode_InternFromString("core");
  static PyObject* const weight_name = PyUnicode_InternFromString("weight");
  const auto options = py::reinterpret_steal<py::object>(PyObject_GetAttr(task.ptr(), core));
  if (!options || !py::isinstance<LossTask>(options)) {
    PyErr_Clear();
    return false;
  }
  h->task = options.cast<const LossTask&>();
  const LossTask& t = h->task;
  TensorView& x = v->output;
  if (!mmcore::read_tensor(output, &x) || x.is_bool || x.dtype == DType::kF64 || x.ndim > 8 || !x.contiguous())
    return false;
  h->output = x.data;
  h->dtype = x.dtype;
  std::int64_t elements = 1;
  for (int i = 0; i < x.ndim; ++i) elements *= x.shape[i];
  v->unit_dims = x.ndim;
  for (int i = 0; i < x.ndim; ++i) v->unit_shape[i] = x.shape[i];
  if (t.kind == LossKind::kValue) {
    if (x.ndim != 0 || !target.is_none()) return false;
    h->rows = h->columns = 1;
  } else {
    if (x.ndim == 0) return false;
    const std::int64_t last = x.shape[x.ndim - 1];
    if (t.by_row()) {
      if (last == 0 || (t.kind == LossKind::kCrossEntropy && x.ndim > 2 && t.class_dim != -1)) return false;
      h->columns = last;
      v->unit_dims = x.ndim - 1;
    } else {
      h->columns = x.ndim > 1 ? last : 1;
    }
    h->rows = h->columns == 0 ? 0 : elements / h->columns;
    TensorView& y = v->target;
    if (!mmcore::read_tensor(target, &y, true) || y.is_bool || !y.contiguous()) return false;
    h->target = y.data;
    h->target_dtype = y.dtype;
    int dims = x.ndim;
    if (y.dtype == DType::kI64) {
      if (t.kind != LossKind::kCrossEntropy) return false;
      dims = v->unit_dims;
      h->target_stride = 1;
    } else {
      if ((y.dtype != x.dtype && y.dtype != DType::kF32) || t.focal_gamma != 0) return false;
      if (requires_grad(target)) return false;
      h->target_stride = h->columns;
    }
    if (y.ndim != dims) return false;
    for (int i = 0; i < dims; ++i) {
      if (y.shape[i] != x.shape[i]) return false;
    }
  }
  h->output_stride = h->columns;
  const auto weight = py::reinterpret_steal<py::object>(PyObject_GetAttr(task.ptr(), weight_name));
  if (!weight) throw py::error_already_set();
  if (!weight.is_none()) {
    TensorView& w = v->weight;
    if (!mmcore::read_tensor(weight, &w) || w.dtype != DType::kF32 || w.ndim != 1 || !w.contiguous()) return false;
    if (x.ndim == 1 && !t.by_row()) return false;
    const bool one = t.kind == LossKind::kBce && w.shape[0] == 1;
    if (w.shape[0] != h->columns && !one) return false;
    h->weight = w.data;
    h->weight_count = w.shape[0];
  }
  if (!mask.is_none()) {
    TensorView& m = v->mask;
    if (!mmcore::read_tensor(mask, &m) || !m.is_bool || !m.contiguous() || m.ndim > v->unit_dims) return false;
    std::int64_t entries = 1;
    for (int i = 0; i < m.ndim; ++i) {
      if (m.shape[i] != v->unit_shape[i]) return false;
      entries *= m.shape[i];
    }
    const std::int64_t units = h->units();
    if (entries == 0 || units == 0) return false;
    h->mask = static_cast<const std::uint8_t*>(m.data);
    h->mask_inner = units / entries;
  }
  return true;
}

bool describe_vector(py::handle tensor, int count, TensorView* view) {
  return mmcore::read_tensor(tensor, view) && view->dtype == DType::kF32 && view->has_shape({count}) &&
         view->contiguous();
}

// tensors: (weights, log_vars, *outputs). needs: of each a gradient? None: no gradients at all.
// Gives ((total, losses, *unreduced), (gradients...) or None), or None.
py::object with_tensors(const py::tuple& tasks, const py::tuple& tensors, const py::tuple& targets,
                        const py::object& masks, const py::object& needs, bool inplace, const py::function& budget) {
  const char* forced = std::getenv("MMCORE_BACKEND");
  if (forced != nullptr && *forced != '\0') return py::none();
  const std::size_t count = tasks.size();
  if (count < 1 || count > mmcore::kMaxTasks || tensors.size() != count + 2 || targets.size() != count)
    return py::none();
  const bool masked = !masks.is_none();
  if (masked && PyTuple_GET_SIZE(masks.ptr()) != static_cast<Py_ssize_t>(count)) return py::none();
  LossSpec spec;
  spec.count = static_cast<int>(count);
  View view[mmcore::kMaxTasks];
  std::int64_t elements = 0;
  std::size_t unreduced_count = 0;
  for (std::size_t i = 0; i < count; ++i) {
    LossHead& h = spec.head[i];
    const py::handle mask = masked ? py::handle(PyTuple_GET_ITEM(masks.ptr(), static_cast<Py_ssize_t>(i))) : py::none();
    if (!describe_head(tasks[i], tensors[i + 2], targets[i], mask, &view[i], &h)) return py::none();
    elements += h.rows * h.columns;
    unreduced_count += h.task.reduction == LossReduction::kNone;
  }
  TensorView vectors[2];
  for (std::size_t i = 0; i < 2; ++i) {
    if (tensors[i].is_none()) continue;
    if (!describe_vector(tensors[i], spec.count, &vectors[i])) return py::none();
    (i == 0 ? spec.weights : spec.log_vars) = vectors[i].data;
  }
  const std::int64_t vector_shape[1] = {static_cast<std::int64_t>(count)};
  py::tuple results(2 + unreduced_count);
  bool fresh = false;
  results[0] = mmcore::make_tensor(nullptr, 0, DType::kF32, &spec.total, &fresh);
  results[1] = mmcore::make_tensor(vector_shape, 1, DType::kF32, &spec.losses, &fresh);
  std::size_t next = 2;
  for (std::size_t i = 0; i < count && unreduced_count != 0; ++i) {
    if (spec.head[i].task.reduction != LossReduction::kNone) continue;
    results[next++] =
        mmcore::make_tensor(view[i].unit_shape, view[i].unit_dims, DType::kF32, &spec.head[i].unreduced, &fresh);
  }
  py::object gradients = py::none();
  if (!needs.is_none()) {
    py::tuple made(count + 2);
    auto wanted = [&](std::size_t i) {
      return PyTuple_GET_ITEM(needs.ptr(), static_cast<Py_ssize_t>(i)) == Py_True && !tensors[i].is_none();
    };
    for (std::size_t i = 0; i < 2; ++i) {
      if (!wanted(i)) {
        made[i] = py::none();
        continue;
      }
      made[i] = mmcore::make_tensor(vector_shape, 1, DType::kF32, i == 0 ? &spec.d_weights : &spec.d_log_vars, &fresh);
    }
    for (std::size_t i = 0; i < count; ++i) {
      LossHead& h = spec.head[i];
      if (!wanted(i + 2) || h.task.reduction == LossReduction::kNone) {
        made[i + 2] = py::none();
      } else if (inplace) {
        h.gradient = view[i].output.data;
        static PyObject* const detach = PyUnicode_InternFromString("detach");
        PyObject* alias = PyObject_CallMethodNoArgs(tensors[i + 2].ptr(), detach);
        if (alias == nullptr) throw py::error_already_set();
        made[i + 2] = py::reinterpret_steal<py::object>(alias);
      } else {
        made[i + 2] =
            mmcore::make_tensor(view[i].output.shape, view[i].output.ndim, h.dtype, &h.gradient, &spec.fresh_results);
      }
    }
    gradients = std::move(made);
  }
  const int threads = elements < 1 << 16 ? 1 : budget().cast<int>();
  mmcore::LossRange wrong;
  bool in_range = false;
  {
    py::gil_scoped_release release;
    in_range = mmcore::multi_task_loss(spec, threads, &wrong);
  }
  if (!in_range) return py::none();
  return py::make_tuple(std::move(results), std::move(gradients));
}

}  // namespace

void register_losses(py::module_& m) {
  py::class_<LossTask>(m, "LossTask", "The numbers of one task; see csrc/include/mmcore/losses.h.")
      .def(py::init([](int kind, int reduction, double label_smoothing, std::int64_t ignore_index, double z_loss,
                       double focal_gamma, int class_dim, double beta, double temperature, double uncertainty_scale) {
             return LossTask{static_cast<LossKind>(kind),
                             static_cast<LossReduction>(reduction),
                             label_smoothing,
                             ignore_index,
                             z_loss,
                             focal_gamma,
                             class_dim,
                             beta,
                             temperature,
                             uncertainty_scale};
           }),
           py::kw_only(), py::arg("kind"), py::arg("reduction"), py::arg("label_smoothing"), py::arg("ignore_index"),
           py::arg("z_loss"), py::arg("focal_gamma"), py::arg("class_dim"), py::arg("beta"), py::arg("temperature"),
           py::arg("uncertainty_scale"));
  m.def(
      "multi_task_loss",
      [](const py::tuple& heads, const py::tuple& vectors, double grad_total, int compute, const py::tuple& results,
         int threads) {
        LossSpec spec;
        spec.count = static_cast<int>(heads.size());
        if (spec.count < 1 || spec.count > mmcore::kMaxTasks) throw std::invalid_argument("multi_task_loss: bad count");
        for (int i = 0; i < spec.count; ++i) spec.head[i] = read_head(heads[static_cast<std::size_t>(i)]);
        spec.weights = address(vectors, 0);
        spec.log_vars = address(vectors, 1);
        spec.grad_losses = address(vectors, 2);
        spec.grad_total = grad_total;
        spec.compute = static_cast<DType>(compute);
        spec.total = address(results, 0);
        spec.losses = address(results, 1);
        spec.d_weights = address(results, 2);
        spec.d_log_vars = address(results, 3);
        mmcore::LossRange wrong;
        bool in_range = false;
        {
          py::gil_scoped_release release;
          in_range = mmcore::multi_task_loss(spec, threads, &wrong);
        }
        if (!in_range) throw py::index_error("multi_task_loss: class out of range");
      },
      py::arg("heads"), py::arg("vectors"), py::arg("grad_total"), py::arg("compute"), py::arg("results"),
      py::arg("threads"),
      "Losses of several heads, their weighted sum and gradients; see csrc/include/mmcore/losses.h.");
  m.def("losses_with_tensors", &with_tensors, py::arg("tasks"), py::arg("tensors"), py::arg("targets"),
        py::arg("masks"), py::arg("needs"), py::arg("inplace"), py::arg("budget"), py::pos_only(),
        "((total, losses, *unreduced), gradients or None) of (weights, log_vars, *outputs), or None if the call needs"
        " conversions or does not fit. budget() is the number of threads.");
  m.def(
      "is_one",
      [](const py::object& tensor) {
        TensorView v;
        if (!mmcore::read_tensor(tensor, &v) || v.ndim != 0) return false;
        if (v.dtype == DType::kF32) return *static_cast<const float*>(v.data) == 1.0f;
        return v.dtype == DType::kF64 && *static_cast<const double*>(v.data) == 1.0;
      },
      py::arg("tensor"), py::pos_only(), "Whether a CPU tensor of shape () is known to be 1.");
}
