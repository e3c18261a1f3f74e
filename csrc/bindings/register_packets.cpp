// What compressed packets tell about each other. Packets are handed over by address, as PyAV gives it.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "mmcore/packets.h"

namespace py = pybind11;

void register_packets(py::module_& m) {
  py::class_<mmcore::PacketParser>(m, "PacketParser")
      .def(py::init([](const std::string& codec, const py::bytes& extradata) {
             const auto bytes = static_cast<std::string_view>(extradata);
             return mmcore::PacketParser(codec, reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
           }),
           py::arg("codec"), py::arg("extradata"))
      .def(
          "droppable",
          [](mmcore::PacketParser& parser, std::uintptr_t address, std::size_t size) {
            return parser.droppable(reinterpret_cast<const std::uint8_t*>(address), size);
          },
          py::arg("address"), py::arg("size"), "Whether no other packet of the stream needs this one.");
}
