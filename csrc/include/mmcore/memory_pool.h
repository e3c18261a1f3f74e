// A recycling pool for output tensors.
//
// Memory above a few MB that malloc maps anew costs a page fault per 4 KiB, as much as the conversion that
// fills it. Blocks given back are kept, up to a limit, and handed out again to a request of about their size.
#pragma once

#include <cstddef>

namespace mmcore {

// At least `bytes` bytes, aligned to 64. Throws std::bad_alloc. *recycled: whether its pages have been written before.
void* pool_allocate(std::size_t bytes, bool* recycled = nullptr);
void pool_release(void* block) noexcept;

// Bytes kept for reuse at most; blocks over it are returned to the system at once. Default 512 MiB.
void pool_set_limit(std::size_t bytes);
std::size_t pool_limit();
std::size_t pool_kept();  // bytes now kept for reuse
void pool_clear();        // return them all to the system

}  // namespace mmcore
