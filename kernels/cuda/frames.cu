#include "frames.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "frames_body.h"
#include "frames_integer.h"
#include "frames_launch.h"
#include "frames_matrix.h"

namespace mmcore::cuda {

namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("frames_to_tensor: ") + what + ": " + cudaGetErrorString(error));
  }
}

// Of a launch that has just been made: what was asked for, where it was refused.
void check_launch(const char* kernel, dim3 grid, dim3 block, std::size_t shared, std::size_t parameters) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  char text[256];
  std::snprintf(text, sizeof(text),
                "launch of %s, grid %u x %u x %u, block %u x %u x %u, %zu "
                "bytes of shared memory, %zu of parameters",
                kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared, parameters);
  check(error, text);
}

constexpr int kGatherX = 32, kGatherY = 8;

template <int kFrames>
__global__ void __launch_bounds__(kGatherX* kGatherY) gather_kernel(const __grid_constant__ FrameBatch<kFrames> batch) {
  const FrameDesc& f = batch.frames[blockIdx.z];
  const FramesTables& t = *reinterpret_cast<const FramesTables*>(f.tables);
  const int x = blockIdx.x * kGatherX + threadIdx.x, y = blockIdx.y * kGatherY + threadIdx.y;
  if (x < t.out_w && y < t.out_h) gather(t, f, batch.out, y, x);
}

// Region, horizontal and vertical pass of a resize on bytes; a frame's scratch is `stride` bytes.
template <int kFrames, int kPass>
__global__ void __launch_bounds__(kGatherX* kGatherY)
    bytes_kernel(const __grid_constant__ FrameBatch<kFrames> batch, std::uint8_t* scratch, std::size_t stride) {
  const FrameDesc& f = batch.frames[blockIdx.z];
  const FramesTables& t = *reinterpret_cast<const FramesTables*>(f.tables);
  const BytesTable& b = t.bytes_table;
  std::uint8_t* rgb = scratch + blockIdx.z * stride;
  void* small = rgb + (static_cast<std::size_t>(3) * b.rows * b.columns + 15) / 16 * 16;
  const int x = blockIdx.x * kGatherX + threadIdx.x;
  for (int y = blockIdx.y * kGatherY + threadIdx.y; y < (kPass == 2 ? t.out_h : b.rows); y += gridDim.y * kGatherY) {
    if constexpr (kPass == 0) {
      if (x < b.columns) region_rgb(t, f, rgb, y, x);
    } else if constexpr (kPass == 1) {
      if (x < t.out_w) {
        for (int c = 0; c < 3; ++c) bytes_horizontal(t, f.tables, rgb, small, c, y, x);
      }
    } else {
      if (x < t.out_w) bytes_vertical(t, f, batch.out, small, y, x);
    }
  }
}

// The frame whose blocks this one is among.
template <int kFrames>
__device__ __forceinline__ const FrameDesc& frame_of_block(const FrameBatch<kFrames>& batch) {
  int low = 0, high = batch.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (batch.frames[middle].first_block <= static_cast<int>(blockIdx.x)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return batch.frames[low];
}

// One plane's warps through all stages. A block's warps come through different copies of this function, by plane; its
// barriers count them all the same.
template <int kStep, typename T, int kN, int kLive>
__device__ __forceinline__ void stream_plane(const StreamBlock& b, const StreamGroup& g, bool active,
                                             const OutputDesc& out, std::uint8_t* ring) {
  const int thread = threadIdx.x, threads = blockDim.x;
  StreamThread<T, kN, kLive> s;
  if (active) stream_begin(b, g, s, ring, thread, threads);
  for (int y = b.y0; y < b.y1; y += kStageRows) {
    const int end = min(y + kStageRows, b.y1);
    if (active) stream_vertical<kStep>(b, s, y, end);
    __syncthreads();
    stream_horizontal(b, out, thread, threads, y, end);
    __syncthreads();
  }
}

template <int kFrames, typename T, int kN, int kLuma, int kChroma>
__global__ void __launch_bounds__(kN == 16 ? 256 : 512, kN == 16 ? 2 : 1)
    stream_kernel(const __grid_constant__ FrameBatch<kFrames> batch) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  float* rows = reinterpret_cast<float*>(shared + static_cast<std::size_t>(kRing) * blockDim.x * kN * sizeof(T));
  const StreamBlock b = stream_block(frame_of_block(batch), batch.strip_rows, blockIdx.x, rows);
  stream_clear(b, threadIdx.x, blockDim.x);
  __syncthreads();
  StreamGroup g{};
  const bool active = stream_group(b, kN, threadIdx.x, g);
  if (g.axis == 0) {
    stream_plane<1, T, kN, kLuma>(b, g, active, batch.out, shared);
  } else if (g.step == 1) {
    stream_plane<1, T, kN, kChroma>(b, g, active, batch.out, shared);
  } else {
    stream_plane<2, T, kN, kChroma>(b, g, active, batch.out, shared);
  }
}

constexpr int kMatrixThreads = 256;

template <int kFrames, typename T>
__global__ void __launch_bounds__(kMatrixThreads, 2) matrix_kernel(const __grid_constant__ FrameBatch<kFrames> batch) {
  extern __shared__ __align__(16) std::uint16_t halves[];
  const MatrixBlock b = matrix_block(frame_of_block(batch), blockIdx.x);
  matrix_vertical<T>(b, halves, threadIdx.x / 32, kMatrixThreads / 32);
  __syncthreads();
  matrix_horizontal(b, halves, batch.out, threadIdx.x / 32, kMatrixThreads / 32);
}

// A block takes chunk after chunk of input rows of its tile and strip.
template <int kFrames, typename T, int kOctets, int kSteps>
__global__ void __launch_bounds__(64 * kOctets, 2) integer_kernel(const __grid_constant__ FrameBatch<kFrames> batch) {
  constexpr int kPitch = integer_pitch(kOctets);
  extern __shared__ __align__(16) std::uint8_t shared[];
  __shared__ alignas(16) std::uint8_t block_bytes[sizeof(IntegerBlock)];
  IntegerBlock& b = *reinterpret_cast<IntegerBlock*>(block_bytes);
  const int thread = threadIdx.x, threads = blockDim.x, warp = thread / 32, warps = threads / 32;
  integer_fetch(b, frame_of_block(batch), thread, threads);
  __syncthreads();
  if (thread == 0) integer_place(b, batch.strip_rows, blockIdx.x);
  __syncthreads();
  integer_list_rows(b, thread, threads);
  integer_clear(b, shared, thread, threads);
  IntegerWarp<kSteps> w;
  integer_begin<kSteps, kPitch>(b, w, warp);
  __syncthreads();
  int slot = 0, place = 1;  // of a chunk, and of its list of outputs; the one that is made takes the place before
#pragma unroll 1
  for (int chunk = -kIntegerStages; chunk < b.chunks; ++chunk) {
    if (chunk >= 0) {
      async_wait<kIntegerStages - 1>();
      __syncthreads();
      integer_horizontal<T, kSteps, kPitch>(b, w, shared, chunk, slot, place, warp);
      __syncthreads();
    }
    integer_load(b, shared, chunk + kIntegerStages, slot, place ? place - 1 : kIntegerStages, warp, warps);
    if (chunk >= 0) integer_vertical<kOctets>(b, batch.out, shared, place, thread, threads);
    if (++slot == kIntegerStages) slot = 0;
    if (++place > kIntegerStages) place = 0;
  }
}

constexpr int kFew = 32, kMany = 480;  // frames of a launch; kMany fills the 32 KB that parameters may take

template <int kFrames>
FrameBatch<kFrames> make_batch(const std::vector<Frame>& frames, std::size_t first, std::size_t count,
                               const OutputDesc& out) {
  FrameBatch<kFrames> batch;
  batch.out = out;
  batch.count = static_cast<std::int32_t>(count);
  for (std::size_t i = 0; i < count; ++i) {
    const Frame& from = frames[first + i];
    FrameDesc& f = batch.frames[i];
    for (int p = 0; p < 3; ++p) {
      f.planes[p] = from.planes[p];
      f.pitches[p] = from.pitches[p];
    }
    f.tables = from.tables;
    f.slot = from.slot;
    f.first_block = 0;
  }
  return batch;
}

// Calls body(first, count) and its like for as many frames as a launch takes.
template <typename Body>
void in_batches(std::size_t total, std::size_t most, Body body) {
  for (std::size_t first = 0; first < total; first += most) body(first, std::min(most, total - first));
}

unsigned blocks(int n, int size) { return static_cast<unsigned>((n + size - 1) / size); }

template <int kFrames>
void launch_gather(const std::vector<Frame>& frames, const OutputDesc& out, cudaStream_t stream) {
  in_batches(frames.size(), kFrames, [&](std::size_t first, std::size_t count) {
    const auto batch = make_batch<kFrames>(frames, first, count, out);
    const FramesTables& t = *frames[first].host;
    const dim3 grid(blocks(t.out_w, kGatherX), blocks(t.out_h, kGatherY), static_cast<unsigned>(count));
    const dim3 block(kGatherX, kGatherY);
    gather_kernel<kFrames><<<grid, block, 0, stream>>>(batch);
    check_launch("gather_kernel", grid, block, 0, sizeof(batch));
  });
}

std::size_t bytes_stride(const FramesTables& t) {
  const BytesTable& b = t.bytes_table;
  const std::size_t rgb = (static_cast<std::size_t>(3) * b.rows * b.columns + 15) / 16 * 16;
  const std::size_t small = static_cast<std::size_t>(3) * b.rows * t.out_w * (b.area ? 4 : 1);
  return rgb + (small + 255) / 256 * 256;
}

// Scratch of one frame, and frames that share the scratch of one launch.
std::pair<std::size_t, std::size_t> bytes_plan(const std::vector<Frame>& frames) {
  constexpr std::size_t kMost = std::size_t{256} << 20;
  std::size_t stride = 0, count = 0;
  for (const Frame& f : frames) {
    if (!f.host->bytes_table.resample) continue;
    stride = std::max(stride, (bytes_stride(*f.host) + 255) / 256 * 256);
    ++count;
  }
  if (count == 0) return {0, 0};
  return {stride, std::min({count, std::max<std::size_t>(kMost / stride, 1), static_cast<std::size_t>(kFew)})};
}

void launch_bytes(const std::vector<Frame>& frames, const OutputDesc& out, std::uint8_t* scratch, cudaStream_t stream) {
  const auto [stride, most] = bytes_plan(frames);
  in_batches(frames.size(), most, [&, stride = stride](std::size_t first, std::size_t count) {
    const auto batch = make_batch<kFew>(frames, first, count, out);
    int rows = 0, columns = 0;
    for (std::size_t i = first; i < first + count; ++i) {
      rows = std::max(rows, frames[i].host->bytes_table.rows);
      columns = std::max(columns, frames[i].host->bytes_table.columns);
    }
    const FramesTables& t = *frames[first].host;
    const dim3 block(kGatherX, kGatherY);
    const unsigned z = static_cast<unsigned>(count);
    const dim3 grids[3] = {{blocks(columns, kGatherX), blocks(rows, kGatherY), z},
                           {blocks(t.out_w, kGatherX), blocks(rows, kGatherY), z},
                           {blocks(t.out_w, kGatherX), blocks(t.out_h, kGatherY), z}};
    bytes_kernel<kFew, 0><<<grids[0], block, 0, stream>>>(batch, scratch, stride);
    check_launch("bytes_kernel 0", grids[0], block, 0, sizeof(batch) + 16);
    bytes_kernel<kFew, 1><<<grids[1], block, 0, stream>>>(batch, scratch, stride);
    check_launch("bytes_kernel 1", grids[1], block, 0, sizeof(batch) + 16);
    bytes_kernel<kFew, 2><<<grids[2], block, 0, stream>>>(batch, scratch, stride);
    check_launch("bytes_kernel 2", grids[2], block, 0, sizeof(batch) + 16);
  });
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "device");
  return value;
}

// The device that is current, as far as a launch depends on it.
struct Device {
  int index = 0, multiprocessors = 1, capability = 0;
  std::size_t block_shared = 0;  // most of a block
};

Device current_device() {
  Device d;
  check(cudaGetDevice(&d.index), "device");
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(d.index);
  if (found != known.end()) return found->second;
  d.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, d.index);
  d.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, d.index) +
                 attribute(cudaDevAttrComputeCapabilityMinor, d.index);
  d.block_shared = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, d.index));
  return known[d.index] = d;
}

// Blocks of a kernel that the device holds at once. Allows the kernel so much shared memory; never less than before, as
// launches with more count on what an earlier call allowed.
int resident_blocks(const void* kernel, int threads, std::size_t shared, bool shared_first = false) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, std::size_t>, int> known;
  static SharedLimits limits;
  const Device device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  int& result = known[{device.index, kernel, threads, shared}];
  if (result == 0) {
    int per_multiprocessor = 0;
    limits.allow(device.index, kernel, shared, [&] {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
            "shared memory");
      if (shared_first) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                   cudaSharedmemCarveoutMaxShared),
              "shared memory");
      }
    });
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, shared), "occupancy");
    result = std::max(1, device.multiprocessors * per_multiprocessor);
  }
  return result;
}

template <int kFrames, typename T, int kN, int kLuma, int kChroma>
void launch_stream_kernel(const std::vector<Frame>& frames, const OutputDesc& out, cudaStream_t stream) {
  in_batches(frames.size(), kFrames, [&](std::size_t first, std::size_t count) {
    auto batch = make_batch<kFrames>(frames, first, count, out);
    int threads = 32, floats = 0, tiles = 0;
    for (std::size_t i = first; i < first + count; ++i) {
      threads = std::max(threads, frames[i].host->max_threads);
      floats = std::max(floats, frames[i].host->max_row_floats);
      tiles += frames[i].host->num_tiles;
    }
    const std::size_t shared = static_cast<std::size_t>(kRing) * threads * kN * sizeof(T) +
                               static_cast<std::size_t>(kStageRows) * floats * sizeof(float);
    const auto kernel = stream_kernel<kFrames, T, kN, kLuma, kChroma>;
    const int out_h = frames[first].host->out_h;
    batch.strip_rows =
        choose_strip_rows(out_h, tiles, resident_blocks(reinterpret_cast<const void*>(kernel), threads, shared));
    const int strips = (out_h + batch.strip_rows - 1) / batch.strip_rows;
    int total = 0;
    for (std::size_t i = 0; i < count; ++i) {
      batch.frames[i].first_block = total;
      total += strips * frames[first + i].host->num_tiles;
    }
    const dim3 grid(static_cast<unsigned>(total)), block(static_cast<unsigned>(threads));
    kernel<<<grid, block, shared, stream>>>(batch);
    check_launch("stream_kernel", grid, block, shared, sizeof(batch));
  });
}

template <int kFrames, typename T>
void launch_matrix_kernel(const std::vector<Frame>& frames, const OutputDesc& out, cudaStream_t stream) {
  in_batches(frames.size(), kFrames, [&](std::size_t first, std::size_t count) {
    auto batch = make_batch<kFrames>(frames, first, count, out);
    int halves = 0, total = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const FramesTables& t = *frames[first + i].host;
      halves = std::max(halves, t.matrix_halves);
      batch.frames[i].first_block = total;
      total += t.row_tiles * t.num_matrix_tiles;
    }
    const std::size_t shared = static_cast<std::size_t>(halves) * 2;
    const auto kernel = matrix_kernel<kFrames, T>;
    resident_blocks(reinterpret_cast<const void*>(kernel), kMatrixThreads, shared);  // allows so much shared memory
    const dim3 grid(static_cast<unsigned>(total));
    kernel<<<grid, kMatrixThreads, shared, stream>>>(batch);
    check_launch("matrix_kernel", grid, kMatrixThreads, shared, sizeof(batch));
  });
}

template <int kFrames, typename T, int kOctets, int kSteps>
void launch_integer_kernel(const std::vector<Frame>& frames, const OutputDesc& out, cudaStream_t stream) {
  in_batches(frames.size(), kFrames, [&](std::size_t first, std::size_t count) {
    auto batch = make_batch<kFrames>(frames, first, count, out);
    int threads = 32, chunk_bytes = 0, quads = 0, ring_bytes = 0, tiles = 0;
    for (std::size_t i = first; i < first + count; ++i) {
      const FramesTables& t = *frames[i].host;
      threads = std::max(threads, 32 * t.integer_warps);
      chunk_bytes = std::max(chunk_bytes, integer_chunk_bytes(t));
      quads = std::max(quads, t.integer_most_quads);
      ring_bytes = std::max(ring_bytes, integer_ring_bytes(t));
      tiles += t.num_integer_tiles;
    }
    const auto kernel = integer_kernel<kFrames, T, kOctets, kSteps>;
    const void* address = reinterpret_cast<const void*>(kernel);
    const std::size_t shared = integer_shared_bytes(kIntegerStages, chunk_bytes, quads, ring_bytes);
    const int out_h = frames[first].host->out_h;
    batch.strip_rows = choose_strip_rows(out_h, tiles, resident_blocks(address, threads, shared, true));
    const int strips = (out_h + batch.strip_rows - 1) / batch.strip_rows;
    int total = 0;
    for (std::size_t i = 0; i < count; ++i) {
      batch.frames[i].first_block = total;
      total += strips * frames[first + i].host->num_integer_tiles;
    }
    const dim3 grid(static_cast<unsigned>(total)), block(static_cast<unsigned>(threads));
    kernel<<<grid, block, shared, stream>>>(batch);
    check_launch("integer_kernel", grid, block, shared, sizeof(batch));
  });
}

template <typename T, int kOctets, int kSteps>
void launch_integer(const std::vector<Frame>& frames, const OutputDesc& out, cudaStream_t stream) {
  if (frames.empty()) return;
  frames.size() <= kFew ? launch_integer_kernel<kFew, T, kOctets, kSteps>(frames, out, stream)
                        : launch_integer_kernel<kMany, T, kOctets, kSteps>(frames, out, stream);
}

template <typename T>
void launch_matrix(const std::vector<Frame>& frames, const OutputDesc& out, cudaStream_t stream) {
  if (frames.empty()) return;
  frames.size() <= kFew ? launch_matrix_kernel<kFew, T>(frames, out, stream)
                        : launch_matrix_kernel<kMany, T>(frames, out, stream);
}

template <typename T, int kN, int kLuma, int kChroma>
void launch_stream(const std::vector<Frame>& frames, const OutputDesc& out, cudaStream_t stream) {
  if (frames.empty()) return;
  if (frames.size() <= kFew) {
    launch_stream_kernel<kFew, T, kN, kLuma, kChroma>(frames, out, stream);
  } else {
    launch_stream_kernel<kMany, T, kN, kLuma, kChroma>(frames, out, stream);
  }
}

}  // namespace

std::size_t scratch_bytes(const std::vector<Frame>& frames) {
  const auto [stride, count] = bytes_plan(frames);
  return stride * count;
}

void frames_to_tensor(const std::vector<Frame>& frames, const OutputDesc& out, void* scratch, std::uintptr_t stream,
                      Method method) {
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  const bool byte_products = current_device().capability >= 80;
  std::vector<Frame> gathered, bytes, streamed[2][2], multiplied[2], integer[2][2];
  for (const Frame& f : frames) {
    switch (method_of(*f.host, method, byte_products)) {
      case Method::kGather:
        gathered.push_back(f);
        break;
      case Method::kStream:
        streamed[f.host->sample_bytes - 1][f.host->live == 7].push_back(f);
        break;
      case Method::kMatrix:
        multiplied[f.host->sample_bytes - 1].push_back(f);
        break;
      case Method::kInteger:
        integer[f.host->sample_bytes - 1][f.host->integer_steps == 8].push_back(f);
        break;
      default:
        bytes.push_back(f);
    }
  }
  if (!gathered.empty()) {
    gathered.size() <= kFew ? launch_gather<kFew>(gathered, out, on) : launch_gather<kMany>(gathered, out, on);
  }
  if (!bytes.empty()) launch_bytes(bytes, out, static_cast<std::uint8_t*>(scratch), on);
  launch_matrix<std::uint8_t>(multiplied[0], out, on);
  launch_matrix<std::uint16_t>(multiplied[1], out, on);
  launch_integer<std::uint8_t, 7, 4>(integer[0][0], out, on);
  launch_integer<std::uint8_t, 4, 8>(integer[0][1], out, on);
  launch_integer<std::uint16_t, 4, 4>(integer[1][0], out, on);
  launch_integer<std::uint16_t, 4, 8>(integer[1][1], out, on);
  launch_stream<std::uint8_t, 16, 2, 3>(streamed[0][0], out, on);
  launch_stream<std::uint8_t, 8, 5, 7>(streamed[0][1], out, on);
  launch_stream<std::uint16_t, 8, 2, 3>(streamed[1][0], out, on);
  launch_stream<std::uint16_t, 8, 5, 7>(streamed[1][1], out, on);
}

}  // namespace mmcore::cuda
