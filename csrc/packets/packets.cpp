#include "mmcore/packets.h"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "codec_parser.h"

namespace mmcore {

namespace {

constexpr std::size_t kMaxPictures = 32;  // in a packet: a bit for each

}  // namespace

PacketParser::PacketParser(std::string_view codec, const std::uint8_t* extradata, std::size_t size) {
  const Bytes headers{extradata, size};
  if (codec == "h264") parser_ = make_h264_parser(headers);
  if (codec == "hevc") parser_ = make_hevc_parser(headers);
  if (codec == "av1") parser_ = make_av1_parser(headers);
}

PacketParser::~PacketParser() = default;
PacketParser::PacketParser(PacketParser&&) noexcept = default;
PacketParser& PacketParser::operator=(PacketParser&&) noexcept = default;

const std::vector<CodedPicture>& PacketParser::pictures(const std::uint8_t* data, std::size_t size) {
  pictures_.clear();
  if (parser_ && data) parser_->parse({data, size}, pictures_);
  if (pictures_.empty() || pictures_.size() > kMaxPictures) pictures_.assign(1, kNeededByAll);
  return pictures_;
}

bool PacketParser::intra(const std::uint8_t* data, std::size_t size) const {
  return !parser_ || !data || parser_->intra({data, size});
}

std::vector<std::uint32_t> needed_pictures(const CodedStream& stream, std::size_t first,
                                           const std::vector<std::size_t>& targets, bool keep_references) {
  if (targets.empty()) return {};
  const std::size_t last = *std::max_element(targets.begin(), targets.end());
  if (*std::min_element(targets.begin(), targets.end()) < first)
    throw std::out_of_range("targets: one is before first");
  if (last >= stream.num_packets) throw std::out_of_range("targets: one is beyond the last packet");
  std::size_t begin = 0, sum = 0;
  for (std::size_t p = 0; p <= last; ++p) {
    if (p == first) begin = sum;
    if (stream.counts[p] > kMaxPictures) throw std::invalid_argument("counts: more than 32 pictures in a packet");
    sum += stream.counts[p];
  }
  if (sum > stream.num_pictures) throw std::invalid_argument("counts: add up to more than there are pictures");

  constexpr std::size_t kNone = SIZE_MAX;
  constexpr std::size_t kSlots = 8;
  const std::size_t count = sum - begin;
  const std::uint16_t* pictures = stream.pictures + begin;
  // Forwards: which picture each slot holds when a picture reads it. Backwards: what the wanted ones need.
  std::vector<std::array<std::size_t, kSlots>> held(count);
  std::array<std::size_t, kSlots> slots;
  slots.fill(kNone);
  for (std::size_t i = 0; i < count; ++i) {
    held[i] = slots;
    const CodedPicture picture = CodedPicture::unpack(pictures[i]);
    for (std::size_t s = 0; s < kSlots; ++s) {
      if (picture.fills >> s & 1) slots[s] = i;
    }
  }
  std::vector<std::uint8_t> wanted(last - first + 1), needed(count);
  for (std::size_t target : targets) wanted[target - first] = 1;
  wanted[0] = 1;  // brings the sequence header
  std::vector<std::uint32_t> masks(wanted.size());
  std::size_t i = count;
  for (std::size_t p = wanted.size(); p-- > 0;) {
    const std::size_t in_packet = stream.counts[first + p];
    for (std::size_t bit = in_packet; bit-- > 0;) {
      --i;
      const CodedPicture picture = CodedPicture::unpack(pictures[i]);
      const bool shown = bit + 1 == in_packet;
      if (!(needed[i] || (wanted[p] && shown) || (keep_references && picture.fills))) continue;
      masks[p] |= std::uint32_t{1} << bit;
      for (std::size_t s = 0; s < kSlots; ++s) {
        if ((picture.reads >> s & 1) && held[i][s] != kNone) needed[held[i][s]] = 1;
      }
    }
  }
  return masks;
}

}  // namespace mmcore
