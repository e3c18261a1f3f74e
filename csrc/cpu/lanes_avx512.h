// Lanes: sixteen floats of AVX-512 (F, BW, VL, DQ). Included inside a namespace, under that target. See lanes_scalar.h.
struct Lanes {
  static constexpr int N = 16;
  using Real = float;
  using F = __m512;
  static inline F set(float x) { return _mm512_set1_ps(x); }
  static inline F load(const float* p) { return _mm512_loadu_ps(p); }
  static inline F load(const f16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static inline F from_bf16(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
  static inline F load(const bf16* p) { return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static inline __m256i to_f16(F a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
  // Nearest even by adding half a unit, less one where the last bit kept is even. Not to NaN, which it could turn into
  // infinity; a quiet one, as arithmetic gives, keeps its sign by truncation.
  static inline __m256i to_bf16(F a) {
    const __m512i v = _mm512_castps_si512(a);
    const __mmask16 number = _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q);
    const __mmask16 odd = _mm512_mask_test_epi32_mask(number, v, _mm512_set1_epi32(0x10000));
    __m512i r = _mm512_mask_add_epi32(v, number, v, _mm512_set1_epi32(0x7fff));
    r = _mm512_mask_add_epi32(r, odd, r, _mm512_set1_epi32(1));
    const __m512i high = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27, 25, 23, 21, 19,
                                          17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(high, r));
  }
  static inline void store_f16(std::uint16_t* p, F a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(a)); }
  static inline void store_bf16(std::uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(a));
  }
  static inline void store(f16* p, F a) { store_f16(&p->bits, a); }
  static inline void store(bf16* p, F a) { store_bf16(&p->bits, a); }
  static inline void stream(float* p, F a) { _mm512_stream_ps(p, a); }
  // 16 bits fill half a line or less at a time: past the caches that was measured slower than through them.
  static inline void stream(f16* p, F a) { store(p, a); }
  static inline void stream(bf16* p, F a) { store(p, a); }
  static inline void fence() { _mm_sfence(); }
  static inline void stream_bytes(void* to, const void* from, std::int64_t n) {
    for (std::int64_t i = 0; i < n; i += 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(static_cast<char*>(to) + i),
                          _mm512_loadu_si512(static_cast<const char*>(from) + i));
    }
  }
  static inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static inline F load_part(const float* p, int n, F fill) { return _mm512_mask_loadu_ps(fill, first(n), p); }
  static inline F load_part(const f16* p, int n, F fill) {
    return _mm512_mask_blend_ps(first(n), fill, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)));
  }
  static inline F load_part(const bf16* p, int n, F fill) {
    return _mm512_mask_blend_ps(first(n), fill, from_bf16(_mm256_maskz_loadu_epi16(first(n), p)));
  }
  static inline void store_part(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
  static inline void store_part(f16* p, F a, int n) { _mm256_mask_storeu_epi16(p, first(n), to_f16(a)); }
  static inline void store_part(bf16* p, F a, int n) { _mm256_mask_storeu_epi16(p, first(n), to_bf16(a)); }
  static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
  static inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static inline F div(F a, F b) { return _mm512_div_ps(a, b); }
  static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
  static inline F clamp(F a, F lo, F hi) { return _mm512_min_ps(_mm512_max_ps(a, lo), hi); }
  static inline F min(F a, F b) { return _mm512_min_ps(a, b); }
  static inline F load_bytes(const std::uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static inline F keep(F m, F a) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(m, _mm512_setzero_ps(), _CMP_NEQ_OQ), a);
  }
  // b where a is 0
  static inline F if_zero(F a, F b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_EQ_OQ), a, b);
  }
  // exp(a) = 2^n exp(r), |r| <= ln 2 / 2, by the polynomial of Cephes' expf.
  static inline F exp(F a) {
    const F x = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-104.0f), a));  // NaN stays
    const F n = _mm512_roundscale_ps(_mm512_mul_ps(x, set(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    F r = _mm512_fnmadd_ps(n, set(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, set(-2.12194440e-4f), r);
    F y = set(1.9875691500e-4f);
    y = fma(y, r, set(1.3981999507e-3f));
    y = fma(y, r, set(8.3334519073e-3f));
    y = fma(y, r, set(4.1665795894e-2f));
    y = fma(y, r, set(1.6666665459e-1f));
    y = fma(y, r, set(5.0000001201e-1f));
    y = fma(y, mul(r, r), add(r, set(1.0f)));
    return _mm512_scalef_ps(y, n);
  }
  static inline F exp_bounded(F a) { return exp(a); }
  static inline float sum(F a) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
  }
};
