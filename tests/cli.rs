//! The command line: what it says and how it ends.

#[path = "common/program.rs"]
mod program;

use program::{refuses, run};

#[test]
fn bad_arguments_are_refused_in_one_line() {
    refuses(&["check", "flush"], &["KERNEL is flush", "one of flash"]);
    refuses(&["check", "--adapter", "no such GPU"], &["no GPU adapter", "no such GPU", "mesa-vulkan-drivers"]);
    refuses(&["info", "--adapter", "no such GPU"], &["no GPU adapter", "no such GPU"]);
    refuses(&["check", "--data", "no such file"], &["no such file", "a readable file"]);
    refuses(&["check", "--data", "README.md"], &["README.md", "a safetensors file"]);
}

#[test]
fn info_lists_adapters_and_variants() {
    let output = run(&["info"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("threads a workgroup") && text.contains("flash, portable: 64 × 64 tiles"), "{text}");
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
