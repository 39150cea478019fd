; rustc 1.95.0 (59807616e 2026-04-14)
end_of_interrupt:
    push rbx
    mov rbx, rdi
    call vlapic_core::eoi::<impl vlapic_core::local::LocalApic<I>>::end_of_interrupt
    mov rax, rbx
    pop rbx
    ret

vlapic_core::eoi::<impl vlapic_core::local::LocalApic<I>>::end_of_interrupt:
    push rbx
    mov rsi, [rsi+0x30]
    mov rax, [rsi+0x18]
    mov ecx, [rax+0x140]
    mov edx, [rax+0x150]
    or edx, ecx
    mov ecx, [rax+0x160]
    or ecx, edx
    mov edx, [rax+0x170]
    or edx, ecx
    je L1
    mov ecx, [rax+0x170]
    mov dl, 0xE0
    test ecx, ecx
    jne L2
    mov ecx, [rax+0x160]
    mov dl, 0xC0
    test ecx, ecx
    jne L2
    mov ecx, [rax+0x150]
    mov dl, 0xA0
    test ecx, ecx
    jne L2
    mov ecx, [rax+0x140]
    mov dl, 0x80
    test ecx, ecx
    jne L2
L1:
    mov ecx, [rax+0x130]
    mov dl, 0x60
    test ecx, ecx
    jne L2
    mov ecx, [rax+0x120]
    mov dl, 0x40
    test ecx, ecx
    jne L2
    mov ecx, [rax+0x110]
    mov dl, 0x20
    test ecx, ecx
    jne L2
    mov ecx, [rax+0x100]
    and ecx, 0xFFFF0000
    je L8
    xor edx, edx
L2:
    bsr ecx, ecx
    xor ecx, 0x1F
    or cl, dl
    xor cl, 0x1F
    cmp cl, 0x10
    jb L8
    shr dl, 3
    movzx edx, dl
    mov r8d, 1
    shl r8d, cl
    mov r9d, 0xFFFFFFFE
    rol r9d, cl
    and [rax+rdx*4+0x100], r9d
    mov r9d, [rax+0x80]
    mov r10d, [rax+0x100]
    and r10d, 0xFFFF0000
    mov r11d, [rax+0x110]
    mov ebx, [rax+0x120]
    or ebx, r11d
    or ebx, r10d
    mov r10d, [rax+0x130]
    mov r11d, [rax+0x140]
    or r11d, r10d
    mov r10d, [rax+0x150]
    or r10d, r11d
    or r10d, ebx
    mov r11d, [rax+0x160]
    or r11d, r10d
    mov r10d, [rax+0x170]
    or r10d, r11d
    je L6
    mov r10d, [rax+0x140]
    mov r11d, [rax+0x150]
    or r11d, r10d
    mov r10d, [rax+0x160]
    or r10d, r11d
    mov r11d, [rax+0x170]
    or r11d, r10d
    je L3
    mov r10d, [rax+0x170]
    mov r11b, 0xE0
    test r10d, r10d
    jne L4
    mov r10d, [rax+0x160]
    mov r11b, 0xC0
    test r10d, r10d
    jne L4
    mov r10d, [rax+0x150]
    mov r11b, 0xA0
    test r10d, r10d
    jne L4
    mov r10d, [rax+0x140]
    mov r11b, 0x80
    test r10d, r10d
    jne L4
L3:
    mov r10d, [rax+0x130]
    mov r11b, 0x60
    test r10d, r10d
    jne L4
    mov r10d, [rax+0x120]
    mov r11b, 0x40
    test r10d, r10d
    jne L4
    mov r10d, [rax+0x110]
    mov r11b, 0x20
    test r10d, r10d
    jne L4
    mov r10d, [rax+0x100]
    xor r11d, r11d
    mov ebx, 0
    and r10d, 0xFFFF0000
    je L5
L4:
    bsr ebx, r10d
    xor ebx, 0x1F
    and bl, 0xF0
    or bl, r11b
    xor bl, 0x10
L5:
    movzx r10d, r9b
    and r9b, 0xF0
    cmp r9b, bl
    movzx r9d, bl
    cmovae r9d, r10d
L6:
    movzx r9d, r9b
    mov [rax+0xA0], r9d
    mov eax, [rsi+0x24]
    test eax, 0x300000
    jne L9
    mov rax, [rsi+0x18]
    mov edx, [rax+rdx*4+0x180]
    test edx, r8d
    je L8
    cmp byte ptr [rsi+0x3C], 1
    jne L7
    mov eax, [rax+0xF0]
    test eax, 0x1000
    jne L8
L7:
    mov [rdi+1], cl
    mov byte ptr [rdi], 3
    pop rbx
    ret
L8:
    mov byte ptr [rdi], 0
    pop rbx
    ret
L9:
    movzx edx, cl
    pop rbx
    jmp vlapic_core::eoi::<impl vlapic_core::slot::Slot<I>>::release_pins_and_broadcast

vlapic_core::eoi::<impl vlapic_core::slot::Slot<I>>::release_pins_and_broadcast:
    mov eax, [rsi+0x24]
    test eax, 0x100000
    je L1
    mov rax, [rsi+0x18]
    mov ecx, [rax+0x350]
    mov eax, [rax+0xF0]
    mov eax, [rsi+0x24]
    cmp dl, cl
    jne L1
    lock and dword ptr [rsi+0x24], 0xFFEFFFFF
    mov rax, [rsi+0x18]
    lock and dword ptr [rax+0x350], 0xFFFFBFFF
L1:
    mov eax, [rsi+0x24]
    test eax, 0x200000
    je L2
    mov rax, [rsi+0x18]
    mov ecx, [rax+0x360]
    mov eax, [rax+0xF0]
    mov eax, [rsi+0x24]
    cmp dl, cl
    jne L2
    lock and dword ptr [rsi+0x24], 0xFFDFFFFF
    mov rax, [rsi+0x18]
    lock and dword ptr [rax+0x360], 0xFFFFBFFF
L2:
    mov rax, [rsi+0x18]
    mov ecx, edx
    shr cl, 3
    and cl, 0x1C
    movzx ecx, cl
    mov ecx, [rax+rcx*4+0x180]
    movzx r8d, dl
    bt ecx, r8d
    jae L4
    cmp byte ptr [rsi+0x3C], 1
    jne L3
    mov eax, [rax+0xF0]
    test eax, 0x1000
    jne L4
L3:
    mov [rdi+1], dl
    mov al, 3
    mov [rdi], al
    ret
L4:
    xor eax, eax
    mov [rdi], al
    ret
