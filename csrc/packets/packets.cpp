#include "mmcore/packets.h"

#include "codec_parser.h"

namespace mmcore {

PacketParser::PacketParser(std::string_view codec, const std::uint8_t* extradata, std::size_t size) {
  if (codec == "h264") parser_ = make_h264_parser(extradata, size);
  if (codec == "hevc") parser_ = make_hevc_parser(extradata, size);
  if (codec == "av1") parser_ = make_av1_parser(extradata, size);
}

PacketParser::~PacketParser() = default;
PacketParser::PacketParser(PacketParser&&) noexcept = default;
PacketParser& PacketParser::operator=(PacketParser&&) noexcept = default;

bool PacketParser::droppable(const std::uint8_t* data, std::size_t size) {
  return parser_ && data && parser_->droppable(data, size);
}

}  // namespace mmcore
