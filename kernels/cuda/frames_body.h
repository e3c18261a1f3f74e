// What the threads of the frames kernels do, in phases between which a block synchronises. Compiled by nvcc for
// devices and, for the tests, by any C++ compiler, which runs the phases thread by thread.
//
// Two ways from planes to values:
//   gather     a thread makes one output pixel from all the samples that it depends on. Any format and scale.
//   streaming  shrinking by 1.5 and more reads every sample once: a thread owns a group of neighbouring samples of
//              a plane and goes down its rows, each converted to float once and added, times a weight, to the
//              outputs that it counts for (2 or 3 for bilinear, 4 or 5 for bicubic), which stay in registers.
//              Finished sums go to shared memory as rows; after every kStageRows of them the block filters them
//              horizontally, converts and stores. Rows come through a ring in shared memory, filled by asynchronous
//              copies kRing rows ahead, each thread copying what it reads itself.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "frames.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define MMCORE_DEVICE __device__ __forceinline__
#else
#include "half.h"
#define MMCORE_DEVICE inline
struct float4 {
  float x, y, z, w;
};
#endif

namespace mmcore::cuda {

#if !defined(MMCORE_STREAM_ROWS)
#define MMCORE_STREAM_ROWS 4
#endif
#if !defined(MMCORE_STREAM_RING)
#define MMCORE_STREAM_RING 6
#endif
constexpr int kStageRows = MMCORE_STREAM_ROWS;
constexpr int kRing = MMCORE_STREAM_RING;  // with these a block of 1080p fits the 99 KB of consumer devices

// A frame as a kernel sees it. Streaming: its blocks are first_block + (strip * num_tiles + tile).
struct FrameDesc {
  const std::uint8_t* planes[3];
  const std::uint8_t* tables;
  std::int64_t pitches[3];
  std::int32_t slot;
  std::int32_t first_block;
};

// By value in the kernel's parameters, so that a launch needs no copy to the device.
template <int kFrames>
struct FrameBatch {
  OutputDesc out;
  std::int32_t count = 0;
  std::int32_t strip_rows = 0;
  FrameDesc frames[kFrames];
};

template <typename T>
MMCORE_DEVICE const T* table(const std::uint8_t* tables, std::int32_t offset) {
  return reinterpret_cast<const T*>(tables + offset);
}

template <typename T>
MMCORE_DEVICE T load(const T* p) {
#if defined(__CUDA_ARCH__)
  return __ldg(p);
#else
  return *p;
#endif
}

MMCORE_DEVICE float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);  // never fused with an addition: bytes must round as on the CPU
#else
  return a * b;
#endif
}

MMCORE_DEVICE float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

MMCORE_DEVICE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fmaf(a, b, c);
#endif
}

MMCORE_DEVICE float clamped(float v, float lo, float hi) { return fminf(fmaxf(v, lo), hi); }

#if defined(__CUDACC__)
using Half = __half;
using BFloat16 = __nv_bfloat16;
MMCORE_DEVICE void put(Half* p, float v) { *p = __float2half_rn(v); }
MMCORE_DEVICE void put(BFloat16* p, float v) { *p = __float2bfloat16_rn(v); }
#else
using Half = f16;
using BFloat16 = bf16;
MMCORE_DEVICE void put(Half* p, float v) { p->bits = float_to_half(v); }
MMCORE_DEVICE void put(BFloat16* p, float v) { p->bits = float_to_bfloat16(v); }
#endif
MMCORE_DEVICE void put(std::uint8_t* p, float v) { *p = static_cast<std::uint8_t>(v); }
MMCORE_DEVICE void put(float* p, float v) { *p = v; }

// Calls body(null pointer of the element type).
template <typename Body>
MMCORE_DEVICE void with_dtype(int dtype, Body body) {
  switch (static_cast<DType>(dtype)) {
    case DType::kU8:
      return body(static_cast<std::uint8_t*>(nullptr));
    case DType::kF16:
      return body(static_cast<Half*>(nullptr));
    case DType::kBF16:
      return body(static_cast<BFloat16*>(nullptr));
    default:
      return body(static_cast<float*>(nullptr));
  }
}

// The affine to values, fetched once: what is stored might be what is read, for all the compiler knows.
struct Levels {
  float m[3][3], b[3], lo[3], hi[3];
  bool round_bytes;
};

MMCORE_DEVICE Levels levels_of(const FramesTables& t) {
  const float* from = &t.m[0][0];  // and on through b, lo and hi
  const float4* quads = reinterpret_cast<const float4*>(from);
  const float4 v0 = load(quads), v1 = load(quads + 1), v2 = load(quads + 2), v3 = load(quads + 3);
  Levels a{{{v0.x, v0.y, v0.z}, {v0.w, v1.x, v1.y}, {v1.z, v1.w, v2.x}},
           {v2.y, v2.z, v2.w},
           {v3.x, v3.y, v3.z},
           {v3.w, load(&t.hi[1]), load(&t.hi[2])},
           load(&t.round_bytes) != 0};
  if (a.round_bytes) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      a.lo[c] = 0.0f;
      a.hi[c] = 255.0f;
    }
  }
  return a;
}

// Three components of one pixel through it, in the order of the CPU's kernels.
MMCORE_DEVICE void to_levels(const Levels& a, const float in[3], float out[3]) {
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    if (a.round_bytes) {
      const float sum = multiply(in[0], a.m[c][0]) + multiply(in[1], a.m[c][1]) + multiply(in[2], a.m[c][2]) + a.b[c];
      out[c] = clamped(rintf(sum), a.lo[c], a.hi[c]);
    } else {
      const float sum = fused(in[2], a.m[c][2], fused(in[1], a.m[c][1], fused(in[0], a.m[c][0], a.b[c])));
      out[c] = clamped(sum, a.lo[c], a.hi[c]);
    }
  }
}

MMCORE_DEVICE float finish_byte(const FramesTables& t, int c, float byte) {
  if (!t.finish_bytes) return byte;
  return t.scale_only ? multiply(byte, t.scale) : divide(byte - t.sub[c], t.div[c]);
}

// Where a pixel's first value goes, and the distance to its other two.
struct Slot {
  std::int64_t at, channel;
};

MMCORE_DEVICE Slot slot_of(const OutputDesc& out, int out_h, int out_w, std::int64_t frame, int y, int x) {
  if (out.patch_size == 0) {
    return {frame * out.frame_stride + y * out.row_stride + x * out.pixel_stride, out.channel_stride};
  }
  const int p = out.patch_size, tp = out.temporal_patch_size, m = out.merge_size;
  const int grid_h = out_h / p, grid_w = out_w / p, py = y / p, px = x / p;
  const std::int64_t row =
      ((frame / tp * grid_h * grid_w) + ((py / m * (grid_w / m) + px / m) * m + py % m) * m + px % m);
  return {row * (3 * tp * p * p) + (frame % tp * p + y % p) * p + x % p, static_cast<std::int64_t>(tp) * p * p};
}

MMCORE_DEVICE void store_pixel(const FramesTables& t, const OutputDesc& out, std::int64_t frame, int y, int x,
                               const float v[3]) {
  const Slot s = slot_of(out, t.out_h, t.out_w, frame, y, x);
  with_dtype(t.dtype, [&](auto* type) {
    auto* to = reinterpret_cast<decltype(type)>(out.data) + s.at;
    for (int c = 0; c < 3; ++c, to += s.channel) put(to, v[c]);
  });
}

MMCORE_DEVICE float sample(const FramesTables& t, const std::uint8_t* row, int i) {
  if (t.sample_bytes == 1) return static_cast<float>(load(row + i));
  const std::uint32_t v = load(reinterpret_cast<const std::uint16_t*>(row) + i);
  return static_cast<float>(v >> t.shift);
}

// --- gather

// kCount components that share an axis, at one output.
template <int kCount>
MMCORE_DEVICE void gather_components(const FramesTables& t, const FrameDesc& f, int axis, int first, int y, int x,
                                     float* value) {
  const AxisTable &rows = t.rows[axis], &columns = t.columns[axis];
  const int y0 = load(table<std::int32_t>(f.tables, rows.start) + y);
  const int ny = load(table<std::int32_t>(f.tables, rows.count) + y);
  const int x0 = load(table<std::int32_t>(f.tables, columns.start) + x);
  const int nx = load(table<std::int32_t>(f.tables, columns.count) + x);
  const float* row_weight = table<float>(f.tables, rows.weight) + static_cast<std::int64_t>(y) * rows.most;
  const float* column_weight = table<float>(f.tables, columns.weight) + x;
  for (int c = 0; c < kCount; ++c) value[c] = 0;
  for (int i = 0; i < ny; ++i) {
    float sum[kCount];
    for (int c = 0; c < kCount; ++c) sum[c] = 0;
    for (int j = 0; j < nx; ++j) {
      const float w = load(column_weight + static_cast<std::int64_t>(j) * t.convert_columns);
      for (int c = 0; c < kCount; ++c) {
        const int k = first + c, p = t.plane[k];
        const std::uint8_t* row = f.planes[p] + (y0 + i) * f.pitches[p];
        sum[c] = fused(w, sample(t, row, (x0 + j) * t.step[k] + t.offset[k]), sum[c]);
      }
    }
    const float w = load(row_weight + i);
    for (int c = 0; c < kCount; ++c) value[c] = fused(w, sum[c], value[c]);
  }
}

MMCORE_DEVICE void gather_pixel(const FramesTables& t, const FrameDesc& f, int y, int x, float out[3]) {
  float in[3];
  if (t.family == static_cast<int>(ColorFamily::kGray)) {
    gather_components<1>(t, f, 0, 0, y, x, in);
    in[1] = in[2] = 0;  // their coefficients are 0
  } else if (t.chroma_axis) {
    gather_components<1>(t, f, 0, 0, y, x, in);
    gather_components<2>(t, f, 1, 1, y, x, in + 1);
  } else {
    gather_components<3>(t, f, 0, 0, y, x, in);
  }
  to_levels(levels_of(t), in, out);
}

MMCORE_DEVICE void gather(const FramesTables& t, const FrameDesc& f, const OutputDesc& out, int y, int x) {
  float v[3];
  gather_pixel(t, f, y, x, v);
  for (int c = 0; c < 3; ++c) v[c] = finish_byte(t, c, v[c]);
  store_pixel(t, out, f.slot, y, x, v);
}

// --- the resize on bytes, in three launches: RGB of the region, (3, rows, columns); horizontally, (3, rows, out_w);
// vertically, to the result

MMCORE_DEVICE void region_rgb(const FramesTables& t, const FrameDesc& f, std::uint8_t* rgb, int y, int x) {
  float v[3];
  gather_pixel(t, f, y, x, v);
  const std::int64_t size = static_cast<std::int64_t>(t.bytes_table.rows) * t.bytes_table.columns;
  for (int c = 0; c < 3; ++c) {
    rgb[c * size + static_cast<std::int64_t>(y) * t.bytes_table.columns + x] = static_cast<std::uint8_t>(v[c]);
  }
}

MMCORE_DEVICE int rounded_shift(std::int64_t sum, int precision) {
  const std::int64_t v = (sum + (std::int64_t{1} << precision >> 1)) >> precision;
  return static_cast<int>(v < 0 ? 0 : v > 255 ? 255 : v);
}

MMCORE_DEVICE void bytes_horizontal(const FramesTables& t, const std::uint8_t* tables, const std::uint8_t* rgb,
                                    void* small, int c, int y, int x) {
  const BytesTable& b = t.bytes_table;
  const std::uint8_t* row = rgb + (static_cast<std::int64_t>(c) * b.rows + y) * b.columns;
  const int x0 = load(table<std::int32_t>(tables, b.column.start) + x);
  const int n = load(table<std::int32_t>(tables, b.column.count) + x);
  const std::int64_t at = (static_cast<std::int64_t>(c) * b.rows + y) * t.out_w + x;
  if (b.area) {
    std::uint32_t sum = 0;
    for (int k = 0; k < n; ++k) sum += row[x0 + k];
    static_cast<std::uint32_t*>(small)[at] = sum;
    return;
  }
  const std::int32_t* weight = table<std::int32_t>(tables, b.column.weight) + x;
  int sum = 0;
  for (int k = 0; k < n; ++k) sum += load(weight + static_cast<std::int64_t>(k) * t.out_w) * row[x0 + k];
  static_cast<std::uint8_t*>(small)[at] = static_cast<std::uint8_t>(rounded_shift(sum, b.column_precision));
}

MMCORE_DEVICE void bytes_vertical(const FramesTables& t, const FrameDesc& f, const OutputDesc& out, const void* small,
                                  int y, int x) {
  const BytesTable& b = t.bytes_table;
  const int y0 = load(table<std::int32_t>(f.tables, b.row.start) + y);
  const int n = load(table<std::int32_t>(f.tables, b.row.count) + y);
  const std::int32_t* weight = table<std::int32_t>(f.tables, b.row.weight) + static_cast<std::int64_t>(y) * b.row.most;
  float v[3];
  for (int c = 0; c < 3; ++c) {
    const std::int64_t at = (static_cast<std::int64_t>(c) * b.rows + y0) * t.out_w + x;
    float byte;
    if (b.area) {
      double sum = 0;
      for (int k = 0; k < n; ++k) {
        sum += static_cast<const std::uint32_t*>(small)[at + static_cast<std::int64_t>(k) * t.out_w];
      }
      byte = static_cast<float>(rint(sum / n / load(table<std::int32_t>(f.tables, b.column.count) + x)));
    } else {
      int sum = 0;
      for (int k = 0; k < n; ++k) {
        sum += load(weight + k) * static_cast<const std::uint8_t*>(small)[at + static_cast<std::int64_t>(k) * t.out_w];
      }
      byte = static_cast<float>(rounded_shift(sum, b.row_precision));
    }
    v[c] = finish_byte(t, c, byte);
  }
  store_pixel(t, out, f.slot, y, x, v);
}

// --- streaming

// 16 or 8 bytes into shared memory, `valid` of them from `from` and zeros after; not there before async_wait. Negative
// where the group is cut short or not aligned: byte by byte then.
template <int kBytes>
MMCORE_DEVICE void async_copy(std::uint8_t* to, const std::uint8_t* from, int valid) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if (valid > 0) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (kBytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(from) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], 8;\n" ::"r"(address), "l"(from) : "memory");
    }
    return;
  }
#endif
  const int bytes = valid < 0 ? -valid : valid;
#pragma unroll 1
  for (int i = 0; i < kBytes; ++i) to[i] = i < bytes ? from[i] : 0;
}

MMCORE_DEVICE void async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Until all but the last kPending groups are there.
template <int kPending>
MMCORE_DEVICE void async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

// kN samples of 1 or 2 bytes to floats. Bytes: placed into the mantissa of 2^23, which is then taken off: the
// conversion instruction would run at an eighth of the rate.
template <typename T, int kN>
MMCORE_DEVICE void to_floats(const std::uint32_t* words, int shift, std::uint32_t mask, float* out) {
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int w = 0; w < kN / kPerWord; ++w) {
    std::uint32_t word = words[w];
    if (sizeof(T) == 2) word = (word >> shift) & mask;
#pragma unroll
    for (int j = 0; j < kPerWord; ++j) {
#if defined(__CUDA_ARCH__)
      const unsigned selector = sizeof(T) == 1 ? 0x7440u + j : j == 0 ? 0x7410u : 0x7432u;
      out[w * kPerWord + j] = __uint_as_float(__byte_perm(word, 0x4B000000u, selector)) - 8388608.0f;
#else
      out[w * kPerWord + j] = static_cast<float>(static_cast<T>(word >> (8 * sizeof(T) * j)));
#endif
    }
  }
}

// One block's part of a frame: a tile of output columns and a strip of output rows. No arrays: an index that is not
// known when compiling would put them into slow local memory.
struct StreamBlock {
  const FramesTables* t;
  const FrameDesc* f;
  int x0, x1, y0, y1;
  int first_column0, columns0, first_column1, columns1;  // of each axis
  float* rows;  // [kStageRows][row_floats]
  int row_floats, component1, component2;
};

MMCORE_DEVICE StreamBlock stream_block(const FrameDesc& f, int strip_rows, int block, float* shared_rows) {
  StreamBlock b;
  const FramesTables& t = *reinterpret_cast<const FramesTables*>(f.tables);
  b.t = &t;
  b.f = &f;
  const int index = block - f.first_block;
  const StreamTile& tile = table<StreamTile>(f.tables, t.tiles)[index % t.num_tiles];
  b.x0 = tile.x0;
  b.x1 = tile.x1;
  b.y0 = index / t.num_tiles * strip_rows;
  b.y1 = b.y0 + strip_rows < t.out_h ? b.y0 + strip_rows : t.out_h;
  b.first_column0 = tile.column0[0];
  b.columns0 = tile.column1[0] - tile.column0[0];
  b.first_column1 = tile.column0[1];
  b.columns1 = tile.column1[1] - tile.column0[1];
  b.rows = shared_rows;
  const int luma = 4 * (skewed_quad(stream_row_quads(t, tile, 0) - 1) + 1);
  const int chroma = 4 * (skewed_quad(stream_row_quads(t, tile, t.chroma_axis) - 1) + 1);
  b.component1 = luma;
  b.component2 = luma + chroma;
  b.row_floats = luma + (t.family == static_cast<int>(ColorFamily::kGray) ? 0 : 2 * chroma);
  return b;
}

// What a thread keeps from stage to stage.
template <typename T, int kN, int kLive>
struct StreamThread {
  static constexpr int kBytes = kN * static_cast<int>(sizeof(T));
  float sum[kLive][kN];                // of outputs `output`, output + 1, ...
  std::uint32_t words[kBytes / 4];     // the next row's samples
  float weight[kLive];                 // ... and weights
  const std::uint8_t* source;          // of the row that is copied next
  const float* weights;                // of the row after the next
  std::uint8_t* ring;                  // this thread's group of the ring's first row
  std::int64_t pitch;
  int ring_stride, read_at, copy_at;   // in the ring, in bytes
  int valid;                           // bytes of the group inside the row; negative: copied one by one
  int row, to_copy;                    // next row to add, rows left to copy
  int output, output_end;              // first unfinished output, one past its last row
  int axis;
  int to[2];                           // floats from a row's beginning where finished sums go, of each component
};

template <typename T, int kN, int kLive>
MMCORE_DEVICE void copy_row(StreamThread<T, kN, kLive>& s) {
  constexpr int kBytes = StreamThread<T, kN, kLive>::kBytes;
  if (s.to_copy > 0) {
    async_copy<kBytes>(s.ring + s.copy_at, s.source, s.valid);
    s.source += s.pitch;
    --s.to_copy;
    s.copy_at += s.ring_stride;
    if (s.copy_at == kRing * s.ring_stride) s.copy_at = 0;
  }
  async_commit();
}

// The next row's samples and weights, from the ring and the table.
template <typename T, int kN, int kLive>
MMCORE_DEVICE void fetch_row(StreamThread<T, kN, kLive>& s) {
  constexpr int kBytes = StreamThread<T, kN, kLive>::kBytes;
  const std::uint8_t* from = s.ring + s.read_at;
  s.read_at += s.ring_stride;
  if (s.read_at == kRing * s.ring_stride) s.read_at = 0;
#if defined(__CUDA_ARCH__)
  if constexpr (kBytes == 16) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    s.words[0] = v.x, s.words[1] = v.y, s.words[2] = v.z, s.words[3] = v.w;
  } else {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    s.words[0] = v.x, s.words[1] = v.y;
  }
#else
  std::memcpy(s.words, from, kBytes);
#endif
  const float4 w = load(reinterpret_cast<const float4*>(s.weights));
  s.weight[0] = w.x;
  if (kLive > 1) s.weight[1] = w.y;
  if (kLive > 2) s.weight[2] = w.z;
  if (kLive > 3) s.weight[3] = w.w;
  if (kLive > 4) {
    const float4 more = load(reinterpret_cast<const float4*>(s.weights) + 1);
    s.weight[kLive > 4 ? 4 : 0] = more.x;
    if (kLive > 5) s.weight[kLive > 5 ? 5 : 0] = more.y;
    if (kLive > 6) s.weight[kLive > 6 ? 6 : 0] = more.z;
  }
  s.weights += FramesTables::kLiveStride;
}

// The plane and group of a thread; false if there is none for it.
struct StreamGroup {
  int component, axis, step, column;
};

MMCORE_DEVICE bool stream_group(const StreamBlock& b, int samples, int thread, StreamGroup& g) {
  const FramesTables& t = *b.t;
  int warp = thread / 32;
  for (int plane = 0; plane < t.num_planes; ++plane) {
    // of two components that take turns, the first in the table
    g.component = t.plane[0] == plane ? 0 : t.plane[1] == plane ? 1 : 2;
    g.axis = g.component ? t.chroma_axis : 0;
    g.step = t.step[g.component];
    const int columns = samples / g.step;
    const int groups = ((g.axis ? b.columns1 : b.columns0) + columns - 1) / columns;
    const int warps = (groups + 31) / 32;
    if (warp < warps) {
      const int group = warp * 32 + thread % 32;
      g.column = group * columns;
      return group < groups;
    }
    warp -= warps;
  }
  return false;
}

template <typename T, int kN, int kLive>
MMCORE_DEVICE void stream_begin(const StreamBlock& b, const StreamGroup& g, StreamThread<T, kN, kLive>& s,
                                std::uint8_t* ring, int thread, int threads) {
  constexpr int kBytes = StreamThread<T, kN, kLive>::kBytes;
  const FramesTables& t = *b.t;
  const int plane = t.plane[g.component], quad = 4 * skewed_quad(g.column / 4);
  s.axis = g.axis;
  s.to[0] = quad + (g.component == 0 ? 0 : g.component == 1 ? b.component1 : b.component2);
  s.to[1] = quad + b.component2;
  if (g.step == 2 && t.offset[1] == 1) {  // V lies before U
    s.to[0] = quad + b.component2;
    s.to[1] = quad + b.component1;
  }
  const StreamTable& st = t.stream[g.axis];
  const std::int32_t* ends = table<std::int32_t>(b.f->tables, st.row_end);
  s.row = load(table<std::int32_t>(b.f->tables, st.row_first) + b.y0);
  s.to_copy = load(ends + b.y1 - 1) - s.row;
  s.output = load(table<std::int32_t>(b.f->tables, st.unfinished) + s.row);
  s.output_end = load(ends + s.output);
  s.weights = table<float>(b.f->tables, st.row_weight) + s.row * FramesTables::kLiveStride;
  const int sample0 = ((g.axis ? b.first_column1 : b.first_column0) + g.column) * g.step;
  const int left = t.plane_samples[plane] - sample0;
  s.valid = (left < kN ? left : kN) * static_cast<int>(sizeof(T));
  s.pitch = b.f->pitches[plane];
  s.source = b.f->planes[plane] + s.row * s.pitch + static_cast<std::int64_t>(sample0) * sizeof(T);
  if (s.valid < kBytes || ((reinterpret_cast<std::uintptr_t>(s.source) | s.pitch) & (kBytes - 1))) s.valid = -s.valid;
  s.ring = ring + thread * kBytes;
  s.ring_stride = threads * kBytes;
  s.read_at = s.copy_at = 0;
#pragma unroll
  for (int k = 0; k < kLive; ++k) {
#pragma unroll
    for (int j = 0; j < kN; ++j) s.sum[k][j] = 0;
  }
#pragma unroll 1
  for (int i = 0; i < kRing - 1; ++i) copy_row<T, kN, kLive>(s);
  async_wait<kRing - 2>();
  fetch_row<T, kN, kLive>(s);
}

// A finished output's sums to its row of shared memory. Groups begin at multiples of their length, so the quads of
// one never straddle a gap of skewed_quad.
template <int kStep, typename T, int kN, int kLive>
MMCORE_DEVICE void put_sums(const StreamThread<T, kN, kLive>& s, float* row) {
  const float* v = s.sum[0];
#pragma unroll
  for (int c = 0; c < kStep; ++c) {
#pragma unroll
    for (int q = 0; q < kN / 4 / kStep; ++q) {
      const int i = 4 * q * kStep + c;
      *reinterpret_cast<float4*>(row + s.to[c] + 4 * q) =
          float4{v[i], v[i + kStep], v[i + 2 * kStep], v[i + 3 * kStep]};
    }
  }
}

// Rows until the outputs before `stage_end` are finished.
template <int kStep, typename T, int kN, int kLive>
MMCORE_DEVICE void stream_vertical(const StreamBlock& b, StreamThread<T, kN, kLive>& s, int stage_y0, int stage_end) {
  const FramesTables& t = *b.t;
  const std::int32_t* ends = table<std::int32_t>(b.f->tables, t.stream[s.axis].row_end);
  const std::uint32_t mask = static_cast<std::uint32_t>(t.sample_mask) * 0x10001u;
  const int shift = t.shift;
#pragma unroll 1
  for (;;) {
#pragma unroll 1
    while (s.output < stage_end && s.output_end <= s.row) {
      // outputs before the strip's first are another block's
      if (s.output >= b.y0) put_sums<kStep>(s, b.rows + (s.output - stage_y0) * b.row_floats);
#pragma unroll
      for (int k = 0; k < kLive; ++k) {
#pragma unroll
        for (int j = 0; j < kN; ++j) s.sum[k][j] = k + 1 < kLive ? s.sum[k + 1 < kLive ? k + 1 : k][j] : 0;
      }
      ++s.output;
      s.output_end = s.output < t.out_h ? load(ends + s.output) : 0x7fffffff;
    }
    if (s.output >= stage_end) return;
#pragma unroll 1
    for (; s.row < s.output_end; ++s.row) {
      float v[kN], w[kLive];
      to_floats<T, kN>(s.words, shift, mask, v);
#pragma unroll
      for (int k = 0; k < kLive; ++k) w[k] = s.weight[k];
      copy_row<T, kN, kLive>(s);
      async_wait<kRing - 2>();
      fetch_row<T, kN, kLive>(s);  // ahead: its latency passes under this row's arithmetic
#pragma unroll
      for (int k = 0; k < kLive; ++k) {
#pragma unroll
        for (int j = 0; j < kN; ++j) s.sum[k][j] = fused(w[k], v[j], s.sum[k][j]);
      }
    }
  }
}

// Zeroes the rows: what lies between their columns is read with weights of 0 and must not be NaN.
MMCORE_DEVICE void stream_clear(const StreamBlock& b, int thread, int threads) {
  for (int i = thread; i < kStageRows * b.row_floats; i += threads) b.rows[i] = 0;
}

MMCORE_DEVICE float dot(const float4& a, const float4& b, float sum) {
  return fused(a.w, b.w, fused(a.z, b.z, fused(a.y, b.y, fused(a.x, b.x, sum))));
}

// Output rows stage_y0 ... stage_end from their sums.
MMCORE_DEVICE void stream_horizontal(const StreamBlock& b, const OutputDesc& out, int thread, int threads, int stage_y0,
                                     int stage_end) {
  const FramesTables& t = *b.t;
  const bool gray = t.family == static_cast<int>(ColorFamily::kGray);
  for (int x = b.x0 + thread; x < b.x1; x += threads) {
    float in[kStageRows][3];
#pragma unroll
    for (int r = 0; r < kStageRows; ++r) in[r][0] = in[r][1] = in[r][2] = 0;
    const StreamTable& luma = t.stream[0];
    const float4* weight = table<float4>(b.f->tables, luma.quad_weight) + x;
    int quad = load(table<std::int32_t>(b.f->tables, luma.quad_start) + x) - b.first_column0 / 4;
#pragma unroll 2
    for (int q = 0; q < luma.quads; ++q) {
      const float4 w = load(weight + static_cast<std::int64_t>(q) * t.out_w);
      const float* from = b.rows + 4 * skewed_quad(quad + q);
#pragma unroll
      for (int r = 0; r < kStageRows; ++r) {
        in[r][0] = dot(w, *reinterpret_cast<const float4*>(from + r * b.row_floats), in[r][0]);
      }
    }
    if (!gray) {
      const StreamTable& chroma = t.stream[t.chroma_axis];
      weight = table<float4>(b.f->tables, chroma.quad_weight) + x;
      quad = load(table<std::int32_t>(b.f->tables, chroma.quad_start) + x) -
             (t.chroma_axis ? b.first_column1 : b.first_column0) / 4;
#pragma unroll 1
      for (int q = 0; q < chroma.quads; ++q) {
        const float4 w = load(weight + static_cast<std::int64_t>(q) * t.out_w);
        const float* from = b.rows + 4 * skewed_quad(quad + q);
#pragma unroll
        for (int r = 0; r < kStageRows; ++r) {
          const float* row = from + r * b.row_floats;
          in[r][1] = dot(w, *reinterpret_cast<const float4*>(row + b.component1), in[r][1]);
          in[r][2] = dot(w, *reinterpret_cast<const float4*>(row + b.component2), in[r][2]);
        }
      }
    }
    const Levels levels = levels_of(t);
    const Slot first = slot_of(out, t.out_h, t.out_w, b.f->slot, stage_y0, x);
    const int count = stage_end - stage_y0;
    with_dtype(t.dtype, [&](auto* type) {
      auto* row = reinterpret_cast<decltype(type)>(out.data) + first.at;
#pragma unroll
      for (int r = 0; r < kStageRows; ++r) {
        if (r >= count) break;
        float v[3];
        to_levels(levels, in[r], v);
        if (out.patch_size > 0 && r > 0) {
          row = reinterpret_cast<decltype(type)>(out.data) +
                slot_of(out, t.out_h, t.out_w, b.f->slot, stage_y0 + r, x).at;
        }
        put(row, v[0]);
        put(row + first.channel, v[1]);
        put(row + 2 * first.channel, v[2]);
        row += out.row_stride;
      }
    });
  }
}

}  // namespace mmcore::cuda
