//! The text of a hook, word by word: what it declares, and its names made its own, so that nothing of a kernel's, no builtin function
//! that a kernel calls and nothing of another hook's is meant by them. Browsers link no WGSL parser of ours, so this looks at words and
//! brackets alone; what else is wrong the compiler tells.

/// Largest source, in bytes.
pub(super) const MOST_BYTES: usize = 64 << 10;

/// What is wrong with a text, and in which of its lines.
#[derive(Debug, PartialEq)]
pub(crate) struct Problem {
    pub line: u32,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// Blanks and comments.
    Blank,
    Word,
    Number,
    /// A single character.
    Sign,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    pub line: u32,
    /// A member of a struct, or an attribute: its name is its own.
    pub is_member: bool,
}

/// A text in words, with what it declares at module level.
#[derive(Debug)]
pub(crate) struct Text<'a> {
    pub(super) tokens: Vec<Token<'a>>,
    pub(super) declared: Vec<&'a str>,
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

pub(super) fn problem<T>(line: u32, message: impl Into<String>) -> Result<T, Problem> {
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
    /// A comment or a bracket that is not closed.
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
        // The number of brackets around the members of a struct, where one is open.
        let mut members = None;
        let mut in_struct = false;
        for (n, &i) in solid.iter().enumerate() {
            let Token { kind, text, line, .. } = self.tokens[i];
            let before = if n == 0 { "" } else { text_at(&self.tokens, n - 1) };
            match text {
                "{" | "(" | "[" => {
                    open.push((text, line));
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
                    members = members.filter(|&depth| depth <= open.len());
                }
                _ => {}
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
                if declares || before == "var" || (before == ">" && (3..7).any(begins)) {
                    self.declared.push(text);
                }
            }
        }
        match open.last() {
            Some((text, line)) => problem(*line, format!("`{text}` is not closed")),
            None => Ok(()),
        }
    }

    /// Whether it has any of these words.
    pub fn says(&self, words: &[&str]) -> bool {
        self.tokens.iter().any(|token| token.kind == Kind::Word && words.contains(&token.text))
    }

    /// Whether it declares this at module level.
    pub fn declares(&self, name: &str) -> bool {
        self.declared.contains(&name)
    }

    /// All that it declares at module level.
    pub fn declared(self) -> Vec<&'a str> {
        self.declared
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
}
