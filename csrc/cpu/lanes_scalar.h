// Lanes: a vector of floats in plain C++, for machines and builds without a hand-written set. Included inside a
// namespace. The other lanes_*.h offer the same:
//   load(p), load_part(p, n, fill)   n < N lanes from memory, of float, f16 or bf16; the rest are fill
//   store(p, a), store_part(p, a, n) rounded to nearest even
//   stream(p, a)                     a store that leaves the caches alone, where there is one; p aligned to the vector
//   fence()                          after the last of them, before another thread may read what they wrote
//   stream_bytes(to, from, n)        likewise for whole lines of 64 bytes, to aligned to one
//   exp_bounded(a)                   likewise for a <= 87; 0 below -87
//   sum(a)                           over the lanes, in a fixed order
//   max(a, b), min(a, b)             b where it is NaN
//   load_bytes(p)                    N bytes as numbers
//   keep(m, a)                       a where m is not 0, else 0
//   exp(a)                           2 ulp or better; 0 below -87.34, infinity above 88.73, NaN of NaN
struct Lanes {
  static constexpr int N = 4;
  using Real = float;
  struct F {
    float v[4];
  };
  template <typename Op>
  static inline F each(Op op) {
    return {{op(0), op(1), op(2), op(3)}};
  }
  static inline F set(float x) { return {{x, x, x, x}}; }
  static inline F load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static inline F load(const f16* p) {
    return each([&](int i) { return half_to_float(p[i].bits); });
  }
  static inline F load(const bf16* p) {
    return each([&](int i) { return bfloat16_to_float(p[i].bits); });
  }
  static inline void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
  static inline void store_f16(std::uint16_t* p, F a) {
    for (int i = 0; i < 4; ++i) p[i] = float_to_half(a.v[i]);
  }
  static inline void store_bf16(std::uint16_t* p, F a) {
    for (int i = 0; i < 4; ++i) p[i] = float_to_bfloat16(a.v[i]);
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
    const F a = load(all);
    return each([&](int i) { return i < n ? a.v[i] : fill.v[i]; });
  }
  template <typename T>
  static inline void store_part(T* p, F a, int n) {
    T all[4];
    store(all, a);
    std::memcpy(p, all, static_cast<std::size_t>(n) * sizeof(T));
  }
  static inline F add(F a, F b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static inline F sub(F a, F b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static inline F mul(F a, F b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static inline F div(F a, F b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static inline F fma(F a, F b, F c) { return add(mul(a, b), c); }
  static inline F max(F a, F b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static inline F clamp(F a, F lo, F hi) {
    return each([&](int i) {
      const float low = a.v[i] < lo.v[i] ? lo.v[i] : a.v[i];
      return low > hi.v[i] ? hi.v[i] : low;
    });
  }
  static inline F min(F a, F b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static inline F load_bytes(const std::uint8_t* p) {
    return each([&](int i) { return static_cast<float>(p[i]); });
  }
  static inline F keep(F m, F a) {
    return each([&](int i) { return m.v[i] != 0 ? a.v[i] : 0.0f; });
  }
  // b where a is 0
  static inline F if_zero(F a, F b) {
    return each([&](int i) { return a.v[i] == 0 ? b.v[i] : a.v[i]; });
  }
  static inline F exp(F a) {
    return each([&](int i) { return std::exp(a.v[i]); });
  }
  static inline F exp_bounded(F a) { return exp(a); }
  static inline float sum(F a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
};
