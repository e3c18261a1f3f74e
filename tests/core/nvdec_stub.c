// Drivers without a GPU, for FFmpeg's own NVDEC decoder: libcuda, whose device memory is the host's, and libnvcuvid
// (-DCUVID), whose pictures are a pattern of the bits that they are decoded from.
//
// FFmpeg looks all of these functions up by name; those that decoding does not need do nothing. The layouts are those
// of NVIDIA's headers.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
enum { kSuccess = 0, kInvalid = 1 };

#ifndef CUVID

#define NOTHING(name) \
  Result name(void) { return kSuccess; }
// clang-format off
NOTHING(cuArray3DCreate_v2) NOTHING(cuArrayCreate_v2) NOTHING(cuArrayDestroy) NOTHING(cuCtxDestroy_v2)
NOTHING(cuCtxGetDevice) NOTHING(cuCtxSetLimit) NOTHING(cuDestroyExternalMemory) NOTHING(cuDestroyExternalSemaphore)
NOTHING(cuDeviceComputeCapability) NOTHING(cuDeviceGetByPCIBusId) NOTHING(cuDeviceGetName)
NOTHING(cuDeviceGetPCIBusId) NOTHING(cuDeviceGetUuid) NOTHING(cuDeviceGetUuid_v2) NOTHING(cuDevicePrimaryCtxRelease)
NOTHING(cuDevicePrimaryCtxReset) NOTHING(cuDevicePrimaryCtxSetFlags) NOTHING(cuDeviceGetLuid)
NOTHING(cuDriverGetVersion) NOTHING(cuEGLStreamConsumerDisconnect) NOTHING(cuEGLStreamProducerConnect)
NOTHING(cuEGLStreamProducerDisconnect) NOTHING(cuEGLStreamProducerPresentFrame)
NOTHING(cuEGLStreamProducerReturnFrame) NOTHING(cuEventCreate) NOTHING(cuEventDestroy_v2) NOTHING(cuEventQuery)
NOTHING(cuEventRecord) NOTHING(cuEventSynchronize) NOTHING(cuExternalMemoryGetMappedBuffer)
NOTHING(cuExternalMemoryGetMappedMipmappedArray) NOTHING(cuGLGetDevices_v2) NOTHING(cuGraphicsGLRegisterImage)
NOTHING(cuGraphicsMapResources) NOTHING(cuGraphicsResourceGetMappedPointer_v2)
NOTHING(cuGraphicsSubResourceGetMappedArray) NOTHING(cuGraphicsUnmapResources) NOTHING(cuGraphicsUnregisterResource)
NOTHING(cuImportExternalMemory) NOTHING(cuImportExternalSemaphore) NOTHING(cuInit) NOTHING(cuLaunchKernel)
NOTHING(cuLinkAddData) NOTHING(cuLinkComplete) NOTHING(cuLinkCreate) NOTHING(cuLinkDestroy)
NOTHING(cuMemAllocManaged) NOTHING(cuMemAllocPitch_v2) NOTHING(cuMemcpy) NOTHING(cuMemcpyAsync)
NOTHING(cuMemcpyDtoDAsync_v2) NOTHING(cuMemcpyDtoD_v2) NOTHING(cuMemcpyDtoHAsync_v2) NOTHING(cuMemcpyDtoH_v2)
NOTHING(cuMemcpyHtoDAsync_v2) NOTHING(cuMemcpyHtoD_v2) NOTHING(cuMemsetD8Async) NOTHING(cuMipmappedArrayDestroy)
NOTHING(cuMipmappedArrayGetLevel) NOTHING(cuModuleGetFunction) NOTHING(cuModuleGetGlobal) NOTHING(cuModuleLoadData)
NOTHING(cuModuleUnload) NOTHING(cuSignalExternalSemaphoresAsync) NOTHING(cuStreamAddCallback)
NOTHING(cuStreamCreate) NOTHING(cuStreamDestroy_v2) NOTHING(cuStreamQuery) NOTHING(cuStreamSynchronize)
NOTHING(cuStreamWaitEvent) NOTHING(cuTexObjectCreate) NOTHING(cuTexObjectDestroy)
NOTHING(cuWaitExternalSemaphoresAsync);
// clang-format on

static int context, allocated;

int stub_allocated(void) { return allocated; }

Result cuCtxGetCurrent(void** current) { return *current = &context, kSuccess; }
Result cuCtxCreate_v2(void** made, unsigned flags, int device) { return *made = &context, kSuccess; }
Result cuCtxPushCurrent_v2(void* pushed) { return pushed == &context ? kSuccess : kInvalid; }
Result cuCtxPopCurrent_v2(void** popped) { return *popped = &context, kSuccess; }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, kSuccess; }
Result cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
Result cuDeviceGetAttribute(int* value, int attribute, int device) { return *value = 512, kSuccess; }
// As torch leaves it: in use, with other flags than FFmpeg's.
Result cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, kSuccess;
}
Result cuDevicePrimaryCtxRetain(void** made, int device) { return *made = &context, kSuccess; }
Result cuGetErrorName(Result error, const char** text) { return *text = "error of the stub", kSuccess; }
Result cuGetErrorString(Result error, const char** text) { return *text = "error of the stub", kSuccess; }

Result cuMemAlloc_v2(uintptr_t* address, size_t bytes) {
  *address = (uintptr_t)aligned_alloc(512, (bytes + 511) / 512 * 512);
  allocated++;
  return kSuccess;
}
Result cuMemFree_v2(uintptr_t address) {
  free((void*)address);
  allocated--;
  return kSuccess;
}

typedef struct {
  size_t x, y;
  int type;  // 1: the host's, 2: the device's
  void* host;
  uintptr_t device;
  void* array;
  size_t pitch;
} Place;
typedef struct {
  Place source, target;
  size_t bytes, rows;
} Copy;

static char* start(const Place* p) {
  return (p->type == 1 ? (char*)p->host : (char*)p->device) + p->y * p->pitch + p->x;
}
Result cuMemcpy2D_v2(const Copy* c) {
  for (size_t y = 0; y < c->rows; y++) {
    memcpy(start(&c->target) + y * c->target.pitch, start(&c->source) + y * c->source.pitch, c->bytes);
  }
  return kSuccess;
}
Result cuMemcpy2DAsync_v2(const Copy* c, void* stream) { return stream ? kInvalid : cuMemcpy2D_v2(c); }

#else

typedef struct {
  unsigned long width, height, surfaces;
  int codec, chroma;
  unsigned long flags, bit_depth_minus_8, intra_only, max_width, max_height, reserved;
  short display_area[4];
  int format, deinterlace;
  unsigned long target_width, target_height, mapped_surfaces;
} Create;

typedef struct {
  int width_mbs, height_mbs, picture, field, bottom, second;
  unsigned bytes;
  const unsigned char* bits;
} Picture;

typedef struct {
  Create create;
  unsigned seeds[64];
  int mapped;
} Decoder;

enum { kPitch = 4096, kNv12 = 0, kP016 = 1, k444 = 2, k444Deep = 3 };

static int decoders, most_mapped, most_surfaces, refuses, fails;
void stub_refuse(int on) { refuses = on; }
void stub_fail(int on) { fails = on; }
int stub_decoders(void) { return decoders; }
int stub_most_mapped(void) { return most_mapped; }
int stub_most_surfaces(void) { return most_surfaces; }

typedef struct {
  int codec, chroma;
  unsigned bit_depth_minus_8, reserved[3];
  unsigned char is_supported, engines;
  unsigned short formats;
  unsigned max_width, max_height, max_macroblocks;
  unsigned short min_width, min_height;
} Caps;

Result cuvidGetDecoderCaps(Caps* c) {
  c->is_supported = c->chroma == 1 || (c->chroma == 3 && c->codec == 8);
  c->engines = 3;
  c->max_width = c->max_height = 4096;
  c->max_macroblocks = 65536;
  c->min_width = c->min_height = 16;
  return kSuccess;
}

Result cuvidCreateDecoder(Decoder** made, const Create* create) {
  if (create->surfaces > 32 || refuses) return kInvalid;
  *made = calloc(1, sizeof(Decoder));
  (*made)->create = *create;
  if ((int)create->surfaces > most_surfaces) most_surfaces = (int)create->surfaces;
  decoders++;
  return kSuccess;
}
Result cuvidDestroyDecoder(Decoder* decoder) {
  free(decoder);
  decoders--;
  return kSuccess;
}

Result cuvidDecodePicture(Decoder* decoder, const Picture* picture) {
  if (fails || picture->picture < 0 || picture->picture >= (int)decoder->create.surfaces) return kInvalid;
  unsigned hash = 2166136261u;
  for (unsigned i = 0; i < picture->bytes; i++) hash = (hash ^ picture->bits[i]) * 16777619u;
  unsigned* seed = &decoder->seeds[picture->picture];
  *seed = picture->second ? *seed ^ hash : hash;
  return kSuccess;
}

Result cuvidMapVideoFrame64(Decoder* decoder, int picture, unsigned long long* address, unsigned* pitch, void* params) {
  const Create* c = &decoder->create;
  const unsigned seed = decoder->seeds[picture];
  if (decoder->mapped == (int)c->mapped_surfaces) return kInvalid;
  if (++decoder->mapped > most_mapped) most_mapped = decoder->mapped;
  const int deep = c->format == kP016 || c->format == k444Deep;
  const size_t rows = c->format >= k444 ? 3 * c->height : c->height + (c->height + 1) / 2;
  unsigned char* memory = aligned_alloc(512, rows * kPitch);
  for (size_t y = 0; y < rows; y++) {
    for (size_t x = 0; x < kPitch >> deep; x++) {
      // Rows are counted on in the chroma, which begins after the coded rows: its values tell where that was.
      const unsigned value = seed + 7 * (unsigned)x + 13 * (unsigned)y;
      if (deep) {
        ((unsigned short*)(memory + y * kPitch))[x] = (unsigned short)((value & 1023) << 6);
      } else {
        memory[y * kPitch + x] = (unsigned char)value;
      }
    }
  }
  *address = (uintptr_t)memory;
  *pitch = kPitch;
  return kSuccess;
}
Result cuvidUnmapVideoFrame64(Decoder* decoder, unsigned long long address) {
  decoder->mapped--;
  memset((void*)(uintptr_t)address, 0xA5, kPitch);  // whoever reads on reads this
  free((void*)(uintptr_t)address);
  return kSuccess;
}

#define NOTHING(name) \
  Result name(void) { return kSuccess; }
// clang-format off
NOTHING(cuvidCreateVideoParser) NOTHING(cuvidCreateVideoSource) NOTHING(cuvidCreateVideoSourceW)
NOTHING(cuvidCtxLock) NOTHING(cuvidCtxLockCreate) NOTHING(cuvidCtxLockDestroy) NOTHING(cuvidCtxUnlock)
NOTHING(cuvidDestroyVideoParser) NOTHING(cuvidDestroyVideoSource) NOTHING(cuvidGetDecodeStatus)
NOTHING(cuvidGetSourceAudioFormat) NOTHING(cuvidGetSourceVideoFormat) NOTHING(cuvidGetVideoSourceState)
NOTHING(cuvidParseVideoData) NOTHING(cuvidReconfigureDecoder) NOTHING(cuvidSetVideoSourceState);
// clang-format on

#endif
