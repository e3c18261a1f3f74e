// A loop's body and what it closes over must become part of the function around it, or its sums live in memory.
#pragma once

#if defined(__GNUC__)
#define MMCORE_INLINE inline __attribute__((always_inline))
#define MMCORE_INLINE_LAMBDA __attribute__((always_inline))
#else
#define MMCORE_INLINE __forceinline
#define MMCORE_INLINE_LAMBDA
#endif
