#include "frames.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "frames_body.h"
#include "frames_matrix.h"

namespace mmcore::cuda {

namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("frames_to_tensor: ") + what + ": " + cudaGetErrorString(error));
  }
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
    gather_kernel<kFrames><<<grid, dim3(kGatherX, kGatherY), 0, stream>>>(batch);
    check(cudaGetLastError(), "launch");
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
    bytes_kernel<kFew, 0>
        <<<dim3(blocks(columns, kGatherX), blocks(rows, kGatherY), z), block, 0, stream>>>(batch, scratch, stride);
    bytes_kernel<kFew, 1>
        <<<dim3(blocks(t.out_w, kGatherX), blocks(rows, kGatherY), z), block, 0, stream>>>(batch, scratch, stride);
    bytes_kernel<kFew, 2>
        <<<dim3(blocks(t.out_w, kGatherX), blocks(t.out_h, kGatherY), z), block, 0, stream>>>(batch, scratch, stride);
    check(cudaGetLastError(), "launch");
  });
}

// Blocks of a kernel that the device holds at once.
int resident_blocks(const void* kernel, int threads, std::size_t shared) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, std::size_t>, int> known;
  int device = 0;
  check(cudaGetDevice(&device), "device");
  const std::lock_guard<std::mutex> lock(mutex);
  int& result = known[{device, kernel, threads, shared}];
  if (result == 0) {
    int multiprocessors = 0, per_multiprocessor = 0;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "shared memory");
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "device");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, shared), "occupancy");
    result = std::max(1, multiprocessors * per_multiprocessor);
  }
  return result;
}

// Output rows of a strip: few enough strips that little is read twice, in a number that fills the device evenly.
int choose_strip_rows(int out_h, int blocks_per_strip, int resident) {
  int best = out_h;
  double best_cost = 0;
  for (int strips = 1; strips <= (out_h + kStageRows - 1) / kStageRows; ++strips) {
    const int rows = ((out_h + strips - 1) / strips + kStageRows - 1) / kStageRows * kStageRows;
    const std::int64_t total = static_cast<std::int64_t>((out_h + rows - 1) / rows) * blocks_per_strip;
    // a block also reads about an output row's worth above its strip and one below, and has a pipeline to fill
    const double cost = static_cast<double>((total + resident - 1) / resident) * (rows + 2.5);
    if (strips == 1 || cost < best_cost) {
      best = rows;
      best_cost = cost;
    }
  }
  return best;
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
    kernel<<<static_cast<unsigned>(total), static_cast<unsigned>(threads), shared, stream>>>(batch);
    check(cudaGetLastError(), "launch");
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
    kernel<<<static_cast<unsigned>(total), kMatrixThreads, shared, stream>>>(batch);
    check(cudaGetLastError(), "launch");
  });
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
  std::vector<Frame> gathered, bytes, streamed[2][2], multiplied[2];
  for (const Frame& f : frames) {
    switch (method_of(*f.host, method)) {
      case Method::kGather:
        gathered.push_back(f);
        break;
      case Method::kStream:
        streamed[f.host->sample_bytes - 1][f.host->live == 7].push_back(f);
        break;
      case Method::kMatrix:
        multiplied[f.host->sample_bytes - 1].push_back(f);
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
  launch_stream<std::uint8_t, 16, 2, 3>(streamed[0][0], out, on);
  launch_stream<std::uint8_t, 8, 5, 7>(streamed[0][1], out, on);
  launch_stream<std::uint16_t, 8, 2, 3>(streamed[1][0], out, on);
  launch_stream<std::uint16_t, 8, 5, 7>(streamed[1][1], out, on);
}

}  // namespace mmcore::cuda
