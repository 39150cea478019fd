; rustc 1.95.0 (59807616e 2026-04-14)
post:
    mov eax, esi
    shr al, 6
    movzx eax, al
    and esi, 0x3F
    lock bts [rdi+rax*8], rsi
    jb L1
    mov rax, [rdi+0x20]
    test al, 1
    jne L1
    add rdi, 0x20
    lock bts qword ptr [rdi], 0
    jae L2
L1:
    xor eax, eax
    ret
L2:
    mov rdx, [rdi]
    mov eax, 1
    ret
