// What a coding format implements for PacketParser.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mmcore {

class CodecParser {
 public:
  virtual ~CodecParser() = default;
  virtual bool droppable(const std::uint8_t* data, std::size_t size) = 0;  // as PacketParser::droppable
};

std::unique_ptr<CodecParser> make_h264_parser(const std::uint8_t* extradata, std::size_t size);
std::unique_ptr<CodecParser> make_hevc_parser(const std::uint8_t* extradata, std::size_t size);
std::unique_ptr<CodecParser> make_av1_parser(const std::uint8_t* extradata, std::size_t size);

}  // namespace mmcore
