// HEVC (ITU-T H.265): an even picture type below 16 is not referred to within its temporal layer (clause 7.4.2.2), and
// nothing above the highest layer could refer to it.
#include <cstdint>

#include "bit_reader.h"
#include "codec_parser.h"
#include "nal_units.h"

namespace mmcore {

namespace {

enum NalType : int {
  kRaslN = 8,  // the last that is in use of those that others do not refer to
  kBla = 16,
  kIdrWithoutLeading = 20,
  kFirstNonVcl = 32,
  kVps = 32,
  kSps = 33,
  kAccessUnitDelimiter = 35,
  kFiller = 38,
  kPrefixSei = 39,
  kSuffixSei = 40,
  kDolbyVision = 62,  // and 63: metadata and a layer that the decoder of the base layer does not look at
};

class HevcParser final : public CodecParser {
 public:
  explicit HevcParser(Bytes extradata) {
    // hvcC: 22 bytes of which the last holds the size of lengths, then arrays of parameter sets. Its version is 1, but
    // early writers said 0, so that only the start code tells it from bare units.
    if (extradata.size >= 23 && (extradata[0] != 0 || extradata[1] != 0 || extradata[2] > 1)) {
      length_size_ = (extradata[21] & 3) + 1;
      Bytes rest = extradata.from(23);
      for (int arrays = extradata[22]; arrays > 0 && rest.size >= 3; --arrays) {
        int count = rest[1] << 8 | rest[2];
        rest = rest.from(3);
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
    bool picture = false;
    for (Bytes unit; units.next(unit);) {
      const int type = unit[0] >> 1 & 63;
      if (type < kFirstNonVcl) {
        const int layer = unit.size > 1 ? (unit[1] & 7) - 1 : -1;
        // Parameter sets come before the slices, so nothing that must be seen follows.
        if (type > kRaslN || type % 2 != 0 || layer < highest_layer_) {
          pictures.push_back(type >= kBla && type <= kIdrWithoutLeading ? kFreshStart : kNeededByAll);
          return;
        }
        picture = true;
      } else if (type == kPrefixSei || type == kSuffixSei) {
        alone = alone && sei_of_this_picture_only(unit.from(2));
      } else if (type != kAccessUnitDelimiter && type != kFiller && type < kDolbyVision) {
        // parameter sets, ends of sequences, and what may come in the future
        parameter_set(unit);
        alone = false;
      }
    }
    if (alone && picture && !units.damaged()) pictures.push_back(kNeededByNone);
  }

 private:
  void parameter_set(Bytes unit) {
    if (unit.size < 2) return;
    BitReader r(unit.from(2), true);
    const int type = unit[0] >> 1 & 63;
    if (type == kVps) {
      r.skip(4 + 2 + 6);  // its id, what the base layer is, vps_max_layers_minus1
    } else if (type == kSps) {
      r.skip(4);  // sps_video_parameter_set_id
    } else {
      return;
    }
    const int highest = static_cast<int>(r.bits(3));  // max_sub_layers_minus1
    // The highest of all: one that is too high only keeps packets. 7 is no number but says that another set tells.
    if (!r.ok() || highest == kUnknown) return;
    if (highest_layer_ == kUnknown || highest > highest_layer_) highest_layer_ = highest;
  }

  static constexpr int kUnknown = 7;  // higher than any picture's
  int highest_layer_ = kUnknown;
  int length_size_ = 0;
};

}  // namespace

std::unique_ptr<CodecParser> make_hevc_parser(Bytes extradata) { return std::make_unique<HevcParser>(extradata); }

}  // namespace mmcore
