//! The command line, run as users run it, and files for it.
#![allow(dead_code)] // each test program uses its part

use safetensors::{Dtype, SafeTensors};
use std::process::{Command, Output};
use wgpu_attention::DType;
use wgpu_attention::catalogue::normal;

pub fn run(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_wgpu-attention");
    // Without a desktop session, libraries that drivers load complain on stderr where this is not set.
    let session = std::env::temp_dir();
    Command::new(program).args(arguments).env("XDG_RUNTIME_DIR", session).output().expect("the program starts")
}

/// Asserts one line on stderr with these words, nothing on stdout, and exit code 2.
#[track_caller]
pub fn refuses(arguments: &[&str], words: &[&str]) {
    let output = run(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert_eq!(message.trim().lines().count(), 1, "{message}");
    assert!(output.stdout.is_empty());
    for word in words {
        assert!(message.contains(word), "\"{message}\" does not say \"{word}\"");
    }
}

/// Files of one test, in a folder of their own.
pub struct Files(pub std::path::PathBuf);

impl Files {
    pub fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("wgpu-attention-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for temporary files");
        Self(folder)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a plain path").into()
    }

    /// Writes tensors: (name, type, shape, bytes).
    pub fn write(&self, name: &str, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> String {
        let view = |t: &(&str, Dtype, Vec<usize>, Vec<u8>)| {
            let (name, dtype, shape, bytes) = t.clone();
            (name.to_string(), Owned { dtype, shape, bytes })
        };
        let bytes = safetensors::serialize(tensors.iter().map(view), None).expect("valid tensors");
        std::fs::write(self.path(name), bytes).expect("a writable folder");
        self.path(name)
    }

    /// Reads f32 (or f16) tensors: shape and values.
    pub fn read(&self, name: &str, tensor: &str) -> (Vec<usize>, Vec<f32>) {
        let bytes = std::fs::read(self.path(name)).expect("the program wrote it");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let view = file.tensor(tensor).expect(tensor);
        let values = match view.dtype() {
            Dtype::F16 => view.data().chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => bytemuck::pod_collect_to_vec(view.data()),
        };
        (view.shape().to_vec(), values)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Owned {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl safetensors::View for Owned {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.bytes.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

pub fn floats(name: &'static str, seed: u64, shape: &[usize]) -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    let values = normal(seed, shape.iter().product(), 1.0, DType::F32);
    (name, Dtype::F32, shape.to_vec(), bytemuck::cast_slice(&values).to_vec())
}

pub fn integers(name: &'static str, values: &[i32]) -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    (name, Dtype::I32, vec![values.len()], bytemuck::cast_slice(values).to_vec())
}

pub fn succeeds(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs on the GPU and on the CPU, which must agree.
pub fn agree(files: &Files, input: &str, options: &[&str], tolerance: f32) -> (Vec<usize>, Vec<usize>) {
    agree_on(files, "flash", input, options, tolerance)
}

/// The same for any kernel.
pub fn agree_on(
    files: &Files,
    kernel: &str,
    input: &str,
    options: &[&str],
    tolerance: f32,
) -> (Vec<usize>, Vec<usize>) {
    let mut shapes = None;
    for backend in ["gpu", "reference"] {
        let output = files.path(backend);
        let fixed = ["run", kernel, input, &output, "--backend", backend];
        succeeds(&[&fixed, options].concat());
    }
    for name in ["out", "lse"] {
        let (shape, found) = files.read("gpu", name);
        let (same, expected) = files.read("reference", name);
        assert_eq!(shape, same);
        let near = |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= tolerance;
        assert!(found.iter().zip(&expected).all(near), "{name} {options:?}");
        let (out, _) = shapes.take().unwrap_or((shape.clone(), vec![]));
        shapes = Some((out, shape));
    }
    shapes.expect("two tensors")
}
