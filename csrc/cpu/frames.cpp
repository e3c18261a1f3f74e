#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "frames_plan.h"
#include "mmcore/frames.h"
#include "parallel.h"

namespace mmcore {

namespace {

constexpr std::size_t kAlign = 64;

// Bump allocator over one thread's scratch, which frames of every kind share.
class Scratch {
 public:
  void begin(std::size_t bytes) {
    used_ = 0;
    if (bytes + kAlign > storage_.size()) storage_.assign(bytes + kAlign, 0);
    const auto address = reinterpret_cast<std::uintptr_t>(storage_.data());
    base_ = storage_.data() + (kAlign - address % kAlign) % kAlign;
  }
  template <typename T>
  T* take(std::size_t count) {
    T* p = reinterpret_cast<T*>(base_ + used_);
    used_ += bytes_for<T>(count);
    // Filters read past a row's end with weights of zero: what lies there must not be another use's NaN.
    std::memset(static_cast<void*>(p + count), 0, kRowPadding * sizeof(T));
    return p;
  }
  template <typename T>
  static std::size_t bytes_for(std::size_t count) {
    return ((count + kRowPadding) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
  }

 private:
  std::vector<unsigned char> storage_;
  unsigned char* base_ = nullptr;
  std::size_t used_ = 0;
};

Scratch& thread_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

int sample_size(const FormatDesc& f) { return f.bits + f.shift > 8 ? 2 : 1; }

struct Source {
  const std::uint8_t* const* planes;
  const std::ptrdiff_t* pitches;
};

// The last `depth` rows of a picture that comes row by row, kept while a later output row still needs them.
template <typename T>
class RowRing {
 public:
  static std::size_t bytes(int depth, int columns) {
    return Scratch::bytes_for<T>(static_cast<std::size_t>(depth) * padded(columns));
  }
  void take(Scratch& scratch, int depth, int columns) {
    depth_ = depth;
    columns_ = padded(columns);
    data_ = scratch.take<T>(static_cast<std::size_t>(depth) * columns_);
  }
  T* row(int y) { return data_ + static_cast<std::size_t>(y % depth_) * columns_; }

 private:
  static std::size_t padded(int columns) {
    return (static_cast<std::size_t>(columns) + 2 * kRowPadding - 1) / kRowPadding * kRowPadding;
  }
  T* data_ = nullptr;
  int depth_ = 1;
  std::size_t columns_ = 0;
};

// Planes of one frame to rows of raw component values at the convert stage's output size, downwards.
class Converter {
 public:
  Converter(const FramesPlan& plan, const Source& src) : plan_(plan), stage_(plan.convert), src_(src) {}

  static std::size_t bytes(const FramesPlan& plan) {
    const ConvertStage& s = plan.convert;
    std::size_t total = Scratch::bytes_for<const void*>(row_count(s));
    for (const PlaneStage& p : s.planes) total += Scratch::bytes_for<float>(static_cast<std::size_t>(p.sample_count));
    for (const ComponentStage& c : s.components) {
      total += Scratch::bytes_for<float>(static_cast<std::size_t>(c.columns));
      total += Scratch::bytes_for<float>(static_cast<std::size_t>(s.columns));
      const PlaneStage& p = s.planes[static_cast<std::size_t>(c.plane_stage)];
      if (p.horizontal_first) total += RowRing<float>::bytes(p.vertical->max_count, s.columns);
    }
    return total;
  }

  void take(Scratch& scratch) {
    row_pointers_ = scratch.take<const void*>(row_count(stage_));
    for (std::size_t i = 0; i < stage_.planes.size(); ++i) {
      samples_[i] = scratch.take<float>(static_cast<std::size_t>(stage_.planes[i].sample_count));
    }
    for (std::size_t i = 0; i < stage_.components.size(); ++i) {
      picked_[i] = scratch.take<float>(static_cast<std::size_t>(stage_.components[i].columns));
      component_[i] = scratch.take<float>(static_cast<std::size_t>(stage_.columns));
      const PlaneStage& p = stage_.planes[static_cast<std::size_t>(stage_.components[i].plane_stage)];
      if (p.horizontal_first) ring_[i].take(scratch, p.vertical->max_count, stage_.columns);
    }
  }

  // Pointers to the component rows of output row `y`. Rows are asked for in order.
  void row(int y, const float* out[3]) {
    const std::size_t i = static_cast<std::size_t>(y);
    for (std::size_t p = 0; p < stage_.planes.size(); ++p) {
      if (!stage_.planes[p].horizontal_first) sum_samples(stage_.planes[p], i, samples_[p]);
    }
    for (std::size_t c = 0; c < stage_.components.size(); ++c) {
      const ComponentStage& stage = stage_.components[c];
      const PlaneStage& plane = stage_.planes[static_cast<std::size_t>(stage.plane_stage)];
      out[c] = plane.horizontal_first ? sum_rows(plane, c, i) : filter_samples(stage, c);
    }
  }

 private:
  static std::size_t row_count(const ConvertStage& s) {
    return static_cast<std::size_t>(std::max(s.vertical[0].max_count, s.vertical[1].max_count) + kMaxAhead);
  }

  const std::uint8_t* row_of(const PlaneStage& stage, int y) const {
    return src_.planes[stage.plane] + y * src_.pitches[stage.plane] +
           static_cast<std::ptrdiff_t>(stage.sample_begin) * sample_size(plan_.spec.format);
  }

  // Output row i of a plane's vertical filter, over the samples read.
  void sum_samples(const PlaneStage& stage, std::size_t i, float* dst) {
    const VerticalFilter& v = *stage.vertical;
    const int count = v.count[i], ahead = v.ahead[i];
    const float* weight = v.weight.data() + v.offset[i];
    const std::uint8_t* row = row_of(stage, v.start[i]);
    for (int t = 0; t < count + ahead; ++t) row_pointers_[t] = row + t * src_.pitches[stage.plane];
    if (sample_size(plan_.spec.format) == 1) {
      plan_.kernels->vertical_u8(reinterpret_cast<const std::uint8_t* const*>(row_pointers_), weight, count, ahead, dst,
                                 stage.sample_count);
    } else {
      plan_.kernels->vertical_u16(reinterpret_cast<const std::uint16_t* const*>(row_pointers_), weight, count, ahead,
                                  plan_.spec.format.shift, dst, stage.sample_count);
    }
  }

  // One component of a plane's summed samples, at the output's width.
  const float* filter_samples(const ComponentStage& stage, std::size_t c) {
    const float* samples = samples_[stage.plane_stage] + stage.offset;
    const bool identity = stage.horizontal->kind == HorizontalKind::kIdentity;
    if (stage.step > 1) {
      float* to = identity ? component_[c] : picked_[c];
      plan_.kernels->pick(samples, stage.step, to, stage.columns);
      samples = to;
    }
    if (identity) return samples;
    plan_.kernels->horizontal(samples, *stage.horizontal, component_[c]);
    return component_[c];
  }

  // Output row i of component c whose rows are filtered horizontally as they come.
  const float* sum_rows(const PlaneStage& plane, std::size_t c, std::size_t i) {
    const VerticalFilter& v = *plane.vertical;
    const int start = v.start[i], count = v.count[i];
    const int last = v.start.back() + v.count.back() - 1;
    int& next = filtered_[c];
    for (next = std::max(next, start); next < start + count; ++next) {
      const std::uint8_t *row = row_of(plane, next), *after = row_of(plane, std::min(next + 1, last));
      plan_.kernels->horizontal_bytes(row, after, *stage_.components[c].horizontal, ring_[c].row(next));
    }
    const float* weight = v.weight.data() + v.offset[i];
    if (count == 1 && *weight == 1) return ring_[c].row(start);
    for (int t = 0; t < count; ++t) row_pointers_[t] = ring_[c].row(start + t);
    plan_.kernels->vertical_f32(reinterpret_cast<const float* const*>(row_pointers_), weight, count, component_[c],
                                stage_.columns);
    return component_[c];
  }

  const FramesPlan& plan_;
  const ConvertStage& stage_;
  const Source& src_;
  const void** row_pointers_ = nullptr;
  float* samples_[3] = {};    // per plane: a row of samples, summed vertically
  float* picked_[3] = {};     // per component: picked out of an interleaved plane
  float* component_[3] = {};  // per component: at the output's width
  RowRing<float> ring_[3];    // per component, horizontal_first
  int filtered_[3] = {0, 0, 0};  // ... first row that the ring does not hold yet
};

// Where rows of one frame go, whatever the layout: rows that the kernels can write straight into the output are
// written there, others through scratch.
class Sink {
 public:
  Sink(const FramesPlan& plan, const OutputDesc& out, std::int64_t frame)
      : plan_(plan), out_(out), frame_(frame), size_(dtype_size(plan.spec.dtype)) {}

  bool direct() const { return out_.patch_size == 0 && out_.pixel_stride == 1; }

  std::size_t bytes() const {
    return direct() ? 0 : 3 * Scratch::bytes_for<float>(static_cast<std::size_t>(plan_.spec.out_w));
  }

  void take(Scratch& scratch) {
    if (direct()) return;
    for (void*& r : scratch_) r = scratch.take<float>(static_cast<std::size_t>(plan_.spec.out_w));
  }

  // Three rows of out_w elements to fill, then commit(y).
  void rows(int y, void* dst[3]) {
    for (int c = 0; c < 3; ++c) {
      dst[c] = direct() ? at(frame_ * out_.frame_stride + c * out_.channel_stride + y * out_.row_stride) : scratch_[c];
    }
  }

  void commit(int y) {
    if (direct()) return;
    if (out_.patch_size > 0) return commit_patches(y);
    void* dst = at(frame_ * out_.frame_stride + y * out_.row_stride);
    const int n = plan_.spec.out_w;
    if (size_ == 1) {
      plan_.kernels->interleave_u8(reinterpret_cast<std::uint8_t* const*>(scratch_), static_cast<std::uint8_t*>(dst),
                                   n);
    } else if (size_ == 2) {
      plan_.kernels->interleave_u16(reinterpret_cast<std::uint16_t* const*>(scratch_), static_cast<std::uint16_t*>(dst),
                                    n);
    } else {
      plan_.kernels->interleave_f32(reinterpret_cast<float* const*>(scratch_), static_cast<float*>(dst), n);
    }
  }

 private:
  void* at(std::int64_t element) { return static_cast<char*>(out_.data) + element * static_cast<std::int64_t>(size_); }

  // Rows of patches run over (time, y / merge, x / merge, y % merge, x % merge) in units of patches, columns over
  // (channel, time in patch, y, x in patch).
  void commit_patches(int y) {
    const std::int64_t p = out_.patch_size, tp = out_.temporal_patch_size, m = out_.merge_size;
    const std::int64_t grid_h = plan_.spec.out_h / p, grid_w = plan_.spec.out_w / p, columns = 3 * tp * p * p;
    const std::int64_t py = y / p, t = frame_ / tp;
    const std::size_t segment = static_cast<std::size_t>(p) * size_;
    for (std::int64_t px = 0; px < grid_w; ++px) {
      const std::int64_t row = t * grid_h * grid_w + ((py / m * (grid_w / m) + px / m) * m + py % m) * m + px % m;
      for (std::int64_t c = 0; c < 3; ++c) {
        const std::int64_t column = ((c * tp + frame_ % tp) * p + y % p) * p;
        std::memcpy(at(row * columns + column),
                    static_cast<const char*>(scratch_[c]) + px * static_cast<std::int64_t>(segment), segment);
      }
    }
  }

  const FramesPlan& plan_;
  const OutputDesc& out_;
  std::int64_t frame_;
  std::size_t size_;
  void* scratch_[3] = {};
};

void convert_fused(const FramesPlan& plan, const Source& src, Sink& sink) {
  Scratch& scratch = thread_scratch();
  scratch.begin(Converter::bytes(plan) + sink.bytes());
  Converter converter(plan, src);
  converter.take(scratch);
  sink.take(scratch);
  for (int y = 0; y < plan.spec.out_h; ++y) {
    const float* in[3];
    converter.row(y, in);
    void* dst[3];
    sink.rows(y, dst);
    const Affine& a = plan.convert.affine;
    switch (plan.spec.dtype) {
      case DType::kU8:
        plan.kernels->affine_u8(in, a, reinterpret_cast<std::uint8_t* const*>(dst), plan.spec.out_w);
        break;
      case DType::kF16:
        plan.kernels->affine_f16(in, a, reinterpret_cast<std::uint16_t* const*>(dst), plan.spec.out_w);
        break;
      case DType::kBF16:
        plan.kernels->affine_bf16(in, a, reinterpret_cast<std::uint16_t* const*>(dst), plan.spec.out_w);
        break;
      case DType::kF32:
        plan.kernels->affine_f32(in, a, reinterpret_cast<float* const*>(dst), plan.spec.out_w);
        break;
      case DType::kF64:
      case DType::kI64:  // not a dtype of frames
        break;
    }
    sink.commit(y);
  }
}

// One row of bytes per channel to the output's dtype.
void finish_bytes(const FramesPlan& plan, const std::uint8_t* const* bytes, void* const* dst) {
  const FramesSpec& s = plan.spec;
  for (int c = 0; c < 3; ++c) {
    const float div = s.scale_only ? s.scale : s.div[c];
    switch (s.dtype) {
      case DType::kU8:
        if (dst[c] != bytes[c]) std::memcpy(dst[c], bytes[c], static_cast<std::size_t>(s.out_w));
        break;
      case DType::kF16:
        plan.kernels->normalize_f16(bytes[c], s.sub[c], div, s.scale_only, static_cast<std::uint16_t*>(dst[c]),
                                    s.out_w);
        break;
      case DType::kBF16:
        plan.kernels->normalize_bf16(bytes[c], s.sub[c], div, s.scale_only, static_cast<std::uint16_t*>(dst[c]),
                                     s.out_w);
        break;
      case DType::kF32:
        plan.kernels->normalize_f32(bytes[c], s.sub[c], div, s.scale_only, static_cast<float*>(dst[c]), s.out_w);
        break;
      case DType::kF64:
      case DType::kI64:
        break;
    }
  }
}

void area_row(const FramesPlan& plan, const std::uint8_t* bytes, std::uint32_t* dst) {
  const BytesStage& s = plan.bytes_stage;
  for (std::size_t i = 0; i < s.area_start.size(); ++i) {
    std::uint32_t sum = 0;
    for (int k = 0; k < s.area_count[i]; ++k) sum += bytes[s.area_start[i] + k];
    dst[i] = sum;
  }
}

void convert_bytes(const FramesPlan& plan, const Source& src, Sink& sink) {
  const ConvertStage& cs = plan.convert;
  const BytesStage& bs = plan.bytes_stage;
  const FramesSpec& s = plan.spec;
  const std::size_t in_columns = static_cast<std::size_t>(cs.columns), columns = static_cast<std::size_t>(s.out_w);
  const int depth = std::max(bs.vertical.max_count, 1);
  Scratch& scratch = thread_scratch();
  std::size_t bytes = Converter::bytes(plan) + sink.bytes() + 3 * Scratch::bytes_for<std::uint8_t>(in_columns) +
                      3 * Scratch::bytes_for<std::uint8_t>(columns) +
                      Scratch::bytes_for<const std::uint8_t*>(static_cast<std::size_t>(depth));
  if (plan.resample) {
    bytes +=
        3 * (bs.area ? RowRing<std::uint32_t>::bytes(depth, s.out_w) : RowRing<std::uint8_t>::bytes(depth, s.out_w));
  }
  scratch.begin(bytes);
  Converter converter(plan, src);
  converter.take(scratch);
  sink.take(scratch);
  std::uint8_t *full[3], *small[3];
  for (auto& p : full) p = scratch.take<std::uint8_t>(in_columns);
  for (auto& p : small) p = scratch.take<std::uint8_t>(columns);
  auto** pointers = scratch.take<const std::uint8_t*>(static_cast<std::size_t>(depth));
  RowRing<std::uint8_t> ring[3];
  RowRing<std::uint32_t> sums[3];
  for (int c = 0; c < 3 && plan.resample; ++c) {
    bs.area ? sums[c].take(scratch, depth, s.out_w) : ring[c].take(scratch, depth, s.out_w);
  }

  int produced = 0;
  for (int y = 0; y < s.out_h; ++y) {
    const float* in[3];
    void* dst[3];
    sink.rows(y, dst);
    if (!plan.resample) {
      converter.row(y, in);
      std::uint8_t* target[3];
      for (int c = 0; c < 3; ++c) target[c] = s.dtype == DType::kU8 ? static_cast<std::uint8_t*>(dst[c]) : full[c];
      plan.kernels->affine_u8(in, cs.affine, target, s.out_w);
      finish_bytes(plan, target, dst);
      sink.commit(y);
      continue;
    }
    const std::size_t i = static_cast<std::size_t>(y);
    const int start = bs.vertical.start[i], count = bs.vertical.count[i];
    for (produced = std::max(produced, start); produced < start + count; ++produced) {
      converter.row(produced, in);
      plan.kernels->affine_u8(in, cs.affine, full, cs.columns);
      for (int c = 0; c < 3; ++c) {
        bs.area ? area_row(plan, full[c], sums[c].row(produced))
                : plan.kernels->bytes_horizontal(full[c], bs.horizontal, ring[c].row(produced));
      }
    }
    for (int c = 0; c < 3; ++c) {
      if (bs.area) {
        for (std::size_t x = 0; x < columns; ++x) {
          double sum = 0;
          for (int k = 0; k < count; ++k) sum += sums[c].row(start + k)[x];
          small[c][x] = static_cast<std::uint8_t>(std::lrint(sum / count / bs.area_count[x]));
        }
      } else {
        for (int k = 0; k < count; ++k) pointers[k] = ring[c].row(start + k);
        plan.kernels->bytes_vertical(pointers, bs.vertical_weight.data() + bs.vertical.offset[i], count,
                                     bs.vertical_precision, small[c], s.out_w);
      }
    }
    finish_bytes(plan, small, dst);
    sink.commit(y);
  }
}

}  // namespace

const FramesKernels& frames_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx2:
      return avx2::kFramesKernels;
    case Isa::kAvx512:
      return avx512::kFramesKernels;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Isa::kNeon:
      return neon::kFramesKernels;
#endif
    default:
      return base::kFramesKernels;
  }
}

void frames_to_tensor(const FramesPlan& plan, const std::uint8_t* const* planes, const std::ptrdiff_t* pitches,
                      const OutputDesc& out, std::int64_t frame) {
  Sink sink(plan, out, frame);
  const Source src{planes, pitches};
  plan.bytes ? convert_bytes(plan, src, sink) : convert_fused(plan, src, sink);
}

void frames_to_tensor_batch(const FramesPlan& plan, const std::uint8_t* const* planes, const std::ptrdiff_t* pitches,
                            std::int64_t count, const OutputDesc& out, std::int64_t first_frame, int threads) {
  // Each frame is one thread's alone, so the numbers cannot depend on how frames are shared out.
  parallel_for(count, threads,
               [&](std::int64_t i) { frames_to_tensor(plan, planes + 4 * i, pitches + 4 * i, out, first_frame + i); });
}

}  // namespace mmcore
