// What the bytes of a compressed video packet tell about what depends on it.
//
// A packet is what a demuxer gives: one access unit (H.264, HEVC) or temporal unit (AV1), perhaps one field of a
// picture. Only headers are read, never picture data, so a packet costs well under a microsecond, or a scan for
// start codes where the units carry no length (transport streams). Nothing is decoded and nothing allocated.
//
// The bytes may be damaged: what cannot be understood counts as needed by others, and nothing outside the packet is
// read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace mmcore {

class CodecParser;  // of one coding format

class PacketParser {
 public:
  // codec: FFmpeg's name of the coding format: "h264", "hevc" or "av1"; of any other nothing is known.
  // extradata: the stream's global headers, as avcC, hvcC or av1C record or as bare units; may be empty if the packets
  // hold them. Not kept.
  PacketParser(std::string_view codec, const std::uint8_t* extradata, std::size_t size);
  ~PacketParser();
  PacketParser(PacketParser&&) noexcept;
  PacketParser& operator=(PacketParser&&) noexcept;

  // True if no other packet needs this one: without it all others decode to the same pictures.
  //
  // That is so for any set of such packets at once. The two fields of a picture count as needing each other, since
  // they share one frame. Parameter sets and reference slots are followed from packet to packet: give all packets,
  // once each, in the order of the file.
  bool droppable(const std::uint8_t* data, std::size_t size);

 private:
  std::unique_ptr<CodecParser> parser_;
};

}  // namespace mmcore
