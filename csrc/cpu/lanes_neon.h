// Lanes: four floats of Advanced SIMD (aarch64). Included inside a namespace. See lanes_scalar.h.
struct Lanes {
  static constexpr int N = 4;
  using Real = float;
  using F = float32x4_t;
  static inline F set(float x) { return vdupq_n_f32(x); }
  static inline F load(const float* p) { return vld1q_f32(p); }
  static inline F load(const f16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
  }
  static inline F load(const bf16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16));
  }
  static inline void store(float* p, F a) { vst1q_f32(p, a); }
  static inline void store_f16(std::uint16_t* p, F a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
  static inline void store_bf16(std::uint16_t* p, F a) {
    const uint32x4_t v = vreinterpretq_u32_f32(a);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(v, 16), vdupq_n_u32(1));
    const uint16x4_t r = vshrn_n_u32(vaddq_u32(v, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    const uint16x4_t number = vmovn_u32(vceqq_f32(a, a));
    vst1_u16(p, vbsl_u16(number, r, vdup_n_u16(0x7fc0)));
  }
  static inline void store(f16* p, F a) { store_f16(&p->bits, a); }
  static inline void store(bf16* p, F a) { store_bf16(&p->bits, a); }
  template <typename T>
  static inline void stream(T* p, F a) {
    store(p, a);
  }
  static inline void fence() {}
  static inline void stream_bytes(void* to, const void* from, std::int64_t n) {
    std::memcpy(to, from, static_cast<std::size_t>(n));
  }
  template <typename T>
  static inline F load_part(const T* p, int n, F fill) {
    T all[4] = {};
    std::memcpy(all, p, static_cast<std::size_t>(n) * sizeof(T));
    const std::int32_t lane[4] = {0, 1, 2, 3};
    return vbslq_f32(vcltq_s32(vld1q_s32(lane), vdupq_n_s32(n)), load(all), fill);
  }
  template <typename T>
  static inline void store_part(T* p, F a, int n) {
    T all[4];
    store(all, a);
    std::memcpy(p, all, static_cast<std::size_t>(n) * sizeof(T));
  }
  static inline F add(F a, F b) { return vaddq_f32(a, b); }
  static inline F sub(F a, F b) { return vsubq_f32(a, b); }
  static inline F mul(F a, F b) { return vmulq_f32(a, b); }
  static inline F div(F a, F b) { return vdivq_f32(a, b); }
  static inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static inline F max(F a, F b) { return vmaxq_f32(a, b); }
  static inline F clamp(F a, F lo, F hi) { return vminq_f32(vmaxq_f32(a, lo), hi); }
  static inline F min(F a, F b) { return vminq_f32(a, b); }
  static inline F load_bytes(const std::uint8_t* p) {
    const float all[4] = {static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                          static_cast<float>(p[3])};
    return vld1q_f32(all);
  }
  static inline F keep(F m, F a) { return vbslq_f32(vceqq_f32(m, vdupq_n_f32(0.0f)), vdupq_n_f32(0.0f), a); }
  // b where a is 0
  static inline F if_zero(F a, F b) { return vbslq_f32(vceqq_f32(a, vdupq_n_f32(0.0f)), b, a); }
  // exp(a) = 2^n exp(r), |r| <= ln 2 / 2, by the polynomial of Cephes' expf; n in two halves, for subnormal results.
  static inline F exp(F a) {
    const F x = vminq_f32(vmaxq_f32(a, set(-104.0f)), set(89.0f));  // NaN stays
    const F n = vrndnq_f32(mul(x, set(1.44269504f)));
    F r = vfmsq_f32(x, n, set(0.693359375f));
    r = vfmsq_f32(r, n, set(-2.12194440e-4f));
    F y = set(1.9875691500e-4f);
    y = fma(y, r, set(1.3981999507e-3f));
    y = fma(y, r, set(8.3334519073e-3f));
    y = fma(y, r, set(4.1665795894e-2f));
    y = fma(y, r, set(1.6666665459e-1f));
    y = fma(y, r, set(5.0000001201e-1f));
    y = fma(y, mul(r, r), add(r, set(1.0f)));
    const int32x4_t i = vcvtq_s32_f32(n), half = vshrq_n_s32(i, 1), bias = vdupq_n_s32(127);
    const F p = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
    const F q = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vsubq_s32(i, half), bias), 23));
    return mul(mul(y, p), q);
  }
  static inline F exp_bounded(F a) { return exp(a); }
  static inline float sum(F a) {
    const float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
  }
};
