/* Where a freestanding guest begins: entered by PVH in 32-bit mode without paging (Xen's
   docs/misc/pvh.pandoc), it goes to 64-bit mode and on to ring 3 with all I/O ports, as some hosts
   run ring 0 of a guest by emulation and ring 3 natively.

   The first 4 GiB of physical memory are mapped twice, by pages of 2 MiB that ring 3 may use: where
   they are, for this file, and from HIGH on, where load.c runs. Tables are in memory that the
   program does not use otherwise. */

#define SLOT        128             /* of the topmost table: HIGH is SLOT << 39 */
#define START_INFO  0x200000        /* what PVH tells, kept for load.c */
#define TOP         0x210000        /* page tables: topmost, next, and four of 1 GiB each */
#define NEXT        0x211000
#define GIGABYTES   0x212000
#define STACK       0x300000

#define TABLE       0x07            /* present, writable, for ring 3 */
#define PAGE_2M     0x87            /* the same, and large */

    .section .note.pvh, "a", @note
    .long   4, 4, 18                /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz  "Xen"
    .long   start

    .text
    .code32
    .globl  start
start:
    cld
    movl    $STACK, %esp
    movl    %ebx, START_INFO

    movl    $TOP, %edi
    xorl    %eax, %eax
clear:
    movl    %eax, (%edi)
    addl    $4, %edi
    cmpl    $GIGABYTES, %edi
    jne     clear

    movl    $(NEXT + TABLE), TOP
    movl    $(NEXT + TABLE), TOP + 8 * SLOT
    movl    $(GIGABYTES + TABLE), NEXT
    movl    $(GIGABYTES + 0x1000 + TABLE), NEXT + 8
    movl    $(GIGABYTES + 0x2000 + TABLE), NEXT + 16
    movl    $(GIGABYTES + 0x3000 + TABLE), NEXT + 24
    movl    $GIGABYTES, %edi
    movl    $PAGE_2M, %eax
fill:
    movl    %eax, (%edi)
    movl    $0, 4(%edi)
    addl    $8, %edi
    addl    $0x200000, %eax
    jnc     fill                    /* until 4 GiB are mapped */

    movl    %cr4, %eax
    orl     $0x20, %eax             /* PAE */
    movl    %eax, %cr4
    movl    $TOP, %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx       /* EFER: long mode, and syscall */
    rdmsr
    orl     $0x101, %eax
    wrmsr
    movl    %cr0, %eax
    orl     $0x80000001, %eax       /* paging, protection */
    movl    %eax, %cr0
    lgdt    table
    ljmp    $0x08, $long_mode

    .align  8
segments:
    .quad   0
    .quad   0x00af9b000000ffff      /* 0x08: code of ring 0 */
    .quad   0x00cf93000000ffff      /* 0x10: data of ring 0 */
    .quad   0x00cff3000000ffff      /* 0x18: data of ring 3 */
    .quad   0x00affb000000ffff      /* 0x20: code of ring 3 */
table:
    .word   table - segments - 1
    .long   segments

    .code64
long_mode:
    movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %fs
    movl    %eax, %gs
    movl    $STACK - 0x10000, %esp
    movl    $SLOT, %edi
    shlq    $39, %rdi               /* the argument of run_all: HIGH */
    leaq    STACK - 24(%rdi), %rcx
    leaq    run_all(%rdi), %rdx
    pushq   $0x1b                   /* iretq: ss, rsp, flags with IOPL 3, cs, rip */
    pushq   %rcx
    pushq   $0x3002
    pushq   $0x23
    pushq   %rdx
    iretq
