; rustc 1.95.0 (59807616e 2026-04-14)
software_enabled:
    mov eax, [rdi+0xF0]
    shr eax, 8
    and eax, 1
    ret
