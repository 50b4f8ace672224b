//! Tensors of a safetensors file, by name, in one order of dimensions.

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use wgpu_attention::{DType, Error, Layout, Result};

/// The order of dimensions in a file. In memory it is always [batch, heads, sequence, head_dim].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    HeadsFirst,
    HeadsLast,
}

/// A tensor of floats as [batch, heads, sequence, head_dim], rounded to its type.
#[derive(Clone, Debug)]
pub struct Floats {
    pub dtype: DType,
    pub shape: [usize; 4],
    pub values: Vec<f32>,
}

impl Floats {
    /// As it lies in a buffer of its own.
    pub fn layout(&self) -> Layout {
        Layout::heads_first(self.dtype, self.shape)
    }
}

/// A tensor as a file has it: name, type, shape and bytes.
pub type Encoded = (String, Dtype, Vec<usize>, Vec<u8>);

/// A result, in the order in which it is written.
pub struct Output {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

pub fn error(argument: impl ToString, value: impl ToString, bound: impl ToString) -> Error {
    Error::Argument { argument: argument.to_string(), value: value.to_string(), bound: bound.to_string() }
}

/// A tensor as a file has it.
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// The file's tensors, and which were read.
pub struct Inputs {
    file: String,
    order: Order,
    dtype: Option<DType>,
    tensors: Vec<Stored>,
    read: RefCell<BTreeSet<String>>,
}

impl Inputs {
    pub fn read(path: &Path, order: Order, dtype: Option<DType>) -> Result<Self> {
        let file = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| error(&file, format!("\"{e}\""), "a readable file"))?;
        let found =
            SafeTensors::deserialize(&bytes).map_err(|e| error(&file, format!("\"{e}\""), "a safetensors file"))?;
        let tensor = |(name, view): (&str, TensorView)| Stored {
            name: name.into(),
            dtype: view.dtype(),
            shape: view.shape().into(),
            data: view.data().into(),
        };
        let tensors = found.iter().map(tensor).collect();
        Ok(Self { file, order, dtype, tensors, read: RefCell::default() })
    }

    /// The names that nobody asked for.
    pub fn unread(&self) -> Vec<String> {
        let names = self.tensors.iter().map(|tensor| tensor.name.clone());
        names.filter(|name| !self.read.borrow().contains(name)).collect()
    }

    /// The names of those that were read and lost digits.
    pub fn converted(&self) -> Vec<String> {
        let read = |tensor: &&Stored| tensor.dtype == Dtype::F64 && self.read.borrow().contains(&tensor.name);
        self.tensors.iter().filter(read).map(|tensor| tensor.name.clone()).collect()
    }

    /// The error for a tensor that is not there, with what is there. `what` it should be, if that is more than a name.
    pub fn missing(&self, name: &str, what: &str) -> Error {
        let mut names: Vec<&str> = self.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        let has = if names.is_empty() { "nothing".into() } else { names.join(", ") };
        error(self.what(name), "missing", format!("in the file{what}; the file has {has}"))
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.name == name)
    }

    /// How many dimensions a tensor has, if it is there.
    pub fn dimensions(&self, name: &str) -> Option<usize> {
        self.tensors.iter().find(|tensor| tensor.name == name).map(|tensor| tensor.shape.len())
    }

    /// The name of a tensor in errors.
    pub fn what(&self, name: &str) -> String {
        format!("{}: {name}", self.file)
    }

    fn find(&self, name: &str, types: &[Dtype]) -> Result<Option<&Stored>> {
        let Some(found) = self.tensors.iter().find(|tensor| tensor.name == name) else { return Ok(None) };
        if !types.contains(&found.dtype) {
            let names: Vec<String> = types.iter().map(|dtype| format!("{dtype:?}")).collect();
            return Err(error(
                self.what(name),
                format!("of type {:?}", found.dtype),
                format!("one of {}", names.join(", ")),
            ));
        }
        self.read.borrow_mut().insert(name.into());
        Ok(Some(found))
    }

    /// Whole numbers: lengths and offsets.
    pub fn integers(&self, name: &str) -> Result<Option<Vec<usize>>> {
        let Some(Stored { dtype, shape, data, .. }) = self.find(name, &[Dtype::I32, Dtype::U32])? else {
            return Ok(None);
        };
        if shape.len() != 1 {
            return Err(error(self.what(name), format!("of shape {shape:?}"), "of one dimension"));
        }
        if *dtype == Dtype::U32 {
            let values: Vec<u32> = bytemuck::pod_collect_to_vec(data.as_slice());
            return Ok(Some(values.into_iter().map(|x| x as usize).collect()));
        }
        let values: Vec<i32> = bytemuck::pod_collect_to_vec(data.as_slice());
        let positive = |(i, &x): (usize, &i32)| {
            usize::try_from(x).map_err(|_| error(format!("{}[{i}]", self.what(name)), x, "0 or more"))
        };
        values.iter().enumerate().map(positive).collect::<Result<_>>().map(Some)
    }

    /// An index of rows, u32 or i32 [batch or 1, heads or 1, count] in either order, as [batch or 1, heads or 1, 1, count]; −1 is none too.
    pub fn index(&self, name: &str) -> Result<(Vec<u32>, [usize; 4])> {
        let missing = || self.missing(name, "");
        let Stored { shape, data, .. } = self.find(name, &[Dtype::U32, Dtype::I32])?.ok_or_else(missing)?;
        let &[batch, heads, count] = shape.as_slice() else {
            return Err(error(self.what(name), format!("of shape {shape:?}"), "of three dimensions"));
        };
        Ok((bytemuck::pod_collect_to_vec(data), [batch, heads, 1, count]))
    }

    /// Lists of whole numbers, u32 or i32 [batch or 1, heads or 1, lists, capacity] in either order; −1 is none.
    pub fn lists(&self, name: &str) -> Result<(Vec<u32>, [usize; 4])> {
        let missing = || self.missing(name, "");
        let Stored { shape, data, .. } = self.find(name, &[Dtype::U32, Dtype::I32])?.ok_or_else(missing)?;
        let fits = <[usize; 4]>::try_from(shape.as_slice());
        let shape = fits.map_err(|_| error(self.what(name), format!("of shape {shape:?}"), "of four dimensions"))?;
        Ok((bytemuck::pod_collect_to_vec(data), shape))
    }

    /// Floats of one dimension, one a head.
    pub fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(Stored { dtype, shape, data, .. }) = self.find(name, &FLOATS)? else { return Ok(None) };
        if shape.len() != 1 {
            return Err(error(self.what(name), format!("of shape {shape:?}"), "of one dimension"));
        }
        Ok(Some(decode(*dtype, data)))
    }

    /// A token tensor: [B, H, N, D] or [B, N, H, D] by the order, or packed [total, H, D].
    pub fn tokens(&self, name: &str, packed: bool) -> Result<Floats> {
        let Stored { dtype, shape, data, .. } = self.find(name, &FLOATS)?.ok_or_else(|| self.missing(name, ""))?;
        let values = decode(*dtype, data);
        let (shape, values) = match (packed, shape.as_slice()) {
            (true, &[total, heads, width]) => ([1, heads, total, width], swap(&values, [1, total, heads, width])),
            (false, &[b, x, y, width]) if self.order == Order::HeadsLast => {
                ([b, y, x, width], swap(&values, [b, x, y, width]))
            }
            (false, &[b, heads, n, width]) => ([b, heads, n, width], values),
            _ => {
                let bound = if packed { "[total, H, D], since there are cu_seqlens" } else { "of four dimensions" };
                return Err(error(self.what(name), format!("of shape {shape:?}"), bound));
            }
        };
        Ok(self.convert(Floats { dtype: stored(*dtype), shape, values }))
    }

    /// Weights with their rank: [..., width], or [heads, ..., width] where they have at least two dimensions more, as [1, heads, all
    /// between, width]. `most` is how many there may be besides the width.
    pub fn weights(&self, name: &str, most: usize) -> Result<Option<(Floats, usize)>> {
        let Some(Stored { dtype, shape, data, .. }) = self.find(name, &FLOATS)? else { return Ok(None) };
        let rank = shape.len();
        let fits = rank == most + 1 || (most == 3 && rank == 3);
        if !fits {
            let dimensions = if most == 3 { "3 or 4".into() } else { (most + 1).to_string() };
            return Err(error(self.what(name), format!("of shape {shape:?}"), format!("of {dimensions} dimensions")));
        }
        let (heads, width) = (if rank > 1 { shape[0] } else { 1 }, shape[rank - 1]);
        let between = shape[rank.min(2) - 1..rank - 1].iter().product::<usize>();
        let shape = [1, heads, if rank > 1 { between } else { 1 }, width];
        let values = decode(*dtype, data);
        Ok(Some((self.convert(Floats { dtype: stored(*dtype), shape, values }), rank)))
    }

    /// One number a token and head, [B, H, N] or [B, N, H] by the order, or packed [total, H]: as [batch, heads, tokens, 1].
    pub fn gates(&self, name: &str, packed: bool) -> Result<Option<Floats>> {
        let Some(Stored { dtype, shape, data, .. }) = self.find(name, &FLOATS)? else { return Ok(None) };
        let values = decode(*dtype, data);
        let (shape, values) = match (packed, shape.as_slice()) {
            (true, &[total, heads]) => ([1, heads, total, 1], swap(&values, [1, total, heads, 1])),
            (false, &[b, n, heads]) if self.order == Order::HeadsLast => {
                ([b, heads, n, 1], swap(&values, [b, n, heads, 1]))
            }
            (false, &[b, heads, n]) => ([b, heads, n, 1], values),
            _ => {
                let bound = if packed { "[total, H], since there are cu_seqlens" } else { "of three dimensions" };
                return Err(error(self.what(name), format!("of shape {shape:?}"), bound));
            }
        };
        Ok(Some(self.convert(Floats { dtype: stored(*dtype), shape, values })))
    }

    /// A state, f32 [batch or sequences, heads, head_dim, value_dim] whatever the order.
    pub fn state(&self, name: &str) -> Result<Option<Floats>> {
        let Some(Stored { dtype, shape, data, .. }) = self.find(name, &EXACT)? else { return Ok(None) };
        Ok(Some(Floats { dtype: DType::F32, shape: self.four(name, shape)?, values: decode(*dtype, data) }))
    }

    /// A normaliser's sum of keys, f32 [batch or sequences, heads, head_dim], or with a dimension of one token before the heads.
    pub fn key_sums(&self, name: &str) -> Result<Option<Floats>> {
        let Some(Stored { dtype, shape, data, .. }) = self.find(name, &EXACT)? else { return Ok(None) };
        let (&[b, h, d] | &[b, 1, h, d]) = shape.as_slice() else {
            return Err(error(self.what(name), format!("of shape {shape:?}"), "[B, H, D] or [B, 1, H, D]"));
        };
        Ok(Some(Floats { dtype: DType::F32, shape: [b, h, d, 1], values: decode(*dtype, data) }))
    }

    /// f32 of one shape, whatever the order.
    pub fn rows(&self, name: &str, expected: &[usize], what: &str) -> Result<Option<Vec<f32>>> {
        let Some(Stored { dtype, shape, data, .. }) = self.find(name, &EXACT)? else { return Ok(None) };
        if shape != expected {
            return Err(error(self.what(name), format!("of shape {shape:?}"), format!("{expected:?}, {what}")));
        }
        Ok(Some(decode(*dtype, data)))
    }

    /// A bias: [B or 1, H or 1, Nq or 1, Nk or 1] in either order.
    pub fn bias(&self, name: &str) -> Result<Option<Floats>> {
        let Some(Stored { dtype, shape, data, .. }) = self.find(name, &FLOATS)? else { return Ok(None) };
        let shape = self.four(name, shape)?;
        Ok(Some(self.convert(Floats { dtype: stored(*dtype), shape, values: decode(*dtype, data) })))
    }

    /// A mask, shaped likewise: zero for false.
    pub fn mask(&self, name: &str) -> Result<Option<Floats>> {
        let Some(Stored { shape, data, .. }) = self.find(name, &[Dtype::U8, Dtype::BOOL])? else { return Ok(None) };
        let values = data.iter().map(|&x| f32::from(u8::from(x != 0))).collect();
        Ok(Some(Floats { dtype: DType::U8, shape: self.four(name, shape)?, values }))
    }

    fn four(&self, name: &str, shape: &[usize]) -> Result<[usize; 4]> {
        shape.try_into().map_err(|_| error(self.what(name), format!("of shape {shape:?}"), "of four dimensions"))
    }

    fn convert(&self, floats: Floats) -> Floats {
        match self.dtype {
            None => floats,
            Some(dtype) => Floats { dtype, values: floats.values.iter().map(|&x| dtype.round(x)).collect(), ..floats },
        }
    }

    /// A result as a file has it: [batch, heads, sequence, head_dim] in the file's order, or packed [total, H, D].
    pub fn output(&self, name: &'static str, floats: Floats, packed: bool) -> Output {
        let Floats { dtype, shape: [b, h, n, d], values } = floats;
        let (shape, values) = match (packed, self.order) {
            (true, _) => (vec![n, h, d], swap(&values, [1, h, n, d])),
            (false, Order::HeadsLast) => (vec![b, n, h, d], swap(&values, [b, h, n, d])),
            (false, Order::HeadsFirst) => (vec![b, h, n, d], values),
        };
        Output { name: name.into(), dtype, shape, values }
    }
}

/// F64, numpy's default, is taken as F32.
const FLOATS: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64];

/// What is f32 whatever the tokens are.
const EXACT: [Dtype; 2] = [Dtype::F32, Dtype::F64];

fn stored(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        _ => DType::F32,
    }
}

pub fn decode(dtype: Dtype, data: &[u8]) -> Vec<f32> {
    let halves = || data.chunks_exact(2).map(|two| [two[0], two[1]]);
    match dtype {
        Dtype::F16 => halves().map(|two| half::f16::from_le_bytes(two).to_f32()).collect(),
        Dtype::BF16 => halves().map(|two| half::bf16::from_le_bytes(two).to_f32()).collect(),
        Dtype::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(data).into_iter().map(|x| x as f32).collect(),
        _ => bytemuck::pod_collect_to_vec(data),
    }
}

pub fn encode(dtype: DType, values: &[f32]) -> (Dtype, Vec<u8>) {
    match dtype {
        DType::F16 => (Dtype::F16, values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect()),
        DType::Bf16 => (Dtype::BF16, values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()),
        DType::U8 => (Dtype::U8, values.iter().map(|&x| x as u8).collect()),
        _ => (Dtype::F32, bytemuck::cast_slice(values).to_vec()),
    }
}

/// [a, b, c, d] to [a, c, b, d].
fn swap(values: &[f32], [a, b, c, d]: [usize; 4]) -> Vec<f32> {
    let mut swapped = Vec::with_capacity(values.len());
    for (i, k, j) in (0..a).flat_map(|i| (0..c).flat_map(move |k| (0..b).map(move |j| (i, k, j)))) {
        let row = ((i * b + j) * c + k) * d;
        swapped.extend_from_slice(&values[row..row + d]);
    }
    swapped
}

/// A file that is written whole or not at all: into another beside it, which takes its place at the end.
pub struct Destination {
    path: PathBuf,
    part: PathBuf,
}

impl Destination {
    /// The same as [`Destination::of`], but not the file that was read.
    pub fn new(path: &Path, input: &Path) -> Result<Self> {
        let same = |other: &Path| Some(std::fs::canonicalize(path).ok()? == std::fs::canonicalize(other).ok()?);
        if same(input) == Some(true) {
            return Err(error("output", format!("\"{}\"", path.display()), "a file other than the input"));
        }
        Self::of(path)
    }

    /// Makes sure that the file can be written, before anything is computed.
    pub fn of(path: &Path) -> Result<Self> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let new = Self { path: path.into(), part: part.into() };
        std::fs::File::create(&new.part).map_err(|e| new.failed(&e))?;
        Ok(new)
    }

    fn failed(&self, e: &dyn std::fmt::Display) -> Error {
        error(self.path.display(), format!("\"{e}\""), "a file that can be written")
    }

    pub fn write(self, outputs: &[Output]) -> Result<()> {
        let encode = |output: &Output| {
            let (dtype, bytes) = encode(output.dtype, &output.values);
            (output.name.clone(), dtype, output.shape.clone(), bytes)
        };
        self.write_tensors(&outputs.iter().map(encode).collect::<Vec<_>>(), None)
    }

    /// The same of tensors as a file has them: name, type, shape and bytes.
    pub fn write_tensors(self, tensors: &[Encoded], metadata: Option<HashMap<String, String>>) -> Result<()> {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            Ok((name, TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| self.failed(&e))?))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let bytes = safetensors::serialize(views, metadata).map_err(|e| self.failed(&e))?;
        let written = std::fs::write(&self.part, bytes).and_then(|()| std::fs::rename(&self.part, &self.path));
        written.map_err(|e| self.failed(&e))
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        // Gone already if all went well.
        let _ = std::fs::remove_file(&self.part);
    }
}
