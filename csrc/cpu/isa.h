// Which instruction set the kernels run on: detected once, or forced by MMCORE_ISA.
#pragma once

#include <string>
#include <vector>

namespace mmcore {

enum class Isa { kBase, kAvx2, kAvx512, kNeon };

const char* isa_name(Isa isa);

// Instruction sets that this build holds kernels for and this machine can run, the slowest first.
std::vector<Isa> available_isas();

// The one in use: the fastest available, or the one that MMCORE_ISA names. Throws std::invalid_argument if
// MMCORE_ISA names an unknown one or one that is not available, at first use and not at import.
Isa active_isa();

}  // namespace mmcore
