#if defined(__clang__)
_Pragma("clang attribute pop")
#elif defined(__GNUC__)
_Pragma("GCC pop_options")
#endif
#undef MMCORE_PRAGMA
#undef MMCORE_PRAGMA_
#undef MMCORE_TARGET
