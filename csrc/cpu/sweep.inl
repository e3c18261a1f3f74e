// Loops over rows in whole vectors and a rest, over a set of lanes L; included inside a namespace for each instruction
// set. The bodies take how memory is accessed as an argument, so that they are written once.

namespace sweeps {

template <typename L>
using RealOf = typename L::Real;

// Memory access of a whole vector, and of the `n` elements after the last whole one.
template <typename L>
struct Whole {
  using F = typename L::F;
  template <typename T>
  MMCORE_INLINE F load(const T* p, F) const {
    return L::load(p);
  }
  template <typename T>
  MMCORE_INLINE void store(T* p, F a) const {
    L::store(p, a);
  }
  template <typename T>
  MMCORE_INLINE void stream(T* p, F a) const {
    L::stream(p, a);
  }
};

template <typename L>
struct Part {
  using F = typename L::F;
  int n;
  template <typename T>
  MMCORE_INLINE F load(const T* p, F fill) const {
    return L::load_part(p, n, fill);
  }
  template <typename T>
  MMCORE_INLINE void store(T* p, F a) const {
    L::store_part(p, a, n);
  }
  template <typename T>
  MMCORE_INLINE void stream(T* p, F a) const {
    L::store_part(p, a, n);
  }
};

// body(i, access, 0 or 1): the last says which of two sets of accumulators to use, to break the chain of additions.
template <typename L, typename Body>
static MMCORE_INLINE void sweep(std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + 2 * L::N <= n; i += 2 * L::N) {
    body(i, Whole<L>{}, 0);
    body(i + L::N, Whole<L>{}, 1);
  }
  if (i + L::N <= n) {
    body(i, Whole<L>{}, 0);
    i += L::N;
  }
  if (i < n) body(i, Part<L>{static_cast<int>(n - i)}, 1);
}

// body(i, access, put) where put(p, a) stores, past the caches if `stream`, which wants whole vectors aligned.
template <typename L, typename Body>
static MMCORE_INLINE void sweep_out(bool stream, std::int64_t n, Body body) {
  if (stream) {
    sweep<L>(n, [&](std::int64_t i, auto io, int j) MMCORE_INLINE_LAMBDA {
      body(i, io, j, [&](auto* p, typename L::F a) MMCORE_INLINE_LAMBDA { io.stream(p, a); });
    });
  } else {
    sweep<L>(n, [&](std::int64_t i, auto io, int j) MMCORE_INLINE_LAMBDA {
      body(i, io, j, [&](auto* p, typename L::F a) MMCORE_INLINE_LAMBDA { io.store(p, a); });
    });
  }
}

static inline bool can_stream(const void* row, bool wanted) {
  return wanted && reinterpret_cast<std::uintptr_t>(row) % 64 == 0;
}

// fn(static_cast<T*>(nullptr)) with the element type that `dtype` names.
template <typename L, typename Fn>
static inline auto visit(DType dtype, Fn fn) {
  if constexpr (sizeof(RealOf<L>) == 8) {
    static_cast<void>(dtype);
    return fn(static_cast<double*>(nullptr));
  } else {
    switch (dtype) {
      case DType::kF16:
        return fn(static_cast<f16*>(nullptr));
      case DType::kBF16:
        return fn(static_cast<bf16*>(nullptr));
      default:
        return fn(static_cast<float*>(nullptr));
    }
  }
}

}  // namespace sweeps
