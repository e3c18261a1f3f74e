// What a coding format implements for PacketParser.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "bytes.h"
#include "mmcore/packets.h"

namespace mmcore {

constexpr CodedPicture kNeededByAll{0xff, 0xff};  // or nothing is known
constexpr CodedPicture kNeededByNone{0xff, 0};
constexpr CodedPicture kFreshStart{0, 0xff};  // nothing after it needs anything before it

class CodecParser {
 public:
  virtual ~CodecParser() = default;
  // Appends the packet's pictures. Appending none, or more than 32, stands for kNeededByAll.
  virtual void parse(Bytes packet, std::vector<CodedPicture>& pictures) = 0;
  virtual bool intra(Bytes /*packet*/) const { return true; }
};

std::unique_ptr<CodecParser> make_h264_parser(Bytes extradata);
std::unique_ptr<CodecParser> make_hevc_parser(Bytes extradata);
std::unique_ptr<CodecParser> make_av1_parser(Bytes extradata);

}  // namespace mmcore
