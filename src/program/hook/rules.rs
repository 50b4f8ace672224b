//! What a hook's text must not contain. A browser's compiler has bounds of its own; a native one ends the process.

mod calls;

use super::text::{Kind, Problem, Text, Token, problem};
use crate::small_map::SmallMap;

/// Bytes of all arrays and structs that a source names, each as often as it is named.
const MOST_ARRAY_BYTES: u64 = 16 << 10;
/// Names that a source declares.
const MOST_DECLARED: usize = 256;
/// Brackets within brackets.
const MOST_NESTED: usize = 48;
/// Words and signs of one expression, with those around it: compilers go through an expression by calling themselves.
const MOST_IN_EXPRESSION: usize = 256;
/// Words `else`: compilers go through them in the same way.
const MOST_ELSE: usize = 64;

impl Text<'_> {
    /// What a hook must not contain: what reaches other memory than its own, what other threads take part in, arrays that leave a
    /// thread's registers and stack, and what nests so deep that a compiler's own stack ends.
    pub fn check(&self) -> Result<(), Problem> {
        let solid: Vec<&Token> = self.tokens.iter().filter(|token| token.kind != Kind::Blank).collect();
        check_depth(&solid)?;
        let text = |n: usize| solid.get(n).map_or("", |token| token.text);
        for (n, token) in solid.iter().enumerate() {
            let Token { text: word, line, .. } = **token;
            if word == "@" && !matches!(text(n + 1), "align" | "size" | "must_use") {
                return problem(
                    line,
                    format!("a hook cannot use `@{}`: its buffers are declared beside its source", text(n + 1)),
                );
            }
            if token.kind != Kind::Word || token.is_member {
                continue;
            }
            if matches!(word, "override" | "enable" | "requires" | "diagnostic" | "discard") {
                return problem(line, format!("a hook cannot use `{word}`"));
            }
            if word == "var" && text(n + 1) == "<" && !matches!(text(n + 2), "private" | "function") {
                let space = text(n + 2);
                return problem(
                    line,
                    format!("a hook cannot use `var<{space}>`: its variables are private to a thread"),
                );
            }
            let of_group = |start: &str| {
                word.strip_prefix(start).is_some_and(|rest| rest.bytes().next().is_some_and(|b| b.is_ascii_uppercase()))
            };
            let waits =
                matches!(word, "workgroupBarrier" | "storageBarrier" | "textureBarrier" | "workgroupUniformLoad");
            if (waits || of_group("subgroup") || of_group("quad")) && text(n + 1) == "(" && !self.declares(word) {
                return problem(line, format!("a hook cannot call `{word}`: not all threads call a hook together"));
            }
        }
        if self.declared.len() > MOST_DECLARED {
            return problem(1, format!("a hook declares {} names (limit: {MOST_DECLARED})", self.declared.len()));
        }
        let declares = |&n: &usize| matches!(text(n), "struct" | "alias" | "const");
        let places = (0..solid.len()).filter(declares).collect();
        let types = Types { solid: &solid, places, depth: 0, known: SmallMap::default(), declared: &self.declared };
        let nested = types.is_nested();
        calls::check(&solid, &types.check()?, nested)
    }
}

/// Brackets and expressions within one another.
fn check_depth(solid: &[&Token]) -> Result<(), Problem> {
    // Words and signs since the last comma or the like, outside of all brackets and within each that is open.
    let (mut counts, mut elses) = (vec![0usize], 0);
    for &&Token { text, line, .. } in solid {
        if let Some(count) = counts.last_mut() {
            *count += 1;
        }
        match text {
            "{" | "(" | "[" => counts.push(0),
            "}" | ")" | "]" => counts.truncate(counts.len() - 1),
            _ => {}
        }
        if let (";" | "," | "}", Some(count)) = (text, counts.last_mut()) {
            *count = 0;
        }
        elses += usize::from(text == "else");
        let nested = counts.len() - 1;
        if nested > MOST_NESTED {
            return problem(line, format!("brackets nest more than {MOST_NESTED} deep"));
        }
        if counts.iter().sum::<usize>() > MOST_IN_EXPRESSION {
            return problem(line, format!("an expression has more than {MOST_IN_EXPRESSION} words and signs"));
        }
        if elses > MOST_ELSE {
            return problem(line, format!("there are more than {MOST_ELSE} `else` keywords"));
        }
    }
    Ok(())
}

/// How large the types are that a text names.
struct Types<'a> {
    solid: &'a [&'a Token<'a>],
    /// Where it declares something.
    places: Vec<usize>,
    /// Types within types that are looked at.
    depth: usize,
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

    /// Arrays and structs that are named, by where they are: their bytes.
    fn check(mut self) -> Result<Vec<(usize, u64)>, Problem> {
        let (mut n, mut all, mut largest, mut found) = (0, 0u64, 0, vec![]);
        while n < self.solid.len() {
            let is_type = self.solid[n].kind == Kind::Word && !self.solid[n].is_member;
            let declares = n > 0 && matches!(self.text(n - 1), "struct" | "alias" | "fn");
            let own = is_type && !declares && self.is_own(self.text(n));
            let (bytes, next) = match (self.text(n), self.text(n + 1)) {
                ("array", "<") if is_type => self.bytes(n)?,
                ("array", "(") if is_type => (self.list_bytes(n + 1, largest), n + 1),
                _ if own => self.bytes(n)?,
                _ => (0, n + 1),
            };
            if bytes > 0 {
                found.push((n, bytes));
                largest = largest.max(bytes);
                all = all.saturating_add(bytes);
                if all > MOST_ARRAY_BYTES {
                    let message =
                        format!("the arrays and structs up to here hold {all} bytes (limit: {MOST_ARRAY_BYTES})");
                    return problem(self.line(n), message);
                }
            }
            n = next;
        }
        Ok(found)
    }

    /// Bytes of `array(…)`, of which the bracket is here: its elements are numbers, vectors and matrices, or may be as large as the
    /// largest array or struct so far.
    fn list_bytes(&self, bracket: usize, largest: u64) -> u64 {
        let (mut n, mut open, mut count, mut element, mut begins) = (bracket + 1, 1, 0u64, 16, true);
        while open > 0 && n < self.solid.len() {
            let (text, next) = (self.text(n), self.text(n + 1));
            if begins && text != ")" {
                count += 1;
                let is_word = self.solid[n].kind == Kind::Word;
                element = element.max(match text {
                    "array" if next == "(" => self.list_bytes(n + 1, largest),
                    "(" | "*" | "&" => largest,
                    _ if is_word && text.starts_with("mat") => 64,
                    _ if is_word && matches!(next, "," | ")" | "[" | ".") => largest,
                    _ if is_word && next == "(" && self.declared.contains(&text) => largest,
                    _ => 0,
                });
            }
            begins = open == 1 && text == ",";
            match text {
                "(" | "[" | "{" => open += 1,
                ")" | "]" | "}" => open -= 1,
                _ => {}
            }
            n += 1;
        }
        count.saturating_mul(element)
    }

    /// Whether elements or members may be arrays or structs themselves.
    fn is_nested(&self) -> bool {
        let within = |n: usize| {
            let inner = self.text(n + 2);
            self.text(n) == "array" && self.text(n + 1) == "<" && (inner == "array" || self.is_own(inner))
        };
        let list = |n: usize| {
            self.text(n) == "array"
                && self.text(n + 1) == "("
                && !self.solid[n + 2..].is_empty()
                && self.solid[n + 2].kind == Kind::Word
        };
        self.places.iter().any(|&n| self.text(n) == "struct") || (0..self.solid.len()).any(|n| within(n) || list(n))
    }

    /// Bytes of the type that begins at a word, and what comes behind it.
    fn bytes(&mut self, n: usize) -> Result<(u64, usize), Problem> {
        self.depth += 1;
        let found = match self.depth > MOST_NESTED {
            true => problem(self.line(n), format!("types nest more than {MOST_NESTED} deep")),
            false => self.bytes_within(n),
        };
        self.depth -= 1;
        found
    }

    fn bytes_within(&mut self, n: usize) -> Result<(u64, usize), Problem> {
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
            return Ok((
                match name {
                    _ if name.starts_with("mat") => 64,
                    "f32" | "i32" | "u32" | "bool" => 4,
                    _ => 16,
                },
                next,
            ));
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
                if !matches!(self.text(n + 4), ")" | ",") {
                    return problem(self.line(n), "`@size` and `@align` must have a number, or a constant that is one");
                }
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
            // Of two of one name the text does not say, word by word, which is meant.
            let all = self.places.iter().filter(|&&k| self.text(k) == "const" && self.text(k + 1) == self.text(n));
            if all.count() > 1 {
                return None;
            }
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
        says("var<private> x: array<f32, 5000>;", 1, "20000 bytes");
        says("const n = 1000u; struct S { a: array<vec4f, n> }\nvar<private> x: array<S, 2>;", 2, "48000");
        let list = |of: &str| format!("array({of}{})", format!(", {of}").repeat(7));
        let lists =
            [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d")].map(|(to, of)| format!("let {to} = {};", list(of)));
        says(&format!("fn f(x: f32) {{ let a = array(x, 1); {} }}", lists.concat()), 1, "hold 18720 bytes");
        says(&format!("fn f() {{ let a = array<f32, 1000>(); {} }}", lists.concat()), 1, "hold 36000 bytes");
        says(&format!("fn f() {{ let a = {}; }}", list(&list(&list(&list("1"))))), 1, "hold 65536 bytes");
        let chain: String = (0..20).map(|n| format!("fn f{n}() {{ f{}(); f{}(); }}\n", n + 1, n + 1)).collect();
        says(&(chain + "fn f20() {}"), 1, "`f0` and all that it calls have 20971506 words");
        says("fn f() { g(); }\nfn g() { f(); }", 1, "calls itself");
        for copy in ["let b = a;", "var<function> b = a;", "b = a;", "_ = a;", "let b = (a);", "x = t[i];", "return a;"]
        {
            let copies = copy.repeat(70);
            says(&format!("const t = array<f32, 1000>(); fn f() {{ var a: array<f32, 1000>; {copies} }}"), 1, "copies");
        }
        let scalars = "let x = score + 1.0; var y = x * 2.0; y = x + y; y += a[3]; let z = g(y); if y == z { y = -x; }";
        let scalars = scalars.repeat(40);
        let fine = format!(
            "fn g(x: f32) -> f32 {{ return x * 2.0; }} fn f(score: f32) {{ var a: array<f32, 4000>; {scalars} }}"
        );
        assert_eq!(Text::new(&fine).unwrap().check(), Ok(()));
        let tables = ["A", "B", "C"].map(|name| format!("const {name} = array(1.0{});", ", 2.0".repeat(31)));
        assert_eq!(Text::new(&tables.concat()).unwrap().check(), Ok(()));
        says(&format!("fn own() {{ {} }}", "fn a(); ".repeat(300)), 1, "256 functions");
        says("alias A = B; alias B = A; var<private> x: A;", 1, "contains itself");
        says("fn f() { var x: array<f32, 1 + 1>; }", 1, "number");
        says(&format!("fn f() {{ {}1{}; }}", "(".repeat(100), ")".repeat(100)), 1, "nest");
        says(&"fn f() {}".repeat(300), 1, "300 names");
        says(&format!("const x = 1{};", "+1".repeat(3000)), 1, "an expression");
        says("fn g() { const n = 4; } fn f() { const n = 9999999; var x: array<f32, n>; }", 1, "number");
        says("struct S { @size(16 * 9999999) a: f32 } var<private> x: S;", 1, "@size");
        says(&format!("var<private> x: {}f32{};", "array<".repeat(60), ">".repeat(60)), 1, "types nest");
        assert_eq!(Text::new("fn f(quadIndex: u32) { let subgroupId = quadIndex; }").unwrap().check(), Ok(()));
        let fine = "fn workgroupBarrier() {} const n: u32 = 16; fn f() -> array<f32, n> { workgroupBarrier(); var x: array<array<f32, 4>, n,>; return x[0]; }";
        assert_eq!(Text::new(fine).unwrap().check(), Ok(()));
    }
}
