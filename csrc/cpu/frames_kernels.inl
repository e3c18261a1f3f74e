// The kernels of frames_to_tensor, written once over V (see simd_*.h) and compiled per instruction set: the
// including file opens a namespace, sets the target and defines V. n below V::N goes through a padded copy, and
// the last part of a longer row is computed over an overlapping full vector, so no lane is ever a special case.

// Calls body(x) for x = 0, N, 2N, ... and once more for n - N where N does not divide n. Needs n >= N.
template <typename Body>
static inline void for_each_vector(int n, Body body) {
  int x = 0;
  for (; x + V::N <= n; x += V::N) body(x);
  if (x < n) body(n - V::N);
}

template <typename T>
static inline V::F from_sample(const T* p, int shift) {
  if constexpr (sizeof(T) == 1) {
    return V::from_u8(p);
  } else {
    return V::from_u16(p, shift);
  }
}

// kUnroll vectors at x: their sums stay in registers over the taps.
template <int kUnroll, typename T>
static inline void vertical_block(const T* const* rows, const float* weight, int taps, int shift, float* dst, int x) {
  typename V::F sum[kUnroll];
  const typename V::F first = V::set(weight[0]);
  for (int j = 0; j < kUnroll; ++j) sum[j] = V::mul(from_sample(rows[0] + x + j * V::N, shift), first);
  for (int k = 1; k < taps; ++k) {
    const typename V::F w = V::set(weight[k]);
    for (int j = 0; j < kUnroll; ++j) sum[j] = V::fma(from_sample(rows[k] + x + j * V::N, shift), w, sum[j]);
  }
  for (int j = 0; j < kUnroll; ++j) V::store(dst + x + j * V::N, sum[j]);
}

template <typename T>
static inline void vertical(const T* const* rows, const float* weight, int taps, int shift, float* dst, int n) {
  if (n < V::N) {
    for (int x = 0; x < n; ++x) {
      // one lane at a time through the same vector operations, so that rounding does not depend on n
      float lane[V::N];
      T sample[V::N] = {};
      typename V::F sum = V::set(0);
      for (int k = 0; k < taps; ++k) {
        sample[0] = rows[k][x];
        const typename V::F v = from_sample(sample, shift), w = V::set(weight[k]);
        sum = k == 0 ? V::mul(v, w) : V::fma(v, w, sum);
      }
      V::store(lane, sum);
      dst[x] = lane[0];
    }
    return;
  }
  int x = 0;
  for (; x + 4 * V::N <= n; x += 4 * V::N) vertical_block<4>(rows, weight, taps, shift, dst, x);
  for (; x + V::N <= n; x += V::N) vertical_block<1>(rows, weight, taps, shift, dst, x);
  if (x < n) vertical_block<1>(rows, weight, taps, shift, dst, n - V::N);
}

static void vertical_u8(const std::uint8_t* const* rows, const float* weight, int taps, float* dst, int n) {
  vertical(rows, weight, taps, 0, dst, n);
}

static void vertical_u16(const std::uint16_t* const* rows, const float* weight, int taps, int shift, float* dst,
                         int n) {
  vertical(rows, weight, taps, shift, dst, n);
}

template <int kRegisters, int kTaps>
static inline void permute_loop(const float* src, const HorizontalFilter& f, float* dst) {
  const int taps = kTaps ? kTaps : f.taps;
  const std::int32_t* index = f.index.data();
  const float* weight = f.weight.data();
  for (int g = 0; g * V::N < f.size; ++g) {
    const float* p = src + f.start[static_cast<std::size_t>(g)];
    typename V::F sum = V::mul(V::permute(p, index, kRegisters), V::load(weight));
    for (int k = 1; k < taps; ++k) {
      sum = V::fma(V::permute(p, index + k * V::N, kRegisters), V::load(weight + k * V::N), sum);
    }
    V::store(dst + g * V::N, sum);
    index += taps * V::N;
    weight += taps * V::N;
  }
}

static void horizontal(const float* src, const HorizontalFilter& f, float* dst) {
  switch (f.kind) {
    case HorizontalKind::kIdentity:
      std::memcpy(dst, src, sizeof(float) * static_cast<std::size_t>(f.size));
      return;
    case HorizontalKind::kDot:
      V::dot(src, f, dst);
      return;
    case HorizontalKind::kPermute:
      if (f.registers == 1) {
        f.taps == 2 ? permute_loop<1, 2>(src, f, dst) : permute_loop<1, 0>(src, f, dst);
      } else {
        f.taps == 4 ? permute_loop<2, 4>(src, f, dst) : permute_loop<2, 0>(src, f, dst);
      }
  }
}

static void pick(const float* src, int step, float* dst, int n) {
  switch (step) {
    case 2:
      for (int x = 0; x < n; ++x) dst[x] = src[2 * x];
      return;
    case 3:
      for (int x = 0; x < n; ++x) dst[x] = src[3 * x];
      return;
    default:
      for (int x = 0; x < n; ++x) dst[x] = src[static_cast<std::ptrdiff_t>(step) * x];
  }
}

// How a vector of results is stored, per output type.
struct StoreF32 {
  using T = float;
  static inline void put(T* p, V::F a) { V::store(p, a); }
};
struct StoreF16 {
  using T = std::uint16_t;
  static inline void put(T* p, V::F a) { V::store_f16(p, a); }
};
struct StoreBF16 {
  using T = std::uint16_t;
  static inline void put(T* p, V::F a) { V::store_bf16(p, a); }
};
struct StoreU8 {
  using T = std::uint8_t;
  static inline void put(T* p, V::F a) { V::store_u8(p, a); }
};

// kExact keeps multiplication and addition apart, in the documented order: y, u, v, constant.
template <bool kExact>
static inline V::F term(V::F x, V::F m, V::F sum) {
  return kExact ? V::add(sum, V::mul(x, m)) : V::fma(x, m, sum);
}

template <Affine::Kind kKind, bool kExact, typename Store>
static inline void affine_rows(const float* const* src, const Affine& a, typename Store::T* const* dst, int n) {
  using F = typename V::F;
  F m[3][3], b[3], lo[3], hi[3];
  for (int c = 0; c < 3; ++c) {
    for (int j = 0; j < 3; ++j) m[c][j] = V::set(a.m[c][j]);
    b[c] = V::set(a.b[c]);
    lo[c] = V::set(a.lo[c]);
    hi[c] = V::set(a.hi[c]);
  }
  auto body = [&](int x) {
    const F x0 = V::load(src[0] + x);
    F out[3];
    if constexpr (kKind == Affine::Kind::kGray) {
      for (int c = 0; c < 3; ++c) out[c] = kExact ? V::mul(x0, m[c][0]) : V::fma(x0, m[c][0], b[c]);
    } else {
      const F x1 = V::load(src[1] + x), x2 = V::load(src[2] + x);
      if constexpr (kKind == Affine::Kind::kRgb) {
        const F in[3] = {x0, x1, x2};
        for (int c = 0; c < 3; ++c) out[c] = kExact ? V::mul(in[c], m[c][c]) : V::fma(in[c], m[c][c], b[c]);
      } else {
        for (int c = 0; c < 3; ++c) out[c] = kExact ? V::mul(x0, m[c][0]) : V::fma(x0, m[c][0], b[c]);
        out[1] = term<kExact>(x1, m[1][1], out[1]);
        out[2] = term<kExact>(x1, m[2][1], out[2]);
        out[0] = term<kExact>(x2, m[0][2], out[0]);
        out[1] = term<kExact>(x2, m[1][2], out[1]);
      }
    }
    for (int c = 0; c < 3; ++c) {
      if (kExact) out[c] = V::add(out[c], b[c]);
      Store::put(dst[c] + x, V::clamp(out[c], lo[c], hi[c]));
    }
  };
  for_each_vector(n, body);
}

template <bool kExact, typename Store>
static inline void affine(const float* const* src, const Affine& a, typename Store::T* const* dst, int n) {
  if (n < V::N) {
    typename Store::T row[3][V::N];
    typename Store::T* const out[3] = {row[0], row[1], row[2]};
    affine<kExact, Store>(src, a, out, V::N);  // source rows are padded
    for (int c = 0; c < 3; ++c) std::memcpy(dst[c], row[c], sizeof(typename Store::T) * static_cast<std::size_t>(n));
    return;
  }
  switch (a.kind) {
    case Affine::Kind::kGray:
      return affine_rows<Affine::Kind::kGray, kExact, Store>(src, a, dst, n);
    case Affine::Kind::kRgb:
      return affine_rows<Affine::Kind::kRgb, kExact, Store>(src, a, dst, n);
    default:
      return affine_rows<Affine::Kind::kYuv, kExact, Store>(src, a, dst, n);
  }
}

static void affine_f32(const float* const* src, const Affine& a, float* const* dst, int n) {
  affine<false, StoreF32>(src, a, dst, n);
}
static void affine_f16(const float* const* src, const Affine& a, std::uint16_t* const* dst, int n) {
  affine<false, StoreF16>(src, a, dst, n);
}
static void affine_bf16(const float* const* src, const Affine& a, std::uint16_t* const* dst, int n) {
  affine<false, StoreBF16>(src, a, dst, n);
}
static void affine_u8(const float* const* src, const Affine& a, std::uint8_t* const* dst, int n) {
  affine<true, StoreU8>(src, a, dst, n);
}

template <typename Store>
static inline void normalize(const std::uint8_t* src, float sub, float div, bool scale_only, typename Store::T* dst,
                             int n) {
  if (n < V::N) {
    std::uint8_t in[V::N] = {};
    typename Store::T row[V::N];
    std::memcpy(in, src, static_cast<std::size_t>(n));
    normalize<Store>(in, sub, div, scale_only, row, V::N);
    std::memcpy(dst, row, sizeof(typename Store::T) * static_cast<std::size_t>(n));
    return;
  }
  const typename V::F s = V::set(sub), d = V::set(div);  // div holds the scale when scale_only
  if (scale_only) {
    for_each_vector(n, [&](int x) { Store::put(dst + x, V::mul(V::from_u8(src + x), d)); });
  } else {
    for_each_vector(n, [&](int x) { Store::put(dst + x, V::div(V::sub(V::from_u8(src + x), s), d)); });
  }
}

static void normalize_f32(const std::uint8_t* src, float sub, float div, bool scale_only, float* dst, int n) {
  normalize<StoreF32>(src, sub, div, scale_only, dst, n);
}
static void normalize_f16(const std::uint8_t* src, float sub, float div, bool scale_only, std::uint16_t* dst, int n) {
  normalize<StoreF16>(src, sub, div, scale_only, dst, n);
}
static void normalize_bf16(const std::uint8_t* src, float sub, float div, bool scale_only, std::uint16_t* dst,
                           int n) {
  normalize<StoreBF16>(src, sub, div, scale_only, dst, n);
}

static void bytes_horizontal(const std::uint8_t* src, const BytesFilter& f, std::uint8_t* dst) {
  V::bytes_horizontal(src, f, dst);
}

static void bytes_vertical(const std::uint8_t* const* rows, const std::int16_t* weight, int taps, int precision,
                           std::uint8_t* dst, int n) {
  constexpr int kBlock = 64;
  for (int x = 0; x < n; x += kBlock) {
    const int size = n - x < kBlock ? n - x : kBlock;
    std::int32_t sum[kBlock];
    for (int j = 0; j < kBlock; ++j) sum[j] = 1 << (precision - 1);
    for (int k = 0; k < taps; ++k) {
      const std::int32_t w = weight[k];
      const std::uint8_t* row = rows[k] + x;  // rows are padded scratch: a whole block may be read
      for (int j = 0; j < kBlock; ++j) sum[j] += w * row[j];
    }
    std::uint8_t out[kBlock];
    for (int j = 0; j < kBlock; ++j) {
      const std::int32_t v = sum[j] >> precision;
      out[j] = static_cast<std::uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
    }
    std::memcpy(dst + x, out, static_cast<std::size_t>(size));
  }
}

template <typename T>
static inline void interleave(const T* const* src, T* dst, int n) {
  const T *a = src[0], *b = src[1], *c = src[2];
  for (int x = 0; x < n; ++x) {
    dst[3 * x] = a[x];
    dst[3 * x + 1] = b[x];
    dst[3 * x + 2] = c[x];
  }
}

static void interleave_u8(const std::uint8_t* const* src, std::uint8_t* dst, int n) { interleave(src, dst, n); }
static void interleave_u16(const std::uint16_t* const* src, std::uint16_t* dst, int n) { interleave(src, dst, n); }
static void interleave_f32(const float* const* src, float* dst, int n) { interleave(src, dst, n); }

const FramesKernels kFramesKernels = {
    kIsa,          V::kPermuteLanes, vertical_u8,    vertical_u16,     horizontal,     pick,
    affine_f32,    affine_f16,       affine_bf16,    affine_u8,        normalize_f32,  normalize_f16,
    normalize_bf16, bytes_horizontal, bytes_vertical, interleave_u8,   interleave_u16, interleave_f32};
