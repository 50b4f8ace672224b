//! Texts of hooks: right ones, some with words put in, taken out or exchanged, and soups of words.

use super::source::Source;
use wgpu_attention::{DType, Hook, Layout};

const SCORES: [&str; 4] = [
    "fn own(score: f32, at: Position) -> f32 { return score + f32(at.key) * 0.01; }",
    "const LIMIT = 8.0; fn log2(x: f32) -> f32 { return x; } fn own(score: f32, at: Position) -> f32 { return LIMIT * tanh(score / LIMIT) + log2(0.0); }",
    "struct Pair { a: f32, b: vec2f } fn own(score: f32, at: Position) -> f32 { var p = Pair(score, vec2f(1.0, 2.0)); p.b.x *= 2.0; return p.a + p.b.x - 2.0; }",
    "fn own(score: f32, at: Position) -> f32 { var sum = 0.0; for (var i = 0u; i < 3u; i++) { sum += table[i % 4u]; } return score + sum; }",
];

const MASKS: [&str; 3] = [
    "fn own(at: Position) -> bool { return at.key <= at.query + 3u; }",
    "alias Word = u32; fn own(at: Position) -> bool { let m: Word = at.head; switch m { case 0u: { return true; } default: { return at.key % 2u == 0u; } } }",
    "fn own(at: Position) -> bool { return table[at.key % 4u] > 0.0 || /* of the first */ at.key == 0u; }",
];

const WORDS: [&str; 96] = [
    "fn",
    "var",
    "let",
    "const",
    "struct",
    "alias",
    "override",
    "enable",
    "requires",
    "diagnostic",
    "discard",
    "loop",
    "while",
    "for",
    "if",
    "else",
    "switch",
    "case",
    "default",
    "break",
    "continue",
    "continuing",
    "return",
    "true",
    "false",
    "own",
    "score",
    "at",
    "at.key",
    "Position",
    "f32",
    "u32",
    "i32",
    "bool",
    "f16",
    "vec4f",
    "vec2<f32>",
    "mat4x4f",
    "array<f32, 4>",
    "array<u32, 65536>",
    "array",
    "ptr",
    "<",
    ">",
    "<<",
    ">>",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    ";",
    ":",
    ",",
    ".",
    "->",
    "=",
    "==",
    "+",
    "-",
    "*",
    "/",
    "%",
    "&",
    "&&",
    "|",
    "!",
    "~",
    "@",
    "@group(3)",
    "@binding(0)",
    "@align(16)",
    "@compute",
    "@must_use",
    "#",
    "//",
    "/*",
    "*/",
    "\n",
    "\"",
    "\\",
    "\0",
    "é",
    "𝕏",
    "0",
    "1u",
    "0xffffffffu",
    "1e400",
    "0x1p",
    "1.0h",
    "table",
    "params",
    "main",
    "workgroupBarrier()",
    "var<workgroup> w: f32;",
];

const TOKENS: [&str; 10] = [
    "<private>",
    "<storage>",
    "<uniform>",
    "_",
    "__x",
    "hook0_",
    "hooks_",
    "subgroupAdd(1u)",
    "atomic<u32>",
    "sampler",
];

fn word(s: &mut Source) -> &'static str {
    if s.one_in(8) { s.pick(&TOKENS) } else { s.pick(&WORDS) }
}

/// A text with something done to it.
fn spoilt(s: &mut Source, text: &str) -> String {
    let mut words: Vec<&str> = text.split_inclusive(' ').collect();
    match if s.wild { s.below(6) } else { 0 } {
        0 | 1 => return text.into(),
        2 => {
            let count = s.below(60);
            return (0..count).map(|_| word(s)).collect::<Vec<_>>().join(" ");
        }
        3 => {
            let count = s.pick(&[100, 3_000, 30_000]);
            return [text, &word(s).repeat(count)].concat();
        }
        _ => {}
    }
    for _ in 0..=s.below(4) {
        let at = s.below(words.len());
        match s.below(3) {
            0 if words.len() > 1 => drop(words.remove(at)),
            1 => words.insert(at, word(s)),
            _ => words[at] = word(s),
        }
    }
    words.join(" ")
}

fn hook(s: &mut Source, texts: &[&str]) -> Hook {
    let text = s.pick(texts);
    let source = spoilt(s, text);
    let entry = if s.odd(6) { s.name() } else { "own".into() };
    let mut hook = Hook::new(entry, source);
    if text.contains("table") != s.odd(6) {
        let name = if s.odd(6) { s.name() } else { "table".into() };
        let dtype = if s.odd(6) { s.pick(&[DType::U32, DType::F16, DType::U8]) } else { DType::F32 };
        let shape = if s.odd(6) { [s.number(), 1, 1, s.number()] } else { [1, 1, 1, 4] };
        hook = hook.declaring(name, Layout::heads_first(dtype, shape));
    }
    if s.odd(6) { hook.with_gradient(if s.one_in(2) { "own".into() } else { s.name() }) } else { hook }
}

pub fn score(s: &mut Source) -> Hook {
    hook(s, &SCORES)
}

pub fn mask(s: &mut Source) -> Hook {
    hook(s, &MASKS)
}
