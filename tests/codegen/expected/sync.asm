; rustc 1.95.0 (59807616e 2026-04-14)
sync:
    mov rax, [rdi]
    mov rax, [rax+0x20]
    and eax, 3
    mov rcx, [rdi+0x28]
    or rcx, rax
    je L1
    jmp apicv::posting::Posting::collect_all
L1:
    ret

apicv::posting::Posting::collect_all:
    mov rax, [rdi]
    mov rcx, [rax+0x20]
    test cl, 1
    je L1
    lock and qword ptr [rax+0x20], 0xFFFFFFFFFFFFFFFE
L1:
    mov rcx, [rax]
    test rcx, rcx
    je L3
    xor ecx, ecx
    xchg [rax], rcx
    test ecx, ecx
    je L2
    lock or [rsi+0x200], ecx
L2:
    shr rcx, 0x20
    je L3
    lock or [rsi+0x210], ecx
L3:
    mov rcx, [rax+8]
    test rcx, rcx
    je L5
    xor ecx, ecx
    xchg [rax+8], rcx
    test ecx, ecx
    je L4
    lock or [rsi+0x220], ecx
L4:
    shr rcx, 0x20
    je L5
    lock or [rsi+0x230], ecx
L5:
    mov rcx, [rax+0x10]
    test rcx, rcx
    je L7
    xor ecx, ecx
    xchg [rax+0x10], rcx
    test ecx, ecx
    je L6
    lock or [rsi+0x240], ecx
L6:
    shr rcx, 0x20
    je L7
    lock or [rsi+0x250], ecx
L7:
    mov rcx, [rax+0x18]
    test rcx, rcx
    je L9
    xor ecx, ecx
    xchg [rax+0x18], rcx
    test ecx, ecx
    je L8
    lock or [rsi+0x260], ecx
L8:
    shr rcx, 0x20
    je L9
    lock or [rsi+0x270], ecx
L9:
    mov rax, [rdi+0x28]
    test rax, rax
    jne apicv::posting::Posting::take_staged
    ret

apicv::posting::Posting::take_staged:
    xor eax, eax
    xchg [rdi+0x28], rax
    mov eax, 1
    xchg [rdi+0x30], rax
    mov rax, [rdi+8]
    test rax, rax
    je L2
    xor eax, eax
    xchg [rdi+8], rax
    test eax, eax
    je L1
    lock or [rsi+0x200], eax
L1:
    shr rax, 0x20
    je L2
    lock or [rsi+0x210], eax
L2:
    mov rax, [rdi+0x10]
    test rax, rax
    je L4
    xor eax, eax
    xchg [rdi+0x10], rax
    test eax, eax
    je L3
    lock or [rsi+0x220], eax
L3:
    shr rax, 0x20
    je L4
    lock or [rsi+0x230], eax
L4:
    mov rax, [rdi+0x18]
    test rax, rax
    je L6
    xor eax, eax
    xchg [rdi+0x18], rax
    test eax, eax
    je L5
    lock or [rsi+0x240], eax
L5:
    shr rax, 0x20
    je L6
    lock or [rsi+0x250], eax
L6:
    mov rax, [rdi+0x20]
    test rax, rax
    je L8
    xor eax, eax
    xchg [rdi+0x20], rax
    test eax, eax
    je L7
    lock or [rsi+0x260], eax
L7:
    shr rax, 0x20
    je L8
    lock or [rsi+0x270], eax
L8:
    ret
