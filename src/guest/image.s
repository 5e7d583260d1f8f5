# The embedded test guest: a raw multiboot kernel in 32-bit protected mode, without paging.
#
# Nothing here runs on the host: the assembler's output is read as bytes (image.rs) and handed to QEMU by `-kernel`.
# Every number that Rust needs as well comes from Rust, through the names in braces below; the memory map and the
# layout of the two blocks are drawn in state.rs and image.rs.

        .set LOAD,              {load}
        .set STATE,             {state}
        .set INTERRUPTS,        {interrupts}
        .set STACK_TOP,         {stack_top}

        # Parameters, patched in by Rust before the image is used.
        .set PARAMETERS,        LOAD + {parameters}
        .set PAGES,             PARAMETERS + {pages}
        .set BASE,              PARAMETERS + {base}
        .set HOT_PAGES,         PARAMETERS + {hot_pages}
        .set HOT_SHARE,         PARAMETERS + {hot_share}
        .set UNIFORM,           PARAMETERS + {uniform}
        .set COMPRESSIBLE,      PARAMETERS + {compressible}
        .set UNLIMITED,         PARAMETERS + {unlimited}
        .set RATE_WHOLE,        PARAMETERS + {rate_whole}
        .set RATE_FRACTION,     PARAMETERS + {rate_fraction}
        .set MOST_OWED,         PARAMETERS + {most_owed}
        .set ON_TICKS,          PARAMETERS + {on_ticks}
        .set PERIOD_TICKS,      PARAMETERS + {period_ticks}
        .set PORT,              PARAMETERS + {port}
        .set PIT_DIVISOR,       PARAMETERS + {pit_divisor}

        # The state block: what is read from outside, ...
        .set VERSION,           STATE + {version}
        .set STATUS,            STATE + {status}
        .set TICKS,             STATE + {ticks}
        .set STARTED,           STATE + {started}
        .set CREDITED,          STATE + {credited}
        .set OWED,              STATE + {owed}
        .set WRITES,            STATE + {writes}
        .set DROPPED,           STATE + {dropped}
        .set PASSES,            STATE + {passes}
        .set LOST,              STATE + {lost}
        .set LOST_PAGE,         STATE + {lost_page}
        .set LOST_EXPECTED,     STATE + {lost_expected}
        .set LOST_FOUND,        STATE + {lost_found}
        # ... and what only the writer uses. It lies in the same page, so that the guest dirties one page beside
        # its working set.
        .set OWED_FRACTION,     STATE + {private}
        .set PHASE,             OWED_FRACTION + 4
        .set SHARE,             OWED_FRACTION + 8
        .set HOT,               OWED_FRACTION + 16
        .set COLD,              HOT + 32
        # A region that is swept: fields from its start.
        .set FIRST,             0               # its first page
        .set LENGTH,            4               # its pages
        .set POSITION,          8               # the next one
        .set ROUNDS,            12              # how often it was gone through
        .set TRAIL,             16              # the number of the write that the next page should hold
        .set TRAIL_SHARE,       20              # the share at that write

        .pushsection .rodata.qmigrate_guest,"a",@progbits
        .balign 16
        .globl qmigrate_guest_start
        .globl qmigrate_guest_end
qmigrate_guest_start:
        .code32

        # Multiboot header: magic, flags (the addresses below are valid), checksum; header, load, load end (all of
        # the file), end of bss (none), entry.
        .long 0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
        .long LOAD, LOAD, 0, 0, .Lentry - qmigrate_guest_start + LOAD

        .quad {parameters_magic}
        .fill {parameters_length} - 8, 1, 0

        .balign 8
.Lsegments:
        .quad 0
        .quad 0x00cf9a000000ffff                # 0x08: code, 4 GiB, flat
        .quad 0x00cf92000000ffff                # 0x10: data, 4 GiB, flat
.Lsegments_register:
        .word 23
        .long .Lsegments - qmigrate_guest_start + LOAD
.Linterrupts_register:
        .word 2047
        .long INTERRUPTS

        # The murmur3 finaliser: a one-to-one mixing of 32 bits. Clobbers \scratch.
        .macro mix value, scratch
        movl    \value, \scratch
        shrl    $16, \scratch
        xorl    \scratch, \value
        imull   ${mix_first}, \value, \value
        movl    \value, \scratch
        shrl    $13, \scratch
        xorl    \scratch, \value
        imull   ${mix_second}, \value, \value
        movl    \value, \scratch
        shrl    $16, \scratch
        xorl    \scratch, \value
        .endm

        # ---------------------------------------------------------------- start
.Lentry:
        cli
        cld
        movl    $STACK_TOP, %esp
        movl    %ebx, %ebp                      # multiboot information
        lgdtl   .Lsegments_register - qmigrate_guest_start + LOAD
        ljmpl   $8, $(.Lflat - qmigrate_guest_start + LOAD)
.Lflat:
        movl    $16, %eax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss

        movl    $STATE, %edi
        xorl    %eax, %eax
        movl    $1024, %ecx
        rep stosl
        movl    ${version_number}, VERSION

        # The working set must be memory: the firmware says how many KiB there are from 1 MiB on without a hole.
        movl    PAGES, %eax
        shll    $2, %eax
        movl    BASE, %edx
        shrl    $10, %edx
        leal    -1024(%eax,%edx), %eax
        cmpl    8(%ebp), %eax
        ja      .Lrefuse

        # Interrupts: 256 gates. The 32 of the processor stop the guest, the timer ticks, the rest is ignored.
        movl    $INTERRUPTS, %edi
        movl    $.Lfault - qmigrate_guest_start + LOAD, %eax
        movl    $32, %ecx
        call    .Lgates
        movl    $.Ltick - qmigrate_guest_start + LOAD, %eax
        movl    $1, %ecx
        call    .Lgates
        movl    $.Lignore - qmigrate_guest_start + LOAD, %eax
        movl    $223, %ecx
        call    .Lgates
        lidtl   .Linterrupts_register - qmigrate_guest_start + LOAD

        # Local APIC: on, and LINT0 passes the interrupt controller's line through (masked unless firmware did it).
        movl    $0x1ff, 0xfee000f0
        movl    $0x700, 0xfee00350
        # Interrupt controllers: vectors 0x20 and 0x28 on, all masked but the timer.
        movb    $0x11, %al
        outb    %al, $0x20
        outb    %al, $0xa0
        movb    $0x20, %al
        outb    %al, $0x21
        movb    $0x28, %al
        outb    %al, $0xa1
        movb    $4, %al
        outb    %al, $0x21
        movb    $2, %al
        outb    %al, $0xa1
        movb    $1, %al
        outb    %al, $0x21
        outb    %al, $0xa1
        movb    $0xfe, %al
        outb    %al, $0x21
        movb    $0xff, %al
        outb    %al, $0xa1
        # Timer: channel 0, mode 2.
        movb    $0x34, %al
        outb    %al, $0x43
        movl    PIT_DIVISOR, %eax
        outb    %al, $0x40
        movb    %ah, %al
        outb    %al, $0x40

        # The magic comes last: who reads it may read the rest.
        movl    ${status_filling}, STATUS
        movl    ${state_magic_low}, STATE
        movl    ${state_magic_high}, STATE + 4
        sti

        # ---------------------------------------------------------------- fill
        # Each page: 1024 words from a generator seeded by the page's index, then its stamp, index and check word
        # over the first two and the last. `lea` is the whole generator (5 x + c): one instruction and no flags,
        # which the emulator translates best.
        xorl    %ebp, %ebp
        movl    BASE, %edi
.Lfill_page:
        movl    %ebp, %eax
        xorl    ${body_seed}, %eax
        mix     %eax, %edx
        movl    $32, %ecx
        cmpl    $0, COMPRESSIBLE
        jne     .Lfill_same
.Lfill_next:
        .set word, 0
        .rept 32
        leal    {body_step}(%eax,%eax,4), %eax
        movl    %eax, word(%edi)
        .set word, word + 4
        .endr
        addl    $128, %edi
        decl    %ecx
        jnz     .Lfill_next
        jmp     .Lfill_header
.Lfill_same:
        .set word, 0
        .rept 32
        movl    %eax, word(%edi)
        .set word, word + 4
        .endr
        addl    $128, %edi
        decl    %ecx
        jnz     .Lfill_same
.Lfill_header:
        movl    $0, -4096(%edi)
        movl    %ebp, -4092(%edi)
        imull   ${check_factor}, %ebp, %eax
        xorl    ${check_mask}, %eax
        movl    %eax, -4(%edi)
        incl    %ebp
        cmpl    PAGES, %ebp
        jb      .Lfill_page

        movl    HOT_PAGES, %eax
        movl    %eax, HOT + LENGTH
        movl    %eax, COLD + FIRST
        movl    PAGES, %edx
        subl    %eax, %edx
        movl    %edx, COLD + LENGTH
        movl    TICKS, %eax
        movl    %eax, STARTED
        movl    %eax, CREDITED
        movl    ${status_writing}, STATUS

        # ---------------------------------------------------------------- the writer
.Lrun:
        movl    TICKS, %eax
        cmpl    CREDITED, %eax
        jne     .Lcredit
        cmpl    $0, OWED
        je      .Lidle
        movl    PHASE, %eax
        cmpl    ON_TICKS, %eax
        jb      .Lwrite

        # Nothing to do: sleep until the next tick. `sti` holds interrupts off for one instruction more, so none
        # falls between the look at the counter and `hlt`.
.Lidle:
        cli
        movl    TICKS, %eax
        cmpl    CREDITED, %eax
        jne     .Lawake
        sti
        hlt
.Lawake:
        sti
        jmp     .Lrun

        # One more tick's worth of writes is owed, unless this tick is in an off period. What exceeds the most that
        # may be owed is dropped, and counted: work that the guest was kept from doing.
.Lcredit:
        incl    CREDITED
        movl    PHASE, %eax
        incl    %eax
        cmpl    PERIOD_TICKS, %eax
        jb      1f
        xorl    %eax, %eax
1:      movl    %eax, PHASE
        cmpl    ON_TICKS, %eax
        jae     .Lrun
        cmpl    $0, UNLIMITED
        jne     .Lcredit_all
        movl    RATE_FRACTION, %eax
        movl    RATE_WHOLE, %edx
        addl    %eax, OWED_FRACTION
        adcl    %edx, OWED
        movl    OWED, %eax
        subl    MOST_OWED, %eax
        jbe     .Lrun
        subl    %eax, OWED
        addl    %eax, DROPPED
        adcl    $0, DROPPED + 4
        jmp     .Lrun
.Lcredit_all:
        movl    $-1, OWED
        jmp     .Lrun

        # One write. From here on: %ecx:%ebx its number (from 1), %edi the page's index, %ebp its address, %edx the
        # stamp that it should hold now.
.Lwrite:
        movl    WRITES, %ebx
        movl    WRITES + 4, %ecx
        addl    $1, %ebx
        adcl    $0, %ecx
        cmpl    $0, UNIFORM
        jne     .Luniform

        # Regions: each write adds the hot share to a sum; past 100 it is a hot one. Sweeps have a share of 100.
        movl    $HOT, %esi
        movl    SHARE, %eax
        addl    HOT_SHARE, %eax
        cmpl    $100, %eax
        jb      1f
        subl    $100, %eax
        jmp     2f
1:      movl    $COLD, %esi
2:      movl    %eax, SHARE
        movl    FIRST(%esi), %edi
        addl    POSITION(%esi), %edi
        # The page was last written one round ago: replay the sum to find the number of that write.
        xorl    %edx, %edx
        cmpl    $0, ROUNDS(%esi)
        je      .Lnever_written
3:      incl    TRAIL(%esi)
        movl    TRAIL_SHARE(%esi), %eax
        addl    HOT_SHARE, %eax
        cmpl    $100, %eax
        jb      4f
        subl    $100, %eax
        movl    %eax, TRAIL_SHARE(%esi)
        cmpl    $HOT, %esi
        jne     3b
        jmp     5f
4:      movl    %eax, TRAIL_SHARE(%esi)
        cmpl    $COLD, %esi
        jne     3b
5:      movl    TRAIL(%esi), %edx
.Lnever_written:
        incl    POSITION(%esi)
        movl    POSITION(%esi), %eax
        cmpl    LENGTH(%esi), %eax
        jb      6f
        movl    $0, POSITION(%esi)
        incl    ROUNDS(%esi)
        movl    HOT + ROUNDS, %eax
        movl    %eax, PASSES
6:      movl    %edi, %ebp
        shll    $12, %ebp
        addl    BASE, %ebp
        jmp     .Lcheck

        # Uniform: the write's number, mixed, says the page. Which write came before is not known here, so that
        # the page is only checked to be of one piece.
.Luniform:
        imull   ${high_factor}, %ecx, %eax
        xorl    %ebx, %eax
        mix     %eax, %edx
        mull    PAGES
        movl    %edx, %edi
        movl    %edx, %ebp
        shll    $12, %ebp
        addl    BASE, %ebp
        movl    (%ebp), %edx

.Lcheck:
        imull   ${check_factor}, %edi, %esi
        movl    (%ebp), %eax
        cmpl    %edx, %eax
        jne     .Llost
        cmpl    %edi, 4(%ebp)
        jne     .Llost
        addl    %esi, %eax
        xorl    ${check_mask}, %eax
        cmpl    %eax, 4092(%ebp)
        jne     .Llost

        # The order of these three is the promise to the verifier: stamp, check word, counter. The counter is
        # advanced by one instruction, so that no stop finds half of it.
.Lstamp:
        movl    %ebx, (%ebp)
        addl    %ebx, %esi
        xorl    ${check_mask}, %esi
        movl    %esi, 4092(%ebp)
        movl    WRITES, %eax
        movl    WRITES + 4, %edx
        cmpxchg8b WRITES
        decl    OWED
        jmp     .Lrun

.Llost:
        cmpl    $0, LOST
        jne     1f
        movl    %edi, LOST_PAGE
        movl    %edx, LOST_EXPECTED
        movl    (%ebp), %eax
        movl    %eax, LOST_FOUND
1:      incl    LOST
        jmp     .Lstamp

        # ---------------------------------------------------------------- interrupts
        # The heartbeat. `iret` in protected mode is missing in the instruction emulator of a KVM that runs without
        # full hardware support; the same ring and a flat stack allow to return by hand.
.Ltick:
        pushl   %eax
        pushl   %edx
        incl    TICKS
        movb    TICKS, %al
        movl    PORT, %edx
        outb    %al, %dx
        movb    $0x20, %al
        outb    %al, $0x20
        popl    %edx
        popl    %eax
.Lignore:
        pushl   8(%esp)
        popfl
        retl    $8

        # %ecx gates to %eax, from %edi on.
.Lgates:
        movl    %eax, %edx
        andl    $0xffff, %edx
        orl     $0x00080000, %edx
        movl    %edx, (%edi)
        movl    %eax, %edx
        andl    $0xffff0000, %edx
        orl     $0x8e00, %edx
        movl    %edx, 4(%edi)
        addl    $8, %edi
        decl    %ecx
        jnz     .Lgates
        ret

.Lfault:
        movl    ${status_fault}, STATUS
        jmp     .Ldead
.Lrefuse:
        movl    ${status_refused}, STATUS
        movl    ${state_magic_low}, STATE
        movl    ${state_magic_high}, STATE + 4
.Ldead:
        cli
        hlt
        jmp     .Ldead

        .balign 16
qmigrate_guest_end:
        .code64
        .popsection
