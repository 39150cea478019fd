; rustc 1.95.0 (59807616e 2026-04-14)
present:
    mov rax, [rdi+0x10]
    shr eax, 0xB
    and eax, 1
    ret
