; rustc 1.95.0 (59807616e 2026-04-14)
end_of_interrupt:
    push rbp
    push r15
    push r14
    push rbx
    push rax
    mov rbx, rdi
    mov r14, [rsi+0x30]
    mov r15, [r14+0x18]
    mov rdi, r15
    call vlapic_core::vectors::VectorSet::take_highest_owned
    test al, 1
    je L3
    mov ecx, eax
    shr ecx, 0x10
    shr eax, 8
    mov edx, [r15+0x80]
    mov esi, edx
    and sil, 0xF0
    cmp sil, cl
    cmovae ecx, edx
    movzx ecx, cl
    mov [r15+0xA0], ecx
    mov ecx, [r14+0x24]
    movzx ebp, al
    test ecx, 0x300000
    jne L5
L1:
    mov rcx, [r14+0x18]
    mov edx, ebp
    shr dl, 3
    and dl, 0x1C
    movzx edx, dl
    mov ecx, [rcx+rdx*4+0x180]
    bt ecx, ebp
    jae L3
    cmp byte ptr [r14+0x3C], 0
    je L2
    mov rcx, [r14+0x18]
    mov ecx, [rcx+0xF0]
    test ecx, 0x1000
    jne L3
L2:
    mov [rbx+1], al
    mov al, 3
    jmp L4
L3:
    xor eax, eax
L4:
    mov [rbx], al
    mov rax, rbx
    add rsp, 8
    pop rbx
    pop r14
    pop r15
    pop rbp
    ret
L5:
    mov rdi, r14
    mov esi, ebp
    mov r15d, eax
    call vlapic_core::local::LocalApic<I>::release_pins
    mov eax, r15d
    jmp L1

vlapic_core::local::LocalApic<I>::release_pins:
    mov eax, [rdi+0x24]
    test eax, 0x100000
    je L1
    mov rax, [rdi+0x18]
    mov ecx, [rax+0x350]
    mov eax, [rax+0xF0]
    mov eax, [rdi+0x24]
    cmp sil, cl
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
    cmp sil, cl
    jne L2
    lock and dword ptr [rdi+0x24], 0xFFDFFFFF
    mov rax, [rdi+0x18]
    lock and dword ptr [rax+0x360], 0xFFFFBFFF
L2:
    ret

vlapic_core::vectors::VectorSet::take_highest_owned:
    mov edx, [rdi+0x170]
    test edx, edx
    je L1
    bsr ecx, edx
    or cl, 0xE0
    mov eax, 0xFFFFFFFE
    rol eax, cl
    and [rdi+0x170], eax
    and eax, edx
    je L3
    mov sil, 0xE0
    mov dl, 1
    jmp L16
L1:
    mov eax, [rdi+0x160]
    test eax, eax
    je L6
    bsr ecx, eax
    or cl, 0xC0
    mov edx, 0xFFFFFFFE
    rol edx, cl
    and [rdi+0x160], edx
    btr eax, ecx
    test eax, eax
    je L4
L2:
    mov sil, 0xC0
    mov dl, 1
    jmp L16
L3:
    mov eax, [rdi+0x160]
    test eax, eax
    jne L2
L4:
    mov eax, [rdi+0x150]
    test eax, eax
    je L7
L5:
    mov sil, 0xA0
    mov dl, 1
    jmp L16
L6:
    mov eax, [rdi+0x150]
    test eax, eax
    je L8
    bsr ecx, eax
    or cl, 0xA0
    mov edx, 0xFFFFFFFE
    rol edx, cl
    and [rdi+0x150], edx
    btr eax, ecx
    test eax, eax
    jne L5
L7:
    mov eax, [rdi+0x140]
    jmp L9
L8:
    mov eax, [rdi+0x140]
    test eax, eax
    je L15
    bsr ecx, eax
    or cl, 0x80
    mov edx, 0xFFFFFFFE
    rol edx, cl
    and [rdi+0x140], edx
    btr eax, ecx
L9:
    mov dl, 1
    mov sil, 0x80
    test eax, eax
    jne L16
L10:
    mov eax, [rdi+0x130]
    test eax, eax
    sete sil
    or sil, dl
    jne L11
    bsr ecx, eax
    or cl, 0x60
    mov edx, 0xFFFFFFFE
    rol edx, cl
    and [rdi+0x130], edx
    btr eax, ecx
    mov dl, 1
L11:
    mov sil, 0x60
    test eax, eax
    jne L16
    mov eax, [rdi+0x120]
    test eax, eax
    sete sil
    or sil, dl
    jne L12
    bsr ecx, eax
    or cl, 0x40
    mov edx, 0xFFFFFFFE
    rol edx, cl
    and [rdi+0x120], edx
    btr eax, ecx
    mov dl, 1
L12:
    mov sil, 0x40
    test eax, eax
    jne L16
    mov eax, [rdi+0x110]
    test eax, eax
    sete sil
    or sil, dl
    jne L13
    bsr ecx, eax
    or cl, 0x20
    mov edx, 0xFFFFFFFE
    rol edx, cl
    and [rdi+0x110], edx
    btr eax, ecx
    mov dl, 1
L13:
    mov sil, 0x20
    test eax, eax
    jne L16
    mov eax, [rdi+0x100]
    and eax, 0xFFFF0000
    sete sil
    or sil, dl
    jne L14
    bsr ecx, eax
    cmp cl, 0x10
    jb L19
    mov edx, 0xFFFFFFFE
    rol edx, cl
    and [rdi+0x100], edx
    btr eax, ecx
    mov dl, 1
L14:
    test eax, eax
    je L18
    xor esi, esi
    jmp L16
L15:
    xor edx, edx
    mov sil, 0x80
    test eax, eax
    je L10
L16:
    movzx edi, sil
    or sil, 0x10
    cmp eax, 0x10000
    movzx eax, sil
    cmovb eax, edi
L17:
    movzx eax, al
    shl eax, 0x10
    movzx ecx, cl
    shl ecx, 8
    or ecx, eax
    movzx eax, dl
    or eax, ecx
    ret
L18:
    xor eax, eax
    jmp L17
L19:
    xor edx, edx
    jmp L17
