// What packets tell about dependencies, without Python: headers written here bit by bit and what must be read from
// them, which pictures a set of targets needs against a search written out plainly, and damaged bytes.
//
// Damaged are all of these packets: cut off everywhere, changed at random, and pure noise behind headers that lead the
// parsers on. Each is copied to an allocation that ends where it does, so that sanitizers see any read past it.
// Usage: test_packets_core [N] runs every N-th damaged packet. Exit status 0 and a last line "OK" if all is well.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "mmcore/packets.h"

namespace {

using mmcore::CodedPicture;
using mmcore::PacketParser;
using Packet = std::vector<std::uint8_t>;

std::uint32_t state = 1;
std::uint32_t random_below(std::uint32_t n) {
  state = state * 1664525u + 1013904223u;
  return (state >> 8) % n;
}

int failures = 0;
void check(bool ok, const std::string& what) {
  if (ok) return;
  std::printf("FAILED: %s\n", what.c_str());
  ++failures;
}

// Writes what the parsers read.
class Bits {
 public:
  Bits& u(int count, std::uint32_t value) {
    for (int i = count; i-- > 0;) bits_.push_back(value >> i & 1);
    return *this;
  }
  Bits& ue(std::uint32_t value) {
    int length = 0;
    while ((value + 1) >> (length + 1)) ++length;
    return u(length, 0).u(length + 1, value + 1);
  }
  Packet bytes(bool stop_bit) const {
    std::vector<bool> bits = bits_;
    if (stop_bit) bits.push_back(true);
    while (bits.size() % 8) bits.push_back(false);
    Packet out(bits.size() / 8);
    for (std::size_t i = 0; i < bits.size(); ++i) out[i / 8] = static_cast<std::uint8_t>(out[i / 8] << 1 | bits[i]);
    return out;
  }

 private:
  std::vector<bool> bits_;
};

Packet join(std::initializer_list<Packet> parts) {
  Packet all;
  for (const Packet& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// --- H.264 and HEVC

Packet nal(const Packet& header, const Bits& body) {
  Packet out = header;
  int zeros = 0;
  for (std::uint8_t byte : body.bytes(true)) {
    if (zeros >= 2 && byte <= 3) {
      out.push_back(3);
      zeros = 0;
    }
    zeros = byte ? 0 : zeros + 1;
    out.push_back(byte);
  }
  return out;
}

// Units as a packet: lengths of so many bytes before them, or start codes of three or four bytes.
Packet packet(std::initializer_list<Packet> units, int length_size) {
  Packet out;
  for (const Packet& unit : units) {
    if (length_size == 0) {
      if (out.empty() || random_below(2)) out.push_back(0);
      out.insert(out.end(), {0, 0, 1});
    }
    for (int i = length_size; i-- > 0;) out.push_back(static_cast<std::uint8_t>(i < 4 ? unit.size() >> (8 * i) : 0));
    out.insert(out.end(), unit.begin(), unit.end());
  }
  return out;
}

Packet h264_sps(bool frames_only, int profile = 100) {
  Bits b;
  b.u(8, static_cast<std::uint32_t>(profile)).u(8, 0).u(8, 40).ue(0);
  if (profile == 100) b.ue(1).ue(0).ue(0).u(1, 0).u(1, 1).u(1, 1).ue(0).ue(16).u(7, 0);  // the first list: 8, then end
  b.ue(4).ue(0).ue(2).ue(4).u(1, 0).ue(7).ue(5).u(1, frames_only);
  if (!frames_only) b.u(1, 1);
  return nal({0x67}, b.u(1, 1).u(1, 0).u(1, 0));
}
Packet h264_pps() { return nal({0x68}, Bits().ue(0).ue(0).u(1, 0).u(1, 0).ue(0).ue(0).ue(0)); }

enum Coded { kFrame, kTop, kBottom };
Packet h264_slice(int ref_idc, Coded coded, bool frames_only, int type = 1) {
  Bits b;
  b.ue(0).ue(6).ue(0).u(8, 0);  // frame_num 0: with what follows, zeros that need escaping
  if (!frames_only) b.u(1, coded != kFrame);
  if (coded != kFrame) b.u(1, coded == kBottom);
  return nal({static_cast<std::uint8_t>(ref_idc << 5 | type)}, b.u(32, 0).u(32, 0x01000001).u(16, 0xabcd));
}
Packet sei(const Packet& header, std::uint32_t type, int size) {
  Bits b;
  b.u(8, type).u(8, static_cast<std::uint32_t>(size));
  for (int i = 0; i < size; ++i) b.u(8, 0);
  return nal(header, b);
}

Packet hevc_nal(int type, int layer, const Bits& b) {
  return nal({static_cast<std::uint8_t>(type << 1), static_cast<std::uint8_t>(layer + 1)}, b);
}
Packet hevc_sps(int highest) {
  return hevc_nal(33, 0, Bits().u(4, 0).u(3, static_cast<std::uint32_t>(highest)).u(32, 1));
}
Packet hevc_slice(int type, int layer) { return hevc_nal(type, layer, Bits().u(8, 0xa5).u(32, 0).u(32, 0x01020301)); }

// --- AV1

Packet obu(int type, const Packet& payload, bool sized = true) {
  Packet out{static_cast<std::uint8_t>(type << 3 | (sized ? 2 : 0))};
  if (sized)
    out.insert(out.end(), {static_cast<std::uint8_t>(payload.size() | 0x80), 0});  // a length longer than needed
  return join({out, payload});
}

struct Av1Options {
  bool timing = false, ids = false, hints = true, still = false;
};

Packet av1_sequence(const Av1Options& o) {
  Bits b;
  b.u(3, 0).u(1, o.still).u(1, o.still);
  if (o.still) {
    b.u(5, 0);
  } else {
    b.u(1, o.timing);
    if (o.timing) b.u(32, 1).u(32, 30).u(1, 0).u(1, 1).u(5, 9).u(32, 1).u(5, 11).u(5, 6);
    b.u(1, 0).u(5, 1);  // two operating points
    for (int point = 0; point < 2; ++point) {
      b.u(12, point ? 0x101 : 0).u(5, 8).u(1, 0);
      if (o.timing) b.u(1, 1).u(10, 3).u(10, 4).u(1, 0);
    }
  }
  b.u(4, 6).u(4, 6).u(7, 127).u(7, 95);
  if (!o.still) b.u(1, o.ids);
  if (o.ids) b.u(4, 5).u(3, 2);  // differences of 7 bits, numbers of 10
  b.u(3, 0);
  if (!o.still) {
    b.u(4, 0).u(1, o.hints);
    if (o.hints) b.u(2, 0);
    b.u(1, 0).u(1, 1).u(1, 1);  // screen content tools always, whole motion vectors as each frame says
    if (o.hints) b.u(3, 6);
  }
  return obu(1, b.u(3, 0).bytes(true));
}

enum Av1Type { kKey, kInter, kIntraOnly, kSwitch };
Packet av1_frame(const Av1Options& o, Av1Type type, bool shown, std::uint32_t fills,
                 const std::vector<std::uint32_t>& reads, bool resilient = false, bool short_signaling = false) {
  Bits b;
  if (!o.still) {
    b.u(1, 0).u(2, type).u(1, shown);
    if (shown && o.timing) b.u(7, 3);
    if (!shown) b.u(1, 1);
    const bool fresh = type == kSwitch || (type == kKey && shown);
    if (!fresh) b.u(1, resilient);
    resilient |= fresh;
    b.u(1, 0).u(1, 0);  // probabilities are updated; motion vectors may be fractions
    if (o.ids) b.u(10, 77);
    if (type != kSwitch) b.u(1, 0);
    if (o.hints) b.u(7, 5);
    const bool intra = type == kKey || type == kIntraOnly;
    if (!intra && !resilient) b.u(3, 2);
    if (o.timing) b.u(1, 1).u(12, 9);  // of the second operating point only where its layers hold the frame: they do
    if (o.timing) b.u(12, 10);
    if (!fresh) b.u(8, fills);
    if ((!intra || fills != 0xff) && resilient && o.hints) b.u(32, 0x01020304).u(24, 0x050607);
    if (!intra) {
      if (o.hints) b.u(1, short_signaling);
      if (short_signaling) b.u(6, 0);
      for (std::size_t i = 0; i < 7; ++i) {
        if (!short_signaling) b.u(3, reads[i % reads.size()]);
        if (o.ids) b.u(7, 1);
      }
    }
  }
  return obu(6, b.u(32, 0x12345678).bytes(true));
}
Packet av1_show(std::uint32_t slot) { return obu(3, Bits().u(1, 1).u(3, slot).bytes(true)); }

const Packet kDelimiter = obu(2, {});

// ---

std::vector<Packet> everything;  // all packets and extradata made here, to be damaged

std::vector<CodedPicture> parse(PacketParser& parser, const Packet& p) {
  everything.push_back(p);
  return parser.pictures(p.data(), p.size());
}

void expect(PacketParser& parser, const Packet& p, const std::vector<CodedPicture>& wanted, const std::string& what) {
  const std::vector<CodedPicture> got = parse(parser, p);
  bool same = got.size() == wanted.size();
  for (std::size_t i = 0; same && i < got.size(); ++i) same = got[i].packed() == wanted[i].packed();
  std::string said = what + ": got";
  for (const CodedPicture& g : got) said += " " + std::to_string(g.reads) + ">" + std::to_string(g.fills);
  check(same, said);
}

const std::vector<CodedPicture> kAll{{0xff, 0xff}}, kNone{{0xff, 0}}, kFresh{{0, 0xff}};

PacketParser parser_of(const char* codec, const Packet& extradata) {
  everything.push_back(extradata);
  return PacketParser(codec, extradata.data(), extradata.size());
}

Packet avcc(int length_size, const Packet& sps, const Packet& pps) {
  Packet out{1, 100, 0, 40, static_cast<std::uint8_t>(0xfc | (length_size - 1)), 0xe1};
  out = join({out, packet({sps}, 2), {1}, packet({pps}, 2)});
  return out;
}
Packet hvcc(int length_size, const Packet& sps) {
  Packet out(21);
  out[0] = 1;
  out.push_back(static_cast<std::uint8_t>(0xfc | (length_size - 1)));
  return join({out, {1, 33, 0, 1}, packet({sps}, 2)});
}

void test_h264() {
  for (int length_size : {0, 1, 2, 4}) {
    for (bool frames_only : {false, true}) {
      for (int profile : {66, 100}) {
        const std::string name = "h264, lengths of " + std::to_string(length_size) + ": ";
        const Packet sps = h264_sps(frames_only, profile), pps = h264_pps();
        PacketParser p = parser_of("h264", length_size ? avcc(length_size, sps, pps) : packet({sps, pps}, 0));
        const auto slice = [&](int ref, Coded coded, int type = 1) {
          return h264_slice(ref, coded, frames_only, type);
        };
        const auto test = [&](std::initializer_list<Packet> units, const std::vector<CodedPicture>& wanted,
                              const char* what) { expect(p, packet(units, length_size), wanted, name + what); };
        const Packet aud{9, 0xf0};
        test({aud, slice(0, kFrame), slice(0, kFrame)}, kNone, "not referred to");
        test({aud, slice(0, kFrame), slice(1, kFrame)}, kAll, "one slice referred to");
        test({slice(2, kFrame)}, kAll, "referred to");
        test({slice(3, kFrame, 5)}, kFresh, "IDR");
        test({slice(0, kFrame, 2), slice(0, kFrame, 3), slice(1, kFrame, 4)}, kAll, "a partition referred to");
        test({sei({6}, 1, 5), slice(0, kFrame)}, kNone, "picture timing");
        test({sei({6}, 6, 3), slice(0, kFrame)}, kAll, "recovery point");
        test({sps, slice(0, kFrame)}, kAll, "a parameter set");
        test({slice(0, kFrame), {10}}, kAll, "end of sequence");
        test({aud}, kAll, "no picture");
        if (length_size) {
          Packet cut = packet({slice(0, kFrame), slice(0, kFrame)}, length_size);
          cut.pop_back();
          expect(p, cut, kAll, name + "cut off");
        }
        if (!frames_only) {
          test({slice(0, kTop), slice(0, kBottom)}, kNone, "two fields");
          test({slice(1, kTop), slice(0, kBottom)}, kAll, "two fields, one referred to");
          test({slice(0, kTop)}, kAll, "one field by itself");
          test({slice(0, kBottom)}, kAll, "the other field by itself");
        }
      }
    }
  }
  PacketParser without = parser_of("h264", {});
  const Packet alone = packet({h264_slice(0, kFrame, true)}, 0);
  expect(without, alone, kAll, "h264: parameter sets unknown");
  expect(without, packet({h264_sps(true), h264_pps(), h264_slice(3, kFrame, true, 5)}, 0), kFresh, "h264: in band");
  expect(without, alone, kNone, "h264: parameter sets known from a packet");
}

void test_hevc() {
  for (int length_size : {0, 2, 4}) {
    const std::string name = "hevc, lengths of " + std::to_string(length_size) + ": ";
    for (int highest : {0, 2}) {
      const Packet sps = hevc_sps(highest);
      PacketParser p = parser_of("hevc", length_size ? hvcc(length_size, sps) : packet({sps}, 0));
      const auto test = [&](std::initializer_list<Packet> units, const std::vector<CodedPicture>& wanted,
                            const char* what) { expect(p, packet(units, length_size), wanted, name + what); };
      for (int type : {0, 2, 4, 6, 8}) test({hevc_slice(type, highest), hevc_slice(type, highest)}, kNone, "even type");
      for (int type : {1, 3, 5, 7, 9, 10, 12, 14, 21}) test({hevc_slice(type, highest)}, kAll, "odd or reserved type");
      for (int type : {16, 18, 19, 20}) test({hevc_slice(type, 0)}, kFresh, "BLA or IDR");
      if (highest) test({hevc_slice(0, highest - 1)}, kAll, "not the highest layer");
      test({hevc_slice(0, highest), sei({80, 1}, 132, 17), hevc_nal(62, 0, Bits().u(8, 25))}, kNone, "hash, metadata");
      test({sei({78, 1}, 6, 3), hevc_slice(0, highest)}, kAll, "recovery point");
      test({hevc_slice(0, highest), hevc_nal(36, 0, Bits())}, kAll, "end of sequence");
      if (length_size) {
        Packet cut = packet({hevc_slice(0, highest), hevc_slice(0, highest)}, length_size);
        cut.pop_back();
        expect(p, cut, kAll, name + "cut off");
      }
    }
  }
  PacketParser p = parser_of("hevc", {});
  expect(p, packet({hevc_slice(0, 0)}, 0), kAll, "hevc: parameter sets unknown");
  expect(p, packet({hevc_sps(1), hevc_slice(19, 0)}, 0), kFresh, "hevc: in band");
  expect(p, packet({hevc_slice(0, 0)}, 0), kAll, "hevc: a lower layer");
  expect(p, packet({hevc_slice(0, 1)}, 0), kNone, "hevc: the highest layer");
}

void test_av1() {
  for (int option = 0; option < 8; ++option) {
    Av1Options o;
    o.timing = option & 1;
    o.ids = option & 2;
    o.hints = !(option & 4);
    const std::string name = "av1, option " + std::to_string(option) + ": ";
    const Packet sequence = av1_sequence(o);
    PacketParser p = parser_of("av1", join({{0x81, 0, 0, 0}, option & 1 ? sequence : Packet{}}));
    const auto test = [&](std::initializer_list<Packet> obus, const std::vector<CodedPicture>& wanted,
                          const char* what) { expect(p, join(obus), wanted, name + what); };
    const auto hidden = [&](std::uint32_t fills, const std::vector<std::uint32_t>& reads) {
      return av1_frame(o, kInter, false, fills, reads);
    };
    const auto shown = [&](std::uint32_t fills, const std::vector<std::uint32_t>& reads) {
      return av1_frame(o, kInter, true, fills, reads);
    };
    if (!(option & 1)) test({shown(0, {0})}, kAll, "no sequence header yet");
    test({kDelimiter, av1_show(3)}, kAll, "shows a slot of which nothing is known");
    test({kDelimiter, sequence, av1_frame(o, kKey, true, 0xff, {})}, kFresh, "key frame");
    test({kDelimiter, hidden(0x08, {0, 5}), hidden(0x81, {0, 3}), shown(0, {0, 3, 7})},
         {{0x21, 0x08}, {0x09, 0x81}, {0x89, 0}}, "hidden frames and one shown");
    test({kDelimiter, av1_show(3)}, {{0x08, 0}}, "shows a slot");
    test({kDelimiter, shown(0x10, {6})}, {{0x40, 0x10}}, "a reference");
    test({kDelimiter, av1_frame(o, kIntraOnly, true, 2, {}, true)}, {{0, 2}}, "intra only");
    test({kDelimiter, av1_frame(o, kInter, true, 4, {1, 2}, true)}, {{6, 4}}, "error resilient");
    test({kDelimiter, av1_frame(o, kSwitch, true, 0xff, {1})}, {{2, 0xff}}, "switch frame");
    if (o.hints) test({kDelimiter, av1_frame(o, kInter, true, 4, {1}, false, true)}, {{0xff, 4}}, "short signaling");
    test({kDelimiter, av1_frame(o, kKey, false, 0x20, {})}, kAll, "nothing shown");
    test({kDelimiter, av1_show(5)}, {{0x20, 0xff}}, "shows a key frame");
    test({kDelimiter, sequence, shown(0, {1})}, kAll, "a sequence header without key frame");
    test({kDelimiter, obu(5, {1, 2, 3, 4, 5}), shown(0, {1})}, kAll, "lasting metadata");
    test({kDelimiter, obu(5, {4, 0xb5, 1}), shown(0, {1})}, {{2, 0}}, "metadata of the frame");
    test({kDelimiter, shown(1, {1}), shown(0, {1})}, kAll, "two shown");
    Packet layer = shown(0, {1});
    layer[0] |= 4;
    layer.insert(layer.begin() + 1, 1 << 3);
    test({kDelimiter, layer}, kAll, "a spatial layer");
    test({kDelimiter, shown(0, {1}), {0x7a, 9}}, kAll, "cut off behind its frame");
    Packet cut = shown(0, {1});
    cut.pop_back();
    test({kDelimiter, cut}, kAll, "cut off");
    test({kDelimiter, av1_show(3)}, kAll, "shows a slot after damage");
    const Packet tail = obu(6, {0x10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false);
    parse(p, join({kDelimiter, tail}));  // has no length: reaches to the end

    const Packet first = hidden(1, {0}), second = hidden(2, {0}), third = shown(0, {0}), tiles = obu(4, {1, 2, 3});
    const Packet whole = join({kDelimiter, first, tiles, second, obu(15, {0, 0}), third});
    check(mmcore::keep_av1_pictures(whole.data(), whole.size(), 7) == std::string(whole.begin(), whole.end()),
          name + "keep all");
    const Packet two = join({kDelimiter, second, obu(15, {0, 0}), third});
    check(mmcore::keep_av1_pictures(whole.data(), whole.size(), 6) == std::string(two.begin(), two.end()),
          name + "keep two");
  }
  Av1Options still;
  still.still = true;
  PacketParser p = parser_of("av1", av1_sequence(still));
  expect(p, join({kDelimiter, av1_frame(still, kKey, true, 0xff, {})}), kFresh, "av1: still picture");
  PacketParser vp9 = parser_of("vp9", {});
  expect(vp9, {0x82, 0x49, 0x83}, kAll, "a codec of which nothing is known");
}

// --- what targets need

void test_needed() {
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::uint16_t> pictures;
    std::vector<std::uint8_t> counts;
    std::vector<std::size_t> packet_of, bit_of;
    const std::size_t packets = 1 + random_below(12);
    for (std::size_t p = 0; p < packets; ++p) {
      counts.push_back(static_cast<std::uint8_t>(1 + (random_below(3) ? 0 : random_below(4))));
      for (std::size_t bit = 0; bit < counts.back(); ++bit) {
        CodedPicture c;
        c.reads = static_cast<std::uint8_t>(random_below(256) & random_below(256));
        c.fills = static_cast<std::uint8_t>(random_below(3)   ? random_below(256) & random_below(256)
                                            : random_below(2) ? 0
                                                              : 255);
        pictures.push_back(c.packed());
        packet_of.push_back(p);
        bit_of.push_back(bit);
      }
    }
    const std::size_t first = random_below(static_cast<std::uint32_t>(packets));
    std::vector<std::size_t> targets;
    for (std::uint32_t n = 1 + random_below(3); n > 0; --n)
      targets.push_back(first + random_below(static_cast<std::uint32_t>(packets - first)));
    const bool references = random_below(2);

    // A picture depends on the last one before it that filled a slot which it reads.
    std::set<std::size_t> needed;
    const std::function<void(std::size_t)> need = [&](std::size_t i) {
      if (!needed.insert(i).second) return;
      for (int slot = 0; slot < 8; ++slot) {
        if (!(CodedPicture::unpack(pictures[i]).reads >> slot & 1)) continue;
        for (std::size_t j = i; j-- > 0 && packet_of[j] >= first;) {
          if (CodedPicture::unpack(pictures[j]).fills >> slot & 1) {
            need(j);
            break;
          }
        }
      }
    };
    std::size_t last = 0;
    for (std::size_t t : targets) last = t > last ? t : last;
    for (std::size_t i = 0; i < pictures.size(); ++i) {
      if (packet_of[i] < first || packet_of[i] > last) continue;
      bool wanted = references && CodedPicture::unpack(pictures[i]).fills;
      const bool shown = bit_of[i] + 1 == counts[packet_of[i]];
      wanted |= shown && packet_of[i] == first;
      for (std::size_t t : targets) wanted |= shown && packet_of[i] == t;
      if (wanted) need(i);
    }
    std::vector<std::uint32_t> masks(last - first + 1);
    for (std::size_t i : needed) masks[packet_of[i] - first] |= 1u << bit_of[i];
    const mmcore::CodedStream stream{pictures.data(), pictures.size(), counts.data(), counts.size()};
    check(mmcore::needed_pictures(stream, first, targets, references) == masks,
          "needed_pictures, round " + std::to_string(round));
  }
  const std::uint16_t picture = 0xffff;
  const std::uint8_t one = 1, two = 2, many = 33;
  check(mmcore::needed_pictures({&picture, 1, &one, 1}, 0, {}, false).empty(), "no targets");
  const auto refused = [&](const mmcore::CodedStream& s, std::size_t first, std::size_t target) {
    try {
      mmcore::needed_pictures(s, first, {target}, false);
    } catch (const std::logic_error&) {
      return true;
    }
    return false;
  };
  check(refused({&picture, 1, &one, 1}, 0, 1), "target beyond the end");
  check(refused({&picture, 1, &one, 1}, 1, 0), "target before the first");
  check(refused({&picture, 1, &two, 1}, 0, 0), "counts too high");
  check(refused({&picture, 1, &many, 1}, 0, 0), "too many in a packet");
}

// --- damage

void run_damaged(const Packet& bytes) {
  // An allocation of its own size, so that sanitizers see reads past its end.
  const Packet copy(bytes.begin(), bytes.end());
  for (const char* codec : {"h264", "hevc", "av1"}) {
    PacketParser alone(codec, copy.data(), copy.size());
    const Packet extradata = codec[0] == 'a'   ? av1_sequence({})
                             : codec[1] == '2' ? avcc(4, h264_sps(false), h264_pps())
                                               : hvcc(4, hevc_sps(0));
    PacketParser usual(codec, extradata.data(), extradata.size());
    for (PacketParser* parser : {&alone, &usual}) {
      for (int again = 0; again < 2; ++again) {
        const std::size_t n = parser->pictures(copy.data(), copy.size()).size();
        if (n < 1 || n > 32) check(false, "number of pictures in a damaged packet");
      }
    }
  }
  if (mmcore::keep_av1_pictures(copy.data(), copy.size(), random_below(8)).size() > copy.size())
    check(false, "kept too much");
}

void test_damage(unsigned every) {
  const std::vector<Packet> whole = everything;
  unsigned long number = 0;
  for (const Packet& p : whole) {
    for (std::size_t size = 0; size <= p.size(); ++size) {
      if (number++ % every == 0) run_damaged(Packet(p.begin(), p.begin() + static_cast<std::ptrdiff_t>(size)));
    }
    for (int i = 0; i < 200; ++i) {
      Packet changed = p;
      for (std::uint32_t n = random_below(4); n-- > 0 && !changed.empty();) {
        std::uint8_t& byte = changed[random_below(static_cast<std::uint32_t>(changed.size()))];
        byte = static_cast<std::uint8_t>(random_below(2) ? byte ^ 1u << random_below(8) : random_below(256));
      }
      for (std::uint32_t n = random_below(40); n > 0; --n)
        changed.push_back(static_cast<std::uint8_t>(random_below(3) ? random_below(256) : 0));
      if (number++ % every == 0) run_damaged(changed);
    }
  }
  std::printf("damaged packets: %lu\n", (number + every - 1) / every);
}

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  test_h264();
  test_hevc();
  test_av1();
  test_needed();
  test_damage(static_cast<unsigned>(every > 0 ? every : 1));
  std::printf(failures ? "%d failures\n" : "OK\n", failures);
  return failures != 0;
}
