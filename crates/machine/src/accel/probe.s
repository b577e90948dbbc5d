# KVM trial boot: a boot sector that enters long mode, runs a memory-touching loop and leaves through isa-debug-exit.
# Source of PROBE in accel.rs: as --64 -o p.o probe.s && ld -Ttext 0x7c00 --oformat binary -o p.bin p.o
.code16
.globl _start
_start:
  cli
  xor %ax,%ax
  mov %ax,%ds
  mov %ax,%es
  mov %ax,%ss
  mov $0x7c00,%sp
  in $0x92,%al          # A20
  or $2,%al
  out %al,$0x92
  mov $0x1000,%edi       # page tables at 0x1000: PML4, PDPT, PD (identity map of 1 GiB by 2 MiB pages)
  xor %eax,%eax
  mov $3072,%cx
  rep stosl
  movl $0x2003,0x1000
  movl $0x3003,0x2000
  mov $0x3000,%di
  mov $0x83,%eax
  mov $512,%cx
1: mov %eax,(%di)
  add $0x200000,%eax
  add $8,%di
  loop 1b
  mov $0x1000,%eax
  mov %eax,%cr3
  mov %cr4,%eax
  or $0x20,%eax
  mov %eax,%cr4
  mov $0xc0000080,%ecx
  rdmsr
  or $0x100,%eax
  wrmsr
  lgdt gdtr
  mov %cr0,%eax
  or $0x80000001,%eax
  mov %eax,%cr0
  ljmp $8,$long
.code64
long:
  mov $0x200000,%rdi     # 64 passes over 16 MiB, one read-modify-write per 64 bytes: 2^24 steps
  mov $64,%edx
2: mov $0x200000,%rsi
  mov $0x40000,%ecx
3: add %rcx,(%rsi)
  add $64,%rsi
  dec %ecx
  jnz 3b
  dec %edx
  jnz 2b
  mov $0x2a,%al
  out %al,$0xf4          # QEMU exits with (0x2a << 1) | 1
  hlt
.align 8
gdt: .quad 0
  .quad 0x00209a0000000000
gdtr: .word 15
  .long gdt
.org 510
.word 0xaa55
