# The built-in guest. Assembled into the read-only data of the host's program and copied by the
# loader to guest address {code}; it addresses itself by differences of labels, so it needs no
# relocation. Names in braces are numbers of layout.rs and sequence.rs.
#
# While a CPU steps:
#   rax  bytes of its part                    r10  first stamp of this round
#   rbx  factor that hashes the step          r11  stride of this round, bytes
#   rcx, rsi, rdi  of the copy                r12  where to write, counted back from rdx
#   rdx  end of its part                      r13  words of a step after the stamp
#   rbp  its own page (mailbox, stack)        r14  steps until the next event
#   r8   advance of r9 at each step           r15  stamp: the number of this CPU in the top byte,
#   r9   stamp that the page should hold           below it the step, the next or the one being done
#
# A step is complete once r15 has been advanced. The host derives what an unfinished step has written
# from rip and rcx, so only the two instructions at `stamp` and `copy` may write to the working set.

    .pushsection .rodata.vmsnap_guest, "a", @progbits
    .balign 16
    .globl vmsnap_guest_start
vmsnap_guest_start:
.Lguest_start:

# The PVH entry point: 32-bit protected mode, flat segments, paging off, any GDT.
    .code32
    cli
    cld
    lgdt    {code} + .Lguest_gdt_pointer - .Lguest_start
    ljmp    $0x08, ${code} + .Lguest_protected - .Lguest_start

# All CPUs come here: the first from above, the others from the trampoline.
.Lguest_protected:
    movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movl    %cr4, %eax
    orl     $0x20, %eax                 # physical address extension
    movl    %eax, %cr4
    movl    ${pml4}, %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx           # EFER
    rdmsr
    orl     $0x100, %eax                # long mode enable
    wrmsr
    movl    %cr0, %eax
    andl    $0x9fffffff, %eax           # caches on
    orl     $0x80000001, %eax           # paging, protection
    movl    %eax, %cr0
    ljmp    $0x18, ${code} + .Lguest_long - .Lguest_start

    .code64
.Lguest_long:
    movl    ${lapic}, %eax
    movl    0x20(%rax), %ebp            # local APIC id: the number of this CPU
    shrl    $24, %ebp
    cmpl    {parameters} + {p_cpus}, %ebp
    jae     .Lguest_halt
    imull   ${entry_len}, %ebp, %ebx
    addl    ${parameters} + {p_cpu_entries}, %ebx
    shll    $12, %ebp
    addl    ${cpu_pages}, %ebp
    leaq    {page_size}(%rbp), %rsp
    movq    {e_first_stamp}(%rbx), %r15
    addq    {parameters} + {p_pages_per_cpu}, %r15

# From here to the end of the program r15 and rbp are valid.
.Lguest_workload:
    movq    %rbx, {m_entry}(%rbp)
    movq    {e_source_factor}(%rbx), %rbx
    movl    {parameters} + {p_words_after_stamp}, %r13d
    lidt    .Lguest_idt_pointer(%rip)
    movl    $0x100 | {spurious_vector}, 0xf0(%rax)  # switch the local APIC on
    cmpl    ${cpu_pages}, %ebp
    jne     .Lguest_timer

# The first CPU masks the old interrupt controllers and starts the others.
    movb    $0xff, %al
    outb    %al, $0x21
    outb    %al, $0xa1
    cmpl    $1, {parameters} + {p_cpus}
    je      .Lguest_timer
    leaq    .Lguest_trampoline(%rip), %rsi
    movl    ${trampoline}, %edi
    movl    $.Lguest_trampoline_end - .Lguest_trampoline, %ecx
    rep movsb
    movl    ${lapic}, %eax
    movl    $0xc4500, 0x300(%rax)       # INIT to all but this one
    movl    $10000, %ecx
.Lguest_init_wait:
    pause
    loop    .Lguest_init_wait
    movl    $0xc4600 | {trampoline} >> 12, 0x300(%rax)  # start-up

.Lguest_timer:
    testl   ${flag_paced}, {parameters} + {p_flags}
    jz      .Lguest_begin
    movl    ${lapic}, %eax
    movl    $0xb, 0x3e0(%rax)           # count at bus speed
    movl    $0x20000 | {timer_vector}, 0x320(%rax)  # periodic
    movl    {parameters} + {p_timer_count}, %ecx
    movl    %ecx, 0x380(%rax)

.Lguest_begin:
    call    .Lguest_line_begin
    leaq    .Lguest_text_ready(%rip), %rsi
    call    .Lguest_put_text
    call    .Lguest_line_end
    rdtsc
    shlq    $32, %rdx
    orq     %rdx, %rax
    movq    %rax, {m_tsc}(%rbp)
    movq    %rax, {m_last_report}(%rbp)

# A round begins: the step is a multiple of the pages of this part. A stamp of the round before is
# r10 minus a number from 1 to those pages.
.Lguest_round:
    movq    {m_entry}(%rbp), %rsi
    movq    %r15, %rax
    subq    {e_first_stamp}(%rsi), %rax
    xorl    %edx, %edx
    divq    {parameters} + {p_pages_per_cpu}
    movq    %rax, %rdi
    call    .Lguest_round_constants
    movq    (%rcx), %r11
    movq    %rdx, %r12
    decq    %rdi
    call    .Lguest_round_constants
    movq    8(%rcx), %rcx               # inverse of the stride of the round before
    movq    %rdx, %rdi                  # its first page
    movq    %r11, %rax
    mulq    %rcx
    divq    {parameters} + {p_pages_per_cpu}
    movq    %rdx, %r8
    movq    %r12, %rax
    subq    %rdi, %rax
    jae     .Lguest_ahead
    addq    {parameters} + {p_pages_per_cpu}, %rax
.Lguest_ahead:
    mulq    %rcx
    divq    {parameters} + {p_pages_per_cpu}
    movq    %r15, %r10
    leaq    (%r10, %rdx), %r9
    movq    {parameters} + {p_pages_per_cpu}, %rax
    subq    %rax, %r9
    movq    %rax, {m_round_left}(%rbp)
    subq    %rax, %r12
    shlq    $12, %r11
    shlq    $12, %r12

# Chooses r14: what is left of the burst, of the round, and no more than an event's worth.
.Lguest_budget:
    movq    {m_burst_left}(%rbp), %rax
    movl    {parameters} + {p_steps_per_event}, %r14d
    testq   %rax, %rax
    jnz     .Lguest_in_burst
    movq    %r14, %rax
    testl   ${flag_paced}, {parameters} + {p_flags}
    jz      .Lguest_in_burst
.Lguest_wait:
    sti
    hlt
    cli
    movq    {m_credit}(%rbp), %rax      # pages earned, 32 bits of fraction
    addq    {parameters} + {p_credit_per_tick}, %rax
    movl    %eax, %ecx
    movq    %rcx, {m_credit}(%rbp)
    shrq    $32, %rax
    jz      .Lguest_wait
.Lguest_in_burst:
    cmpq    %rax, %r14
    cmovaq  %rax, %r14
    movq    {m_round_left}(%rbp), %rcx
    cmpq    %rcx, %r14
    cmovaq  %rcx, %r14
    subq    %r14, %rcx
    movq    %rcx, {m_round_left}(%rbp)
    subq    %r14, %rax
    movq    %rax, {m_burst_left}(%rbp)
    movq    {m_entry}(%rbp), %rdx
    movq    {e_part_end}(%rdx), %rdx
    movq    {parameters} + {p_bytes_per_cpu}, %rax

# One step.
.Lguest_step:
    cmpq    %r9, (%rdx, %r12)
    jne     .Lguest_other_stamp
.Lguest_checked:
    movq    %r15, %rsi
    imulq   %rbx, %rsi
    shrq    ${source_shift}, %rsi
    leaq    {table}(, %rsi, 8), %rsi
    leaq    8(%rdx, %r12), %rdi
    movl    %r13d, %ecx
.Lguest_stamp:
    movq    %r15, (%rdx, %r12)
.Lguest_copy:
    rep movsq
.Lguest_advance:
    incq    %r15
    addq    %r11, %r12
    jnc     .Lguest_page_chosen
    subq    %rax, %r12
.Lguest_page_chosen:
    addq    %r8, %r9
    cmpq    %r10, %r9
    jb      .Lguest_stamp_chosen
    subq    {parameters} + {p_pages_per_cpu}, %r9
.Lguest_stamp_chosen:
    decl    %r14d
    jnz     .Lguest_step

# An event: tell the host, then go on with the round or begin the next.
    movq    %r15, {m_step}(%rbp)
    rdtsc
    shlq    $32, %rdx
    orq     %rdx, %rax
    movq    %rax, %rcx
    subq    {m_tsc}(%rbp), %rax
    movq    %rcx, {m_tsc}(%rbp)
    cmpl    $0, {m_reset}(%rbp)
    jne     .Lguest_reset_gap
    cmpq    {m_longest_gap}(%rbp), %rax
    jle     .Lguest_gap_noted           # signed: a restored clock may have gone back
    movq    %rax, {m_longest_gap}(%rbp)
.Lguest_gap_noted:
    movq    %rcx, %rax
    subq    {m_last_report}(%rbp), %rax
    shrq    ${report_shift}, %rax
    jnz     .Lguest_report
.Lguest_reported:
    cmpq    $0, {m_round_left}(%rbp)
    jne     .Lguest_budget
    jmp     .Lguest_round

.Lguest_reset_gap:
    movq    $0, {m_longest_gap}(%rbp)
    movl    $0, {m_reset}(%rbp)
    jmp     .Lguest_gap_noted

.Lguest_report:
    movq    %rcx, {m_last_report}(%rbp)
    call    .Lguest_line_begin
    leaq    .Lguest_text_step(%rip), %rsi
    call    .Lguest_put_text
    call    .Lguest_put_step
    call    .Lguest_line_end
    jmp     .Lguest_reported

# The page holds another stamp than r9. Memory that nobody filled holds zero in the first round.
.Lguest_other_stamp:
    movq    (%rdx, %r12), %rdi
    testq   %rdi, %rdi
    jnz     .Lguest_bad
    movq    {m_entry}(%rbp), %rsi
    cmpq    {e_may_be_zero_below}(%rsi), %r15
    jb      .Lguest_checked
.Lguest_bad:
    incq    {m_bad_stamps}(%rbp)
    cmpq    $16, {m_bad_stamps}(%rbp)
    ja      .Lguest_checked
    pushq   %rdx
    call    .Lguest_line_begin
    leaq    .Lguest_text_bad(%rip), %rsi
    call    .Lguest_put_text
    call    .Lguest_put_step
    leaq    .Lguest_text_address(%rip), %rsi
    call    .Lguest_put_text
    popq    %rcx
    addq    %r12, %rcx
    call    .Lguest_put_number
    leaq    .Lguest_text_found(%rip), %rsi
    call    .Lguest_put_text
    movq    %rdi, %rcx
    call    .Lguest_put_number
    leaq    .Lguest_text_expected(%rip), %rsi
    call    .Lguest_put_text
    movq    %r9, %rcx
    call    .Lguest_put_number
    call    .Lguest_line_end
    movq    {m_entry}(%rbp), %rdx
    movq    {e_part_end}(%rdx), %rdx
    movq    {parameters} + {p_bytes_per_cpu}, %rax
    jmp     .Lguest_checked

# rdi: number of a round, rsi: record of this CPU
# -> rcx: address of the round's stride and inverse, rdx: its first page. Changes rax.
.Lguest_round_constants:
    movabsq ${round_factor}, %rax
    imulq   %rdi, %rax
    addq    {e_round_seed}(%rsi), %rax
    movq    %rax, %rcx
    shrq    $32, %rcx
    xorq    %rcx, %rax
    movabsq ${mix_factor}, %rcx
    imulq   %rcx, %rax
    movq    %rax, %rcx
    shrq    $32, %rcx
    xorq    %rax, %rcx
    andl    ${strides} - 1, %ecx
    shll    $4, %ecx
    addl    ${parameters} + {p_strides}, %ecx
    mulq    {parameters} + {p_pages_per_cpu}
    ret

# Takes the serial port and writes "cpu" and the number of this CPU.
.Lguest_line_begin:
    movl    $1, %eax
    xchgl   %eax, {cpu_pages} + {m_serial_lock}
    testl   %eax, %eax
    jz      .Lguest_line_mine
    pause
    jmp     .Lguest_line_begin
.Lguest_line_mine:
    leaq    .Lguest_text_cpu(%rip), %rsi
    call    .Lguest_put_text
    movl    %ebp, %eax
    subl    ${cpu_pages}, %eax
    shrl    $12, %eax
    jmp     .Lguest_put_decimal

# Ends the line and gives the serial port to the others.
.Lguest_line_end:
    movb    $10, %al
    call    .Lguest_put
    movl    $0, {cpu_pages} + {m_serial_lock}
    ret

# rsi: text that ends with a zero byte.
.Lguest_put_text:
    lodsb
    testb   %al, %al
    jz      .Lguest_put_text_end
    call    .Lguest_put
    jmp     .Lguest_put_text
.Lguest_put_text_end:
    ret

# The step in r15.
.Lguest_put_step:
    movq    %r15, %rax
    shlq    $8, %rax
    shrq    $8, %rax
# rax: a number, written in decimal. Changes rcx, rdx and rsi.
.Lguest_put_decimal:
    movl    $10, %ecx
    xorl    %esi, %esi
.Lguest_divide:
    xorl    %edx, %edx
    divq    %rcx
    pushq   %rdx
    incl    %esi
    testq   %rax, %rax
    jnz     .Lguest_divide
.Lguest_put_digits:
    popq    %rax
    addl    $'0', %eax
    call    .Lguest_put
    decl    %esi
    jnz     .Lguest_put_digits
    ret

# rcx: a number, written as 16 hexadecimal digits. Changes rax, rdx and rsi.
.Lguest_put_number:
    movl    $16, %esi
.Lguest_put_nibble:
    rolq    $4, %rcx
    movl    %ecx, %eax
    andl    $15, %eax
    cmpl    $10, %eax
    jb      .Lguest_nibble_below_ten
    addl    $'a' - '0' - 10, %eax
.Lguest_nibble_below_ten:
    addl    $'0', %eax
    call    .Lguest_put
    decl    %esi
    jnz     .Lguest_put_nibble
    ret

# al: one byte for the serial port; waits until the port takes it. Changes rax and rdx.
.Lguest_put:
    movb    %al, %ah
    movl    $0x3fd, %edx
.Lguest_put_wait:
    inb     %dx, %al
    testb   $0x20, %al
    jz      .Lguest_put_wait
    movb    %ah, %al
    movl    $0x3f8, %edx
    outb    %al, %dx
    ret

.Lguest_tick:
    pushq   %rax
    movl    ${lapic}, %eax
    movl    $0, 0xb0(%rax)              # end of interrupt
    popq    %rax
.Lguest_spurious:
    iretq

# Exceptions end this CPU, after saying which and where.
.Lguest_fault:
    popq    %r14                        # vector
    movl    $0x227d00, %eax             # vectors with an error code: 8, 10 to 14, 17, 21
    btl     %r14d, %eax
    jnc     .Lguest_fault_say
    popq    %rax
.Lguest_fault_say:
    movl    $0, {cpu_pages} + {m_serial_lock}
    call    .Lguest_line_begin
    leaq    .Lguest_text_fault(%rip), %rsi
    call    .Lguest_put_text
    movq    %r14, %rcx
    call    .Lguest_put_number
    leaq    .Lguest_text_address(%rip), %rsi
    call    .Lguest_put_text
    movq    (%rsp), %rcx
    call    .Lguest_put_number
    call    .Lguest_line_end
.Lguest_halt:
    cli
    hlt
    jmp     .Lguest_halt

# One stub of 16 bytes for each exception.
    .balign 16, 0xcc
.Lguest_stubs:
    .irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    pushq   $\vector
    jmp     .Lguest_fault
    .balign 16, 0xcc
    .endr

# Where application processors start, copied below 1 MiB: 16-bit mode, cs is the page's segment.
    .code16
.Lguest_trampoline:
    cli
    cld
    lgdtl   %cs:.Lguest_trampoline_pointer - .Lguest_trampoline
    movl    $1, %eax
    movl    %eax, %cr0
    ljmpl   $0x08, ${code} + .Lguest_protected - .Lguest_start
.Lguest_trampoline_pointer:
    .word   .Lguest_gdt_end - .Lguest_gdt - 1
    .long   {code} + .Lguest_gdt - .Lguest_start
.Lguest_trampoline_end:
    .code64

    .balign 8
.Lguest_gdt:                            # accessed bits are set, so that no CPU writes here
    .quad   0
    .quad   0x00cf9b000000ffff          # 0x08: 32-bit code
    .quad   0x00cf93000000ffff          # 0x10: data
    .quad   0x00af9b000000ffff          # 0x18: 64-bit code
.Lguest_gdt_end:
.Lguest_gdt_pointer:
    .word   .Lguest_gdt_end - .Lguest_gdt - 1
    .long   {code} + .Lguest_gdt - .Lguest_start
.Lguest_idt_pointer:
    .word   {page_size} - 1
    .quad   {idt}

.Lguest_text_cpu:
    .asciz  "cpu"
.Lguest_text_ready:
    .asciz  " ready"
.Lguest_text_step:
    .asciz  " step "
.Lguest_text_bad:
    .asciz  " BAD step "
.Lguest_text_address:
    .asciz  " at "
.Lguest_text_found:
    .asciz  " found "
.Lguest_text_expected:
    .asciz  " expected "
.Lguest_text_fault:
    .asciz  " fault "

# Offsets that the host needs, in the order of payload.rs.
    .balign 4
    .globl vmsnap_guest_labels
vmsnap_guest_labels:
    .long   .Lguest_workload - .Lguest_start
    .long   .Lguest_stamp - .Lguest_start
    .long   .Lguest_copy - .Lguest_start
    .long   .Lguest_advance - .Lguest_start
    .long   .Lguest_tick - .Lguest_start
    .long   .Lguest_spurious - .Lguest_start
    .long   .Lguest_stubs - .Lguest_start
    .long   .Lguest_trampoline - .Lguest_start
    .long   .Lguest_trampoline_end - .Lguest_start
    .globl vmsnap_guest_end
vmsnap_guest_end:
    .popsection
