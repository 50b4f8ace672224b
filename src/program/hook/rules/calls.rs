//! What calls and copies come to: compilers write a function out wherever it is called, with its variables.

use crate::program::hook::text::{Kind, Problem, Token, problem};
use crate::small_map::SmallMap;

/// Words and signs of all functions, each as often as it is called.
const MOST_WORDS: u64 = 1 << 16;
/// Bytes of their arrays and structs, counted likewise.
const MOST_BYTES: u64 = 256 << 10;
/// Bytes of an array or a struct whose copies count.
const LARGE: u64 = 64;

struct Function<'a> {
    name: &'a str,
    line: u32,
    words: u64,
    bytes: u64,
    calls: Vec<&'a str>,
}

/// `named` are the arrays and structs that a text names: where, and how many bytes they have.
pub(super) fn check(solid: &[&Token], named: &[(usize, u64)]) -> Result<(), Problem> {
    let text = |n: usize| solid.get(n).map_or("", |token| token.text);
    let is_word = |n: &usize| solid[*n].kind == Kind::Word && !solid[*n].is_member;
    let starts: Vec<usize> = (0..solid.len()).filter(is_word).filter(|&n| text(n) == "fn").collect();
    let names: Vec<&str> = starts.iter().map(|&n| text(n + 1)).collect();
    let largest = named.iter().map(|(_, bytes)| *bytes).max().filter(|&bytes| bytes > LARGE).unwrap_or(0);
    let function = |(i, &start): (usize, &usize)| {
        let end = starts.get(i + 1).copied().unwrap_or(solid.len());
        let own = || (start + 2..end).filter(is_word);
        let calls: Vec<&str> = own().filter(|&n| text(n + 1) == "(" && names.contains(&text(n))).map(text).collect();
        // A variable without a type may be a copy of any of them, and so may what a call returns.
        let copies = own().filter(|&n| matches!(text(n), "var" | "let") && text(n + 2) == "=").count() + calls.len();
        let bytes: u64 = named.iter().filter(|(n, _)| (start..end).contains(n)).map(|(_, bytes)| bytes).sum();
        Function {
            name: names[i],
            line: solid[start].line,
            words: (end - start) as u64,
            bytes: bytes.saturating_add(largest.saturating_mul(copies as u64)),
            calls,
        }
    };
    let functions: Vec<Function> = starts.iter().enumerate().map(function).collect();
    let mut known = SmallMap::default();
    for function in &functions {
        let (words, bytes) = total(function, &functions, &mut known)?;
        let Function { name, line, .. } = function;
        if words > MOST_WORDS {
            let message = format!("`{name}` has {words} words and signs with all that it calls; at most {MOST_WORDS}");
            return problem(*line, message);
        }
        if bytes > MOST_BYTES {
            let message = format!(
                "the arrays and structs of `{name}` and of all that it calls, with their copies, hold {bytes} bytes; at most {MOST_BYTES}"
            );
            return problem(*line, message);
        }
    }
    Ok(())
}

/// Words and bytes of a function with all that it calls. Known are those of functions; nothing while they are looked for.
fn total<'a>(
    function: &Function<'a>,
    functions: &[Function<'a>],
    known: &mut SmallMap<&'a str, Option<(u64, u64)>>,
) -> Result<(u64, u64), Problem> {
    match known.get(&function.name) {
        Some(Some(found)) => return Ok(*found),
        Some(None) => return problem(function.line, format!("`{}` calls itself", function.name)),
        None => known.insert(function.name, None),
    }
    let (mut words, mut bytes) = (function.words, function.bytes);
    for name in &function.calls {
        let called = functions.iter().find(|other| other.name == *name);
        let more = called.map_or(Ok((0, 0)), |called| total(called, functions, known))?;
        (words, bytes) = (words.saturating_add(more.0), bytes.saturating_add(more.1));
    }
    known.insert(function.name, Some((words, bytes)));
    Ok((words, bytes))
}
