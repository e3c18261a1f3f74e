#include "mmcore/tensor_to_planes.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "parallel.h"
#include "tensor_to_planes_kernels.h"
#include "thread_scratch.h"

namespace mmcore {

namespace {

constexpr int kBandRows = 32;  // chroma rows that one thread takes at a time

const PlanesKernels& kernels_for(Isa isa) {
  switch (isa) {
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx512:
      return avx512::kPlanesKernels;
    case Isa::kAvx2:
      return avx2::kPlanesKernels;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Isa::kNeon:
      return neon::kPlanesKernels;
#endif
    default:
      return base::kPlanesKernels;
  }
}

// Luma rows that a row of chroma is a mean of, each with its weight.
struct VerticalTaps {
  int row[3];
  float weight[3];
  int count = 0;
  void add(int r, float w) {
    if (count > 0 && row[count - 1] == r) {
      weight[count - 1] += w;
    } else {
      row[count] = r;
      weight[count++] = w;
    }
  }
};

class Converter {
 public:
  Converter(const PlanesSpec& spec, const TensorDesc& tensor, Isa isa)
      : spec_(spec), tensor_(tensor), k_(kernels_for(isa)) {
    const FormatDesc& f = spec.format;
    dtype_ = static_cast<int>(spec.dtype);
    if (dtype_ < 0 || dtype_ > static_cast<int>(DType::kF32)) {
      throw std::invalid_argument("tensor_to_planes: dtype");
    }
    wide_ = f.bits + f.shift > 8;
    for (int c = 0; c < 3; ++c) {
      affine_.mul[c] = static_cast<float>(spec.mul[c]);
      affine_.add[c] = static_cast<float>(spec.add[c]);
    }
    affine_.luma[0] = static_cast<float>(spec.kr);
    affine_.luma[1] = static_cast<float>(1 - spec.kr - spec.kb);
    affine_.luma[2] = static_cast<float>(spec.kb);

    const double top = (1 << f.bits) - 1, unit = 1 << (f.bits - 8);
    const bool limited = !spec.full_range && f.family != ColorFamily::kRgb;
    luma_.top = chroma_[0].top = chroma_[1].top = static_cast<float>(top);
    luma_.shift = chroma_[0].shift = chroma_[1].shift = f.shift;
    luma_.scale = static_cast<float>((limited ? 219 * unit : top) / 255);
    luma_.offset = static_cast<float>(limited ? 16 * unit : 0);

    const bool narrow = f.log2_chroma_w == 1, low = f.log2_chroma_h == 1;
    const bool cosited_x = spec.chroma == ChromaLocation::kLeft || spec.chroma == ChromaLocation::kTopLeft;
    kind_ = !narrow ? ChromaRow::kFull : cosited_x ? ChromaRow::kCosited : ChromaRow::kPair;
    cosited_y_ = low && spec.chroma == ChromaLocation::kTopLeft;
    const double weights = (!narrow ? 1 : cosited_x ? 4 : 2) * (!low ? 1 : cosited_y_ ? 4 : 2);
    const double range = spec.full_range ? top : 224 * unit, k[2] = {spec.kb, spec.kr};
    for (int i = 0; i < 2; ++i) {
      chroma_[i].scale = static_cast<float>(range / 255 / (2 * (1 - k[i])) / weights);
      chroma_[i].offset = static_cast<float>(1 << (f.bits - 1));
    }
    width_c_ = (spec.width + narrow) >> f.log2_chroma_w;

    const ComponentDesc* c = f.component;
    if (f.family == ColorFamily::kRgb) {
      step_ = c[0].step;
      const bool planar = step_ == 1 && c[0].plane != c[1].plane && c[1].plane != c[2].plane;
      const bool packed = (step_ == 3 || step_ == 4) && c[0].plane == c[1].plane && c[1].plane == c[2].plane;
      if ((!planar && !packed) || spec.opaque != (step_ == 4))
        throw std::invalid_argument("tensor_to_planes: RGB layout");
    } else if (f.family == ColorFamily::kYuv) {
      step_ = c[1].step;
      const bool planar = step_ == 1 && c[1].plane != c[2].plane;
      const bool packed = step_ == 2 && c[1].plane == c[2].plane && c[1].offset + c[2].offset == 1;
      if (c[0].step != 1 || (!planar && !packed)) throw std::invalid_argument("tensor_to_planes: YUV layout");
    } else if (c[0].step != 1) {
      throw std::invalid_argument("tensor_to_planes: gray layout");
    }
    row_floats_ = static_cast<std::size_t>(spec.width) + 2 * kPlanesPadding;
  }

  int rows() const {
    const FormatDesc& f = spec_.format;
    const int sub = f.family == ColorFamily::kYuv ? f.log2_chroma_h : 0;
    return (spec_.height + (1 << sub) - 1) >> sub;
  }

  // Rows [first, end) of chroma and the luma that lies with them. False if a value is not finite.
  bool convert(std::int64_t frame, int first, int end, std::uint8_t* const* planes,
               const std::ptrdiff_t* pitches) const {
    const FormatDesc& f = spec_.format;
    Rows r(*this);
    bool finite = true;
    for (int i = first; i < end; ++i) {
      if (f.family == ColorFamily::kRgb) {
        finite &= rgb_row(frame, i, planes, pitches, r);
        continue;
      }
      const bool gray = f.family == ColorFamily::kGray;
      const int begin = i << (gray ? 0 : f.log2_chroma_h);
      const int stop = std::min(spec_.height, (i + 1) << (gray ? 0 : f.log2_chroma_h));
      VerticalTaps taps;
      if (cosited_y_) taps.add(std::max(0, begin - 1), 1);
      for (int y = begin; y < begin + (gray ? 1 : 1 << f.log2_chroma_h); ++y) {
        taps.add(std::min(y, spec_.height - 1), cosited_y_ && y == begin ? 2.0f : 1.0f);
      }
      for (int j = 0; j < taps.count; ++j) {
        const int y = taps.row[j];
        // The row above belongs to the chroma row before, which has written its luma.
        void* out = y < begin || y >= stop ? nullptr : planes[f.component[0].plane] + y * pitches[f.component[0].plane];
        finite &= luma(frame, y, taps.weight[j], j > 0, out, r);
      }
      if (!gray) chroma_row(i, planes, pitches, r);
    }
    return finite;
  }

 private:
  // One thread's scratch.
  struct Rows {
    float *db, *dr, *gathered[3];
    std::uint8_t* samples[4];
    explicit Rows(const Converter& c) {
      const std::size_t bytes = c.row_floats_ * sizeof(float);
      auto* p = static_cast<unsigned char*>(thread_scratch(9 * bytes));
      auto take = [&] {
        unsigned char* row = p;
        p += bytes;
        return row;
      };
      db = reinterpret_cast<float*>(take()) + kPlanesPadding;
      dr = reinterpret_cast<float*>(take()) + kPlanesPadding;
      for (float*& row : gathered) row = reinterpret_cast<float*>(take());
      for (std::uint8_t*& row : samples) row = take();
      if (c.spec_.opaque) std::memset(samples[3], 0xff, bytes);
    }
  };

  // Three rows of samples side by side, gathered into scratch if they are not; returns which kernel reads them.
  int sources(std::int64_t frame, int y, const Rows& r, const void** src) const {
    const std::size_t size = dtype_size(spec_.dtype);
    const auto* base = static_cast<const std::uint8_t*>(tensor_.data);
    const bool gather = tensor_.pixel_stride != 1 && spec_.width > 1;
    for (int c = 0; c < 3; ++c) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(frame) * tensor_.frame_stride + c * tensor_.channel_stride +
                                y * tensor_.row_stride;
      src[c] = base + at * static_cast<std::ptrdiff_t>(size);
      if (!gather) continue;
      k_.gather[dtype_](src[c], tensor_.pixel_stride, r.gathered[c], spec_.width);
      src[c] = r.gathered[c];
    }
    return gather ? static_cast<int>(DType::kF32) : dtype_;
  }

  bool luma(std::int64_t frame, int y, float weight, bool add, void* out, const Rows& r) const {
    const void* src[3];
    const int kernel = sources(frame, y, r, src);
    return k_.luma[kernel](src, affine_, luma_, wide_, weight, add, spec_.width, out, r.db, r.dr);
  }

  void chroma_row(int i, std::uint8_t* const* planes, const std::ptrdiff_t* pitches, const Rows& r) const {
    const ComponentDesc* c = spec_.format.component;
    float* const d[2] = {r.db, r.dr};
    for (int j = 0; j < 2; ++j) {
      d[j][-1] = d[j][0];
      d[j][spec_.width] = d[j][spec_.width - 1];
      void* out = step_ == 1 ? planes[c[1 + j].plane] + i * pitches[c[1 + j].plane] : r.samples[c[1 + j].offset];
      k_.chroma(d[j], kind_, chroma_[j], wide_, width_c_, out);
    }
    if (step_ != 1) interleave(r, planes[c[1].plane] + i * pitches[c[1].plane], width_c_);
  }

  bool rgb_row(std::int64_t frame, int y, std::uint8_t* const* planes, const std::ptrdiff_t* pitches,
               const Rows& r) const {
    const ComponentDesc* c = spec_.format.component;
    const void* src[3];
    const int kernel = sources(frame, y, r, src);
    void* out[3];
    for (int j = 0; j < 3; ++j) {
      out[j] = step_ == 1 ? planes[c[j].plane] + y * pitches[c[j].plane] : r.samples[c[j].offset];
    }
    const bool finite = k_.rgb[kernel](src, affine_, luma_, wide_, spec_.width, out);
    if (step_ != 1) interleave(r, planes[c[0].plane] + y * pitches[c[0].plane], spec_.width);
    return finite;
  }

  void interleave(const Rows& r, std::uint8_t* dst, int n) const {
    if (!wide_) return k_.interleave_u8(r.samples, step_, dst, n);
    const std::uint16_t* rows[4];
    for (int j = 0; j < 4; ++j) rows[j] = reinterpret_cast<const std::uint16_t*>(r.samples[j]);
    k_.interleave_u16(rows, step_, reinterpret_cast<std::uint16_t*>(dst), n);
  }

  const PlanesSpec& spec_;
  const TensorDesc& tensor_;
  const PlanesKernels& k_;
  LevelAffine affine_;
  SampleScale luma_, chroma_[2];
  ChromaRow kind_ = ChromaRow::kFull;
  int dtype_ = 0, width_c_ = 0, step_ = 1;
  bool wide_ = false, cosited_y_ = false;
  std::size_t row_floats_ = 0;
};

}  // namespace

std::int64_t tensor_to_planes(const PlanesSpec& spec, const TensorDesc& tensor, std::int64_t count,
                              std::uint8_t* const* planes, const std::ptrdiff_t* pitches, int threads) {
  return tensor_to_planes(active_isa(), spec, tensor, count, planes, pitches, threads);
}

std::int64_t tensor_to_planes(Isa isa, const PlanesSpec& spec, const TensorDesc& tensor, std::int64_t count,
                              std::uint8_t* const* planes, const std::ptrdiff_t* pitches, int threads) {
  const Converter converter(spec, tensor, isa);
  const int rows = converter.rows(), bands = (rows + kBandRows - 1) / kBandRows;
  std::atomic<std::int64_t> wrong{count};
  parallel_for(count * bands, threads, [&](std::int64_t item) {
    const std::int64_t frame = item / bands;
    const int first = static_cast<int>(item % bands) * kBandRows;
    if (converter.convert(frame, first, std::min(first + kBandRows, rows), planes + 4 * frame, pitches + 4 * frame)) {
      return;
    }
    std::int64_t lowest = wrong.load();
    while (frame < lowest && !wrong.compare_exchange_weak(lowest, frame)) {
    }
  });
  return wrong == count ? -1 : wrong.load();
}

}  // namespace mmcore
