//! Loops over what a thread holds in registers: written out where [`crate::Caps::wants_unrolled`], and in engine `processor`.

use std::fmt::Write;

/// Which marked loops are written out.
///
/// A mark is what the bound begins with: `for (var i = 0u; i < EVERY_RT; i++) { … }`, also `EVERY_CT / 4u`. The rest is the name of a
/// constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WrittenOut {
    None,
    /// Those with `EVERY_`: the innermost, which browsers do not see through.
    Every,
    /// Those with `EACH_` too: all, where a register that is chosen by a variable is out of the question.
    Each,
}

const MARKS: [&str; 2] = ["EVERY_", "EACH_"];

impl WrittenOut {
    /// The text with these loops written out: their bodies one after another, with a number in place of the variable.
    pub(super) fn text(self, text: &str, constants: &[(&'static str, u32)]) -> String {
        let (written, looped) = MARKS.split_at(self as usize);
        let text = written.iter().fold(text.to_string(), |text, mark| unrolled(&text, mark, constants));
        looped.iter().fold(text, |text, mark| text.replace(mark, ""))
    }
}

fn unrolled(text: &str, mark: &str, constants: &[(&'static str, u32)]) -> String {
    let Some(at) = text.find(mark) else { return text.into() };
    // `for (var i = 0u; i < `
    let (before, head) = text[..at].rsplit_once('(').expect("a loop");
    let before = &before[..before.len() - "for ".len()];
    let variable = head.split(' ').nth(1).expect("its variable");
    let (bound, after) = text[at + mark.len()..].split_once(';').expect("a bound");
    let (_, after) = after.split_once('{').expect("a body");
    let (body, after) = after.split_at(block_end(after));
    let body = unrolled(body, mark, constants);
    let mut all = before.to_string();
    for i in 0..count(bound, constants) {
        let _ = write!(all, "{{{}}}", substituted(&body, variable, &format!("{i}u")));
    }
    all + &unrolled(&after[1..], mark, constants)
}

/// Where the block ends that has begun before the text.
fn block_end(text: &str) -> usize {
    let mut depth = 1;
    let ends = |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth == 0
    };
    text.find(ends).expect("a block that ends")
}

/// A constant, or a constant divided by a number.
fn count(bound: &str, constants: &[(&'static str, u32)]) -> u32 {
    let (name, divisor) = bound.split_once('/').unwrap_or((bound, "1u"));
    let (_, value) = constants.iter().find(|(other, _)| *other == name.trim()).expect("a constant of the shader");
    value / divisor.trim().trim_end_matches('u').parse::<u32>().expect("a number")
}

/// The text with another word in place of one.
fn substituted(text: &str, word: &str, by: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut all = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        let end = rest[start..].find(|c| !is_word(c)).map_or(rest.len(), |n| start + n);
        all += &rest[..start];
        all += if &rest[start..end] == word { by } else { &rest[start..end] };
        rest = &rest[end..];
    }
    all + rest
}

#[cfg(test)]
mod tests {
    use super::WrittenOut;

    #[test]
    fn marked_loops_are_written_out() {
        let text = "a; for (var i = 0u; i < EVERY_N; i++) { x[i] = is; for (var j = 0u; j < EACH_M / 4u; j++) {y[i][j]} } for (k) {z}";
        let looped =
            "a; for (var i = 0u; i < N; i++) { x[i] = is; for (var j = 0u; j < M / 4u; j++) {y[i][j]} } for (k) {z}";
        let inner = |i: u32| format!("for (var j = 0u; j < M / 4u; j++) {{y[{i}u][j]}}");
        let every = format!("a; {{ x[0u] = is; {} }}{{ x[1u] = is; {} }} for (k) {{z}}", inner(0), inner(1));
        let each = "a; { x[0u] = is; {y[0u][0u]}{y[0u][1u]} }{ x[1u] = is; {y[1u][0u]}{y[1u][1u]} } for (k) {z}";
        let constants = [("M", 8), ("N", 2)];
        assert_eq!(WrittenOut::None.text(text, &constants), looped);
        assert_eq!(WrittenOut::Every.text(text, &constants), every);
        assert_eq!(WrittenOut::Each.text(text, &constants), each);
    }
}
