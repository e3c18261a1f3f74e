// MMCORE_PREFETCH(address): a hint that the line will be read soon; any address will do.
#pragma once

#if defined(__GNUC__)
#define MMCORE_PREFETCH(address) __builtin_prefetch(address, 0, 2)
#elif defined(_M_X64)
#include <xmmintrin.h>
#define MMCORE_PREFETCH(address) _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0)
#else
#define MMCORE_PREFETCH(address) static_cast<void>(address)
#endif
