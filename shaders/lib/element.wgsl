// What is stored: f32, f16 or bf16 (for masks, bytes) in memory, f32 in registers. Loads need no optional feature. Stores round to nearest even
// in integers, overflow to ±inf and keep NaN: pack2x16float may round either way, and turns 70000 into NaN on one driver.

fn u8_of(word: u32, byte: u32) -> f32 {
    return f32((word >> (8u * byte)) & 0xffu);
}

fn f16_of(word: u32, half: u32) -> f32 {
    return unpack2x16float(word >> (16u * half)).x;
}

fn bf16_of(word: u32, half: u32) -> f32 {
    return bitcast<f32>((word >> (16u * half)) << 16u);
}

fn f16x4_of(words: vec2u) -> vec4f {
    return vec4f(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn bf16x4_of(words: vec2u) -> vec4f {
    return vec4f(bitcast<vec2f>(vec2u(words.x << 16u, words.x & 0xffff0000u)), bitcast<vec2f>(vec2u(words.y << 16u, words.y & 0xffff0000u)));
}

fn bf16_bits(x: f32) -> u32 {
    let b = bitcast<u32>(x);
    let rounded = (b + 0x7fffu + ((b >> 16u) & 1u)) >> 16u;
    return select(rounded, (b >> 16u) | 0x40u, (b & 0x7fffffffu) > 0x7f800000u);
}

fn f16_bits(x: f32) -> u32 {
    let b = bitcast<u32>(x);
    let sign = (b >> 16u) & 0x8000u;
    let a = b & 0x7fffffffu;
    if (a > 0x7f800000u) { return sign | 0x7e00u; }
    // 65520 and more round to infinity.
    if (a >= 0x477ff000u) { return sign | 0x7c00u; }
    if (a >= 0x38800000u) {
        return sign | ((a - 0x38000000u + 0xfffu + ((a >> 13u) & 1u)) >> 13u);
    }
    // Below 2^-14: a multiple of 2^-24. Shifting the significand right by 126 − exponent leaves that multiple.
    let shift = min(126u - (a >> 23u), 31u);
    let significand = (a & 0x7fffffu) | 0x800000u;
    let kept = significand >> shift;
    let rest = significand & ((1u << shift) - 1u);
    let tie = 1u << (shift - 1u);
    let up = rest > tie || (rest == tie && (kept & 1u) == 1u);
    return sign | (kept + select(0u, 1u, up));
}

fn f16x4_bits(x: vec4f) -> vec2u {
    return vec2u(f16_bits(x.x) | (f16_bits(x.y) << 16u), f16_bits(x.z) | (f16_bits(x.w) << 16u));
}

fn bf16x4_bits(x: vec4f) -> vec2u {
    return vec2u(bf16_bits(x.x) | (bf16_bits(x.y) << 16u), bf16_bits(x.z) | (bf16_bits(x.w) << 16u));
}
