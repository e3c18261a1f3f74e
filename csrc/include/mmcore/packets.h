// What compressed video packets tell about which pictures need which, and which may be left out.
//
// A packet is what a demuxer gives: one access unit (H.264, HEVC) or temporal unit (AV1), perhaps one field of a
// picture. Only headers are read, never picture data, so a packet costs well under a microsecond, or a scan for
// start codes where the units carry no length (transport streams).
//
// Dependencies are told as AV1 has them: there are eight slots for reference pictures; decoding a picture reads some
// slots and then fills some. Where only "others refer to it" is known of a picture, it reads and fills all slots, which
// makes all such pictures a chain. Two bytes per picture thus hold the graph of any stream, and it can be followed from
// any key frame on.
//
// The bytes may be damaged: what cannot be understood counts as needed by all that follows, and nothing outside the
// packet is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mmcore {

struct CodedPicture {
  std::uint8_t reads = 0xff;  // a bit for each slot that its decoding depends on
  std::uint8_t fills = 0xff;  // a bit for each slot that holds it afterwards; none: no other picture needs it

  std::uint16_t packed() const { return static_cast<std::uint16_t>(reads | fills << 8); }
  static CodedPicture unpack(std::uint16_t packed) {
    return {static_cast<std::uint8_t>(packed & 0xff), static_cast<std::uint8_t>(packed >> 8)};
  }
};

class CodecParser;  // of one coding format

class PacketParser {
 public:
  // codec: FFmpeg's name of the coding format: "h264", "hevc" or "av1"; of others every packet counts as needed.
  // extradata: the stream's global headers, as avcC, hvcC or av1C record or as bare units; may be empty if the packets
  // hold them. Not kept.
  PacketParser(std::string_view codec, const std::uint8_t* extradata, std::size_t size);
  ~PacketParser();
  PacketParser(PacketParser&&) noexcept;
  PacketParser& operator=(PacketParser&&) noexcept;

  // The pictures of a packet in coding order, 1 to 32. The last is the one that the packet shows; only AV1 has others.
  //
  // The pictures of a packet that cannot be told apart or be decoded one without the other count as one. Parameter sets
  // and reference slots are followed from packet to packet: give all packets, once each, in the order of the file.
  // Valid until the next call.
  const std::vector<CodedPicture>& pictures(const std::uint8_t* data, std::size_t size);

  // False if the packet's picture is predicted from others though it may be marked as a place to start from: a gradual
  // refresh in H.264. Other formats have no such thing.
  bool intra(const std::uint8_t* data, std::size_t size) const;

 private:
  std::unique_ptr<CodecParser> parser_;
  std::vector<CodedPicture> pictures_;
};

// The pictures of a whole stream: those of each packet, one after the other, packed, and how many each packet has.
struct CodedStream {
  const std::uint16_t* pictures = nullptr;
  std::size_t num_pictures = 0;
  const std::uint8_t* counts = nullptr;
  std::size_t num_packets = 0;
};

// What must be decoded to show some packets' pictures, when decoding starts at a key frame.
//
// Returns the pictures to decode of packets first, first + 1, ... up to the last target: bit i for the packet's i-th
// picture, 0 where the whole packet can be left out. The first packet's picture is always kept, because with it come
// headers that a decoder needs at its start.
//
// targets: packet numbers, in any order.
// keep_references: keep all pictures that any other needs, so that decoding can go on to targets yet unknown.
// Throws std::out_of_range if a target is before `first` or not in the stream, std::invalid_argument if the counts do
// not add up to num_pictures.
// Cost: a few nanoseconds per packet from `first` to the last target, a fraction of one per packet before them.
std::vector<std::uint32_t> needed_pictures(const CodedStream& stream, std::size_t first,
                                           const std::vector<std::size_t>& targets, bool keep_references);

// The AV1 packet without the pictures whose bit in `keep` is 0; other units stay.
std::string keep_av1_pictures(const std::uint8_t* data, std::size_t size, std::uint32_t keep);

}  // namespace mmcore
