// Runs one static Linux program on a bare machine: enough of a kernel to execute a test under an emulator in seconds.
// Output goes to port 0xe9, which Bochs prints; the machine is switched off when the program ends.
#include <elf.h>
#include <stdint.h>
#include <sys/syscall.h>

enum { kHeap = 0x18000000, kHeapEnd = 0x20000000, kStack = 0x30000000, kMapEnd = 0x2f000000 };

static uint64_t heap = kHeap, map = kHeapEnd;

static inline void out(uint16_t port, char c) { __asm__ volatile("outb %0, %1" ::"a"(c), "Nd"(port)); }

static void print(const char* s, uint64_t n) {
  for (uint64_t i = 0; i < n; ++i) out(0xe9, s[i]);
}

long system_call(long number, long a, long b, long c) {
  switch (number) {
    case SYS_write:
      print((const char*)b, c);
      return c;
    case SYS_writev:
      for (long i = 0; i < c; ++i) print(((const char**)b)[2 * i], ((const uint64_t*)b)[2 * i + 1]);
      return c;
    case SYS_mmap:
      if (map + b > kMapEnd) return -12;  // ENOMEM
      map += (b + 4095) & ~4095l;
      return map - ((b + 4095) & ~4095l);
    case SYS_mprotect:
    case SYS_munmap:
      return 0;
    case SYS_brk:
      if ((uint64_t)a >= kHeap && (uint64_t)a < kHeapEnd) heap = a;
      return heap;
    case SYS_arch_prctl:
      if (a != 0x1002) return -22;  // ARCH_SET_FS alone
      __asm__ volatile("wrmsr" ::"c"(0xc0000100), "a"((uint32_t)b), "d"((uint32_t)(b >> 32)));
      return 0;
    case SYS_exit_group:
      for (const char* s = "Shutdown"; *s; ++s) out(0x8900, *s);
      for (;;) __asm__ volatile("hlt");
    default:
      return -38;  // ENOSYS
  }
}

void enter(uint64_t entry, uint64_t* stack);

static void copy(char* to, const char* from, uint64_t n) {
  for (uint64_t i = 0; i < n; ++i) to[i] = from[i];
}

void kmain(const uint32_t* multiboot) {
  const char* file = (const char*)(uint64_t)((const uint32_t*)(uint64_t)multiboot[6])[0];  // the first module
  const Elf64_Ehdr* elf = (const Elf64_Ehdr*)file;
  const Elf64_Phdr* segment = (const Elf64_Phdr*)(file + elf->e_phoff);
  uint64_t headers = 0;
  for (int i = 0; i < elf->e_phnum; ++i) {
    if (segment[i].p_type != PT_LOAD) continue;
    copy((char*)segment[i].p_vaddr, file + segment[i].p_offset, segment[i].p_filesz);
    if (segment[i].p_offset == 0) headers = segment[i].p_vaddr + elf->e_phoff;
  }
  uint64_t* stack = (uint64_t*)kStack;
  // clang-format off
  const uint64_t start[] = {2, (uint64_t)"program", (uint64_t)ARGUMENT, 0, 0,  // argc, argv, environment
                            AT_PHDR, headers, AT_PHENT, sizeof(Elf64_Phdr), AT_PHNUM, elf->e_phnum,
                            AT_PAGESZ, 4096, AT_RANDOM, kStack, AT_NULL, 0};
  // clang-format on
  copy((char*)(stack - 64), (const char*)start, sizeof start);
  enter(elf->e_entry, stack - 64);
}
