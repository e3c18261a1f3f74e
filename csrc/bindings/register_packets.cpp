// What compressed packets tell about each other. Packets are handed over by address, as PyAV gives it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "mmcore/packets.h"

namespace py = pybind11;

namespace {

const std::uint8_t* pointer(std::uintptr_t address) { return reinterpret_cast<const std::uint8_t*>(address); }

// One-dimensional contiguous integers of a size, as of array.array or bytes.
py::buffer_info integers(const py::buffer& buffer, const char* name, py::ssize_t itemsize) {
  py::buffer_info info = buffer.request();
  if (info.ndim != 1 || info.itemsize != itemsize || (info.size > 1 && info.strides[0] != itemsize)) {
    throw std::invalid_argument(std::string(name) + ": expected contiguous integers of " + std::to_string(itemsize) +
                                " bytes");
  }
  return info;
}

}  // namespace

void register_packets(py::module_& m) {
  py::class_<mmcore::PacketParser>(m, "PacketParser")
      .def(py::init([](const std::string& codec, const py::bytes& extradata) {
             const auto bytes = static_cast<std::string_view>(extradata);
             return mmcore::PacketParser(codec, reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
           }),
           py::arg("codec"), py::arg("extradata"))
      .def(
          "pictures",
          [](mmcore::PacketParser& parser, std::uintptr_t address, std::size_t size) {
            const auto& pictures = parser.pictures(pointer(address), size);
            py::list packed(pictures.size());
            for (std::size_t i = 0; i < pictures.size(); ++i) packed[i] = py::int_(pictures[i].packed());
            return packed;
          },
          py::arg("address"), py::arg("size"),
          "The packet's pictures in coding order: slots read | slots filled << 8. The last is the one shown.")
      .def(
          "droppable",
          [](mmcore::PacketParser& parser, std::uintptr_t address, std::size_t size) {
            for (const mmcore::CodedPicture& picture : parser.pictures(pointer(address), size)) {
              if (picture.fills) return false;
            }
            return true;
          },
          py::arg("address"), py::arg("size"),
          "Whether no other packet of the stream needs this one; instead of pictures(), not besides.")
      .def(
          "intra",
          [](const mmcore::PacketParser& parser, std::uintptr_t address, std::size_t size) {
            return parser.intra(pointer(address), size);
          },
          py::arg("address"), py::arg("size"), "Whether the packet's picture is predicted from no other.");
  m.def(
      "needed_pictures",
      [](const py::buffer& pictures, const py::buffer& counts, std::size_t first,
         const std::vector<std::size_t>& targets, bool keep_references) {
        const py::buffer_info p = integers(pictures, "pictures", 2), c = integers(counts, "counts", 1);
        mmcore::CodedStream stream;
        stream.pictures = static_cast<const std::uint16_t*>(p.ptr);
        stream.num_pictures = static_cast<std::size_t>(p.size);
        stream.counts = static_cast<const std::uint8_t*>(c.ptr);
        stream.num_packets = static_cast<std::size_t>(c.size);
        return mmcore::needed_pictures(stream, first, targets, keep_references);
      },
      py::arg("pictures"), py::arg("counts"), py::arg("first"), py::arg("targets"), py::arg("keep_references") = false,
      "Of packets first, first + 1, ... to the last target: a bit for each picture to decode.");
  m.def(
      "keep_av1_pictures",
      [](std::uintptr_t address, std::size_t size, std::uint32_t keep) {
        return py::bytes(mmcore::keep_av1_pictures(pointer(address), size, keep));
      },
      py::arg("address"), py::arg("size"), py::arg("keep"),
      "An AV1 packet without the pictures whose bit in keep is 0.");
}
