; rustc 1.95.0 (59807616e 2026-04-14)
end_of_interrupt:
    push rbx
    mov rbx, rdi
    mov rdi, [rsi+0x30]
    call vlapic_core::eoi::<impl vlapic_core::slot::Slot<I>>::end_highest
    test al, 1
    je L1
    mov [rbx+1], dl
    mov al, 3
    mov [rbx], al
    mov rax, rbx
    pop rbx
    ret
L1:
    xor eax, eax
    mov [rbx], al
    mov rax, rbx
    pop rbx
    ret

vlapic_core::eoi::<impl vlapic_core::slot::Slot<I>>::end_highest:
    push rbx
    mov rsi, [rdi+0x18]
    mov eax, [rsi+0x140]
    mov ecx, [rsi+0x150]
    or ecx, eax
    mov eax, [rsi+0x160]
    or eax, ecx
    mov ecx, [rsi+0x170]
    or ecx, eax
    je L5
    mov ecx, [rsi+0x170]
    test ecx, ecx
    je L1
    mov al, 0xE0
    jmp L4
L1:
    mov ecx, [rsi+0x160]
    test ecx, ecx
    je L2
    mov al, 0xC0
    jmp L4
L2:
    mov ecx, [rsi+0x150]
    test ecx, ecx
    je L3
    mov al, 0xA0
    jmp L4
L3:
    mov ecx, [rsi+0x140]
    test ecx, ecx
    je L5
    mov al, 0x80
L4:
    xor r9d, r9d
    jmp L6
L5:
    mov ecx, [rsi+0x130]
    mov al, 0x60
    mov r9b, 1
    test ecx, ecx
    jne L6
    mov ecx, [rsi+0x120]
    mov al, 0x40
    test ecx, ecx
    jne L6
    mov ecx, [rsi+0x110]
    mov al, 0x20
    test ecx, ecx
    jne L6
    mov ecx, [rsi+0x100]
    xor eax, eax
    and ecx, 0xFFFF0000
    je L14
L6:
    bsr edx, ecx
    xor edx, 0x1F
    or dl, al
    xor dl, 0x1F
    cmp dl, 0x10
    jb L13
    shr al, 3
    mov r8d, 1
    mov ecx, edx
    shl r8d, cl
    movzx eax, al
    xor [rsi+rax*4+0x100], r8d
    mov ecx, [rsi+0x80]
    mov r10d, [rsi+0x100]
    and r10d, 0xFFFF0000
    mov r11d, [rsi+0x110]
    mov ebx, [rsi+0x120]
    or ebx, r11d
    or ebx, r10d
    mov r10d, [rsi+0x130]
    or r10d, ebx
    test r9b, r9b
    jne L7
    mov r9d, [rsi+0x140]
    mov r11d, [rsi+0x150]
    or r11d, r9d
    mov r9d, [rsi+0x160]
    mov ebx, [rsi+0x170]
    or ebx, r9d
    or ebx, r11d
    or r10d, ebx
L7:
    test r10d, r10d
    je L11
    mov r9d, [rsi+0x140]
    mov r10d, [rsi+0x150]
    or r10d, r9d
    mov r9d, [rsi+0x160]
    or r9d, r10d
    mov r10d, [rsi+0x170]
    or r10d, r9d
    je L8
    mov r9d, [rsi+0x170]
    mov r10b, 0xE0
    test r9d, r9d
    jne L9
    mov r9d, [rsi+0x160]
    mov r10b, 0xC0
    test r9d, r9d
    jne L9
    mov r9d, [rsi+0x150]
    mov r10b, 0xA0
    test r9d, r9d
    jne L9
    mov r9d, [rsi+0x140]
    mov r10b, 0x80
    test r9d, r9d
    jne L9
L8:
    mov r9d, [rsi+0x130]
    mov r10b, 0x60
    test r9d, r9d
    jne L9
    mov r9d, [rsi+0x120]
    mov r10b, 0x40
    test r9d, r9d
    jne L9
    mov r9d, [rsi+0x110]
    mov r10b, 0x20
    test r9d, r9d
    jne L9
    mov r9d, [rsi+0x100]
    xor r10d, r10d
    mov r11d, 0
    and r9d, 0xFFFF0000
    je L10
L9:
    bsr r11d, r9d
    xor r11d, 0x1F
    and r11b, 0xF0
    or r11b, r10b
    xor r11b, 0x10
L10:
    movzx r9d, cl
    and cl, 0xF0
    cmp cl, r11b
    movzx ecx, r11b
    cmovae ecx, r9d
L11:
    movzx ecx, cl
    mov [rsi+0xA0], ecx
    mov ecx, [rdi+0x24]
    test ecx, 0x300000
    jne L16
    mov rcx, [rdi+0x18]
    mov eax, [rcx+rax*4+0x180]
    test eax, r8d
    je L15
    cmp byte ptr [rdi+0x3C], 1
    jne L12
    mov eax, [rcx+0xF0]
    test eax, 0x1000
    jne L15
L12:
    mov al, 1
    pop rbx
    ret
L13:
    xor eax, eax
L14:
    pop rbx
    ret
L15:
    xor eax, eax
    pop rbx
    ret
L16:
    movzx esi, dl
    call vlapic_core::eoi::<impl vlapic_core::slot::Slot<I>>::release_pins
    pop rbx
    ret

vlapic_core::eoi::<impl vlapic_core::slot::Slot<I>>::release_pins:
    mov edx, esi
    mov eax, [rdi+0x24]
    test eax, 0x100000
    je L1
    mov rax, [rdi+0x18]
    mov ecx, [rax+0x350]
    mov eax, [rax+0xF0]
    mov eax, [rdi+0x24]
    cmp dl, cl
    jne L1
    lock and dword ptr [rdi+0x24], 0xFFEFFFFF
    mov rax, [rdi+0x18]
    lock and dword ptr [rax+0x350], 0xFFFFBFFF
L1:
    mov eax, [rdi+0x24]
    test eax, 0x200000
    je L2
    mov rax, [rdi+0x18]
    mov ecx, [rax+0x360]
    mov eax, [rax+0xF0]
    mov eax, [rdi+0x24]
    cmp dl, cl
    jne L2
    lock and dword ptr [rdi+0x24], 0xFFDFFFFF
    mov rax, [rdi+0x18]
    lock and dword ptr [rax+0x360], 0xFFFFBFFF
L2:
    mov rax, [rdi+0x18]
    mov ecx, edx
    shr cl, 3
    and cl, 0x1C
    movzx ecx, cl
    mov ecx, [rax+rcx*4+0x180]
    movzx esi, dl
    bt ecx, esi
    jae L4
    cmp byte ptr [rdi+0x3C], 1
    jne L3
    mov eax, [rax+0xF0]
    test eax, 0x1000
    jne L4
L3:
    mov al, 1
    ret
L4:
    xor eax, eax
    ret
