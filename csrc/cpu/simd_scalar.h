// V: four lanes in plain C++, for machines and builds without a hand-written set. Included inside a namespace.
struct V : Lanes {
  static constexpr int kPermuteLanes = 1;  // no permutes: horizontal filters are dot products
  static constexpr int kByteLanes = 0;
  static constexpr void (*horizontal_bytes)(const std::uint8_t*, const std::uint8_t*, const HorizontalFilter&,
                                            float*) = nullptr;
  static inline F from_u8(const std::uint8_t* p) {
    return each([&](int i) { return static_cast<float>(p[i]); });
  }
  static inline F from_u16(const std::uint16_t* p, int shift) {
    return each([&](int i) { return static_cast<float>(p[i] >> shift); });
  }
  static inline F permute(const float* p, const std::int32_t*, int) { return load(p); }  // never called
  static inline void store_u8x4(std::uint8_t* p, F a, F b, F c, F d) {
    const F all[4] = {a, b, c, d};
    for (int i = 0; i < 16; ++i) {
      const long v = std::lrintf(all[i / 4].v[i % 4]);
      p[i] = static_cast<std::uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
    }
  }
  static inline void store_interleaved(float* p, F a, F b) {
    for (int i = 0; i < 4; ++i) {
      p[2 * i] = a.v[i];
      p[2 * i + 1] = b.v[i];
    }
  }
  static void dot(const float* src, const HorizontalFilter& f, float* dst) {
    for (int i = 0; i < f.size; ++i) {
      const float* x = src + f.start[i];
      const float* w = &f.weight[static_cast<std::size_t>(i) * f.taps];
      float lane[4] = {0, 0, 0, 0};
      for (int k = 0; k < f.taps; k += 4) {
        for (int j = 0; j < 4; ++j) lane[j] += x[k + j] * w[k + j];
      }
      dst[i] = (lane[0] + lane[1]) + (lane[2] + lane[3]);
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
