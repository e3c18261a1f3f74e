// V: four lanes of Advanced SIMD (aarch64). Included inside a namespace.
struct V : Lanes {
  static constexpr int kPermuteLanes = 4;
  static constexpr int kByteLanes = 4;
  static inline F from_u8(const std::uint8_t* p) {
    std::uint32_t four;
    std::memcpy(&four, p, 4);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
  }
  static inline F from_u16(const std::uint16_t* p, int shift) {
    return vcvtq_f32_u32(vshlq_u32(vmovl_u16(vld1_u16(p)), vdupq_n_s32(-shift)));
  }
  // Lane i is p[index[i]]; the indices reach 4 floats with one register, 8 with two.
  static inline F permute(const float* p, const std::int32_t* index, int registers) {
    // bytes 4 * index + 0, 1, 2, 3 of each lane
    const uint32x4_t at =
        vaddq_u32(vmulq_n_u32(vreinterpretq_u32_s32(vld1q_s32(index)), 0x04040404u), vdupq_n_u32(0x03020100u));
    const uint8x16_t bytes = vreinterpretq_u8_u32(at), low = vreinterpretq_u8_f32(load(p));
    if (registers == 1) return vreinterpretq_f32_u8(vqtbl1q_u8(low, bytes));
    const uint8x16x2_t both = {{low, vreinterpretq_u8_f32(load(p + 4))}};
    return vreinterpretq_f32_u8(vqtbl2q_u8(both, bytes));
  }
  // Four vectors as 16 bytes, saturated.
  static inline void store_u8x4(std::uint8_t* p, F a, F b, F c, F d) {
    const uint16x8_t ab = vcombine_u16(vqmovun_s32(vcvtnq_s32_f32(a)), vqmovun_s32(vcvtnq_s32_f32(b)));
    const uint16x8_t cd = vcombine_u16(vqmovun_s32(vcvtnq_s32_f32(c)), vqmovun_s32(vcvtnq_s32_f32(d)));
    vst1q_u8(p, vcombine_u8(vqmovn_u16(ab), vqmovn_u16(cd)));
  }
  // a0 b0 a1 b1 ...
  static inline void store_interleaved(float* p, F a, F b) { vst2q_f32(p, (float32x4x2_t{{a, b}})); }
  static inline F dot_one(const float* x, const float* w, int taps) {
    F sum = mul(load(x), load(w));
    for (int k = 4; k < taps; k += 4) sum = fma(load(x + k), load(w + k), sum);
    return sum;
  }
  static void dot(const float* src, const HorizontalFilter& f, float* dst) {
    const float* w = f.weight.data();
    for (int i = 0; i < f.size; i += 4, w += 4 * f.taps) {
      F s[4];
      for (int j = 0; j < 4; ++j) s[j] = dot_one(src + f.start[i + j], w + j * f.taps, f.taps);
      store(dst + i, vpaddq_f32(vpaddq_f32(s[0], s[1]), vpaddq_f32(s[2], s[3])));
    }
  }
  // A table look-up picks the inputs of 4 outputs and widens them at once.
  static void horizontal_bytes(const std::uint8_t* src, const std::uint8_t* next, const HorizontalFilter& f,
                               float* dst) {
    const std::int8_t* bytes = f.bytes.data();
    const float* weight = f.weight.data();
    for (int i = 0, g = 0; i < f.size; i += 4, ++g) {
      MMCORE_PREFETCH(next + f.start[g]);
      const uint8x16_t window = vld1q_u8(src + f.start[g]);
      F sum = vdupq_n_f32(0);
      for (int k = 0; k < f.taps; ++k, bytes += 16, weight += 4) {
        const uint8x16_t at = vreinterpretq_u8_s8(vld1q_s8(bytes));
        sum = fma(vcvtq_f32_u32(vreinterpretq_u32_u8(vqtbl1q_u8(window, at))), load(weight), sum);
      }
      store(dst + i, sum);
    }
  }
  static void bytes_horizontal(const std::uint8_t* src, const BytesFilter& f, std::uint8_t* dst) {
    bytes_horizontal_scalar(src, f, dst);
  }
  static void bytes_vertical(const std::uint8_t* const* rows, const std::int16_t* weight, int taps, int precision,
                             std::uint8_t* dst, int n) {
    bytes_vertical_scalar(rows, weight, taps, precision, dst, n);
  }
};
