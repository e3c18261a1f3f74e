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
static inline void vertical(const T* const* rows, const float* weight, int taps, int ahead, int shift, float* dst,
                            int n) {
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
  constexpr int kLine = 64 / static_cast<int>(sizeof(T));  // samples in a cache line
  int x = 0, fetched = 0;
  for (; x + 4 * V::N <= n; x += 4 * V::N) {
    // So many rows are read at once that the hardware's prefetcher loses track of them.
    for (; fetched < x + 4 * V::N; fetched += kLine) {
      for (int k = 0; k < ahead; ++k) MMCORE_PREFETCH(rows[taps + k] + fetched);
    }
    vertical_block<4>(rows, weight, taps, shift, dst, x);
  }
  for (; x + V::N <= n; x += V::N) vertical_block<1>(rows, weight, taps, shift, dst, x);
  if (x < n) vertical_block<1>(rows, weight, taps, shift, dst, n - V::N);
}

static void vertical_u8(const std::uint8_t* const* rows, const float* weight, int taps, int ahead, float* dst, int n) {
  vertical(rows, weight, taps, ahead, 0, dst, n);
}

static void vertical_u16(const std::uint16_t* const* rows, const float* weight, int taps, int ahead, int shift,
                         float* dst, int n) {
  vertical(rows, weight, taps, ahead, shift, dst, n);
}

template <int kTaps>
static inline void sum_rows(const float* const* rows, const float* weight, int taps, float* dst, int n) {
  if (kTaps) taps = kTaps;
  for (int x = 0; x < n; x += 2 * V::N) {  // rows are padded: whole blocks only
    const typename V::F first = V::set(weight[0]);
    typename V::F a = V::mul(V::load(rows[0] + x), first), b = V::mul(V::load(rows[0] + x + V::N), first);
    for (int k = 1; k < taps; ++k) {
      const typename V::F w = V::set(weight[k]);
      a = V::fma(V::load(rows[k] + x), w, a);
      b = V::fma(V::load(rows[k] + x + V::N), w, b);
    }
    V::store(dst + x, a);
    V::store(dst + x + V::N, b);
  }
}

static void vertical_f32(const float* const* rows, const float* weight, int taps, float* dst, int n) {
  switch (taps) {
    case 2:
      return sum_rows<2>(rows, weight, taps, dst, n);
    case 3:
      return sum_rows<3>(rows, weight, taps, dst, n);
    case 4:
      return sum_rows<4>(rows, weight, taps, dst, n);
    default:
      return sum_rows<0>(rows, weight, taps, dst, n);
  }
}

static inline void upsample2(const float* src, const HorizontalFilter& f, float* dst) {
  for (std::size_t i = 0; i < f.edge_output.size(); ++i) {
    const float* p = src + f.edge_start[i];
    dst[f.edge_output[i]] = p[0] * f.edge_weight[2 * i] + p[1] * f.edge_weight[2 * i + 1];
  }
  const float *even = src + f.pair_start[0], *odd = src + f.pair_start[1];
  float* out = dst + f.begin;
  const typename V::F e0 = V::set(f.pair[0][0]), e1 = V::set(f.pair[0][1]);
  const typename V::F o0 = V::set(f.pair[1][0]), o1 = V::set(f.pair[1][1]);
  auto block = [&](int j) {
    const typename V::F e = V::fma(V::load(even + j + 1), e1, V::mul(V::load(even + j), e0));
    const typename V::F o = V::fma(V::load(odd + j + 1), o1, V::mul(V::load(odd + j), o0));
    V::store_interleaved(out + 2 * j, e, o);
  };
  int j = 0;
  for (; j + V::N <= f.pairs; j += V::N) block(j);
  if (j == f.pairs) return;
  if (f.pairs >= V::N) return block(f.pairs - V::N);
  for (; j < f.pairs; ++j) {
    out[2 * j] = even[j] * f.pair[0][0] + even[j + 1] * f.pair[0][1];
    out[2 * j + 1] = odd[j] * f.pair[1][0] + odd[j + 1] * f.pair[1][1];
  }
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
    case HorizontalKind::kBytes:
      return;  // has a kernel of its own, from bytes
    case HorizontalKind::kIdentity:
      std::memcpy(dst, src, sizeof(float) * static_cast<std::size_t>(f.size));
      return;
    case HorizontalKind::kDot:
      V::dot(src, f, dst);
      return;
    case HorizontalKind::kUpsample2:
      upsample2(src, f, dst);
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

template <Affine::Kind kKind, typename Store>
static inline void affine_rows(const float* const* src, const Affine& a, typename Store::T* const* dst, int n) {
  using F = typename V::F;
  F m[3][3], b[3], lo[3], hi[3];
  for (int c = 0; c < 3; ++c) {
    for (int j = 0; j < 3; ++j) m[c][j] = V::set(a.m[c][j]);
    b[c] = V::set(a.b[c]);
    lo[c] = V::set(a.lo[c]);
    hi[c] = V::set(a.hi[c]);
  }
  for_each_vector(n, [&](int x) {
    F out[3];
    if constexpr (kKind == Affine::Kind::kYuv) {
      const F y = V::load(src[0] + x), u = V::load(src[1] + x), v = V::load(src[2] + x);
      out[0] = V::fma(v, m[0][2], V::fma(y, m[0][0], b[0]));
      out[1] = V::fma(v, m[1][2], V::fma(u, m[1][1], V::fma(y, m[1][0], b[1])));
      out[2] = V::fma(u, m[2][1], V::fma(y, m[2][0], b[2]));
    } else if constexpr (kKind == Affine::Kind::kFull) {
      const F p = V::load(src[0] + x), q = V::load(src[1] + x), r = V::load(src[2] + x);
      for (int c = 0; c < 3; ++c) out[c] = V::fma(r, m[c][2], V::fma(q, m[c][1], V::fma(p, m[c][0], b[c])));
    } else {
      for (int c = 0; c < 3; ++c) {
        const int j = kKind == Affine::Kind::kRgb ? c : 0;
        out[c] = V::fma(V::load(src[j] + x), m[c][j], b[c]);
      }
    }
    for (int c = 0; c < 3; ++c) Store::put(dst[c] + x, V::clamp(out[c], lo[c], hi[c]));
  });
}

template <typename Store>
static inline void affine(const float* const* src, const Affine& a, typename Store::T* const* dst, int n) {
  if (n < V::N) {
    typename Store::T row[3][V::N];
    typename Store::T* const out[3] = {row[0], row[1], row[2]};
    affine<Store>(src, a, out, V::N);  // source rows are padded
    for (int c = 0; c < 3; ++c) std::memcpy(dst[c], row[c], sizeof(typename Store::T) * static_cast<std::size_t>(n));
    return;
  }
  switch (a.kind) {
    case Affine::Kind::kGray:
      return affine_rows<Affine::Kind::kGray, Store>(src, a, dst, n);
    case Affine::Kind::kRgb:
      return affine_rows<Affine::Kind::kRgb, Store>(src, a, dst, n);
    case Affine::Kind::kFull:
      return affine_rows<Affine::Kind::kFull, Store>(src, a, dst, n);
    default:
      return affine_rows<Affine::Kind::kYuv, Store>(src, a, dst, n);
  }
}

// Bytes: multiplications and additions apart, in the documented order (y, u, v, constant), so that every
// instruction set rounds alike. A level is within +-1000 here (+-10^8 after a colour matrix, whose entries
// FrameTransform bounds), and the store saturates.
template <Affine::Kind kKind>
static inline void affine_bytes(const float* const* src, const Affine& a, std::uint8_t* const* dst, int n) {
  using F = typename V::F;
  F m[3][3], b[3];
  for (int c = 0; c < 3; ++c) {
    for (int j = 0; j < 3; ++j) m[c][j] = V::set(a.m[c][j]);
    b[c] = V::set(a.b[c]);
  }
  auto levels = [&](int x, F* out) {
    if constexpr (kKind == Affine::Kind::kYuv) {
      // luma has one weight in all three channels
      const F y = V::mul(V::load(src[0] + x), m[0][0]), u = V::load(src[1] + x), v = V::load(src[2] + x);
      out[0] = V::add(V::add(y, V::mul(v, m[0][2])), b[0]);
      out[1] = V::add(V::add(V::add(y, V::mul(u, m[1][1])), V::mul(v, m[1][2])), b[1]);
      out[2] = V::add(V::add(y, V::mul(u, m[2][1])), b[2]);
    } else if constexpr (kKind == Affine::Kind::kFull) {
      const F p = V::load(src[0] + x), q = V::load(src[1] + x), r = V::load(src[2] + x);
      for (int c = 0; c < 3; ++c) {
        out[c] = V::add(V::add(V::add(V::mul(p, m[c][0]), V::mul(q, m[c][1])), V::mul(r, m[c][2])), b[c]);
      }
    } else {
      for (int c = 0; c < 3; ++c) {
        const int j = kKind == Affine::Kind::kRgb ? c : 0;
        out[c] = V::add(V::mul(V::load(src[j] + x), m[c][j]), b[c]);
      }
    }
  };
  auto four = [&](int x) {  // a whole register of bytes at a time
    F out[4][3];
    for (int j = 0; j < 4; ++j) levels(x + j * V::N, out[j]);
    for (int c = 0; c < 3; ++c) V::store_u8x4(dst[c] + x, out[0][c], out[1][c], out[2][c], out[3][c]);
  };
  int x = 0;
  for (; x + 4 * V::N <= n; x += 4 * V::N) four(x);
  if (x == n) return;
  if (n >= 4 * V::N) return four(n - 4 * V::N);
  std::uint8_t row[3][4 * V::N];
  std::uint8_t* const whole[3] = {row[0], row[1], row[2]};
  affine_bytes<kKind>(src, a, whole, 4 * V::N);  // source rows are padded
  for (int c = 0; c < 3; ++c) std::memcpy(dst[c], row[c], static_cast<std::size_t>(n));
}

static void affine_f32(const float* const* src, const Affine& a, float* const* dst, int n) {
  affine<StoreF32>(src, a, dst, n);
}
static void affine_f16(const float* const* src, const Affine& a, std::uint16_t* const* dst, int n) {
  affine<StoreF16>(src, a, dst, n);
}
static void affine_bf16(const float* const* src, const Affine& a, std::uint16_t* const* dst, int n) {
  affine<StoreBF16>(src, a, dst, n);
}
static void affine_u8(const float* const* src, const Affine& a, std::uint8_t* const* dst, int n) {
  switch (a.kind) {
    case Affine::Kind::kGray:
      return affine_bytes<Affine::Kind::kGray>(src, a, dst, n);
    case Affine::Kind::kRgb:
      return affine_bytes<Affine::Kind::kRgb>(src, a, dst, n);
    case Affine::Kind::kFull:
      return affine_bytes<Affine::Kind::kFull>(src, a, dst, n);
    default:
      return affine_bytes<Affine::Kind::kYuv>(src, a, dst, n);
  }
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
static void normalize_bf16(const std::uint8_t* src, float sub, float div, bool scale_only, std::uint16_t* dst, int n) {
  normalize<StoreBF16>(src, sub, div, scale_only, dst, n);
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
    kIsa,           V::kPermuteLanes,    V::kByteLanes,     vertical_u8,   vertical_u16,
    vertical_f32,   V::horizontal_bytes, horizontal,        pick,          affine_f32,
    affine_f16,     affine_bf16,         affine_u8,         normalize_f32, normalize_f16,
    normalize_bf16, V::bytes_horizontal, V::bytes_vertical, interleave_u8, interleave_u16,
    interleave_f32};
