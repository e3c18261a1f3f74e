#include "isa.h"

#include <cstdlib>
#include <stdexcept>

#if defined(_MSC_VER) && defined(_M_X64)
#include <immintrin.h>
#include <intrin.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mmcore {

namespace {

#if defined(_MSC_VER) && defined(_M_X64)
// What __builtin_cpu_supports does elsewhere: the CPU has it (cpuid) and the system saves its state (xgetbv).
bool cpu_has(Isa isa) {
  int r[4];
  __cpuid(r, 1);
  const bool osxsave = r[2] & (1 << 27), fma = r[2] & (1 << 12), f16c = r[2] & (1 << 29);
  if (!osxsave) return false;
  const unsigned long long state = _xgetbv(0);
  __cpuidex(r, 7, 0);
  const bool avx2 = (r[1] & (1 << 5)) && fma && f16c && (state & 0x6) == 0x6;
  if (isa == Isa::kAvx2) return avx2;
  const int need = (1 << 16) | (1 << 17) | (1 << 30) | (1 << 31);  // F, DQ, BW, VL
  return avx2 && (r[1] & need) == need && (state & 0xe6) == 0xe6;
}
#elif defined(__x86_64__)
bool cpu_has(Isa isa) {
  // cpuid for F16C: clang's builtin did not know its name before version 15. AVX2 implies that its state is saved.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  if (isa == Isa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

Isa choose() {
  const std::vector<Isa> all = available_isas();
  const char* forced = std::getenv("MMCORE_ISA");
  if (forced == nullptr || *forced == '\0') return all.back();
  std::string names;
  for (Isa isa : all) {
    if (std::string(forced) == isa_name(isa)) return isa;
    names += names.empty() ? isa_name(isa) : std::string(", ") + isa_name(isa);
  }
  throw std::invalid_argument("MMCORE_ISA: '" + std::string(forced) + "' is not available on this machine; it has " +
                              names);
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kNeon:
      return "neon";
    default:
      return "base";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> all{Isa::kBase};
#if defined(__x86_64__) || (defined(_MSC_VER) && defined(_M_X64))
  if (cpu_has(Isa::kAvx2)) all.push_back(Isa::kAvx2);
  if (cpu_has(Isa::kAvx512)) all.push_back(Isa::kAvx512);
#elif defined(__aarch64__) || defined(_M_ARM64)
  all.push_back(Isa::kNeon);
#endif
  return all;
}

Isa active_isa() {
  static const Isa isa = choose();  // a throwing initialiser is tried again at the next call
  return isa;
}

}  // namespace mmcore
