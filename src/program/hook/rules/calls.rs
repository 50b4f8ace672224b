//! What calls and copies come to: compilers write a function out wherever it is called, with its variables.

use super::MOST_DECLARED;
use crate::program::hook::text::{Kind, Problem, Token, problem};
use crate::small_map::SmallMap;

/// Words and signs of a function with all that it calls.
const MOST_WORDS: u64 = 1 << 16;
/// Bytes of its arrays and structs and of their copies, with those of all that it calls.
const MOST_BYTES: u64 = 256 << 10;
/// Bytes of an array or a struct whose copies count.
const LARGE: u64 = 64;

struct Function<'a> {
    name: &'a str,
    line: u32,
    words: u64,
    bytes: u64,
    /// Of what is passed and returned.
    passed: u64,
    calls: Vec<&'a str>,
}

/// The words of a text, and the bytes of the arrays and structs that it names, by where they are.
struct Words<'a> {
    solid: &'a [&'a Token<'a>],
    named: &'a [(usize, u64)],
    /// Names of values that are no variables: a compiler copies them to look at one of their elements.
    values: Vec<&'a str>,
    /// Whether an element or a member may be an array or a struct itself.
    nested: bool,
}

impl<'a> Words<'a> {
    fn text(&self, n: usize) -> &'a str {
        self.solid.get(n).map_or("", |token| token.text)
    }

    fn is_word(&self, n: usize) -> bool {
        self.solid.get(n).is_some_and(|token| token.kind == Kind::Word && !token.is_member)
    }

    /// Whether what begins here, behind `=` or `return`, may be a whole array or struct that has a name.
    fn is_copy(&self, n: usize) -> bool {
        match (self.text(n), self.text(n + 1)) {
            ("(" | "*" | "&", _) => true,
            (_, ";") => self.is_word(n),
            (_, "[" | ".") => self.is_word(n) && self.nested,
            _ => false,
        }
    }

    /// Whether this is the sign of an assignment or of an initial value.
    fn assigns(&self, n: usize) -> bool {
        let part_of_another =
            |text: &str| matches!(text, "=" | "<" | ">" | "!" | "+" | "-" | "*" | "/" | "%" | "&" | "|" | "^");
        self.text(n) == "=" && self.text(n + 1) != "=" && !part_of_another(self.text(n - 1))
    }

    /// Copies of arrays and structs between two places, as far as words tell.
    fn copies(&self, start: usize, end: usize) -> u64 {
        let copied = |n: usize| {
            let whole = (self.assigns(n) || self.text(n) == "return") && self.is_copy(n + 1);
            let looked_at = self.is_word(n) && self.text(n + 1) == "[" && self.values.contains(&self.text(n));
            whole || looked_at
        };
        (start + 1..end).filter(|&n| copied(n)).count() as u64
    }

    fn bytes(&self, start: usize, end: usize) -> u64 {
        self.named.iter().filter(|(n, _)| (start..end).contains(n)).map(|(_, bytes)| bytes).sum()
    }
}

/// Functions, with what they come to.
pub(super) fn check<'a>(solid: &'a [&'a Token<'a>], named: &'a [(usize, u64)], nested: bool) -> Result<(), Problem> {
    let mut words = Words { solid, named, values: vec![], nested };
    let values = (0..solid.len()).filter(|&n| words.is_word(n) && matches!(words.text(n), "const" | "let"));
    words.values = values.map(|n| words.text(n + 1)).collect();
    let starts: Vec<usize> = (0..solid.len()).filter(|&n| words.is_word(n) && words.text(n) == "fn").collect();
    if starts.len() > MOST_DECLARED {
        return problem(solid[starts[MOST_DECLARED]].line, format!("a hook has at most {MOST_DECLARED} functions"));
    }
    let names: Vec<&str> = starts.iter().map(|&n| words.text(n + 1)).collect();
    let largest = named.iter().map(|(_, bytes)| *bytes).max().filter(|&bytes| bytes > LARGE).unwrap_or(0);
    let function = |(i, &start): (usize, &usize)| {
        let end = starts.get(i + 1).copied().unwrap_or(solid.len());
        let body = (start..end).find(|&n| words.text(n) == "{").unwrap_or(end);
        let called = |&n: &usize| words.is_word(n) && words.text(n + 1) == "(" && names.contains(&words.text(n));
        Function {
            name: names[i],
            line: solid[start].line,
            words: (end - start) as u64,
            bytes: words.bytes(start, end).saturating_add(largest.saturating_mul(words.copies(start, end))),
            passed: words.bytes(start, body),
            calls: (start + 2..end).filter(called).map(|n| words.text(n)).collect(),
        }
    };
    let functions: Vec<Function> = starts.iter().enumerate().map(function).collect();
    let mut known = SmallMap::default();
    for function in &functions {
        let (words, bytes) = total(function, &functions, &mut known)?;
        let Function { name, line, .. } = function;
        if words > MOST_WORDS {
            let message = format!("`{name}` and all that it calls have {words} words and signs (limit: {MOST_WORDS})");
            return problem(*line, message);
        }
        if bytes > MOST_BYTES {
            let message = format!(
                "`{name}` and all that it calls hold {bytes} bytes of arrays and structs and of copies of them (limit: {MOST_BYTES})"
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
        let Some(called) = functions.iter().find(|other| other.name == *name) else { continue };
        let more = total(called, functions, known)?;
        words = words.saturating_add(more.0);
        bytes = bytes.saturating_add(more.1).saturating_add(called.passed);
    }
    known.insert(function.name, Some((words, bytes)));
    Ok((words, bytes))
}
