#include "nal_units.h"

#include "bit_reader.h"

namespace mmcore {

bool sei_of_this_picture_only(Bytes payload) {
  BitReader reader(payload, true);
  // payloadType: buffering period, picture timing, filler, user data (captions, dynamic HDR, private), and HEVC's
  // active parameter sets, decoding unit, decoded picture hash and time code. Both formats number them alike.
  const auto harmless = [](std::uint32_t type) {
    return type == 0 || type == 1 || type == 3 || type == 4 || type == 5 || type == 129 || type == 130 || type == 132 ||
           type == 136;
  };
  const auto number = [&reader] {  // bytes of 255 add up, up to the first smaller one
    std::uint32_t total = 0, byte;
    do {
      byte = reader.bits(8);
      total += byte;
    } while (byte == 255 && reader.ok() && total < (1u << 24));
    return total;
  };
  // The end is a byte 0x80, perhaps with zeros after it.
  for (;;) {
    const std::uint32_t type = number();
    if (!reader.ok()) return false;
    if (!harmless(type)) return type == 0x80 && reader.at_end();
    const std::uint32_t size = number();
    reader.skip(size * 8);
    if (!reader.ok()) return false;
  }
}

}  // namespace mmcore
