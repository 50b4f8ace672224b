//! The text of a hook, word by word: what it declares, what it must not contain, and its names made its own, so that nothing of a
//! kernel's, no builtin function that a kernel calls and nothing of another hook's is meant by them. Browsers link no WGSL parser of
//! ours, so this looks at words and brackets alone; what else is wrong the compiler tells.

use crate::small_map::SmallMap;

/// Largest source, in bytes.
pub(super) const MOST_BYTES: usize = 64 << 10;
/// Bytes of all arrays and structs that a source names, each as often as it is named.
const MOST_ARRAY_BYTES: u64 = 16 << 10;
/// Names that a source declares.
const MOST_DECLARED: usize = 256;
/// Brackets within brackets.
const MOST_NESTED: usize = 48;
/// Words and signs of one expression, with those around it: compilers go through an expression by calling themselves.
const MOST_IN_EXPRESSION: usize = 1024;
/// Words `else`: compilers go through them in the same way.
const MOST_ELSE: usize = 256;

/// What is wrong with a text, and in which of its lines.
#[derive(Debug, PartialEq)]
pub(crate) struct Problem {
    pub line: u32,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Blanks and comments.
    Blank,
    Word,
    Number,
    /// A single character.
    Sign,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    line: u32,
    /// A member of a struct, or an attribute: its name is its own.
    is_member: bool,
}

/// A text in words, with what it declares at module level.
#[derive(Debug)]
pub(crate) struct Text<'a> {
    tokens: Vec<Token<'a>>,
    declared: Vec<&'a str>,
}

/// Whether a byte belongs to a word. Of characters beyond ASCII, WGSL's blanks excepted, none stands for itself.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The length of the blank that a text begins with, 0 if there is none, and whether a line ends there.
fn blank(text: &[u8]) -> (usize, bool) {
    match text {
        [b' ' | b'\t', ..] => (1, false),
        [b'\n'..=b'\r', ..] => (1, true),
        [0xc2, 0x85, ..] => (2, true),
        [0xe2, 0x80, 0xa8 | 0xa9, ..] => (3, true),
        [0xe2, 0x80, 0x8e | 0x8f, ..] => (3, false),
        _ => (0, false),
    }
}

/// How far a text goes on as bytes for which this holds, from a place on.
fn up_to(text: &[u8], from: usize, mut goes_on: impl FnMut(&[u8]) -> bool) -> usize {
    let mut at = from;
    while at < text.len() && goes_on(&text[at..]) {
        at += 1;
    }
    at
}

/// How far a word goes on.
fn word_end(text: &[u8], from: usize) -> usize {
    up_to(text, from, |rest| is_word(rest[0]) && blank(rest).0 == 0)
}

fn problem<T>(line: u32, message: impl Into<String>) -> Result<T, Problem> {
    Err(Problem { line, message: message.into() })
}

/// The length of the token that a text begins with, and its kind.
fn first_token(text: &[u8], line: u32) -> Result<(usize, Kind), Problem> {
    let found = match *text {
        [b'/', b'/', ..] => (up_to(text, 2, |rest| !blank(rest).1), Kind::Blank),
        [b'/', b'*', ..] => {
            let (mut at, mut open) = (2, 1);
            while open > 0 {
                (at, open) = match text[at..] {
                    [b'*', b'/', ..] => (at + 2, open - 1),
                    [b'/', b'*', ..] => (at + 2, open + 1),
                    [_, ..] => (at + 1, open),
                    [] => return problem(line, "a comment is not closed"),
                };
            }
            (at, Kind::Blank)
        }
        _ if blank(text).0 > 0 => (blank(text).0, Kind::Blank),
        [b'0'..=b'9', ..] | [b'.', b'0'..=b'9', ..] => {
            let hex = matches!(text, [b'0', b'x' | b'X', ..]);
            let mut before = 0;
            let end = up_to(text, 0, |rest| {
                let exponent = matches!(before, b'p' | b'P') || (!hex && matches!(before, b'e' | b'E'));
                before = rest[0];
                (is_word(before) && blank(rest).0 == 0) || before == b'.' || (exponent && matches!(before, b'+' | b'-'))
            });
            (end, Kind::Number)
        }
        [first, ..] if is_word(first) => (word_end(text, 1), Kind::Word),
        _ => (1, Kind::Sign),
    };
    Ok(found)
}

/// What a compiler says, with names as the caller wrote them.
#[cfg(feature = "wgpu")]
pub(crate) fn without_prefixes(message: &str) -> String {
    let (mut said, mut at) = (String::new(), 0);
    while at < message.len() {
        let end = word_end(message.as_bytes(), at);
        let word = &message[at..end];
        let numbered = word.strip_prefix("hook").and_then(|rest| {
            let digits = up_to(rest.as_bytes(), 0, |rest| rest[0].is_ascii_digit());
            rest[digits..].strip_prefix('_').filter(|_| digits > 0)
        });
        said += numbered.or(word.strip_prefix(super::BUFFER_PREFIX)).unwrap_or(word);
        at = up_to(message.as_bytes(), end, |rest| !is_word(rest[0]) || blank(rest).0 > 0);
        // A blank of several bytes ends with bytes that would be a word's.
        while !message.is_char_boundary(at) {
            at += 1;
        }
        said += &message[end..at];
    }
    said
}

impl<'a> Text<'a> {
    /// A text in words.
    ///
    /// # Errors
    /// A comment or a bracket that is not closed, brackets or statements that go beyond all bounds.
    pub fn new(source: &'a str) -> Result<Self, Problem> {
        let (mut tokens, mut at, mut line) = (vec![], 0, 1);
        while at < source.len() {
            let (length, kind) = first_token(&source.as_bytes()[at..], line)?;
            let text = &source[at..at + length];
            tokens.push(Token { kind, text, line, is_member: false });
            line += text.bytes().filter(|&byte| byte == b'\n').count() as u32;
            at += length;
        }
        let mut found = Self { tokens, declared: vec![] };
        found.look_through()?;
        Ok(found)
    }

    /// Finds members and what is declared; checks brackets.
    fn look_through(&mut self) -> Result<(), Problem> {
        let solid: Vec<usize> = (0..self.tokens.len()).filter(|&i| self.tokens[i].kind != Kind::Blank).collect();
        let text_at = |tokens: &[Token<'a>], n: usize| solid.get(n).map_or("", |&i| tokens[i].text);
        let mut open: Vec<(&str, u32)> = vec![];
        // Words and signs since the last comma or the like, within each of the open brackets and outside of all.
        let mut counts = vec![0usize];
        let mut elses = 0;
        // The number of brackets around the members of a struct, where one is open.
        let mut members = None;
        let mut in_struct = false;
        for (n, &i) in solid.iter().enumerate() {
            let Token { kind, text, line, .. } = self.tokens[i];
            let before = if n == 0 { "" } else { text_at(&self.tokens, n - 1) };
            counts[open.len()] += 1;
            match text {
                "{" | "(" | "[" => {
                    open.push((text, line));
                    counts.push(0);
                    if text == "{" && in_struct {
                        (in_struct, members) = (false, Some(open.len()));
                    }
                }
                "}" | ")" | "]" => {
                    let closes = matches!(
                        (open.pop(), text),
                        (Some(("{", _)), "}") | (Some(("(", _)), ")") | (Some(("[", _)), "]")
                    );
                    if !closes {
                        return problem(line, format!("`{text}` closes nothing"));
                    }
                    counts.truncate(open.len() + 1);
                    members = members.filter(|&depth| depth <= open.len());
                }
                _ => {}
            }
            if matches!(text, ";" | "," | "}") {
                counts[open.len()] = 0;
            }
            elses += usize::from(text == "else");
            if elses > MOST_ELSE {
                return problem(line, format!("there are more than {MOST_ELSE} `else`"));
            }
            if open.len() > MOST_NESTED {
                return problem(line, format!("brackets nest more than {MOST_NESTED} deep"));
            }
            if counts.iter().sum::<usize>() > MOST_IN_EXPRESSION {
                return problem(line, format!("an expression has more than {MOST_IN_EXPRESSION} words and signs"));
            }
            if kind != Kind::Word {
                continue;
            }
            let is_member = members == Some(open.len()) && text_at(&self.tokens, n + 1) == ":";
            self.tokens[i].is_member = is_member || matches!(before, "." | "@");
            if open.is_empty() {
                in_struct |= text == "struct";
                let declares = matches!(before, "fn" | "struct" | "alias" | "const" | "override");
                let begins = |k: usize| n > k && text_at(&self.tokens, n - k - 1) == "var";
                // var name, var<private> name
                if declares || before == "var" || (before == ">" && (begins(3) || begins(5))) {
                    self.declared.push(text);
                }
            }
        }
        match open.last() {
            Some((text, line)) => problem(*line, format!("`{text}` is not closed")),
            None => Ok(()),
        }
    }

    /// Whether it declares this at module level.
    pub fn declares(&self, name: &str) -> bool {
        self.declared.contains(&name)
    }

    /// All that it declares at module level.
    pub fn declared(self) -> Vec<&'a str> {
        self.declared
    }

    /// What a hook must not contain: what reaches other memory than its own, what other threads take part in, and arrays that leave a
    /// thread's registers and stack.
    pub fn check(&self) -> Result<(), Problem> {
        let solid: Vec<&Token> = self.tokens.iter().filter(|token| token.kind != Kind::Blank).collect();
        let text = |n: usize| solid.get(n).map_or("", |token| token.text);
        for (n, token) in solid.iter().enumerate() {
            let Token { text: word, line, .. } = **token;
            if word == "@" && !matches!(text(n + 1), "align" | "size" | "must_use") {
                return problem(
                    line,
                    format!("a hook has no attribute `@{}`: its buffers are declared beside its source", text(n + 1)),
                );
            }
            if token.kind != Kind::Word || token.is_member {
                continue;
            }
            if matches!(word, "override" | "enable" | "requires" | "diagnostic" | "discard") {
                return problem(line, format!("a hook has no `{word}`"));
            }
            if word == "var" && text(n + 1) == "<" && !matches!(text(n + 2), "private" | "function") {
                let space = text(n + 2);
                return problem(
                    line,
                    format!("a hook has no `var<{space}>`: its variables are its thread's own, `var<private>`"),
                );
            }
            let of_group = |start: &str| {
                word.strip_prefix(start).is_some_and(|rest| rest.bytes().next().is_some_and(|b| b.is_ascii_uppercase()))
            };
            let waits =
                matches!(word, "workgroupBarrier" | "storageBarrier" | "textureBarrier" | "workgroupUniformLoad");
            if (waits || of_group("subgroup") || of_group("quad")) && !self.declares(word) {
                return problem(line, format!("a hook does not call `{word}`: not all threads call a hook together"));
            }
        }
        if self.declared.len() > MOST_DECLARED {
            return problem(1, format!("a hook declares {} names; at most {MOST_DECLARED}", self.declared.len()));
        }
        let declares = |&n: &usize| matches!(text(n), "struct" | "alias" | "const");
        let places = (0..solid.len()).filter(declares).collect();
        Types { solid, places, known: SmallMap::default(), declared: &self.declared }.check()
    }

    /// The text with a prefix before what it declares, before names that are `taken`, and before those that begin as prefixes do;
    /// `buffers` get one of their own. Comments become blanks; lines stay lines.
    pub fn renamed(&self, prefix: &str, buffers: &[(String, crate::Layout)], taken: &[&str]) -> String {
        let mut all = String::new();
        for token in &self.tokens {
            let text = token.text;
            if token.kind == Kind::Blank {
                all.extend(text.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
                continue;
            }
            if token.kind == Kind::Word && !token.is_member {
                let is_buffer = buffers.iter().any(|(name, _)| name == text);
                let is_taken = (taken.contains(&text) && text != "Position") || text.starts_with("hook");
                all += match (self.declares(text), is_buffer, is_taken) {
                    (true, ..) | (false, false, true) => prefix,
                    (false, true, _) => super::BUFFER_PREFIX,
                    (false, false, false) => "",
                };
            }
            all += text;
        }
        all
    }
}

/// How large the types are that a text names.
struct Types<'a> {
    solid: Vec<&'a Token<'a>>,
    /// Where it declares something.
    places: Vec<usize>,
    declared: &'a [&'a str],
    /// Of what it declares: bytes, or nothing while they are looked for.
    known: SmallMap<&'a str, Option<u64>>,
}

impl<'a> Types<'a> {
    fn text(&self, n: usize) -> &'a str {
        self.solid.get(n).map_or("", |token| token.text)
    }

    fn line(&self, n: usize) -> u32 {
        self.solid.get(n).or(self.solid.last()).map_or(1, |token| token.line)
    }

    /// Where a word declares this name: at `struct`, `alias` or `const`.
    fn declaration(&self, what: &str, name: &str) -> Option<usize> {
        self.places.iter().copied().find(|&n| self.text(n) == what && self.text(n + 1) == name)
    }

    /// Whether this is the name of a type of its own.
    fn is_own(&self, name: &str) -> bool {
        self.declared.contains(&name) && ["struct", "alias"].iter().any(|what| self.declaration(what, name).is_some())
    }

    fn check(mut self) -> Result<(), Problem> {
        let (mut n, mut all) = (0, 0u64);
        while n < self.solid.len() {
            let is_type = self.solid[n].kind == Kind::Word && !self.solid[n].is_member;
            let declares = n > 0 && matches!(self.text(n - 1), "struct" | "alias" | "fn");
            let own = is_type && !declares && self.is_own(self.text(n));
            if own || (is_type && self.text(n) == "array" && self.text(n + 1) == "<") {
                let (bytes, next) = self.bytes(n)?;
                all = all.saturating_add(bytes);
                if all > MOST_ARRAY_BYTES {
                    let message =
                        format!("the arrays and structs up to here hold {all} bytes; at most {MOST_ARRAY_BYTES}");
                    return problem(self.line(n), message);
                }
                n = next;
            } else {
                n += 1;
            }
        }
        Ok(())
    }

    /// Bytes of the type that begins at a word, and what comes behind it.
    fn bytes(&mut self, n: usize) -> Result<(u64, usize), Problem> {
        let name = self.text(n);
        if name == "array" && self.text(n + 1) == "<" {
            let (element, mut next) = self.bytes(n + 2)?;
            let mut count = 1;
            if self.text(next) == "," {
                count = self.count(next + 1)?;
                next += 2 + usize::from(self.text(next + 2) == ",");
            }
            return match self.text(next) {
                ">" => Ok((element.saturating_mul(count), next + 1)),
                _ => problem(self.line(n), "the length of an array must be a number, or a constant that is one"),
            };
        }
        if let Some(known) = self.known.get(&name) {
            return match known {
                Some(bytes) => Ok((*bytes, n + 1)),
                None => problem(self.line(n), format!("`{name}` contains itself")),
            };
        }
        let (of_struct, of_alias) = (self.declaration("struct", name), self.declaration("alias", name));
        if of_struct.is_none() && of_alias.is_none() {
            // A vector or a number; its own type, if it stands there, is no larger.
            let mut next = n + 1;
            if self.text(next) == "<" {
                while !matches!(self.text(next), ">" | "" | ";") {
                    next += 1;
                }
                next += 1;
            }
            return Ok((if name.starts_with("mat") { 64 } else { 16 }, next));
        }
        self.known.insert(name, None);
        let bytes = match (of_struct, of_alias) {
            (_, Some(at)) => self.bytes(at + 3)?.0,
            (Some(at), _) => self.members(at + 3)?,
            (None, None) => 0,
        };
        self.known.insert(name, Some(bytes));
        Ok((bytes, n + 1))
    }

    /// Bytes of all members of a struct, of which the first begins here.
    fn members(&mut self, mut n: usize) -> Result<u64, Problem> {
        let mut all = 0u64;
        while !matches!(self.text(n), "}" | "") {
            if self.text(n) == "@" && self.text(n + 1) != "must_use" {
                // @size(…) and @align(…) may make it larger.
                all = all.saturating_add(self.count(n + 3)?);
            }
            if self.solid[n].is_member && self.text(n + 1) == ":" {
                let (bytes, next) = self.bytes(n + 2)?;
                (all, n) = (all.saturating_add(bytes), next);
            } else {
                n += 1;
            }
        }
        Ok(all)
    }

    /// A whole number, or a constant that is one.
    fn count(&self, n: usize) -> Result<u64, Problem> {
        let constant = || {
            let at = self.declaration("const", self.text(n))?;
            let is = (at + 2..at + 6).find(|&k| self.text(k) == "=")?;
            whole_number(self.text(is + 1)).filter(|_| self.text(is + 2) == ";")
        };
        let found = whole_number(self.text(n)).or_else(constant);
        found.map_or_else(
            || problem(self.line(n), format!("`{}` must be a number, or a constant that is one", self.text(n))),
            Ok,
        )
    }
}

/// A whole number as WGSL writes it.
fn whole_number(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('u').or(text.strip_suffix('i')).unwrap_or(text);
    let hex = digits.strip_prefix("0x").or(digits.strip_prefix("0X"));
    let (digits, radix) = hex.map_or((digits, 10), |digits| (digits, 16));
    let next = |sum: u64, byte| sum.checked_mul(radix.into())?.checked_add(char::from(byte).to_digit(radix)?.into());
    digits.bytes().try_fold(0, next).filter(|_| !digits.is_empty())
}

#[cfg(test)]
mod tests {
    use super::Text;

    fn renamed(source: &str) -> String {
        Text::new(source).unwrap().renamed(
            "hook0_",
            &[("data".into(), crate::Layout::heads_first(crate::DType::F32, [1; 4]))],
            &["k", "tile_data"],
        )
    }

    #[test]
    fn names_become_its_own() {
        assert_eq!(renamed("fn log2(x: f32) -> f32 { return x; }"), "fn hook0_log2(x: f32) -> f32 { return x; }");
        // What is declared or taken, wherever it stands; members and builtin functions stay.
        assert_eq!(
            renamed(
                "struct m { k: u32, @size(16) m: vec2f } const c = 1.5e-3; fn f(k: m) -> f32 { let a = k.m.x; return log2(k.k) + tile_data[0] + data[1]; }"
            ),
            "struct hook0_m { k: u32, @size(16) m: vec2f } const hook0_c = 1.5e-3; fn hook0_f(hook0_k: hook0_m) -> f32 { let a = hook0_k.m.x; return log2(hook0_k.k) + hook0_tile_data[0] + hooks_data[1]; }"
        );
        assert_eq!(
            renamed(
                "var<private> a: f32; var<private, read_write> b: f32; alias d = f32; fn hook_1() { a = b; hook1_x(); }"
            ),
            "var<private> hook0_a: f32; var<private, read_write> hook0_b: f32; alias hook0_d = f32; fn hook0_hook_1() { hook0_a = hook0_b; hook0_hook1_x(); }"
        );
        // Comments go, lines stay; a line ends where a compiler ends it.
        assert_eq!(
            renamed("/* fn a() {}\n /* } */ */fn b() { // c {\n}"),
            "            \n           fn hook0_b() {       \n}"
        );
        assert_eq!(renamed("//\u{2028}fn a() {}"), "     fn hook0_a() {}");
    }

    #[test]
    fn what_cannot_be_is_told_with_its_line() {
        let says = |source: &str, line: u32, word: &str| {
            let problem = Text::new(source).and_then(|text| text.check()).expect_err(source);
            assert!(problem.line == line && problem.message.contains(word), "{source}: {problem:?}");
        };
        says("fn f() {}\n/* a", 2, "comment");
        says("fn f() {\n", 1, "`{` is not closed");
        says("fn f() {}\n}", 2, "`}` closes nothing");
        says("fn f() { (]; }", 1, "`]` closes nothing");
        says("\n@group(3) @binding(0) var<storage> x: f32;", 2, "@group");
        says("override a = 1;", 1, "override");
        says("enable f16;", 1, "enable");
        says("var<workgroup> x: u32;", 1, "var<workgroup>");
        says("fn f() {\n workgroupBarrier(); }", 2, "workgroupBarrier");
        says("fn f() { subgroupAdd(1); }", 1, "subgroupAdd");
        says("var<private> x: array<f32, 2000>;", 1, "32000 bytes");
        says("const n = 1000u; struct S { a: array<vec4f, n> }\nvar<private> x: array<S, 2>;", 2, "48000");
        says("alias A = B; alias B = A; var<private> x: A;", 1, "contains itself");
        says("fn f() { var x: array<f32, 1 + 1>; }", 1, "number");
        says(&format!("fn f() {{ {}1{}; }}", "(".repeat(100), ")".repeat(100)), 1, "nest");
        says(&"fn f() {}".repeat(300), 1, "300 names");
        says(&format!("const x = 1{};", "+1".repeat(3000)), 1, "an expression");
        let fine = "fn workgroupBarrier() {} const n: u32 = 16; fn f() -> array<f32, n> { workgroupBarrier(); var x: array<array<f32, 4>, n,>; return x[0]; }";
        assert_eq!(Text::new(fine).unwrap().check(), Ok(()));
    }
}
