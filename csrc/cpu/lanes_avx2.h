// Lanes: eight floats of AVX2 + FMA + F16C. Included inside a namespace, under that target. See lanes_scalar.h.
struct Lanes {
  static constexpr int N = 8;
  using Real = float;
  using F = __m256;
  static inline F set(float x) { return _mm256_set1_ps(x); }
  static inline F load(const float* p) { return _mm256_loadu_ps(p); }
  static inline F load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static inline F load(const bf16* p) {
    const __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
  }
  static inline void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static inline __m128i to_f16(F a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
  static inline __m128i to_bf16(F a) {
    const __m256i v = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(v, 16), _mm256_set1_epi32(1));
    const __m256i r = _mm256_srli_epi32(_mm256_add_epi32(v, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i bits = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  }
  static inline void store_f16(std::uint16_t* p, F a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_f16(a)); }
  static inline void store_bf16(std::uint16_t* p, F a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(a)); }
  static inline void store(f16* p, F a) { store_f16(&p->bits, a); }
  static inline void store(bf16* p, F a) { store_bf16(&p->bits, a); }
  static inline void stream(float* p, F a) { _mm256_stream_ps(p, a); }
  // 16 bits fill half a line or less at a time: past the caches that was measured slower than through them.
  static inline void stream(f16* p, F a) { store(p, a); }
  static inline void stream(bf16* p, F a) { store(p, a); }
  static inline void fence() { _mm_sfence(); }
  static inline void stream_bytes(void* to, const void* from, std::int64_t n) {
    for (std::int64_t i = 0; i < n; i += 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(static_cast<char*>(to) + i),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const char*>(from) + i)));
    }
  }
  // All ones in the first n lanes.
  static inline __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static inline F load_part(const float* p, int n, F fill) {
    const __m256i m = first(n);
    return _mm256_blendv_ps(fill, _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m));
  }
  template <typename T>
  static inline F load_part(const T* p, int n, F fill) {
    alignas(16) T all[8] = {};
    std::memcpy(all, p, static_cast<std::size_t>(n) * sizeof(T));
    return _mm256_blendv_ps(fill, load(all), _mm256_castsi256_ps(first(n)));
  }
  static inline void store_part(float* p, F a, int n) { _mm256_maskstore_ps(p, first(n), a); }
  template <typename T>
  static inline void store_part(T* p, F a, int n) {
    alignas(16) T all[8];
    store(all, a);
    std::memcpy(p, all, static_cast<std::size_t>(n) * sizeof(T));
  }
  static inline F add(F a, F b) { return _mm256_add_ps(a, b); }
  static inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static inline F div(F a, F b) { return _mm256_div_ps(a, b); }
  static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static inline F max(F a, F b) { return _mm256_max_ps(a, b); }
  static inline F clamp(F a, F lo, F hi) { return _mm256_min_ps(_mm256_max_ps(a, lo), hi); }
  static inline F min(F a, F b) { return _mm256_min_ps(a, b); }
  static inline F load_bytes(const std::uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static inline F keep(F m, F a) { return _mm256_and_ps(a, _mm256_cmp_ps(m, _mm256_setzero_ps(), _CMP_NEQ_OQ)); }
  // b where a is 0
  static inline F if_zero(F a, F b) {
    return _mm256_blendv_ps(a, b, _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_EQ_OQ));
  }
  // exp(a) = 2^n exp(r), |r| <= ln 2 / 2, by the polynomial of Cephes' expf; n in two halves, for subnormal results.
  static inline F exp(F a) {
    const F x = _mm256_min_ps(_mm256_set1_ps(89.0f), _mm256_max_ps(_mm256_set1_ps(-104.0f), a));  // NaN stays
    const F n = _mm256_round_ps(_mm256_mul_ps(x, set(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    F r = _mm256_fnmadd_ps(n, set(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, set(-2.12194440e-4f), r);
    F y = set(1.9875691500e-4f);
    y = fma(y, r, set(1.3981999507e-3f));
    y = fma(y, r, set(8.3334519073e-3f));
    y = fma(y, r, set(4.1665795894e-2f));
    y = fma(y, r, set(1.6666665459e-1f));
    y = fma(y, r, set(5.0000001201e-1f));
    y = fma(y, mul(r, r), add(r, set(1.0f)));
    const __m256i i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1), bias = _mm256_set1_epi32(127);
    const __m256i p = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i q = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, half), bias), 23);
    return mul(mul(y, _mm256_castsi256_ps(p)), _mm256_castsi256_ps(q));
  }
  // For a <= 87, or NaN: one shift makes the power of two.
  static inline F exp_bounded(F a) {
    const F least = set(-87.0f);
    const F x = _mm256_max_ps(least, a);
    const F n = _mm256_round_ps(_mm256_mul_ps(x, set(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    F r = _mm256_fnmadd_ps(n, set(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, set(-2.12194440e-4f), r);
    F y = set(1.9875691500e-4f);
    y = fma(y, r, set(1.3981999507e-3f));
    y = fma(y, r, set(8.3334519073e-3f));
    y = fma(y, r, set(4.1665795894e-2f));
    y = fma(y, r, set(1.6666665459e-1f));
    y = fma(y, r, set(5.0000001201e-1f));
    y = fma(y, mul(r, r), add(r, set(1.0f)));
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), power));
    return _mm256_and_ps(y, _mm256_cmp_ps(a, least, _CMP_NLT_UQ));
  }
  static inline float sum(F a) {
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
};
