// The kernels of tensor_to_planes, written once over V, the lanes of an instruction set with these additions:
//   load(const std::uint8_t*)                N bytes as numbers
//   level(a)                                 clamped to [0, 255], NaN to 0
//   store_u8(p, a), store_u16(p, a, shift)   rounded half to even; a lies in the range of the samples
//   split(p, even, odd)                      p[0], p[2], ... and p[1], p[3], ... of 2 N floats
// The last samples of a row pass through padded copies, so that no lane is a special case and memory is never touched
// outside the rows.

namespace planes {

using F = typename V::F;

template <typename T>
struct OutOf;
template <>
struct OutOf<std::uint8_t> {
  static MMCORE_INLINE void put(std::uint8_t* p, F a, int) { V::store_u8(p, a); }
};
template <>
struct OutOf<std::uint16_t> {
  static MMCORE_INLINE void put(std::uint16_t* p, F a, int shift) { V::store_u16(p, a, shift); }
};

struct Sample {
  F scale, offset, top;
  int shift;
  explicit Sample(const SampleScale& s)
      : scale(V::set(s.scale)), offset(V::set(s.offset)), top(V::set(s.top)), shift(s.shift) {}
  MMCORE_INLINE F operator()(F level) const {
    return V::min(V::max(V::add(V::mul(level, scale), offset), V::set(0)), top);
  }
};

// The levels of N pixels; what is not finite leaves a NaN in `wrong`.
template <typename T>
struct Levels {
  F mul[3], add[3], wrong;
  explicit Levels(const LevelAffine& a) : wrong(V::set(0)) {
    for (int c = 0; c < 3; ++c) {
      mul[c] = V::set(a.mul[c]);
      add[c] = V::set(a.add[c]);
    }
  }
  MMCORE_INLINE void operator()(const T* const* src, int x, F* level) {
    for (int c = 0; c < 3; ++c) {
      const F value = V::load(src[c] + x);
      if constexpr (sizeof(T) > 1) wrong = V::add(wrong, V::mul(value, V::set(0)));
      level[c] = V::level(V::add(V::mul(value, mul[c]), add[c]));
    }
  }
  bool finite() const { return V::sum(wrong) == 0; }
};

// The last n < N pixels of three rows, padded with zeros.
template <typename T>
struct Tail {
  T row[3][V::N];
  const T* rows[3];
  Tail(const T* const* src, int x, int n) {
    std::memset(static_cast<void*>(row), 0, sizeof row);
    for (int c = 0; c < 3; ++c) {
      std::memcpy(static_cast<void*>(row[c]), src[c] + x, sizeof(T) * static_cast<std::size_t>(n));
      rows[c] = row[c];
    }
  }
};

template <typename T, typename Out, bool kAdd>
static bool luma_row(const T* const* src, const LevelAffine& a, const SampleScale& s, float weight, int n, Out* y,
                     float* db, float* dr) {
  Levels<T> levels(a);
  const Sample sample(s);
  const F kr = V::set(a.luma[0]), kg = V::set(a.luma[1]), kb = V::set(a.luma[2]), w = V::set(weight);
  auto block = [&](const T* const* from, int at, int x, Out* out) MMCORE_INLINE_LAMBDA {
    F rgb[3];
    levels(from, at, rgb);
    const F light = V::add(V::add(V::mul(rgb[0], kr), V::mul(rgb[1], kg)), V::mul(rgb[2], kb));
    if (out != nullptr) OutOf<Out>::put(out, sample(light), sample.shift);
    F blue = V::mul(V::sub(rgb[2], light), w), red = V::mul(V::sub(rgb[0], light), w);
    if (kAdd) {
      blue = V::add(V::load(db + x), blue);
      red = V::add(V::load(dr + x), red);
    }
    V::store(db + x, blue);
    V::store(dr + x, red);
  };
  int x = 0;
  for (; x + V::N <= n; x += V::N) block(src, x, x, y == nullptr ? nullptr : y + x);
  if (x < n) {
    const Tail<T> tail(src, x, n - x);
    Out out[V::N];
    block(tail.rows, 0, x, out);
    if (y != nullptr) std::memcpy(y + x, out, sizeof(Out) * static_cast<std::size_t>(n - x));
  }
  return levels.finite();
}

template <typename T>
static bool luma(const void* const* src, const LevelAffine& a, const SampleScale& s, bool wide, float weight, bool add,
                 int n, void* y, float* db, float* dr) {
  const T* rows[3] = {static_cast<const T*>(src[0]), static_cast<const T*>(src[1]), static_cast<const T*>(src[2])};
  if (wide) {
    auto* out = static_cast<std::uint16_t*>(y);
    return add ? luma_row<T, std::uint16_t, true>(rows, a, s, weight, n, out, db, dr)
               : luma_row<T, std::uint16_t, false>(rows, a, s, weight, n, out, db, dr);
  }
  auto* out = static_cast<std::uint8_t*>(y);
  return add ? luma_row<T, std::uint8_t, true>(rows, a, s, weight, n, out, db, dr)
             : luma_row<T, std::uint8_t, false>(rows, a, s, weight, n, out, db, dr);
}

template <typename T, typename Out>
static bool rgb_row(const T* const* src, const LevelAffine& a, const SampleScale& s, int n, Out* const* dst) {
  Levels<T> levels(a);
  const Sample sample(s);
  F rgb[3];
  int x = 0;
  for (; x + V::N <= n; x += V::N) {
    levels(src, x, rgb);
    for (int c = 0; c < 3; ++c) OutOf<Out>::put(dst[c] + x, sample(rgb[c]), sample.shift);
  }
  if (x < n) {
    const Tail<T> tail(src, x, n - x);
    levels(tail.rows, 0, rgb);
    for (int c = 0; c < 3; ++c) {
      Out out[V::N];
      OutOf<Out>::put(out, sample(rgb[c]), sample.shift);
      std::memcpy(dst[c] + x, out, sizeof(Out) * static_cast<std::size_t>(n - x));
    }
  }
  return levels.finite();
}

template <typename T>
static bool rgb(const void* const* src, const LevelAffine& a, const SampleScale& s, bool wide, int n,
                void* const* dst) {
  const T* rows[3] = {static_cast<const T*>(src[0]), static_cast<const T*>(src[1]), static_cast<const T*>(src[2])};
  if (wide) {
    std::uint16_t* const out[3] = {static_cast<std::uint16_t*>(dst[0]), static_cast<std::uint16_t*>(dst[1]),
                                   static_cast<std::uint16_t*>(dst[2])};
    return rgb_row<T, std::uint16_t>(rows, a, s, n, out);
  }
  std::uint8_t* const out[3] = {static_cast<std::uint8_t*>(dst[0]), static_cast<std::uint8_t*>(dst[1]),
                                static_cast<std::uint8_t*>(dst[2])};
  return rgb_row<T, std::uint8_t>(rows, a, s, n, out);
}

template <ChromaRow kKind, typename Out>
static void chroma_row(const float* d, const SampleScale& s, int n, Out* dst) {
  const Sample sample(s);
  for (int x = 0; x < n; x += V::N) {
    F sum;
    if constexpr (kKind == ChromaRow::kFull) {
      sum = V::load(d + x);
    } else {
      F even, odd;
      V::split(d + 2 * x, &even, &odd);
      sum = V::add(even, odd);
      if constexpr (kKind == ChromaRow::kCosited) {
        F before, again;
        V::split(d + 2 * x - 1, &before, &again);
        sum = V::add(V::add(before, even), sum);
      }
    }
    if (x + V::N <= n) {
      OutOf<Out>::put(dst + x, sample(sum), sample.shift);
    } else {
      Out out[V::N];
      OutOf<Out>::put(out, sample(sum), sample.shift);
      std::memcpy(dst + x, out, sizeof(Out) * static_cast<std::size_t>(n - x));
    }
  }
}

template <typename Out>
static void chroma_of(const float* d, ChromaRow kind, const SampleScale& s, int n, Out* dst) {
  switch (kind) {
    case ChromaRow::kFull:
      return chroma_row<ChromaRow::kFull>(d, s, n, dst);
    case ChromaRow::kPair:
      return chroma_row<ChromaRow::kPair>(d, s, n, dst);
    case ChromaRow::kCosited:
      return chroma_row<ChromaRow::kCosited>(d, s, n, dst);
  }
}

static void chroma(const float* d, ChromaRow kind, const SampleScale& s, bool wide, int n, void* dst) {
  wide ? chroma_of(d, kind, s, n, static_cast<std::uint16_t*>(dst))
       : chroma_of(d, kind, s, n, static_cast<std::uint8_t*>(dst));
}

static inline float number(std::uint8_t v) { return v; }
static inline float number(float v) { return v; }
static inline float number(f16 v) { return half_to_float(v.bits); }
static inline float number(bf16 v) { return bfloat16_to_float(v.bits); }

template <typename T>
static void gather(const void* src, std::ptrdiff_t step, float* dst, int n) {
  const T* p = static_cast<const T*>(src);
  // Half floats are widened by the vector; one by one that would cost more than all the rest.
  if constexpr (sizeof(T) == 2) {
    T part[V::N];
    for (int x = 0; x < n; x += V::N) {
      const int count = n - x < V::N ? n - x : V::N;
      for (int i = 0; i < count; ++i) part[i] = p[(x + i) * step];
      for (int i = count; i < V::N; ++i) part[i] = T{0};
      V::store(dst + x, V::load(part));
    }
  } else if (step == 3) {
    for (int x = 0; x < n; ++x) dst[x] = number(p[3 * x]);
  } else {
    for (int x = 0; x < n; ++x) dst[x] = number(p[x * step]);
  }
}

template <typename T>
static void interleave(const T* const* src, int rows, T* dst, int n) {
  if (rows == 2) {
    const T *a = src[0], *b = src[1];
    for (int x = 0; x < n; ++x) {
      dst[2 * x] = a[x];
      dst[2 * x + 1] = b[x];
    }
  } else if (rows == 3) {
    const T *a = src[0], *b = src[1], *c = src[2];
    for (int x = 0; x < n; ++x) {
      dst[3 * x] = a[x];
      dst[3 * x + 1] = b[x];
      dst[3 * x + 2] = c[x];
    }
  } else {
    const T *a = src[0], *b = src[1], *c = src[2], *d = src[3];
    for (int x = 0; x < n; ++x) {
      dst[4 * x] = a[x];
      dst[4 * x + 1] = b[x];
      dst[4 * x + 2] = c[x];
      dst[4 * x + 3] = d[x];
    }
  }
}

}  // namespace planes

const PlanesKernels kPlanesKernels = {
    {planes::luma<std::uint8_t>, planes::luma<f16>, planes::luma<bf16>, planes::luma<float>},
    {planes::rgb<std::uint8_t>, planes::rgb<f16>, planes::rgb<bf16>, planes::rgb<float>},
    planes::chroma,
    {planes::gather<std::uint8_t>, planes::gather<f16>, planes::gather<bf16>, planes::gather<float>},
    planes::interleave<std::uint8_t>,
    planes::interleave<std::uint16_t>};
