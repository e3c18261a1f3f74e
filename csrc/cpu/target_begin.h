// Opens a region whose functions are compiled for MMCORE_TARGET; target_end.h closes it. No include guard.
// Standard headers must come before it: their inline functions may be merged with copies from other files.
#define MMCORE_PRAGMA_(x) _Pragma(#x)
#define MMCORE_PRAGMA(x) MMCORE_PRAGMA_(x)
#if defined(__clang__)
MMCORE_PRAGMA(clang attribute push(__attribute__((target(MMCORE_TARGET))), apply_to = function))
#elif defined(__GNUC__)
_Pragma("GCC push_options") MMCORE_PRAGMA(GCC target(MMCORE_TARGET))
#endif
