// A CUDA driver that launches nothing: it notes what would be launched, for tests of launch code without a GPU.
//
// Answers what Triton's and torch's launch code ask of libcuda.so.1. A launch is noted as a line of text: function,
// grid, block, shared bytes, stream, and each parameter's bytes in hexadecimal. How many parameters a kernel takes, and
// of what sizes, stands in its machine code (.nv.info of the ELF image), as for the real driver; an image that is not
// ELF names them itself: "STUB" and the sizes as text.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef struct {
  unsigned grid[3], block[3], shared;
  void* stream;
  void* attributes;
  unsigned attribute_count;
} Config;
typedef struct {
  int count;
  int sizes[512];
} Kernel;

enum { kSuccess = 0, kInvalidValue = 1, kNotFound = 500, kMaxThreads = 0, kSharedOptin = 97, kMajor = 75, kMinor = 76 };

static char* text = NULL;
static size_t used = 0, room = 0;
static int noting = 1, context = 0;

void stub_note(int on) { noting = on; }
void stub_clear(void) { used = 0; }
const char* stub_text(void) { return used ? text : ""; }

static void put(const char* s, size_t n) {
  if (used + n + 1 > room) {
    room = 2 * (used + n + 1);
    text = realloc(text, room);
    if (text == NULL) abort();
  }
  memcpy(text + used, s, n);
  used += n;
  text[used] = 0;
}

static void read_elf(const unsigned char* image, const char* name, Kernel* kernel) {
  uint64_t table;
  uint16_t entry, count, names;
  memcpy(&table, image + 40, 8);
  memcpy(&entry, image + 58, 2);
  memcpy(&count, image + 60, 2);
  memcpy(&names, image + 62, 2);
  uint64_t strings;
  memcpy(&strings, image + table + (uint64_t)names * entry + 24, 8);
  for (int s = 0; s < count; ++s) {
    const unsigned char* header = image + table + (uint64_t)s * entry;
    uint32_t at;
    uint64_t offset, size;
    memcpy(&at, header, 4);
    memcpy(&offset, header + 24, 8);
    memcpy(&size, header + 32, 8);
    const char* section = (const char*)image + strings + at;
    if (strncmp(section, ".nv.info.", 9) != 0 || strcmp(section + 9, name) != 0) continue;
    for (uint64_t i = 0; i + 4 <= size;) {
      const unsigned char* item = image + offset + i;
      uint16_t bytes;
      memcpy(&bytes, item + 2, 2);
      if (item[0] == 4 && item[1] == 0x17 && bytes >= 12) {  // a parameter
        uint16_t ordinal;
        uint32_t flags;
        memcpy(&ordinal, item + 8, 2);
        memcpy(&flags, item + 12, 4);
        if (ordinal < 512) {
          kernel->sizes[ordinal] = (int)(flags >> 18);
          if (ordinal >= kernel->count) kernel->count = ordinal + 1;
        }
      }
      i += 4 + (item[0] == 4 ? bytes : 0);
    }
  }
}

CUresult cuModuleLoadData(void** module, const void* image) {
  *module = (void*)image;
  return kSuccess;
}

CUresult cuModuleGetFunction(void** function, void* module, const char* name) {
  Kernel* kernel = calloc(1, sizeof(Kernel));  // kept: a process loads few
  if (kernel == NULL) abort();
  if (memcmp(module, "\177ELF", 4) == 0) {
    read_elf(module, name, kernel);
  } else if (memcmp(module, "STUB", 4) == 0) {
    char* at = (char*)module + 4;
    for (char* end; kernel->count < 512; at = end) {
      const long size = strtol(at, &end, 10);
      if (end == at) break;
      kernel->sizes[kernel->count++] = (int)size;
    }
  } else {
    return kInvalidValue;
  }
  *function = kernel;
  return kSuccess;
}

static CUresult note(const Kernel* kernel, const unsigned* grid, const unsigned* block, unsigned shared, void* stream,
                     void** parameters) {
  if (!noting) return kSuccess;
  char line[256];
  int n = snprintf(line, sizeof line, "%p %u,%u,%u %u,%u,%u %u %p", (const void*)kernel, grid[0], grid[1], grid[2],
                   block[0], block[1], block[2], shared, stream);
  put(line, (size_t)n);
  for (int i = 0; i < kernel->count; ++i) {
    put(" ", 1);
    for (int byte = kernel->sizes[i]; byte-- > 0;) {
      n = snprintf(line, sizeof line, "%02x", ((const unsigned char*)parameters[i])[byte]);
      put(line, (size_t)n);
    }
  }
  put("\n", 1);
  return kSuccess;
}

CUresult cuLaunchKernelEx(const Config* c, void* function, void** parameters, void** extra) {
  (void)extra;
  return note(function, c->grid, c->block, c->shared, c->stream, parameters);
}

CUresult cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, void* stream, void** parameters, void** extra) {
  (void)extra;
  const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  return note(function, grid, block, shared, stream, parameters);
}

CUresult cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case kMajor:
      *value = 9;
      break;
    case kMinor:
      *value = 0;
      break;
    case kSharedOptin:
      *value = 232448;
      break;
    default:
      *value = 1024;
  }
  return kSuccess;
}

CUresult cuFuncGetAttribute(int* value, int attribute, void* function) {
  (void)function;
  *value = attribute == kMaxThreads ? 1024 : 0;
  return kSuccess;
}

CUresult cuPointerGetAttribute(void* value, int attribute, unsigned long long pointer) {
  (void)attribute;
  memcpy(value, &pointer, sizeof pointer);
  return kSuccess;
}

CUresult cuGetErrorString(CUresult error, const char** message) {
  *message = error == kSuccess ? "no error" : "error of the stub";
  return kSuccess;
}

CUresult cuDeviceGetCount(int* count) {
  *count = 1;
  return kSuccess;
}

CUresult cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return kSuccess;
}

CUresult cuCtxGetCurrent(void** current) {
  *current = &context;
  return kSuccess;
}

CUresult cuDevicePrimaryCtxRetain(void** made, int device) {
  (void)device;
  *made = &context;
  return kSuccess;
}

CUresult cuCtxGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}

CUresult cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}

CUresult cuCtxGetLimit(size_t* value, int limit) {
  (void)limit;
  *value = 0;
  return kSuccess;
}

CUresult cuStreamIsCapturing(void* stream, int* status) {
  (void)stream;
  *status = 0;
  return kSuccess;
}

CUresult cuInit(unsigned flags) { return flags ? kInvalidValue : kSuccess; }
CUresult cuCtxSetCurrent(void* current) { return current ? kSuccess : kInvalidValue; }
CUresult cuModuleUnload(void* module) { return module ? kSuccess : kInvalidValue; }
CUresult cuCtxSetLimit(int limit, size_t value) { return limit < 0 && value ? kInvalidValue : kSuccess; }
CUresult cuFuncSetAttribute(void* function, int attribute, int value) {
  return function && attribute >= 0 && value >= 0 ? kSuccess : kInvalidValue;
}
CUresult cuFuncSetCacheConfig(void* function, int config) { return function && config >= 0 ? kSuccess : kInvalidValue; }
CUresult cuOccupancyMaxActiveClusters(int* count, void* function, const Config* config) {
  *count = 1;
  return function && config ? kSuccess : kInvalidValue;
}
