//! The command line: what it says and how it ends.

#[path = "common/program.rs"]
mod program;

use program::{Files, refuses, run, succeeds};

#[test]
fn bad_arguments_are_refused_in_one_line() {
    refuses(&["check", "flush"], &["KERNEL is flush", "one of flash"]);
    refuses(
        &["check", "--adapter", "no such GPU"],
        &["no GPU adapter", "none is named \"no such GPU\"", "present: [\""],
    );
    refuses(&["info", "--adapter", "no such GPU"], &["no GPU adapter", "no such GPU", "present: [\""]);
    refuses(&["check", "--data", "no such file"], &["no such file", "a readable file"]);
    refuses(&["check", "--data", "README.md"], &["README.md", "a safetensors file"]);
    refuses(&["check", "--minutes", "1"], &["--fuzz"]);
    refuses(&["check", "--tolerance=-1"], &["--tolerance is -1", "at least 0"]);
    refuses(&["check", "rotary", "--fuzz=1", "--random-only", "--problems=README.md"], &["--problems", "README.md"]);
    refuses(&["run", "problem", "README.md", "out"], &["README.md", "a safetensors file"]);
    refuses(&["run", "problem", "README.md", "out", "--params={\"a\": 1}"], &["--params", "unset: the file says"]);
}

#[test]
fn info_lists_adapters_and_variants() {
    let output = run(&["info"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    // Which engine depends on the adapters.
    let engine = text.contains("flash, portable: 64 × 64 tiles") || text.contains("flash, processor: ");
    assert!(text.contains("threads a workgroup") && engine, "{text}");
}

#[test]
fn shaders_are_written_whole() {
    let folder = std::env::temp_dir().join(format!("wgpu-attention-shaders-{}", std::process::id()));
    let output = run(&["shaders", folder.to_str().expect("a plain path")]);
    assert!(output.status.success());
    let texts: Vec<String> = std::fs::read_dir(&folder)
        .expect("the folder was made")
        .map(|entry| std::fs::read_to_string(entry.expect("readable").path()).expect("readable"))
        .collect();
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    assert!(texts.len() > 60 && texts.iter().all(|text| text.contains("fn main")));
}

/// A problem that fails is written to a file, and `run` repeats it: none may err here, so all do.
#[test]
fn problems_that_fail_are_repeated_from_a_file() {
    let files = Files::new("problems");
    let families = ["flash", "neighborhood", "block-sparse", "score-reduction", "gate", "linear", "merge", "rotary"];
    let folder = files.path("failed");
    let output = run(&[
        &["check"],
        &families[..],
        &["--fuzz=16", "--seed=7", "--random-only", "--tolerance=0", "--problems", &folder],
    ]
    .concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let mut found: Vec<_> =
        std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("a file").path()).collect();
    found.sort();
    for family in families {
        let of_family = |path: &&std::path::PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{family}-")))
        };
        let path = found.iter().find(of_family).unwrap_or_else(|| panic!("no file of {family}: {text}"));
        let (input, output) = (path.to_str().expect("a plain path"), files.path("out"));
        assert!(text.contains(&format!("run problem {input} OUT")), "{text}");
        let said = succeeds(&["run", "problem", input, &output]);
        let differences: Vec<f32> = said
            .lines()
            .filter_map(|line| line.split_once(" from the reference at most")?.0.rsplit_once(' ')?.1.parse().ok())
            .collect();
        assert!(!differences.is_empty() && differences.iter().all(|&x| x < 0.5), "{said}");
    }
    let passed = succeeds(&["check", "merge", "rotary", "--fuzz=4", "--random-only", "--minutes=1"]);
    assert!(passed.contains("4 random problems, 0 failed") && passed.contains("4 passed, 0 failed"), "{passed}");
    let none = run(&["check", "merge", "--fuzz=4", "--random-only", "--minutes=0"]);
    assert_eq!(none.status.code(), Some(1), "nothing was checked");
}
