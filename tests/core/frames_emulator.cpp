// The CUDA frames kernels' bodies run on the CPU, thread after thread with every barrier kept, behind the C interface
// that tests/test_frames_cuda.py calls: what a device computes, but for its rounding of asynchronous copies to time.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <map>
#include <vector>

#include "frames_body.h"
#include "frames_integer.h"
#include "frames_launch.h"
#include "frames_matrix.h"

// Threads of a block at least: on a device the frame that needs most of a launch says how many.
extern "C" int frames_emulator_threads = 0;

namespace mmcore::cuda {

namespace {

// Threads keep their state between stages in one of three kinds, by plane.
template <typename T, int kN, int kLuma, int kChroma>
void stream(const FrameDesc& f, const OutputDesc& out, int strip_rows) {
  const FramesTables& t = *reinterpret_cast<const FramesTables*>(f.tables);
  const int threads = std::max(t.max_threads, frames_emulator_threads);
  const int blocks = (t.out_h + strip_rows - 1) / strip_rows * t.num_tiles;
  const std::size_t count = static_cast<std::size_t>(threads);
  for (int block = 0; block < blocks; ++block) {
    std::vector<std::uint8_t> ring(static_cast<std::size_t>(kRing) * count * kN * sizeof(T), 0xA5);
    // as on the device: whatever was there before, here NaN
    std::vector<float> rows(static_cast<std::size_t>(kStageRows) * t.max_row_floats + 4, NAN);
    float* aligned = rows.data() + (16 - reinterpret_cast<std::uintptr_t>(rows.data()) % 16) % 16 / 4;
    const StreamBlock b = stream_block(f, strip_rows, block, aligned);
    if (b.row_floats > t.max_row_floats) throw std::exception();
    for (int i = 0; i < threads; ++i) stream_clear(b, i, threads);
    std::vector<StreamGroup> group(count);
    std::vector<bool> active(count);
    std::vector<StreamThread<T, kN, kLuma>> luma(count);
    std::vector<StreamThread<T, kN, kChroma>> chroma(count);
    for (std::size_t i = 0; i < count; ++i) {
      const int thread = static_cast<int>(i);
      active[i] = stream_group(b, kN, thread, group[i]);
      if (!active[i]) continue;
      group[i].axis == 0 ? stream_begin(b, group[i], luma[i], ring.data(), thread, threads)
                         : stream_begin(b, group[i], chroma[i], ring.data(), thread, threads);
    }
    for (int y = b.y0; y < b.y1; y += kStageRows) {
      const int end = y + kStageRows < b.y1 ? y + kStageRows : b.y1;
      for (std::size_t i = 0; i < count; ++i) {
        if (!active[i]) continue;
        if (group[i].axis == 0) {
          stream_vertical<1>(b, luma[i], y, end);
        } else if (group[i].step == 1) {
          stream_vertical<1>(b, chroma[i], y, end);
        } else {
          stream_vertical<2>(b, chroma[i], y, end);
        }
      }
      for (int i = 0; i < threads; ++i) stream_horizontal(b, out, i, threads, y, end);
    }
  }
}

template <typename T>
void matrix(const FrameDesc& f, const OutputDesc& out) {
  const FramesTables& t = *reinterpret_cast<const FramesTables*>(f.tables);
  constexpr int kWarps = 8;
  for (int block = 0; block < t.row_tiles * t.num_matrix_tiles; ++block) {
    const MatrixBlock b = matrix_block(f, block);
    // as on the device: whatever was there before, here NaN
    std::vector<std::uint16_t> shared(static_cast<std::size_t>(t.matrix_halves) + 8, 0x7e00);
    std::uint16_t* aligned = shared.data() + (16 - reinterpret_cast<std::uintptr_t>(shared.data()) % 16) % 16 / 2;
    for (int warp = 0; warp < kWarps; ++warp) matrix_vertical<T>(b, aligned, warp, kWarps);
    for (int warp = 0; warp < kWarps; ++warp) matrix_horizontal(b, aligned, out, warp, kWarps);
  }
}

template <typename T, int kOctets, int kSteps>
void integer(const FrameDesc& f, const OutputDesc& out, int strip_rows) {
  constexpr int kPitch = integer_pitch(kOctets);
  const FramesTables& t = *reinterpret_cast<const FramesTables*>(f.tables);
  if (strip_rows < t.out_h && strip_rows % kStripAlign) throw std::exception();
  const int warps = std::max(t.integer_warps, frames_emulator_threads / 32),
            blocks = (t.out_h + strip_rows - 1) / strip_rows * t.num_integer_tiles;
  const int chunk_bytes = integer_chunk_bytes(t), ring_bytes = integer_ring_bytes(t), quads = t.integer_most_quads;
  constexpr int stages = kIntegerStages;
  for (int block = 0; block < blocks; ++block) {
    const std::size_t size = integer_shared_bytes(stages, chunk_bytes, quads, ring_bytes);
    // as on the device: whatever was there before, here NaN; and nothing beyond is written
    std::vector<std::uint8_t> shared(size + 32, 0xff);
    std::uint8_t* memory = shared.data() + (16 - reinterpret_cast<std::uintptr_t>(shared.data()) % 16) % 16;
    IntegerBlock b;
    for (int i = 0; i < 32 * warps; ++i) integer_fetch(b, f, i, 32 * warps);
    integer_place(b, strip_rows, block);
    for (int i = 0; i < 32 * warps; ++i) integer_list_rows(b, i, 32 * warps);
    std::vector<IntegerWarp<kSteps>> warp(static_cast<std::size_t>(warps));
    for (int i = 0; i < 32 * warps; ++i) integer_clear(b, memory, i, 32 * warps);
    for (int w = 0; w < warps; ++w) integer_begin<kSteps, kPitch>(b, warp[static_cast<std::size_t>(w)], w);
    // What no barrier separates comes in another order in every other block: it must not matter.
    const bool backwards = block % 2;
    const auto each = [&](int count, auto body) {
      for (int i = 0; i < count; ++i) body(backwards ? count - 1 - i : i);
    };
    int y = b.y0;
    for (int chunk = -stages; chunk < b.chunks; ++chunk) {
      const int slot = (chunk + stages) % stages;
      const int next = (chunk + stages) % (stages + 1), place = (chunk + stages + 1) % (stages + 1);
      const auto load = [&] {
        each(warps, [&](int w) { integer_load(b, memory, chunk + stages, slot, next, w, warps); });
      };
      if (chunk >= 0) {
        each(warps, [&](int w) {
          const auto& weights = warp[static_cast<std::size_t>(w)];
          integer_horizontal<T, kSteps, kPitch>(b, weights, memory, chunk, slot, place, w);
        });
      }
      if (!backwards) load();
      if (chunk >= 0) {
        if (b.list[place].y0 != y) throw std::exception();
        y = b.list[place].y1;
        each(32 * warps, [&](int i) { integer_vertical<kOctets>(b, out, memory, place, i, 32 * warps); });
      }
      if (backwards) load();
    }
    if (y != b.y1 || memory[size] != 0xff) throw std::exception();
  }
}

// The method that was used; 0: that of the resize on bytes.
int frame(const FrameDesc& f, const OutputDesc& out, int method, int strip_rows) {
  const FramesTables& t = *reinterpret_cast<const FramesTables*>(f.tables);
  const Method used = method_of(t, static_cast<Method>(method));
  if (used == Method::kAuto) {
    const BytesTable& b = t.bytes_table;
    std::vector<std::uint8_t> rgb(static_cast<std::size_t>(3) * b.rows * b.columns);
    std::vector<std::uint32_t> small(static_cast<std::size_t>(3) * b.rows * t.out_w);
    for (int y = 0; y < b.rows; ++y) {
      for (int x = 0; x < b.columns; ++x) region_rgb(t, f, rgb.data(), y, x);
    }
    for (int c = 0; c < 3; ++c) {
      for (int y = 0; y < b.rows; ++y) {
        for (int x = 0; x < t.out_w; ++x) bytes_horizontal(t, f.tables, rgb.data(), small.data(), c, y, x);
      }
    }
    for (int y = 0; y < t.out_h; ++y) {
      for (int x = 0; x < t.out_w; ++x) bytes_vertical(t, f, out, small.data(), y, x);
    }
    return 0;
  }
  if (used == Method::kMatrix) {
    t.sample_bytes == 1 ? matrix<std::uint8_t>(f, out) : matrix<std::uint16_t>(f, out);
    return 3;
  }
  if (used == Method::kInteger) {
    if (t.sample_bytes == 2) {
      t.integer_steps == 4 ? integer<std::uint16_t, 4, 4>(f, out, strip_rows)
                           : integer<std::uint16_t, 4, 8>(f, out, strip_rows);
    } else {
      t.integer_octets == 7 ? integer<std::uint8_t, 7, 4>(f, out, strip_rows)
                            : integer<std::uint8_t, 4, 8>(f, out, strip_rows);
    }
    return 4;
  }
  if (used == Method::kGather) {
    for (int y = 0; y < t.out_h; ++y) {
      for (int x = 0; x < t.out_w; ++x) gather(t, f, out, y, x);
    }
    return 1;
  }
  if (t.sample_bytes == 1) {
    t.live == 3 ? stream<std::uint8_t, 16, 2, 3>(f, out, strip_rows)
                : stream<std::uint8_t, 8, 5, 7>(f, out, strip_rows);
  } else {
    t.live == 3 ? stream<std::uint16_t, 8, 2, 3>(f, out, strip_rows)
                : stream<std::uint16_t, 8, 5, 7>(f, out, strip_rows);
  }
  return 2;
}

}  // namespace

}  // namespace mmcore::cuda

extern "C" int frames_emulator(const std::uint8_t* tables, const std::uint8_t* const* planes,
                               const std::int64_t* pitches, int num_planes, void* data, const std::int64_t* strides,
                               const int* patches, int slot, int method, int strip_rows) {
  mmcore::cuda::FrameDesc f{};
  for (int p = 0; p < num_planes; ++p) {
    f.planes[p] = planes[p];
    f.pitches[p] = pitches[p];
  }
  f.tables = tables;
  f.slot = slot;
  mmcore::OutputDesc out;
  out.data = data;
  out.frame_stride = strides[0];
  out.channel_stride = strides[1];
  out.row_stride = strides[2];
  out.pixel_stride = strides[3];
  out.patch_size = patches[0];
  out.temporal_patch_size = patches[1];
  out.merge_size = patches[2];
  try {
    return mmcore::cuda::frame(f, out, method, strip_rows);
  } catch (const std::exception&) {
    return -1;
  }
}

// Launches of kernels with so much shared memory, one after another, on a device where a launch may ask for what was last
// set for its kernel: how many are refused.
extern "C" int frames_emulator_refused_launches(const int* kernels, const int* bytes, int count) {
  mmcore::cuda::SharedLimits limits;
  std::map<int, int> set;
  int refused = 0;
  for (int i = 0; i < count; ++i) {
    limits.allow(0, kernels + kernels[i], static_cast<std::size_t>(bytes[i]), [&] { set[kernels[i]] = bytes[i]; });
    refused += bytes[i] > set[kernels[i]];
  }
  return refused;
}

extern "C" int frames_emulator_strip_rows(int out_h, int blocks_per_strip, int resident) {
  return mmcore::cuda::choose_strip_rows(out_h, blocks_per_strip, resident);
}
