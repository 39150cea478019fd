; rustc 1.95.0 (59807616e 2026-04-14)
accepts:
    mov rax, [rdi+0x10]
    test eax, 0x800
    jne L1
    xor eax, eax
    ret
L1:
    mov rax, [rdi+0x18]
    mov eax, [rax+0xF0]
    shr eax, 8
    and eax, 1
    ret
