; rustc 1.95.0 (59807616e 2026-04-14)
end_of_interrupt:
    push rbx
    mov rbx, rdi
    mov rax, [rsi+0x28]
    mov rax, [rax+8]
    mov ecx, [rax+0x170]
    test ecx, ecx
    je L1
    bsr eax, ecx
    or al, 0xE0
    jmp L7
L1:
    mov ecx, [rax+0x160]
    test ecx, ecx
    je L2
    bsr eax, ecx
    or al, 0xC0
    jmp L7
L2:
    mov ecx, [rax+0x150]
    test ecx, ecx
    je L3
    bsr eax, ecx
    or al, 0xA0
    jmp L7
L3:
    mov ecx, [rax+0x140]
    test ecx, ecx
    je L4
    bsr eax, ecx
    or al, 0x80
    jmp L7
L4:
    mov ecx, [rax+0x130]
    test ecx, ecx
    je L5
    bsr eax, ecx
    or al, 0x60
    jmp L7
L5:
    mov ecx, [rax+0x120]
    test ecx, ecx
    je L6
    bsr eax, ecx
    or al, 0x40
    jmp L7
L6:
    mov ecx, [rax+0x110]
    test ecx, ecx
    je L8
    bsr eax, ecx
    or al, 0x20
L7:
    movzx edx, al
    mov rdi, rbx
    call vlapic_core::local::LocalApic<I>::end_of
    mov rax, rbx
    pop rbx
    ret
L8:
    mov eax, [rax+0x100]
    and eax, 0xFFFF0000
    je L9
    bsr eax, eax
    cmp al, 0xF
    ja L7
L9:
    mov byte ptr [rbx], 0
    mov rax, rbx
    pop rbx
    ret

vlapic_core::local::LocalApic<I>::end_of:
    mov ecx, edx
    mov rax, [rsi+0x28]
    mov r8, [rax+8]
    mov esi, ecx
    shr sil, 3
    and sil, 0x1C
    mov edx, 1
    shl edx, cl
    mov r9d, 0xFFFFFFFE
    rol r9d, cl
    movzx esi, sil
    and [r8+rsi*4+0x100], r9d
    mov r8, [rax+8]
    mov r9d, [r8+0x80]
    mov r10d, [r8+0x170]
    test r10d, r10d
    je L2
    bsr r10d, r10d
    or r10b, 0xE0
L1:
    and r10b, 0xF0
    jmp L10
L2:
    mov r10d, [r8+0x160]
    test r10d, r10d
    je L3
    bsr r10d, r10d
    or r10b, 0xC0
    and r10b, 0xF0
    jmp L10
L3:
    mov r10d, [r8+0x150]
    test r10d, r10d
    je L4
    bsr r10d, r10d
    or r10b, 0xA0
    and r10b, 0xF0
    jmp L10
L4:
    mov r10d, [r8+0x140]
    test r10d, r10d
    je L5
    bsr r10d, r10d
    or r10b, 0x80
    and r10b, 0xF0
    jmp L10
L5:
    mov r10d, [r8+0x130]
    test r10d, r10d
    je L6
    bsr r10d, r10d
    or r10b, 0x60
    and r10b, 0xF0
    jmp L10
L6:
    mov r10d, [r8+0x120]
    test r10d, r10d
    je L7
    bsr r10d, r10d
    or r10b, 0x40
    and r10b, 0xF0
    jmp L10
L7:
    mov r10d, [r8+0x110]
    test r10d, r10d
    je L8
    bsr r10d, r10d
    or r10b, 0x20
    and r10b, 0xF0
    jmp L10
L8:
    mov r10d, [r8+0x100]
    and r10d, 0xFFFF0000
    je L9
    bsr r10d, r10d
    cmp r10b, 0x10
    jae L1
L9:
    xor r10d, r10d
L10:
    mov r11d, r9d
    and r11b, 0xF0
    cmp r11b, r10b
    movzx r10d, r10b
    cmovae r10d, r9d
    movzx r9d, r10b
    mov [r8+0xA0], r9d
    mov r8, [rax+8]
    mov r9d, [rax+0x14]
    test r9d, 0x100000
    je L11
    mov r9, [rax+8]
    mov r10d, [r9+0x350]
    mov r9d, [r9+0xF0]
    mov r9d, [rax+0x14]
    cmp cl, r10b
    jne L11
    lock and dword ptr [rax+0x14], 0xFFEFFFFF
    mov r9, [rax+8]
    lock and dword ptr [r9+0x350], 0xFFFFBFFF
L11:
    mov r9d, [rax+0x14]
    test r9d, 0x200000
    je L12
    mov r9, [rax+8]
    mov r10d, [r9+0x360]
    mov r9d, [r9+0xF0]
    mov r9d, [rax+0x14]
    cmp cl, r10b
    jne L12
    lock and dword ptr [rax+0x14], 0xFFDFFFFF
    mov r9, [rax+8]
    lock and dword ptr [r9+0x360], 0xFFFFBFFF
L12:
    mov esi, [r8+rsi*4+0x180]
    test esi, edx
    je L14
    cmp byte ptr [rax+0x2C], 0
    je L13
    mov eax, [r8+0xF0]
    test eax, 0x1000
    jne L14
L13:
    mov [rdi+1], cl
    mov al, 3
    mov [rdi], al
    ret
L14:
    xor eax, eax
    mov [rdi], al
    ret
