// Multiboot entry in 32-bit mode: identity-maps the first gigabyte, enters 64-bit mode with SSE, AVX and AVX-512
// enabled, and calls kmain(multiboot information). syscall_entry serves the program that kmain starts; it runs in
// ring 0 too, so that there is one set of segments and no interrupt table.
.section .multiboot, "a"
.align 4
.long 0x1badb002, 1, -(0x1badb002 + 1)

.bss
.align 4096
pml4: .skip 4096
pdpt: .skip 4096
pd:   .skip 4096
stack: .skip 65536
stack_top:
user_rsp: .skip 8

.data
.align 8
gdt:  .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdtr: .word . - gdt - 1
      .long gdt

.text
.code32
.globl _start
_start:
  cli
  mov $stack_top, %esp
  mov %ebx, %edi
  movl $(pdpt + 3), pml4
  movl $(pd + 3), pdpt
  xor %ecx, %ecx
1: mov %ecx, %eax
  shl $21, %eax
  or $0x83, %eax              // present, writable, 2 MiB
  mov %eax, pd(, %ecx, 8)
  inc %ecx
  cmp $512, %ecx
  jne 1b
  mov $pml4, %eax
  mov %eax, %cr3
  mov %cr4, %eax
  or $0x40620, %eax           // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
  mov %eax, %cr4
  mov $0xc0000080, %ecx       // EFER
  rdmsr
  or $0x101, %eax             // LME, SCE
  wrmsr
  mov %cr0, %eax
  and $~0xc, %eax             // not EM, not TS
  or $0x80000002, %eax        // PG, MP
  mov %eax, %cr0
  lgdt gdtr
  ljmp $8, $1f
.code64
1: mov $16, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  xor %ecx, %ecx
  xor %edx, %edx
  mov $0xe7, %eax             // x87, SSE, AVX and the three AVX-512 states
  xsetbv
  mov $0xc0000081, %ecx       // STAR: code segment 8, stack segment 16
  xor %eax, %eax
  mov $8, %edx
  wrmsr
  mov $0xc0000082, %ecx       // LSTAR
  mov $syscall_entry, %eax
  xor %edx, %edx
  wrmsr
  call kmain
  hlt

syscall_entry:                // rax number, rdi rsi rdx arguments; keeps all but rax, rcx, r11
  mov %rsp, user_rsp          // the caller's stack may have a red zone
  mov $stack_top, %esp
  push %rcx
  push %rdi
  push %rsi
  push %rdx
  push %r8
  push %r9
  push %r10
  push %r10
  mov %rdx, %rcx
  mov %rsi, %rdx
  mov %rdi, %rsi
  mov %rax, %rdi
  call system_call
  pop %r10
  pop %r10
  pop %r9
  pop %r8
  pop %rdx
  pop %rsi
  pop %rdi
  pop %rcx
  mov user_rsp, %rsp
  jmp *%rcx

.globl enter                  // enter(entry point, stack pointer)
enter:
  mov %rsi, %rsp
  xor %edx, %edx
  jmp *%rdi
.section .note.GNU-stack, "", @progbits
