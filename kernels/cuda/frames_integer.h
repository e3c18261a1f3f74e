// The frames kernel of whole numbers: samples are filtered horizontally as the bytes that they are, on the tensor cores,
// without a conversion, so that all that comes after is left with what the horizontal shrinking leaves of them.
//
// A block makes a tile of some octets of output columns of a strip of output rows. It goes down the input rows in
// chunks, which asynchronous copies bring to shared memory two chunks ahead or more; for each chunk
//
//   horizontal  sums (16 rows x 8 columns) = samples (16 x 32) * weights (32 x 8), step by step along the octet's
//               window; a warp owns an octet of luma or of chroma and keeps its weights in registers. A weight is a
//               whole number of three digits of 8 bits, so there are three exact products of bytes into 32-bit sums,
//               which then become one, still exact, and a float: the one rounding. Components that take turns, and the
//               two bytes of 16-bit samples, are taken apart by byte permutations; the weights lie in the order that
//               these leave. Of 16-bit samples low byte * lowest digit is left out, so there are five products.
//   vertical    sums go to shared memory, where a ring holds the rows that unfinished outputs need; threads add up 4
//               neighbouring outputs each of those that the chunk has finished, in floats, convert and store.
//
// Accuracy. Weights are multiples of 2^-23 where they are of bytes and not negative, else of 2^-22, so long as their
// absolute values sum to less than 2; the sum of an output's weights is off by half a unit at most, so a flat picture
// loses nothing, and one of n samples of up to 255 by n * 255 * 2^-22 at the very worst, at random by sqrt(n) * 2e-5;
// what 16-bit samples leave out adds as much again, a sum's rounding to a float 1.5e-5. The vertical pass averages that
// and rounds as the other kernels do. Against float64, on noise of extremes: 1.2e-4 of a level bilinear, 4e-4 bicubic.
//
// Work, for 32 frames of 1080p, 4:2:0, to 224 x 224 (bilinear; bicubic in brackets), on 132 multiprocessors, counted in
// the machine code for sm_90. 256 blocks, two to a multiprocessor, 28 warps there, 72 registers a thread; 18 chunks a
// block, each of 25 KB and two on their way: 4608 chunks, 35 a multiprocessor. A chunk is
//   instructions of warps   horizontal 7 * (47 * 2 + 75) of luma and chroma [+ 56], vertical 3.3 * 440 [+ 390], copies
//                           540, lists 150, what all 14 warps do once a chunk 1200: 4500 [4950]; 21 [23] million in all
//   shared memory           copies 200, fragments 280 [340], sums 110 and 515 [900], small reads 350: 1450 [1900] cycles
//   products                126 [168] of 16 x 8 x 32: 126 to 250 [168 to 340] cycles
//   bytes                   100 MB read once from memory, 6 % of it twice from L2, where tiles overlap: 25 us at 4.2 TB/s
// At 2.2 instructions a cycle the first takes 72000 [79000] cycles, 40 [44] us at 1.8 GHz, shared memory 51000 [67000],
// 28 [37] us: instructions and shared memory bind it, not yet memory. The streaming kernel takes 42 million, measured
// 101 us; products of 16-bit floats 132 us for bicubic.
//
// Not measured on a GPU yet.
#pragma once

#include "frames_warp.h"

namespace mmcore::cuda {

#if !defined(MMCORE_INTEGER_STAGES)
#define MMCORE_INTEGER_STAGES 2
#endif
constexpr int kIntegerStages = MMCORE_INTEGER_STAGES;  // chunks in shared memory, on their way or there

struct Ints {
  std::int32_t v[4];
};

// c (16 x 8) += a (16 x 32 bytes without sign) * b (32 x 8 with sign), exactly modulo 2^32.
MMCORE_DEVICE void multiply_bytes(Lanes<Ints>& c, const Lanes<uint4>& a, const Lanes<uint2>& b) {
#if defined(__CUDACC__)
#if __CUDA_ARCH__ >= 800
  std::int32_t* v = c.value[0].v;
  const uint4& r = a.value[0];
  const uint2& w = b.value[0];
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, "
      "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+r"(v[0]), "+r"(v[1]), "+r"(v[2]), "+r"(v[3])
      : "r"(r.x), "r"(r.y), "r"(r.z), "r"(r.w), "r"(w.x), "r"(w.y));
#endif
#else
  std::int32_t left[16][32], right[32][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, q = lane % 4;
    const std::uint32_t r[4] = {a[lane].x, a[lane].y, a[lane].z, a[lane].w}, w[2] = {b[lane].x, b[lane].y};
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) left[g + 8 * (i % 2)][16 * (i / 2) + 4 * q + j] = r[i] >> 8 * j & 0xff;
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 4; ++j) right[16 * i + 4 * q + j][g] = static_cast<std::int8_t>(w[i] >> 8 * j & 0xff);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int y = lane / 4 + 8 * (i / 2), x = 2 * (lane % 4) + i % 2;
      std::int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += left[y][k] * right[k][x];
      c[lane].v[i] =
          static_cast<std::int32_t>(static_cast<std::uint32_t>(c[lane].v[i]) + static_cast<std::uint32_t>(sum));
    }
  }
#endif
}

// A row of samples of a chunk. What every copy needs is fetched 16 and 8 bytes at a time.
struct alignas(16) IntegerRow {
  const std::uint8_t* from;  // in the strip's first chunk
  std::int32_t near_step;  // bytes to the next chunk's, where 31 bits are enough
  std::int32_t to;  // bytes from a chunk's beginning in shared memory
  std::int32_t bytes;  // wanted
  std::int32_t chunks;  // that have it
  std::int64_t step;
  std::int32_t row_bytes;  // there
};

// What a warp filters horizontally: an octet of component 0, or of components 1 and 2. Fetched 16 bytes at a time.
struct alignas(16) IntegerPart {
  std::int32_t group;  // 0 or 1; -1: nothing
  std::int32_t steps;
  std::int32_t from;  // bytes from a chunk's beginning
  std::int32_t to;  // floats from the beginning of the sums
  std::int32_t pitch, rows;  // of the samples of a chunk
  std::int32_t left;  // rows of the strip
  std::int32_t ring_rows;
  std::int32_t turns;  // components take turns: 1, or 2 if the second is first; else 0
};

// How the rows of a chunk are copied: 16 bytes at a time, at distances of 31 bits, up to 512 of a row (kRow) or more
// (kWide); or as they come.
enum class IntegerCopies : std::int32_t { kRow, kWide, kAny };

// The outputs that a chunk finishes.
struct alignas(16) IntegerList {
  std::int32_t y0, y1;  // the first, and one past the last
  std::int32_t base[2];  // of each axis, what to add to an input row to have its row of the ring; a ring less, maybe
  std::int32_t at[2];  // the row of the ring where the chunk's own sums go
};

// One block's part of a frame, with all that it needs of the tables: on the device it lies in shared memory, which
// costs no registers and is near.
struct IntegerBlock {
  static constexpr int kMostRows = 64, kMostWarps = 16;
  FramesTables t;
  FrameDesc f;
  IntegerTile tile;
  int y0, y1, chunks, rows;
  int first[2], end[2];  // of each axis, the first input row, a multiple of 4, and one past the last
  int alignment;  // of all rows, up to 16
  IntegerCopies copies;
  int chunk_bytes, outputs, sums;  // of a chunk in shared memory; where the lists of outputs and the sums begin there
  IntegerList list[kIntegerStages + 1];
  IntegerPart part[kMostWarps];
  IntegerRow row[kMostRows];
};

// The tables of the frame. The threads synchronise after it.
MMCORE_DEVICE void integer_fetch(IntegerBlock& b, const FrameDesc& f, int thread, int threads) {
  static_assert(sizeof(FramesTables) % sizeof(float4) == 0, "copied in quads");
  for (int i = thread * 16; i < static_cast<int>(sizeof(FramesTables)); i += threads * 16) {
    const float4 quad = load(reinterpret_cast<const float4*>(f.tables + i));
    std::memcpy(reinterpret_cast<std::uint8_t*>(&b.t) + i, &quad, sizeof(quad));
  }
  if (thread == 0) b.f = f;
}

// Where it is in the frame; one thread does it. The threads synchronise after it.
MMCORE_DEVICE void integer_place(IntegerBlock& b, int strip_rows, int block) {
  const FramesTables& t = b.t;
  const int index = block - b.f.first_block;
  b.tile = table<IntegerTile>(b.f.tables, t.integer_tiles)[index % t.num_integer_tiles];
  b.y0 = index / t.num_integer_tiles * strip_rows;
  b.y1 = b.y0 + strip_rows < t.out_h ? b.y0 + strip_rows : t.out_h;
  b.chunks = 0;
  for (int k = 0; k <= t.chroma_axis; ++k) {
    const IntegerTable& n = t.integer_table[k];
    b.first[k] = load(table<std::int32_t>(b.f.tables, n.row_first) + b.y0);
    b.end[k] = load(table<std::int32_t>(b.f.tables, n.row_end) + b.y1 - 1);
    const int chunks = (b.end[k] - b.first[k] + n.chunk_rows - 1) / n.chunk_rows;
    b.chunks = chunks > b.chunks ? chunks : b.chunks;
  }
  const int planes = t.family == static_cast<int>(ColorFamily::kGray) ? 1 : t.step[1] == 2 ? 2 : 3;
  std::uintptr_t places = 16;
  b.rows = 0;
  for (int c = 0; c < planes; ++c) {
    b.rows += t.integer_table[c ? t.chroma_axis : 0].chunk_rows;
    places |=
        reinterpret_cast<std::uintptr_t>(b.f.planes[t.plane[c]]) | static_cast<std::uintptr_t>(b.f.pitches[t.plane[c]]);
  }
  b.alignment = static_cast<int>(places & (0 - places));
  const bool narrow = b.tile.bytes[0] <= 512 - 15 && b.tile.bytes[1] <= 512 - 15;
  b.copies = b.alignment < 16 ? IntegerCopies::kAny : narrow ? IntegerCopies::kRow : IntegerCopies::kWide;
  b.chunk_bytes = integer_chunk_bytes(t);
  b.outputs = kIntegerStages * b.chunk_bytes;
  b.sums = b.outputs + (kIntegerStages + 1) * t.integer_most_quads * 16;
}

// The rows of samples of a chunk. The threads synchronise after it.
MMCORE_DEVICE void integer_list_rows(IntegerBlock& b, int thread, int threads) {
  const FramesTables& t = b.t;
  for (int i = thread; i < b.rows; i += threads) {
    int c = 0, row = i, to = 0;
    for (;; ++c) {
      const IntegerTable& n = t.integer_table[c ? t.chroma_axis : 0];
      if (row < n.chunk_rows) break;
      row -= n.chunk_rows;
      to += n.chunk_rows * n.pitch;
    }
    const int axis = c ? t.chroma_axis : 0, plane = t.plane[c];
    const IntegerTable& n = t.integer_table[axis];
    const std::int64_t pitch = b.f.pitches[plane];
    const int skipped = b.tile.column0[axis] * t.step[c] * t.sample_bytes, first = b.first[axis] + row;
    IntegerRow r{};
    r.from = b.f.planes[plane] + first * pitch + skipped;
    r.step = n.chunk_rows * pitch;
    r.to = to + row * n.pitch;
    r.bytes = b.tile.bytes[axis];
    r.row_bytes = t.plane_samples[plane] * t.sample_bytes - skipped;
    r.chunks = (b.end[axis] - first + n.chunk_rows - 1) / n.chunk_rows;
    const int whole = (r.bytes + 15) / 16 * 16;
    const std::int64_t furthest = r.step * r.chunks;
    if (whole <= r.row_bytes && furthest < (1 << 30) && -furthest < (1 << 30)) {
      r.bytes = whole;
      r.near_step = static_cast<std::int32_t>(r.step);
    } else {
      b.copies = IntegerCopies::kAny;
    }
    b.row[i] = r;
  }
}

// The rows of sums: some are read before they were written, with weights of 0, and must not be NaN.
MMCORE_DEVICE void integer_clear(const IntegerBlock& b, std::uint8_t* shared, int thread, int threads) {
  float4* quads = reinterpret_cast<float4*>(shared + b.sums);
  for (int i = thread; i < integer_ring_bytes(b.t) / 16; i += threads) quads[i] = float4{0, 0, 0, 0};
}

// To be there after async_wait and a barrier.
template <int kBytes>
MMCORE_DEVICE void copy_async(std::uint8_t* to, const std::uint8_t* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(address), "l"(from) : "memory");
  }
#else
  std::memcpy(to, from, kBytes);
#endif
}

// 16 bytes, without a branch.
MMCORE_DEVICE void copy_async_if(bool wanted, std::uint8_t* to, const std::uint8_t* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\n@p cp.async.cg.shared.global [%0], [%1], 16;\n}\n" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(static_cast<int>(wanted))
               : "memory");
#else
  if (wanted) copy_async<16>(to, from);
#endif
}

// One past the last output that is finished with a chunk; -1: before the first.
MMCORE_DEVICE int integer_finished(const IntegerBlock& b, int chunk) {
  const FramesTables& t = b.t;
  int finished = b.y1;
  for (int k = 0; k <= t.chroma_axis; ++k) {
    const IntegerTable& n = t.integer_table[k];
    const int row = b.first[k] + (chunk + 1) * n.chunk_rows;
    const int done = row >= b.end[k] ? b.y1 : load(table<std::int32_t>(b.f.tables, n.finished) + row);
    finished = done < finished ? done : finished;
  }
  return finished > b.y0 ? finished : b.y0;  // those before the strip are another block's
}

// What there is to know of the outputs that a chunk finishes, the `place`-th of such lists.
MMCORE_DEVICE std::uint8_t* integer_outputs(const IntegerBlock& b, std::uint8_t* shared, int place) {
  return shared + b.outputs + place * b.t.integer_most_quads * 16;
}

// Starts the copies of a chunk: its samples to the `slot`-th place for such, and the `place`-th list of outputs.
MMCORE_DEVICE void integer_load(IntegerBlock& b, std::uint8_t* shared, int chunk, int slot, int place, int warp,
                                int warps) {
  if (chunk < b.chunks) {
    std::uint8_t* to = shared + slot * b.chunk_bytes;
    const int rows = b.rows;
    if (b.copies == IntegerCopies::kRow) {
      // four rows at a time, whose number is a multiple of that: 8 lanes each, which go on by 128 bytes
#pragma unroll 1
      for (int i = 4 * warp; i < rows; i += 4 * warps) {
        MMCORE_EACH_LANE(lane) {
          const IntegerRow& r = b.row[i + lane / 8];
          const int bytes = (chunk < r.chunks ? r.bytes : 0) - lane % 8 * 16;
          const std::uint8_t* from = r.from + (chunk * r.near_step + lane % 8 * 16);
          std::uint8_t* row = to + (r.to + lane % 8 * 16);
#pragma unroll
          for (int at = 0; at < 512; at += 128) copy_async_if(at < bytes, row + at, from + at);
        }
      }
    } else if (b.copies == IntegerCopies::kWide) {
#pragma unroll 1
      for (int i = warp; i < rows; i += warps) {
        const IntegerRow& r = b.row[i];
        const std::uint8_t* from = r.from + chunk * r.near_step;
        const int bytes = chunk < r.chunks ? r.bytes : 0;
        std::uint8_t* row = to + r.to;
        MMCORE_EACH_LANE(lane) {
#pragma unroll 1
          for (int at = lane * 16; at < bytes; at += 512) copy_async<16>(row + at, from + at);
        }
      }
    } else {
#pragma unroll 1
      for (int i = warp; i < rows; i += warps) {
        const IntegerRow& r = b.row[i];
        if (chunk >= r.chunks) continue;
        const std::uint8_t* from = r.from + chunk * r.step;
        const int bytes = r.bytes < r.row_bytes ? r.bytes : r.row_bytes, whole = b.alignment < 4 ? 0 : bytes & ~3;
        MMCORE_EACH_LANE(lane) {
#pragma unroll 1
          for (int at = lane * 4; at < whole; at += 128) copy_async<4>(to + r.to + at, from + at);
#pragma unroll 1
          for (int at = whole + lane; at < bytes; at += 32) to[r.to + at] = from[at];
        }
      }
    }
    if (warp == warps - 1) {
      const int y0 = integer_finished(b, chunk - 1), y1 = integer_finished(b, chunk), quads = b.t.integer_row_quads;
      const std::uint8_t* from = b.f.tables + b.t.integer_rows + y0 * quads * 16;
      std::uint8_t* outputs = integer_outputs(b, shared, place);
      MMCORE_EACH_LANE(lane) {
        if (lane < 2) {
          const int axis = lane ? b.t.chroma_axis : 0;
          const IntegerTable& n = b.t.integer_table[axis];
          const int begin = chunk * n.chunk_rows, end = begin + n.chunk_rows;
          IntegerList& list = b.list[place];
          list.at[lane] = begin % n.ring_rows;
          list.base[lane] = end % n.ring_rows - b.first[axis] - end;
          if (lane == 0) {
            list.y0 = y0;
            list.y1 = y1;
          }
        }
#pragma unroll 1
        for (int i = lane; i < (y1 - y0) * quads; i += 32) {
          copy_async<16>(outputs + i * 16, from + i * 16);
        }
      }
    }
  }
  async_commit();
}

// A warp's weights.
template <int kSteps>
struct IntegerWarp {
  Lanes<uint2> weight[kSteps][3];
};

// What a warp filters. The threads synchronise after it.
template <int kSteps, int kPitch>
MMCORE_DEVICE void integer_begin(IntegerBlock& b, IntegerWarp<kSteps>& w, int warp) {
  const FramesTables& t = b.t;
  const int octets = b.tile.octet1 - b.tile.octet0;
  const int groups = t.family == static_cast<int>(ColorFamily::kGray) ? 1 : 2;
  const int group = warp < groups * octets ? warp / octets : -1, octet = warp % octets;
  const int axis = group > 0 ? t.chroma_axis : 0, column = b.tile.octet0 + octet;
  const IntegerTable &luma = t.integer_table[0], &n = t.integer_table[axis];
  const int steps = group < 0 ? 0 : n.steps;
  const uint2* weight = table<uint2>(b.f.tables, n.column_weight) + column * n.steps * 96;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int digit = 0; digit < 3; ++digit) {
      MMCORE_EACH_LANE(lane) {
        w.weight[s][digit][lane] = s < steps ? load(weight + (s * 3 + digit) * 32 + lane) : uint2{0, 0};
      }
    }
  }
  MMCORE_EACH_LANE(lane) {
    if (lane != 0) continue;
    IntegerPart& part = b.part[warp];
    part.group = group;
    if (group < 0) continue;
    const int first = load(table<std::int32_t>(b.f.tables, n.column_first) + column) - b.tile.column0[axis];
    part.steps = steps;
    part.from = first * t.step[group] * t.sample_bytes + (group ? luma.chunk_rows * luma.pitch : 0);
    part.to = octet * 8 + (group ? luma.ring_rows * kPitch : 0);
    part.pitch = n.pitch;
    part.rows = n.chunk_rows;
    part.left = b.end[axis] - b.first[axis];
    part.ring_rows = n.ring_rows;
    part.turns = t.step[group] == 1 ? 0 : 1 + t.offset[1];
  }
}

MMCORE_DEVICE uint4 permute_pairs(const uint4& a, const uint4& b, unsigned selector) {
  return uint4{permute(a.x, a.z, selector), permute(a.y, a.w, selector), permute(b.x, b.z, selector),
               permute(b.y, b.w, selector)};
}

MMCORE_DEVICE uint4 lifted(const uint4& v, int lift, std::uint32_t top) {
  return uint4{v.x << lift & top, v.y << lift & top, v.z << lift & top, v.w << lift & top};
}

// 32 samples of 16 rows of a component, byte by byte, the low ones first. Of two components that take turns `second` is
// the other one. `lift` and `top` as in FramesTables.
template <typename T, int kStep>
MMCORE_DEVICE void integer_samples(const std::uint8_t* from, int pitch, bool second, int lift, std::uint32_t top,
                                   Lanes<uint4> (&byte)[sizeof(T)]) {
  constexpr int kUnit = kStep * static_cast<int>(sizeof(T));
  if constexpr (kUnit == 1) {
    load_fragment(byte[0], from, pitch);
  } else {
    Lanes<uint4> raw[kUnit];
#pragma unroll
    for (int i = 0; i < kUnit; ++i) load_fragment(raw[i], from + 32 * i, pitch);
    MMCORE_EACH_LANE(lane) {
      uint4 a = raw[0][lane], b = raw[1][lane];
      if constexpr (kStep == 2 && sizeof(T) == 1) {
        byte[0][lane] = permute_pairs(a, b, second ? 0x7531u : 0x6420u);
      } else {
        if constexpr (kStep == 2) {
          const unsigned take = second ? 0x7632u : 0x5410u;
          a = permute_pairs(a, b, take);
          b = permute_pairs(raw[kUnit - 2][lane], raw[kUnit - 1][lane], take);
        }
        a = lifted(a, lift, top);
        b = lifted(b, lift, top);
        byte[0][lane] = permute_pairs(a, b, 0x6420u);
        byte[sizeof(T) - 1][lane] = permute_pairs(a, b, 0x7531u);
      }
    }
  }
}

// 16 rows of an octet of a component, to rows kPitch floats apart.
template <typename T, int kStep, int kCount, int kSteps, int kPitch>
MMCORE_DEVICE void integer_octet(const IntegerWarp<kSteps>& w, const std::uint8_t* from, int pitch, bool second,
                                 int lift, std::uint32_t top, float* to) {
  Lanes<Ints> sum[3];
#pragma unroll
  for (int digit = 0; digit < 3; ++digit) {
    MMCORE_EACH_LANE(lane) sum[digit][lane] = Ints{{0, 0, 0, 0}};
  }
#pragma unroll
  for (int s = 0; s < kCount; ++s) {
    constexpr int kBytes = static_cast<int>(sizeof(T));
    Lanes<uint4> byte[kBytes];
    integer_samples<T, kStep>(from + s * 32 * kStep * kBytes, pitch, second, lift, top, byte);
#pragma unroll
    for (int digit = 0; digit < 3; ++digit) multiply_bytes(sum[digit], byte[kBytes - 1], w.weight[s][digit]);
    if (kBytes == 2) {  // the low byte counts for a 256th, like the next digit
      multiply_bytes(sum[1], byte[0], w.weight[s][0]);
      multiply_bytes(sum[2], byte[0], w.weight[s][1]);
    }
  }
  MMCORE_EACH_LANE(lane) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // without sign: sums on the way may leave 31 bits, and come back
      const std::uint32_t high = static_cast<std::uint32_t>(sum[0][lane].v[i]),
                          middle = static_cast<std::uint32_t>(sum[1][lane].v[i]),
                          low = static_cast<std::uint32_t>(sum[2][lane].v[i]);
      v[i] = static_cast<float>(static_cast<std::int32_t>((high * 256 + middle) * 256 + low));
    }
    float* row = to + lane / 4 * kPitch + lane % 4 * 2;
    *reinterpret_cast<float2*>(row) = float2{v[0], v[1]};
    *reinterpret_cast<float2*>(row + 8 * kPitch) = float2{v[2], v[3]};
  }
}

// Calls body(number of steps, known when compiling): all up to 4, even ones beyond.
template <int kSteps, typename Body>
MMCORE_DEVICE void with_steps(int steps, Body body) {
  constexpr int kUnit = kSteps / 4;
  switch (steps) {
    case kUnit:
      return body(std::integral_constant<int, kUnit>());
    case 2 * kUnit:
      return body(std::integral_constant<int, 2 * kUnit>());
    case 3 * kUnit:
      return body(std::integral_constant<int, 3 * kUnit>());
    default:
      return body(std::integral_constant<int, kSteps>());
  }
}

// A warp's sums of a chunk.
template <typename T, int kSteps, int kPitch>
MMCORE_DEVICE void integer_horizontal(const IntegerBlock& b, const IntegerWarp<kSteps>& w, std::uint8_t* shared,
                                      int chunk, int slot, int place, int warp) {
  const FramesTables& t = b.t;
  const IntegerPart part = b.part[warp];
  if (part.group < 0) return;
  const int left = part.left - chunk * part.rows, end = left < part.rows ? left : part.rows, lift = t.sample_lift;
  const std::uint32_t top = static_cast<std::uint32_t>(t.sample_top) * 0x10001u;
  int at = b.list[place].at[part.group];
  const std::uint8_t* samples = shared + slot * b.chunk_bytes + part.from;
  float* sums = reinterpret_cast<float*>(shared + b.sums) + part.to;
  with_steps<kSteps>(part.steps, [&](auto count) {
    constexpr int kCount = decltype(count)::value;
#pragma unroll 1
    for (int row = 0; row < end; row += 16) {
      const std::uint8_t* from = samples + row * part.pitch;
      float* to = sums + at * kPitch;
#pragma unroll 1
      for (int c = 0; c <= part.group; ++c) {
        if (part.turns) {
          integer_octet<T, 2, kCount, kSteps, kPitch>(w, from, part.pitch, c + 1 != part.turns, lift, top, to);
        } else {
          integer_octet<T, 1, kCount, kSteps, kPitch>(w, from, part.pitch, false, lift, top, to);
          from += part.rows * part.pitch;
        }
        to += part.ring_rows * kPitch;
      }
      at += 16;
      if (at == part.ring_rows) at = 0;
    }
  });
}

MMCORE_DEVICE void add_quad(float sum[4], float w, const float* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  sum[0] = fused(w, v.x, sum[0]);
  sum[1] = fused(w, v.y, sum[1]);
  sum[2] = fused(w, v.z, sum[2]);
  sum[3] = fused(w, v.w, sum[3]);
}

template <int kPitch>
MMCORE_DEVICE void add_rows(float sum[4], const float4& w, const float* from) {
  add_quad(sum, w.x, from);
  add_quad(sum, w.y, from + kPitch);
  add_quad(sum, w.z, from + 2 * kPitch);
  add_quad(sum, w.w, from + 3 * kPitch);
}

// 4 values side by side.
template <typename U>
MMCORE_DEVICE void put_quad(U* to, const float v[4]) {
  struct alignas(4 * sizeof(U)) Quad {
    U value[4];
  } quad;
#pragma unroll
  for (int i = 0; i < 4; ++i) put(&quad.value[i], v[i]);
  *reinterpret_cast<Quad*>(to) = quad;
}

// A quad of outputs at (y, x): values of the components by pixel, converted and stored.
MMCORE_DEVICE void integer_store(const IntegerBlock& b, const OutputDesc& out, int y, int x, const float in[3][4]) {
  const FramesTables& t = b.t;
  const float4* quads = reinterpret_cast<const float4*>(&t.m[0][0]);
  const float4 v0 = quads[0], v1 = quads[1], v2 = quads[2], v3 = quads[3];
  const float m[3][3] = {{v0.x, v0.y, v0.z}, {v0.w, v1.x, v1.y}, {v1.z, v1.w, v2.x}}, add[3] = {v2.y, v2.z, v2.w};
  const bool round = t.round_bytes != 0;
  const float lo[3] = {v3.x, v3.y, v3.z}, hi[3] = {v3.w, t.hi[1], t.hi[2]};
  float value[3][4];
#pragma unroll
  for (int c = 0; c < 3; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float v = fused(in[2][i], m[c][2], fused(in[1][i], m[c][1], fused(in[0][i], m[c][0], add[c])));
      if (round) v = rintf(v);
      value[c][i] = clamped(v, round ? 0.0f : lo[c], round ? 255.0f : hi[c]);
    }
  }
  const int count = t.out_w - x < 4 ? t.out_w - x : 4;
  const bool beside = count == 4 && (out.patch_size ? out.patch_size % 4 == 0 : out.pixel_stride == 1);
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const Slot slot = slot_of(out, t.out_h, t.out_w, b.f.slot, y, x + i);
    bool all = false;
    with_dtype(t.dtype, [&](auto* type) {
      using U = std::remove_pointer_t<decltype(type)>;
      constexpr std::uintptr_t kQuad = 4 * sizeof(U);
      U* to = static_cast<U*>(out.data) + slot.at;
      const auto apart = static_cast<std::uintptr_t>(slot.channel * static_cast<int>(sizeof(U)));
      all = beside && i == 0 && (reinterpret_cast<std::uintptr_t>(to) | apart) % kQuad == 0;
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const float* v = value[c];
        if (all) {
          put_quad(to + c * slot.channel, v);
        } else {
          // not v[i]: an index known only then would put all of them into slow local memory
          put(to + c * slot.channel, i == 0 ? v[0] : i == 1 ? v[1] : i == 2 ? v[2] : v[3]);
        }
      }
    });
    if (all) break;
  }
}

MMCORE_DEVICE int bits_of(float v) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(v);
#else
  std::int32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
#endif
}

// Sums of an output's rows of one or two components, `apart` floats from each other. `at`: row of the ring where the
// first of them is; `weight`: of the groups of 4.
template <int kCount, int kPitch>
MMCORE_DEVICE void add_groups(float (*sum)[4], const float4* weight, int groups, const float* column, int apart, int at,
                              int ring_rows) {
  const float* from = column + at * kPitch;
  const float* const end = column + ring_rows * kPitch;
#pragma unroll 1
  for (const float4* last = weight + groups; weight != last; ++weight) {
    const float4 w = *weight;
    add_rows<kPitch>(sum[0], w, from);
    if (kCount == 2) add_rows<kPitch>(sum[kCount - 1], w, from + apart);
    from += 4 * kPitch;
    if (from == end) from = column;
  }
}

// The outputs that a chunk finishes, with the `place`-th list of them. What it needs is fetched where it is needed: few
// threads come here twice, and the weights of the horizontal pass have the registers.
template <int kOctets>
MMCORE_DEVICE void integer_vertical(const IntegerBlock& b, const OutputDesc& out, std::uint8_t* shared, int place,
                                    int thread, int threads) {
  constexpr int kQuads = 2 * kOctets, kPitch = integer_pitch(kOctets);
  const FramesTables& t = b.t;
#pragma unroll 1
  for (int i = thread; i < (b.list[place].y1 - b.list[place].y0) * kQuads; i += threads) {
    const int row = i / kQuads, quad = i % kQuads, x = b.tile.octet0 * 8 + quad * 4;
    if (x >= t.out_w || x >= b.tile.octet1 * 8) continue;
    const float4* weight =
        reinterpret_cast<const float4*>(integer_outputs(b, shared, place)) + row * t.integer_row_quads;
    const float* column = reinterpret_cast<const float*>(shared + b.sums) + quad * 4;
    float in[3][4];
#pragma unroll
    for (int c = 0; c < 3; ++c) in[c][0] = in[c][1] = in[c][2] = in[c][3] = 0;
    const float4 head = *weight++;
    const int groups0 = bits_of(head.z), ring0 = t.integer_table[0].ring_rows;
    const int at0 = bits_of(head.x) + b.list[place].base[0];
    add_groups<1, kPitch>(&in[0], weight, groups0, column, 0, at0 < 0 ? at0 + ring0 : at0, ring0);
    if (t.family != static_cast<int>(ColorFamily::kGray)) {
      const int ring1 = t.integer_table[t.chroma_axis].ring_rows, at1 = bits_of(head.y) + b.list[place].base[1];
      add_groups<2, kPitch>(&in[1], weight + t.integer_table[0].groups, bits_of(head.w), column + ring0 * kPitch,
                            ring1 * kPitch, at1 < 0 ? at1 + ring1 : at1, ring1);
    }
    integer_store(b, out, b.list[place].y0 + row, x, in);
  }
}

}  // namespace mmcore::cuda
