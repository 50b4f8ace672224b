//! How a shader reaches a tensor: functions for its type, its alignment and the words that it is bound as.

use super::{Access, AccessKind, Binding, Words};
use crate::DType;

/// The accessor of a tensor in its binding.
pub fn accessor(access: &Access, binding: &Binding) -> String {
    let Binding::Data { name: data, words, .. } = binding else {
        unreachable!("an access names a data binding: both are made by this crate's planning")
    };
    let name = access.name;
    match access.kind {
        AccessKind::Load4 if access.wide => load_wide(name, data, *words, access.dtype),
        AccessKind::Load4 => load_narrow(name, data, access.dtype),
        // Booleans, as some libraries have them.
        AccessKind::Load1 if access.dtype == DType::U32 => {
            format!("fn load_{name}(i: u32) -> f32 {{ return f32({data}[i] != 0u); }}\n")
        }
        AccessKind::Load1 => {
            format!("fn load_{name}(i: u32) -> f32 {{ return {}; }}\n", element(data, access.dtype))
        }
        AccessKind::LoadBits => format!("fn load_{name}(i: u32) -> u32 {{ return {data}[i]; }}\n"),
        AccessKind::Store4 if access.wide => store_wide(name, data, *words, access.dtype),
        AccessKind::Store4 => store_narrow(name, data, access.dtype),
        AccessKind::StoreBits => format!("fn store_{name}(i: u32, bits: u32) {{ {data}[i] = bits; }}\n"),
        AccessKind::Update4 | AccessKind::UpdateBits => {
            let of = |kind| accessor(&Access { kind, ..access.clone() }, binding);
            access.kind.both().into_iter().flatten().map(of).collect()
        }
    }
}

/// Where a row of a tensor lies, in elements. Sums wrap round 2^32 on purpose: a slice's offset is relative to the part of the buffer
/// that it binds.
pub fn row_accessor(name: &str) -> String {
    let at = format!("params.at.{name}");
    format!(
        "fn at_{name}(batch: u32, head: u32, row: u32) -> u32 {{ return {at}.x + batch * {at}.y + head * {at}.z + row * {at}.w; }}\n"
    )
}

/// The same of a tensor that is not there.
pub fn neutral_row(name: &str) -> String {
    format!("fn at_{name}(batch: u32, head: u32, row: u32) -> u32 {{ return 0u; }}\n")
}

/// The accessor of a tensor that is not there.
pub fn neutral(name: &str, kind: AccessKind) -> String {
    match kind {
        AccessKind::Load4 => format!("fn load_{name}4(i: u32, n: u32) -> vec4f {{ return vec4f(); }}\n"),
        AccessKind::Load1 => format!("fn load_{name}(i: u32) -> f32 {{ return 0.0; }}\n"),
        AccessKind::LoadBits => format!("fn load_{name}(i: u32) -> u32 {{ return 0u; }}\n"),
        AccessKind::Store4 => format!("fn store_{name}4(i: u32, n: u32, x: vec4f) {{}}\n"),
        AccessKind::StoreBits => format!("fn store_{name}(i: u32, bits: u32) {{}}\n"),
        AccessKind::Update4 | AccessKind::UpdateBits => {
            kind.both().into_iter().flatten().map(|kind| neutral(name, kind)).collect()
        }
    }
}

fn load_wide(name: &str, data: &str, words: Words, dtype: DType) -> String {
    let value = match (words, dtype) {
        (Words::F32x4, _) => format!("{data}[i / 4u]"),
        (Words::U32x2, _) => format!("{dtype}x4_of({data}[i / 4u])"),
        (Words::U32, DType::F32) => {
            format!("bitcast<vec4f>(vec4u({data}[i], {data}[i + 1u], {data}[i + 2u], {data}[i + 3u]))")
        }
        (Words::U32, _) => format!("{dtype}x4_of(vec2u({data}[i / 2u], {data}[i / 2u + 1u]))"),
    };
    format!("fn load_{name}4(i: u32, n: u32) -> vec4f {{ return {value}; }}\n")
}

/// The i-th element, from words.
fn element(data: &str, dtype: DType) -> String {
    match 4 / dtype.bytes() {
        1 => format!("bitcast<f32>({data}[i])"),
        per_word => format!("{dtype}_of({data}[i / {per_word}u], i % {per_word}u)"),
    }
}

/// One element at a time, zero past the n-th; never reads past the last valid one.
fn load_narrow(name: &str, data: &str, dtype: DType) -> String {
    let element = element(data, dtype);
    format!(
        "fn {name}_at(i: u32) -> f32 {{ return {element}; }}
fn load_{name}4(i: u32, n: u32) -> vec4f {{
    let last = i + min(n, 4u) - 1u;
    let x = vec4f({name}_at(i), {name}_at(min(i + 1u, last)), {name}_at(min(i + 2u, last)), {name}_at(min(i + 3u, last)));
    return select(vec4f(), x, vec4u(0u, 1u, 2u, 3u) < vec4u(n));
}}
"
    )
}

fn store_wide(name: &str, data: &str, words: Words, dtype: DType) -> String {
    let body = match (words, dtype) {
        (Words::F32x4, _) => format!("{data}[i / 4u] = x;"),
        (Words::U32x2, _) => format!("{data}[i / 4u] = {dtype}x4_bits(x);"),
        (Words::U32, DType::F32) => {
            (0..4).map(|e| format!("{data}[i + {e}u] = bitcast<u32>(x[{e}]); ")).collect::<String>()
        }
        (Words::U32, _) => {
            format!("let words = {dtype}x4_bits(x); {data}[i / 2u] = words.x; {data}[i / 2u + 1u] = words.y;")
        }
    };
    format!("fn store_{name}4(i: u32, n: u32, x: vec4f) {{ {body} }}\n")
}

/// Stores the n valid elements only. 16-bit rows start on even elements; the other half of a row's last word is kept.
fn store_narrow(name: &str, data: &str, dtype: DType) -> String {
    let body = match dtype {
        DType::F32 => {
            (0..4).map(|e| format!("    if (n > {e}u) {{ {data}[i + {e}u] = bitcast<u32>(x[{e}]); }}\n")).collect()
        }
        _ => {
            let pair = |e: u32, part: &str| {
                format!(
                    "    if (n > {last}u) {{ {data}[w + {word}u] = words.{part}; }}
    else if (n > {e}u) {{ {data}[w + {word}u] = ({data}[w + {word}u] & 0xffff0000u) | (words.{part} & 0xffffu); }}\n",
                    last = e + 1,
                    word = e / 2
                )
            };
            format!("    let w = i / 2u;\n    let words = {dtype}x4_bits(x);\n{}{}", pair(0, "x"), pair(2, "y"))
        }
    };
    format!("fn store_{name}4(i: u32, n: u32, x: vec4f) {{\n{body}}}\n")
}
