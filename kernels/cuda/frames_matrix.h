// The frames kernel of matrix products: both passes of the resize run on the tensor cores, in 16-bit floats without
// loss. A block makes 16 output rows of a tile of columns:
//
//   vertical    V (16 rows x 64 columns) = weights (16 x 16 input rows) * samples (16 x 64), chunk by chunk of input
//               rows; a warp does a group of 64 samples of a plane. A sample of up to 10 bits is, as it stands, a
//               16-bit float below the normal ones, 2^-24 times its value: it needs no conversion. A weight is the
//               sum of two 16-bit floats (22 bits), so there are two products; sums are float32.
//   horizontal  out (16 x 8 columns) = V (16 x 16 columns) * weights (16 x 8), V being hi + lo from shared memory: three
//               products (lo * lo is below the last bit). A warp does an octet of columns, all components, converts
//               and stores.
#pragma once

#include "frames_warp.h"

namespace mmcore::cuda {

struct Sums {
  float v[4];
};

#if !defined(__CUDACC__)
// One entry of a fragment's register.
inline float fragment_entry(std::uint32_t r, int i) { return half_to_float(static_cast<std::uint16_t>(r >> 16 * i)); }
#endif

// c (16 x 8) += a (16 x 16) * b (16 x 8); b0 and b1 are b's two registers.
MMCORE_DEVICE void multiply_add(Lanes<Sums>& c, const Lanes<uint4>& a, const Lanes<std::uint32_t>& b0,
                                const Lanes<std::uint32_t>& b1) {
#if defined(__CUDACC__)
#if __CUDA_ARCH__ >= 800
  float* v = c.value[0].v;
  const uint4& r = a.value[0];
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
      : "r"(r.x), "r"(r.y), "r"(r.z), "r"(r.w), "r"(b0.value[0]), "r"(b1.value[0]));
#elif __CUDA_ARCH__ >= 750
  float* v = c.value[0].v;
  const uint4& r = a.value[0];
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
      : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
      : "r"(r.x), "r"(r.y), "r"(b0.value[0]));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
      : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
      : "r"(r.z), "r"(r.w), "r"(b1.value[0]));
#endif
#else
  float left[16][16], right[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, q = lane % 4;
    const std::uint32_t r[4] = {a[lane].x, a[lane].y, a[lane].z, a[lane].w};
    for (int i = 0; i < 4; ++i) {
      for (int h = 0; h < 2; ++h) left[g + 8 * (i % 2)][2 * q + 8 * (i / 2) + h] = fragment_entry(r[i], h);
    }
    for (int h = 0; h < 2; ++h) {
      right[2 * q + h][g] = fragment_entry(b0[lane], h);
      right[2 * q + 8 + h][g] = fragment_entry(b1[lane], h);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int y = lane / 4 + 8 * (i / 2), x = 2 * (lane % 4) + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += left[y][k] * right[k][x];
      c[lane].v[i] += sum;
    }
  }
#endif
}

// Two floats as the nearest 16-bit floats and what is left of them, as 16-bit floats too.
MMCORE_DEVICE void split(float a, float b, std::uint32_t& hi, std::uint32_t& lo) {
#if defined(__CUDACC__)
  const __half2 h = __floats2half2_rn(a, b);
  const float2 back = __half22float2(h);
  const __half2 l = __floats2half2_rn(a - back.x, b - back.y);
  hi = *reinterpret_cast<const std::uint32_t*>(&h);
  lo = *reinterpret_cast<const std::uint32_t*>(&l);
#else
  const std::uint16_t h[2] = {float_to_half(a), float_to_half(b)};
  hi = static_cast<std::uint32_t>(h[0]) | static_cast<std::uint32_t>(h[1]) << 16;
  lo = static_cast<std::uint32_t>(float_to_half(a - half_to_float(h[0]))) |
       static_cast<std::uint32_t>(float_to_half(b - half_to_float(h[1]))) << 16;
#endif
}

// 8 samples of a row, all of them there and aligned to their size.
template <int kBytes>
MMCORE_DEVICE void load_samples(const std::uint8_t* from, std::uint32_t* words) {
#if defined(__CUDACC__)
  if constexpr (kBytes == 16) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(from));
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else {
    const uint2 v = __ldg(reinterpret_cast<const uint2*>(from));
    words[0] = v.x, words[1] = v.y;
  }
#else
  std::memcpy(words, from, kBytes);
#endif
}

// ... `valid` bytes of them, zeros for the others; aligned anyhow.
template <int kBytes>
MMCORE_DEVICE void load_some_samples(const std::uint8_t* from, int valid, std::uint32_t* words) {
#pragma unroll
  for (int w = 0; w < kBytes / 4; ++w) {
    std::uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (4 * w + i < valid) word |= static_cast<std::uint32_t>(load(from + 4 * w + i)) << 8 * i;
    }
    words[w] = word;
  }
}

// 16 bytes to shared memory at once.
MMCORE_DEVICE void store_shared(std::uint16_t* to, std::uint32_t x, std::uint32_t y, std::uint32_t z, std::uint32_t w) {
#if defined(__CUDACC__)
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"r"(address), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
#else
  const std::uint32_t v[4] = {x, y, z, w};
  std::memcpy(to, v, sizeof(v));
#endif
}

struct MatrixBlock {
  const FramesTables* t;
  const FrameDesc* f;
  const MatrixTile* tile;
  int row_tile;
};

MMCORE_DEVICE MatrixBlock matrix_block(const FrameDesc& f, int block) {
  const FramesTables& t = *reinterpret_cast<const FramesTables*>(f.tables);
  const int index = block - f.first_block;
  return {&t, &f, table<MatrixTile>(f.tables, t.matrix_tiles) + index % t.num_matrix_tiles, index / t.num_matrix_tiles};
}

// Where a component's rows lie in shared memory: hi, and lo kMatrixRows rows further on.
MMCORE_DEVICE int component_at(const MatrixBlock& b, int component) {
  if (component == 0) return 0;
  const int luma = 2 * kMatrixRows * matrix_pitch(*b.tile, 0, 1), axis = b.t->chroma_axis;
  return luma + (component == 1 ? 0 : 2 * kMatrixRows * matrix_pitch(*b.tile, axis, b.t->step[1]));
}

// Input rows of some chunks as a lane holds them: rows 2 q, 2 q + 1, 2 q + 8, 2 q + 9 of each, 8 samples of each.
template <typename T>
struct MatrixRows {
  static constexpr int kChunks = sizeof(T) == 1 ? 3 : 2;  // more would not fit the registers
  Lanes<std::uint32_t[4][2 * sizeof(T)]> words[kChunks];
};

// Where a warp's samples are.
template <typename T>
struct MatrixSource {
  Lanes<const std::uint8_t*> from;  // of the chunks' first row
  Lanes<int> valid;  // bytes of 8 samples that are inside the row
  std::int64_t pitch;
  int rows;  // from the first on that exist
  bool whole;  // all lanes' samples exist and are aligned
};

template <typename T>
MMCORE_DEVICE void matrix_fetch(const MatrixSource<T>& s, int chunk, int chunks, MatrixRows<T>& to) {
  constexpr int kBytes = 8 * static_cast<int>(sizeof(T));
#pragma unroll
  for (int c = 0; c < MatrixRows<T>::kChunks; ++c) {
    if (chunk + c >= chunks) break;
    MMCORE_EACH_LANE(lane) {
      const int row = 16 * (chunk + c) + 2 * (lane % 4);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        // rows after the last have weights of 0, but must exist
        const int at = row + 8 * (r / 2) + r % 2;
        const std::uint8_t* from = s.from[lane] + (at < s.rows ? at : s.rows - 1) * s.pitch;
        if (s.whole) {
          load_samples<kBytes>(from, to.words[c][lane][r]);
        } else {
          load_some_samples<kBytes>(from, s.valid[lane], to.words[c][lane][r]);
        }
      }
    }
  }
}

template <typename T>
MMCORE_DEVICE void matrix_add(const MatrixRows<T>& rows, const uint4* weights, int chunk, int chunks, int shift,
                              std::uint32_t mask, Lanes<Sums>* sum) {
#pragma unroll
  for (int c = 0; c < MatrixRows<T>::kChunks; ++c) {
    if (chunk + c >= chunks) break;
    Lanes<uint4> hi, lo;
    MMCORE_EACH_LANE(lane) {
      hi[lane] = load(weights + (chunk + c) * 64 + lane);
      lo[lane] = load(weights + (chunk + c) * 64 + 32 + lane);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      Lanes<std::uint32_t> b0, b1;
      MMCORE_EACH_LANE(lane) {
        const auto& w = rows.words[c][lane];
        if constexpr (sizeof(T) == 1) {
          // bytes of two rows in turn, then each to 16 bits
          const unsigned pairs = j % 4 < 2 ? 0x5140u : 0x7362u, widen = j % 2 ? 0x4342u : 0x4140u;
          b0[lane] = permute(permute(w[0][j / 4], w[1][j / 4], pairs), 0, widen);
          b1[lane] = permute(permute(w[2][j / 4], w[3][j / 4], pairs), 0, widen);
        } else {
          const unsigned pick = j % 2 ? 0x7632u : 0x5410u;
          b0[lane] = permute(w[0][j / 2], w[1][j / 2], pick) >> shift & mask;
          b1[lane] = permute(w[2][j / 2], w[3][j / 2], pick) >> shift & mask;
        }
      }
      multiply_add(sum[j], lo, b0, b1);
      multiply_add(sum[j], hi, b0, b1);
    }
  }
}

// 8 sums as hi at `to` and lo at `to + apart`.
MMCORE_DEVICE void put_split(std::uint16_t* to, int apart, const float v[8]) {
  std::uint32_t hi[4], lo[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) split(v[2 * i], v[2 * i + 1], hi[i], lo[i]);
  store_shared(to, hi[0], hi[1], hi[2], hi[3]);
  store_shared(to + apart, lo[0], lo[1], lo[2], lo[3]);
}

// A warp's groups of samples: V's 16 rows of them to shared memory.
template <typename T>
MMCORE_DEVICE void matrix_vertical(const MatrixBlock& b, std::uint16_t* shared, int warp, int warps) {
  constexpr int kBytes = 8 * static_cast<int>(sizeof(T));
  const FramesTables& t = *b.t;
  int task = warp;
#pragma unroll 1
  for (int plane = 0; plane < t.num_planes; ++plane) {
    const int component = t.plane[0] == plane ? 0 : t.plane[1] == plane ? 1 : 2;
    const int axis = component ? t.chroma_axis : 0, step = t.step[component];
    const int groups = b.tile->groups[axis];
    if (task >= groups) {
      task -= groups;
      continue;
    }
    const int sample0 = b.tile->column0[axis] * step, samples = t.plane_samples[plane];
    const MatrixTable& m = t.matrix_table[axis];
    const int first = load(table<std::int32_t>(b.f->tables, m.row_first) + b.row_tile);
    const int chunk0 = load(table<std::int32_t>(b.f->tables, m.row_chunk) + b.row_tile);
    const int chunks = load(table<std::int32_t>(b.f->tables, m.row_chunk) + b.row_tile + 1) - chunk0;
    const uint4* weights = table<uint4>(b.f->tables, m.row_weight) + chunk0 * 64;
    const int pitch_out = matrix_pitch(*b.tile, axis, step), apart = kMatrixRows * pitch_out, shift = t.shift;
    // interleaved: which of the two components comes first
    const int other = step == 1 ? 0 : t.offset[1] == 0 ? 2 : 1, own = step == 1 ? component : 3 - other;
    std::uint16_t* const to_own = shared + component_at(b, own);
    std::uint16_t* const to_other = shared + component_at(b, other);
    const std::uint32_t mask = static_cast<std::uint32_t>(t.sample_mask & 0x3ff) * 0x10001u;
    const std::uint8_t* const base = b.f->planes[plane] + first * b.f->pitches[plane];
    MatrixSource<T> source;
    source.pitch = b.f->pitches[plane];
    source.rows = t.plane_rows[plane] - first;
#pragma unroll 1
    for (; task < groups; task += warps) {
      Lanes<Sums> sum[8];
      Lanes<bool> whole;
      MMCORE_EACH_LANE(lane) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[j][lane].v[i] = 0;
        }
        const int sample = sample0 + task * kMatrixGroup + lane / 4 * 8;
        source.from[lane] = base + static_cast<std::int64_t>(sample) * sizeof(T);
        source.valid[lane] = (samples - sample) * static_cast<int>(sizeof(T));
        whole[lane] = source.valid[lane] >= kBytes &&
                      ((reinterpret_cast<std::uintptr_t>(source.from[lane]) | source.pitch) & (kBytes - 1)) == 0;
      }
      source.whole = all_lanes(whole);
#pragma unroll 1
      for (int c = 0; c < chunks; c += MatrixRows<T>::kChunks) {
        MatrixRows<T> rows;
        matrix_fetch(source, c, chunks, rows);
        matrix_add(rows, weights, c, chunks, shift, mask, sum);
      }
      // Column n of product j is the group's sample 8 n + j: a lane holds samples 16 q ... 16 q + 15 of rows g, g + 8.
      MMCORE_EACH_LANE(lane) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float v[16];
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            v[j] = sum[j][lane].v[2 * half];
            v[8 + j] = sum[j][lane].v[2 * half + 1];
          }
          const int at = (lane / 4 + 8 * half) * pitch_out;
          if (step == 1) {
            std::uint16_t* to = to_own + at + task * kMatrixGroup + lane % 4 * 16;
            put_split(to, apart, v);
            put_split(to + 8, apart, v + 8);
          } else {
            const float first_of[8] = {v[0], v[2], v[4], v[6], v[8], v[10], v[12], v[14]};
            const float second_of[8] = {v[1], v[3], v[5], v[7], v[9], v[11], v[13], v[15]};
            const int column = task * (kMatrixGroup / 2) + lane % 4 * 8;
            put_split(to_own + at + column, apart, first_of);
            put_split(to_other + at + column, apart, second_of);
          }
        }
      }
    }
    task -= groups;
  }
}

// One component's product at an octet of columns.
MMCORE_DEVICE void matrix_octet(const MatrixBlock& b, const std::uint16_t* shared, int component, int octet,
                                Lanes<Sums>& sum) {
  const FramesTables& t = *b.t;
  const int axis = component ? t.chroma_axis : 0;
  const MatrixTable& m = t.matrix_table[axis];
  const int chunk0 = load(table<std::int32_t>(b.f->tables, m.column_chunk) + octet);
  const int chunks = load(table<std::int32_t>(b.f->tables, m.column_chunk) + octet + 1) - chunk0;
  const int column = load(table<std::int32_t>(b.f->tables, m.column_first) + octet) - b.tile->column0[axis];
  const int pitch = matrix_pitch(*b.tile, axis, t.step[component]);
  const std::uint16_t* from = shared + component_at(b, component) + column;
  const uint4* weights = table<uint4>(b.f->tables, m.column_weight) + chunk0 * 32;
  MMCORE_EACH_LANE(lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[lane].v[i] = 0;
  }
#pragma unroll 2
  for (int c = 0; c < chunks; ++c) {
    Lanes<uint4> hi, lo;
    Lanes<std::uint32_t> w[4];
    load_fragment(hi, from + 16 * c, 2 * pitch);
    load_fragment(lo, from + 16 * c + kMatrixRows * pitch, 2 * pitch);
    MMCORE_EACH_LANE(lane) {
      const uint4 v = load(weights + c * 32 + lane);
      w[0][lane] = v.x;
      w[1][lane] = v.y;
      w[2][lane] = v.z;
      w[3][lane] = v.w;
    }
    multiply_add(sum, lo, w[0], w[1]);
    multiply_add(sum, hi, w[2], w[3]);
    multiply_add(sum, hi, w[0], w[1]);
  }
}

// A warp's octets: the products of all components, then values, stored.
MMCORE_DEVICE void matrix_horizontal(const MatrixBlock& b, const std::uint16_t* shared, const OutputDesc& out, int warp,
                                     int warps) {
  const FramesTables& t = *b.t;
  const bool gray = t.family == static_cast<int>(ColorFamily::kGray);
  for (int octet = b.tile->octet0 + warp; octet < b.tile->octet1; octet += warps) {
    Lanes<Sums> sum[3];
    matrix_octet(b, shared, 0, octet, sum[0]);
    if (!gray) {
      matrix_octet(b, shared, 1, octet, sum[1]);
      matrix_octet(b, shared, 2, octet, sum[2]);
    }
    Levels levels = levels_of(t);
    const float luma = load(&t.matrix_table[0].scale), chroma = load(&t.matrix_table[t.chroma_axis].scale);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      levels.m[c][0] *= luma;
      levels.m[c][1] *= chroma;
      levels.m[c][2] *= chroma;
    }
    const bool finish = load(&t.finish_bytes) != 0, patches = out.patch_size > 0;
    MMCORE_EACH_LANE(lane) {
      const int x = octet * 8 + lane % 4 * 2, y = b.row_tile * kMatrixRows + lane / 4;
      with_dtype(t.dtype, [&](auto* type) {
        const Slot slot = slot_of(out, t.out_h, t.out_w, b.f->slot, y, x);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (x + i % 2 >= t.out_w || y + 8 * (i / 2) >= t.out_h) continue;
          const float in[3] = {sum[0][lane].v[i], gray ? 0.0f : sum[1][lane].v[i], gray ? 0.0f : sum[2][lane].v[i]};
          float v[3];
          to_levels(levels, in, v);
          const std::int64_t at = patches ? slot_of(out, t.out_h, t.out_w, b.f->slot, y + 8 * (i / 2), x + i % 2).at
                                          : slot.at + i % 2 * out.pixel_stride + 8 * (i / 2) * out.row_stride;
          auto* to = reinterpret_cast<decltype(type)>(out.data) + at;
#pragma unroll
          for (int c = 0; c < 3; ++c) put(to + c * slot.channel, finish ? finish_byte(t, c, v[c]) : v[c]);
        }
      });
    }
  }
}

}  // namespace mmcore::cuda
