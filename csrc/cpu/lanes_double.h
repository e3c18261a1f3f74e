// DoubleLanes: as Lanes, of doubles; float64 is for checking gradients, so that one plain form is enough.
struct DoubleLanes {
  static constexpr int N = 4;
  using Real = double;
  struct F {
    double v[4];
  };
  template <typename Op>
  static inline F each(Op op) {
    return {{op(0), op(1), op(2), op(3)}};
  }
  static inline F set(double x) { return {{x, x, x, x}}; }
  static inline F load(const double* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static inline void store(double* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
  static inline void stream(double* p, F a) { store(p, a); }
  static inline void fence() {}
  static inline void stream_bytes(void* to, const void* from, std::int64_t n) {
    std::memcpy(to, from, static_cast<std::size_t>(n));
  }
  static inline F load_part(const double* p, int n, F fill) {
    return each([&](int i) { return i < n ? p[i] : fill.v[i]; });
  }
  static inline void store_part(double* p, F a, int n) { std::memcpy(p, a.v, static_cast<std::size_t>(n) * 8); }
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
  static inline F min(F a, F b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static inline F load_bytes(const std::uint8_t* p) {
    return each([&](int i) { return static_cast<double>(p[i]); });
  }
  static inline F keep(F m, F a) {
    return each([&](int i) { return m.v[i] != 0 ? a.v[i] : 0.0; });
  }
  static inline F if_zero(F a, F b) {
    return each([&](int i) { return a.v[i] == 0 ? b.v[i] : a.v[i]; });
  }
  static inline F exp(F a) {
    return each([&](int i) { return std::exp(a.v[i]); });
  }
  static inline F exp_bounded(F a) { return exp(a); }
  static inline double sum(F a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
};
