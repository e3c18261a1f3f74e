// H.264 (ITU-T H.264): a picture says itself whether others refer to it (nal_ref_idc, clause 7.4.1).
#include <array>
#include <cstdint>

#include "bit_reader.h"
#include "codec_parser.h"
#include "nal_units.h"

namespace mmcore {

namespace {

enum NalType : int {
  kSlice = 1,
  kSlicePartitionA = 2,
  kSlicePartitionB = 3,
  kSlicePartitionC = 4,
  kIdrSlice = 5,
  kSei = 6,
  kSps = 7,
  kPps = 8,
  kAccessUnitDelimiter = 9,
  kFiller = 12,
  kPrefix = 14,
  kAuxiliarySlice = 19,
  kSliceExtension = 20,
  kDepthSliceExtension = 21,
};

struct Sps {
  bool known = false;
  bool separate_colour_planes = false;
  int frame_num_bits = 4;
  bool frames_only = false;
};

class H264Parser final : public CodecParser {
 public:
  explicit H264Parser(Bytes extradata) {
    // avcC: version 1, then profile, compatibility, level, the size of lengths, and the parameter sets.
    if (extradata.size >= 7 && extradata[0] == 1) {
      length_size_ = (extradata[4] & 3) + 1;
      Bytes rest = extradata.from(5);
      for (int set = 0; set < 2 && rest.size; ++set) {
        int count = set == 0 ? rest[0] & 31 : rest[0];
        rest = rest.from(1);
        for (; count > 0 && rest.size >= 2; --count) {
          const std::size_t size = static_cast<std::size_t>(rest[0]) << 8 | rest[1];
          parameter_set(rest.from(2, size));
          rest = rest.from(2 + size);
        }
      }
    } else {
      NalUnits units(extradata, 0);
      for (Bytes unit; units.next(unit);) parameter_set(unit);
    }
  }

  void parse(Bytes packet, std::vector<CodedPicture>& pictures) override {
    NalUnits units(packet, length_size_);
    bool alone = true;
    bool frame = false, top = false, bottom = false;
    for (Bytes unit; units.next(unit);) {
      const int type = unit[0] & 31;
      switch (type) {
        case kSlice:
        case kSlicePartitionA:
        case kSlicePartitionB:
        case kSlicePartitionC:
        case kIdrSlice:
        case kAuxiliarySlice:
        case kSliceExtension:
        case kDepthSliceExtension:
          // Parameter sets come before the slices, so nothing that must be seen follows.
          if (unit[0] & 0x60) {
            pictures.push_back(type == kIdrSlice ? kFreshStart : kNeededByAll);
            return;
          }
          if (type == kSlice || type == kSlicePartitionA) {
            const Structure s = structure(unit);
            frame |= s == Structure::kFrame;
            top |= s == Structure::kTopField;
            bottom |= s == Structure::kBottomField;
            alone &= s != Structure::kUnknown;
          }
          break;
        case kSei:
          alone = alone && sei_of_this_picture_only(unit.from(1));
          break;
        case kAccessUnitDelimiter:
        case kFiller:
        case kPrefix:
          break;
        default:  // parameter sets, ends of sequences, and what may come in the future
          parameter_set(unit);
          alone = false;
      }
    }
    // The fields of a frame are decoded into the same memory: one by itself counts as needed by the other.
    if (alone && !units.damaged() && (frame || (top && bottom))) pictures.push_back(kNeededByNone);
  }

  bool intra(Bytes packet) const override {
    NalUnits units(packet, length_size_);
    for (Bytes unit; units.next(unit);) {
      const int type = unit[0] & 31;
      if (type != kSlice && type != kSlicePartitionA) continue;
      BitReader r(unit.from(1), true);
      r.ue();                                    // first_mb_in_slice
      const std::uint32_t slice = r.ue() % 5;    // 5 to 9: all slices of the picture are of this type
      if (!r.ok() || (slice != 2 && slice != 4)) return false;  // I, SI
    }
    return true;
  }

 private:
  enum class Structure { kUnknown, kFrame, kTopField, kBottomField };

  void parameter_set(Bytes unit) {
    if (unit.size == 0) return;
    BitReader r(unit.from(1), true);
    if ((unit[0] & 31) == kSps) {
      Sps sps;
      const std::uint32_t id = read_sps(r, sps);
      if (id < sps_.size()) sps_[id] = sps;
    } else if ((unit[0] & 31) == kPps) {
      const std::uint32_t id = r.ue(), sps_id = r.ue();
      if (id < sps_of_pps_.size() && r.ok()) sps_of_pps_[id] = static_cast<std::uint8_t>(sps_id < 32 ? sps_id : 32);
    }
  }

  // Clause 7.3.2.1.1, up to what a slice header's first fields need.
  static std::uint32_t read_sps(BitReader& r, Sps& sps) {
    const std::uint32_t profile = r.bits(8);
    r.skip(16);  // constraints and level
    const std::uint32_t id = r.ue();
    switch (profile) {
      case 100:
      case 110:
      case 122:
      case 244:
      case 44:
      case 83:
      case 86:
      case 118:
      case 128:
      case 138:
      case 139:
      case 134:
      case 135: {
        const std::uint32_t chroma_format = r.ue();
        if (chroma_format == 3) sps.separate_colour_planes = r.flag();
        r.ue();  // bit depths
        r.ue();
        r.flag();  // lossless
        if (r.flag()) {
          for (int i = 0; i < (chroma_format == 3 ? 12 : 8); ++i) {
            if (r.flag()) skip_scaling_list(r, i < 6 ? 16 : 64);
          }
        }
        break;
      }
      default:
        break;
    }
    const std::uint32_t frame_num_bits = r.ue() + 4;
    const std::uint32_t order_type = r.ue();
    if (order_type == 0) {
      r.ue();
    } else if (order_type == 1) {
      r.flag();
      r.se();
      r.se();
      for (std::uint32_t n = r.ue(); n > 0 && r.ok(); --n) r.se();
    }
    r.ue();    // max_num_ref_frames
    r.flag();  // gaps_in_frame_num_value_allowed_flag
    r.ue();    // width and height
    r.ue();
    sps.frames_only = r.flag();
    sps.frame_num_bits = static_cast<int>(frame_num_bits);
    sps.known = r.ok() && frame_num_bits <= 16 && order_type <= 2;
    return id;
  }

  static void skip_scaling_list(BitReader& r, int size) {
    int last = 8, next = 8;
    for (int i = 0; i < size; ++i) {
      if (next != 0) next = (last + r.se() % 256 + 256) % 256;
      if (next != 0) last = next;
    }
  }

  // Clause 7.3.3, up to bottom_field_flag.
  Structure structure(Bytes slice) const {
    BitReader r(slice.from(1), true);
    r.ue();  // first_mb_in_slice
    r.ue();  // slice_type
    const std::uint32_t pps = r.ue();
    if (pps >= sps_of_pps_.size() || sps_of_pps_[pps] >= sps_.size()) return Structure::kUnknown;
    const Sps& sps = sps_[sps_of_pps_[pps]];
    if (!sps.known || !r.ok()) return Structure::kUnknown;
    if (sps.frames_only) return Structure::kFrame;
    r.skip(static_cast<unsigned>((sps.separate_colour_planes ? 2 : 0) + sps.frame_num_bits));
    const bool field = r.flag();
    const bool bottom = field && r.flag();
    if (!r.ok()) return Structure::kUnknown;
    return !field ? Structure::kFrame : bottom ? Structure::kBottomField : Structure::kTopField;
  }

  int length_size_ = 0;
  std::array<Sps, 32> sps_{};
  std::array<std::uint8_t, 256> sps_of_pps_ = filled();  // 32: none

  static constexpr std::array<std::uint8_t, 256> filled() {
    std::array<std::uint8_t, 256> none{};
    for (std::size_t i = 0; i < none.size(); ++i) none[i] = 32;
    return none;
  }
};

}  // namespace

std::unique_ptr<CodecParser> make_h264_parser(Bytes extradata) { return std::make_unique<H264Parser>(extradata); }

}  // namespace mmcore
