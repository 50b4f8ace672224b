//! Text for a terminal.

/// Columns of a line.
const WIDTH: usize = 100;

/// Lines of at most a hundred characters, broken at spaces; those after the first are indented.
pub fn wrapped(text: &str, indent: &str) -> String {
    let mut words = text.split(' ');
    let mut lines = vec![words.next().unwrap_or_default().to_string()];
    for word in words {
        let line = lines.last_mut().expect("one at least");
        if line.trim().is_empty() || line.chars().count() + 1 + word.chars().count() <= WIDTH {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(format!("{indent}{word}"));
        }
    }
    lines.join("\n")
}

/// At most so many characters.
pub fn clipped(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::{WIDTH, clipped, wrapped};

    #[test]
    fn lines_are_short_and_keep_every_word() {
        let text = "Wörter ".repeat(50);
        let found = wrapped(text.trim(), "  ");
        assert!(found.lines().count() > 3 && found.lines().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(found.split_whitespace().count(), 50);
        assert!(found.lines().skip(1).all(|line| line.starts_with("  W")));
        assert_eq!(wrapped("   a  b", ""), "   a  b");
        assert_eq!((clipped("abc", 3), clipped("abcd", 3)), ("abc".into(), "ab…".into()));
    }
}
