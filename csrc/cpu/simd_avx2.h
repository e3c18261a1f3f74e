// V: eight lanes of AVX2 + FMA + F16C. Included inside a namespace, under that target.
struct V : Lanes {
  static constexpr int kPermuteLanes = 8;
  static constexpr int kByteLanes = 8;
  static inline F from_u8(const std::uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static inline F from_u16(const std::uint16_t* p, int shift) {
    const __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_cvtepi32_ps(_mm256_srl_epi32(v, _mm_cvtsi32_si128(shift)));
  }
  // Lane i is p[index[i]]; the indices reach 8 floats with one register, 16 with two.
  static inline F permute(const float* p, const std::int32_t* index, int registers) {
    const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
    const F low = _mm256_permutevar8x32_ps(load(p), at);
    if (registers == 1) return low;
    const F high = _mm256_permutevar8x32_ps(load(p + 8), at);  // takes the index modulo 8
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));  // bit 3 to the sign
  }
  // Four vectors as 32 bytes, saturated.
  static inline void store_u8x4(std::uint8_t* p, F a, F b, F c, F d) {
    const __m256i ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    const __m256i cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work inside 128-bit halves
    const __m256i v = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
  // a0 b0 a1 b1 ...
  static inline void store_interleaved(float* p, F a, F b) {
    const F low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    store(p, _mm256_permute2f128_ps(low, high, 0x20));
    store(p + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
  static inline F load_pair(const float* a, const float* b) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
  }
  // Outputs i and i + 4 share a vector, 4 taps each: see dot_layout in frames_plan.cpp.
  template <int kChunks>
  static inline void dot_group(const float* src, const int* start, const float* w, int chunks, float* dst) {
    if (kChunks) chunks = kChunks;
    F sum[4];
    for (int j = 0; j < 4; ++j) sum[j] = mul(load_pair(src + start[j], src + start[j + 4]), load(w + 8 * j));
    for (int c = 1; c < chunks; ++c) {
      w += 32;
      for (int j = 0; j < 4; ++j) {
        sum[j] = fma(load_pair(src + start[j] + 4 * c, src + start[j + 4] + 4 * c), load(w + 8 * j), sum[j]);
      }
    }
    // Sums of four lanes by unpacking: half the operations of horizontal adds.
    const F a = add(_mm256_unpacklo_ps(sum[0], sum[1]), _mm256_unpackhi_ps(sum[0], sum[1]));
    const F b = add(_mm256_unpacklo_ps(sum[2], sum[3]), _mm256_unpackhi_ps(sum[2], sum[3]));
    store(dst, add(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee)));
  }
  template <int kChunks>
  static inline void dot_loop(const float* src, const HorizontalFilter& f, float* dst) {
    const int chunks = f.taps / 4;
    const float* w = f.weight.data();
    for (int i = 0; i < f.size; i += 8, w += 32 * chunks) {
      dot_group<kChunks>(src, &f.start[i], w, chunks, dst + i);
    }
  }
  static void dot(const float* src, const HorizontalFilter& f, float* dst) {
    switch (f.taps / 4) {
      case 1:
        return dot_loop<1>(src, f, dst);
      case 2:
        return dot_loop<2>(src, f, dst);
      case 3:
        return dot_loop<3>(src, f, dst);
      default:
        return dot_loop<0>(src, f, dst);
    }
  }
  // A byte shuffle picks the inputs of 8 outputs and widens them at once; each half has a window of its own.
  template <int kTaps>
  static inline void bytes_loop(const std::uint8_t* src, const std::uint8_t* next, const HorizontalFilter& f,
                                float* dst) {
    const int taps = kTaps ? kTaps : f.taps;
    const std::int8_t* bytes = f.bytes.data();
    const float* weight = f.weight.data();
    for (int i = 0, g = 0; i < f.size; i += 8, g += 2) {
      MMCORE_PREFETCH(next + f.start[g]);
      const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + f.start[g]));
      const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + f.start[g + 1]));
      const __m256i window = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
      auto input = [&](int k) {
        const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32 * k));
        return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(window, at));
      };
      F sum = mul(input(0), load(weight));
      for (int k = 1; k < taps; ++k) sum = fma(input(k), load(weight + 8 * k), sum);
      store(dst + i, sum);
      bytes += 32 * taps;
      weight += 8 * taps;
    }
  }
  static void horizontal_bytes(const std::uint8_t* src, const std::uint8_t* next, const HorizontalFilter& f,
                               float* dst) {
    switch (f.taps) {
      case 2:
        return bytes_loop<2>(src, next, f, dst);
      case 3:
        return bytes_loop<3>(src, next, f, dst);
      case 4:
        return bytes_loop<4>(src, next, f, dst);
      case 5:
        return bytes_loop<5>(src, next, f, dst);
      case 6:
        return bytes_loop<6>(src, next, f, dst);
      default:
        return bytes_loop<0>(src, next, f, dst);
    }
  }
  // 8 sums to bytes: rounded, shifted, clamped.
  static inline void store_fixed(std::uint8_t* p, __m256i sum, __m128i shift) {
    const __m256i v = _mm256_sra_epi32(sum, shift);
    const __m256i b = _mm256_packus_epi16(_mm256_packs_epi32(v, v), v);
    const int low = _mm_cvtsi128_si32(_mm256_castsi256_si128(b));
    const int high = _mm_cvtsi128_si32(_mm256_extracti128_si256(b, 1));
    std::memcpy(p, &low, 4);
    std::memcpy(p + 4, &high, 4);
  }
  static inline void bytes_windows(const std::uint8_t* src, const BytesFilter& f, std::uint8_t* dst) {
    const __m256i half = _mm256_set1_epi32(1 << (f.precision - 1));
    const __m128i shift = _mm_cvtsi32_si128(f.precision);
    const int pairs = (f.taps + 1) / 2;
    const std::int8_t* bytes = f.bytes.data();
    const std::int16_t* weight = f.weight.data();
    for (int i = 0, g = 0; i < f.size; i += 8, g += 2) {
      const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + f.start[g]));
      const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + f.start[g + 1]));
      const __m256i window = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
      __m256i sum = half;
      for (int k = 0; k < pairs; ++k, bytes += 32, weight += 16) {
        const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(window, at), w));
      }
      store_fixed(dst + i, sum, shift);
    }
  }
  static inline __m256i bytes_dot(const std::uint8_t* x, const std::int16_t* w, int taps) {
    __m256i sum = _mm256_setzero_si256();
    for (int k = 0; k < taps; k += 16) {
      const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + k)));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(v, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + k))));
    }
    return sum;
  }
  static void bytes_horizontal(const std::uint8_t* src, const BytesFilter& f, std::uint8_t* dst) {
    if (f.windows) return bytes_windows(src, f, dst);
    const __m128i half = _mm_set1_epi32(1 << (f.precision - 1)), shift = _mm_cvtsi32_si128(f.precision);
    for (int i = 0; i < f.size; i += 4) {
      __m256i s[4];
      for (int j = 0; j < 4; ++j) {
        s[j] = bytes_dot(src + f.start[i + j], &f.weight[static_cast<std::size_t>(i + j) * f.taps], f.taps);
      }
      const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
      __m128i v = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
      v = _mm_sra_epi32(_mm_add_epi32(v, half), shift);
      v = _mm_packus_epi16(_mm_packs_epi32(v, v), v);
      const int four = _mm_cvtsi128_si32(v);
      std::memcpy(dst + i, &four, 4);
    }
  }
  // Rows of padded scratch, whole vectors. Two rows at a time: their bytes side by side, one multiply-add each.
  static void bytes_vertical(const std::uint8_t* const* rows, const std::int16_t* weight, int taps, int precision,
                             std::uint8_t* dst, int n) {
    const __m256i half = _mm256_set1_epi32(1 << (precision - 1));
    const __m128i shift = _mm_cvtsi32_si128(precision), none = _mm_setzero_si128();
    for (int x = 0; x < n; x += 16) {
      __m256i low = half, high = half;
      for (int k = 0; k < taps; k += 2) {
        const bool two = k + 1 < taps;
        const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[k] + x));
        const __m128i b = two ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[k + 1] + x)) : none;
        const std::int16_t pair[2] = {weight[k], two ? weight[k + 1] : std::int16_t{0}};
        std::int32_t both;
        std::memcpy(&both, pair, 4);
        const __m256i w = _mm256_set1_epi32(both);
        low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)), w));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b)), w));
      }
      store_fixed(dst + x, low, shift);
      store_fixed(dst + x + 8, high, shift);
    }
  }
};
