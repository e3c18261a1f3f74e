// AV1 (AV1 Bitstream & Decoding Process Specification, version 1.0.0 with Errata 1): a frame says which of the eight
// reference slots it reads and which it fills. All that it takes over from other frames (pixels, motion vectors,
// probabilities, segmentation, film grain) comes from the slots that it lists as references.
#include <array>
#include <cstdint>

#include "bit_reader.h"
#include "bytes.h"
#include "codec_parser.h"

namespace mmcore {

namespace {

enum ObuType : int {
  kSequenceHeader = 1,
  kTemporalDelimiter = 2,
  kFrameHeader = 3,
  kTileGroup = 4,
  kMetadata = 5,
  kFrame = 6,
  kRedundantFrameHeader = 7,
  kPadding = 15,
};

enum class FrameType : std::uint8_t { kKey, kInter, kIntraOnly, kSwitch, kUnknown };

constexpr std::uint32_t kSelect = 2;  // seq_force_screen_content_tools, seq_force_integer_mv: each frame says it
constexpr std::uint32_t kAllSlots = 0xff;

struct Obu {
  int type = 0;
  int temporal_layer = 0;
  int spatial_layer = 0;
  Bytes whole;
  Bytes payload;
};

// Walks a temporal unit in the low-overhead format, as in MP4 and Matroska.
class Obus {
 public:
  explicit Obus(Bytes unit) : rest_(unit) {}

  bool next(Obu& obu) {
    if (rest_.size == 0 || damaged_) return false;
    const int header = rest_[0];
    const bool extended = header & 4, sized = header & 2;
    std::size_t at = extended ? 2 : 1;
    std::uint64_t size = 0;
    damaged_ = (header & 0x80) || at > rest_.size;
    if (damaged_) return false;
    if (sized) {
      bool more = true;
      for (int i = 0; i < 8 && more && at < rest_.size; ++i) {  // leb128()
        size |= static_cast<std::uint64_t>(rest_[at] & 127) << (7 * i);
        more = rest_[at++] & 128;
      }
      damaged_ = more || size > rest_.size - at;
      if (damaged_) return false;
    } else {
      size = rest_.size - at;
    }
    obu.type = header >> 3 & 15;
    obu.temporal_layer = extended ? rest_[1] >> 5 : 0;
    obu.spatial_layer = extended ? rest_[1] >> 3 & 3 : 0;
    obu.whole = rest_.from(0, at + static_cast<std::size_t>(size));
    obu.payload = rest_.from(at, static_cast<std::size_t>(size));
    rest_ = rest_.from(at + static_cast<std::size_t>(size));
    return true;
  }
  bool damaged() const { return damaged_; }

 private:
  Bytes rest_;
  bool damaged_ = false;
};

struct OperatingPoint {
  std::uint32_t layers = 0;       // operating_point_idc
  bool has_decoder_model = false;
};

// What frame headers need of a sequence header.
struct Sequence {
  bool known = false;
  bool still_picture = false;  // reduced_still_picture_header
  bool decoder_model = false;
  bool equal_picture_interval = false;
  int removal_time_bits = 0;
  int presentation_time_bits = 0;
  int points = 0;
  std::array<OperatingPoint, 32> point{};
  bool frame_ids = false;
  int frame_id_bits = 0;
  int frame_id_delta_bits = 0;
  bool order_hints = false;
  int order_hint_bits = 0;
  std::uint32_t screen_content_tools = kSelect;
  std::uint32_t integer_mv = kSelect;
};

struct FrameHeader {
  bool known = false;
  bool shown = false;
  FrameType type = FrameType::kUnknown;
  CodedPicture picture = kNeededByAll;
};

class Av1Parser final : public CodecParser {
 public:
  explicit Av1Parser(Bytes extradata) {
    slots_.fill(FrameType::kUnknown);
    // av1C: marker and version, three bytes of properties, then OBUs.
    Obus obus(extradata.size >= 4 && extradata[0] == 0x81 ? extradata.from(4) : extradata);
    for (Obu obu; obus.next(obu);) {
      if (obu.type == kSequenceHeader) sequence_ = sequence_header(obu.payload);
    }
  }

  void parse(Bytes packet, std::vector<CodedPicture>& pictures) override {
    Obus obus(packet);
    bool apart = true;      // the pictures can be told apart, and the last is the one shown
    bool standing = false;  // holds what stays in force for later packets
    bool shown = false;
    for (Obu obu; obus.next(obu);) {
      switch (obu.type) {
        case kTemporalDelimiter:
        case kTileGroup:
        case kRedundantFrameHeader:
        case kPadding:
          break;
        case kMetadata:
          standing = standing || !metadata_of_this_frame_only(obu.payload);
          break;
        case kFrameHeader:
        case kFrame: {
          const FrameHeader header = frame_header(obu);
          // A temporal unit ends with the frame that it shows; of spatial layers it shows several.
          apart = apart && header.known && !shown && obu.spatial_layer == 0;
          shown = header.shown;
          pictures.push_back(header.picture);
          for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
            if (header.picture.fills >> slot & 1) slots_[slot] = header.type;
          }
          break;
        }
        case kSequenceHeader:
          sequence_ = sequence_header(obu.payload);
          standing = true;
          break;
        default:
          apart = false;
      }
    }
    if (obus.damaged()) slots_.fill(FrameType::kUnknown);
    const bool fresh = pictures.size() == 1 && pictures[0].reads == 0 && pictures[0].fills == kAllSlots;
    if (!apart || !shown || obus.damaged() || (standing && !fresh)) pictures.clear();
  }

 private:
  // Clause 5.8: time codes and user data (captions, dynamic HDR) go with their frame; others stay in force.
  static bool metadata_of_this_frame_only(Bytes payload) {
    return payload.size > 0 && (payload[0] == 4 || payload[0] == 5);
  }

  // Clause 5.5.
  static Sequence sequence_header(Bytes payload) {
    BitReader r(payload, false);
    Sequence s;
    r.bits(3);  // seq_profile
    r.flag();   // still_picture
    s.still_picture = r.flag();
    if (s.still_picture) {
      r.bits(5);  // seq_level_idx
    } else {
      if (r.flag()) {  // timing_info_present_flag
        r.skip(64);
        s.equal_picture_interval = r.flag();
        if (s.equal_picture_interval) r.ue();  // uvlc() is coded as ue(v)
        s.decoder_model = r.flag();
        if (s.decoder_model) {
          const int delay_bits = static_cast<int>(r.bits(5)) + 1;
          r.bits(32);  // num_units_in_decoding_tick
          s.removal_time_bits = static_cast<int>(r.bits(5)) + 1;
          s.presentation_time_bits = static_cast<int>(r.bits(5)) + 1;
          delay_bits_of_points(r, s, delay_bits);
        } else {
          delay_bits_of_points(r, s, 0);
        }
      } else {
        delay_bits_of_points(r, s, 0);
      }
    }
    const unsigned width_bits = r.bits(4) + 1, height_bits = r.bits(4) + 1;
    r.skip(width_bits);
    r.skip(height_bits);
    if (!s.still_picture) s.frame_ids = r.flag();
    if (s.frame_ids) {
      s.frame_id_delta_bits = static_cast<int>(r.bits(4)) + 2;
      s.frame_id_bits = s.frame_id_delta_bits + static_cast<int>(r.bits(3)) + 1;
    }
    r.bits(3);  // superblock size, two intra tools
    if (!s.still_picture) {
      r.bits(4);  // interintra, masked compound, warped motion, dual filter
      s.order_hints = r.flag();
      if (s.order_hints) r.bits(2);  // joint compound, reference frame motion vectors
      if (!r.flag()) s.screen_content_tools = r.bits(1);
      if (s.screen_content_tools > 0 && !r.flag()) s.integer_mv = r.bits(1);
      if (s.order_hints) s.order_hint_bits = static_cast<int>(r.bits(3)) + 1;
    }
    s.known = r.ok();
    return s;
  }

  static void delay_bits_of_points(BitReader& r, Sequence& s, int delay_bits) {
    const bool initial_display_delay = r.flag();
    s.points = static_cast<int>(r.bits(5)) + 1;
    for (int i = 0; i < s.points; ++i) {
      OperatingPoint& point = s.point[static_cast<std::size_t>(i)];
      point.layers = r.bits(12);
      if (r.bits(5) > 7) r.flag();  // seq_level_idx, seq_tier
      if (s.decoder_model) {
        point.has_decoder_model = r.flag();
        if (point.has_decoder_model) r.skip(static_cast<unsigned>(2 * delay_bits + 1));
      }
      if (initial_display_delay && r.flag()) r.bits(4);
    }
  }

  // Clause 5.9.2, up to the references.
  FrameHeader frame_header(const Obu& obu) const {
    BitReader r(obu.payload, false);
    const Sequence& s = sequence_;
    FrameHeader f;
    if (!s.known) return f;
    if (s.still_picture) return {true, true, FrameType::kKey, kFreshStart};
    if (r.flag()) {  // show_existing_frame
      const std::uint32_t slot = r.bits(3);
      const FrameType type = slots_[slot];
      if (!r.ok() || type == FrameType::kUnknown) return f;
      // A key frame fills all slots when it is shown (clause 7.21).
      const bool fills = type == FrameType::kKey;
      return {
          true, true, type, {static_cast<std::uint8_t>(1u << slot), static_cast<std::uint8_t>(fills ? kAllSlots : 0)}};
    }
    const auto type = static_cast<FrameType>(r.bits(2));
    const bool intra = type == FrameType::kKey || type == FrameType::kIntraOnly;
    const bool shown = r.flag();
    if (shown && s.decoder_model && !s.equal_picture_interval) r.bits(s.presentation_time_bits);
    if (!shown) r.flag();  // showable_frame
    const bool fresh = type == FrameType::kSwitch || (type == FrameType::kKey && shown);
    const bool resilient = fresh || r.flag();
    r.flag();  // disable_cdf_update
    const bool screen_content = s.screen_content_tools == kSelect ? r.flag() : s.screen_content_tools != 0;
    if (screen_content && s.integer_mv == kSelect) r.flag();
    if (s.frame_ids) r.bits(s.frame_id_bits);
    if (type != FrameType::kSwitch) r.flag();  // frame_size_override_flag
    r.bits(s.order_hint_bits);
    if (!intra && !resilient) r.bits(3);  // primary_ref_frame
    if (s.decoder_model && r.flag()) {
      for (int i = 0; i < s.points; ++i) {
        const OperatingPoint& point = s.point[static_cast<std::size_t>(i)];
        const bool in_layers = point.layers == 0 || ((point.layers >> obu.temporal_layer & 1) &&
                                                     (point.layers >> (obu.spatial_layer + 8) & 1));
        if (point.has_decoder_model && in_layers) r.bits(s.removal_time_bits);
      }
    }
    const std::uint32_t fills = fresh ? kAllSlots : r.bits(8);
    std::uint32_t reads = 0;
    if ((!intra || fills != kAllSlots) && resilient && s.order_hints)
      r.skip(static_cast<unsigned>(8 * s.order_hint_bits));
    if (!intra) {
      if (s.order_hints && r.flag()) {  // frame_refs_short_signaling: the order of all slots decides
        reads = kAllSlots;
      } else {
        for (int i = 0; i < 7; ++i) {
          reads |= 1u << r.bits(3);
          if (s.frame_ids) r.bits(s.frame_id_delta_bits);
        }
      }
    }
    if (!r.ok()) return f;
    return {true, shown, type, {static_cast<std::uint8_t>(reads), static_cast<std::uint8_t>(fills)}};
  }

  Sequence sequence_;
  std::array<FrameType, 8> slots_{};  // the types of the frames in them
};

}  // namespace

std::unique_ptr<CodecParser> make_av1_parser(Bytes extradata) { return std::make_unique<Av1Parser>(extradata); }

std::string keep_av1_pictures(const std::uint8_t* data, std::size_t size, std::uint32_t keep) {
  std::string kept;
  Obus obus({data, size});
  int picture = -1;
  for (Obu obu; obus.next(obu);) {
    if (obu.type == kFrame || obu.type == kFrameHeader) ++picture;
    const bool part =
        obu.type == kFrame || obu.type == kFrameHeader || obu.type == kTileGroup || obu.type == kRedundantFrameHeader;
    if (part && picture >= 0 && !(picture < 32 && keep >> picture & 1)) continue;
    kept.append(reinterpret_cast<const char*>(obu.whole.data), obu.whole.size);
  }
  return kept;
}

}  // namespace mmcore
