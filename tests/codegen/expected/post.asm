; rustc 1.95.0 (59807616e 2026-04-14)
post:
    mov eax, esi
    shr al, 6
    movzx eax, al
    and esi, 0x3F
    lock bts [rdi+rax*8], rsi
    jae L1
    xor eax, eax
    ret
L1:
    mov rdx, [rdi+0x20]
L2:
    mov rcx, rdx
    or rcx, 1
    mov rax, rdx
    lock cmpxchg [rdi+0x20], rcx
    mov rdx, rax
    jne L2
    mov eax, edx
    not eax
    and eax, 1
    ret
