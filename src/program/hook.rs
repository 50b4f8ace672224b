//! The caller's own functions that change a score or hide a key, as in FlexAttention.

#[cfg(not(target_arch = "wasm32"))]
mod rules;
mod text;

use crate::error::require;
use crate::program::Name;
use crate::{Caps, DType, Error, Layout, Result};
use std::any::Any;
use std::fmt;
use std::sync::Arc;
pub(crate) use text::Text;
#[cfg(feature = "wgpu")]
pub(crate) use text::without_prefixes;

/// What a buffer's name begins with in a shader.
pub(crate) const BUFFER_PREFIX: &str = "hooks_";

/// A WGSL function that the caller wrote, with the buffers that it reads.
///
/// A `score_mod` is `fn NAME(score: f32, at: Position) -> f32`, in natural units; a `mask_mod` is
/// `fn NAME(at: Position) -> bool`, true where the key is seen. Both must be pure. They get
///
/// ```wgsl
/// struct Position { batch: u32, head: u32, query: u32, key: u32, queries: u32, keys: u32 }
/// ```
///
/// which holds the batch entry (for packed sequences: the sequence), the query head, the positions of query and key in their sequence, and
/// the lengths of the two. `source` may hold constants, types and helper functions in addition to the entry. Each hook's source stands
/// alone, and a text that several hooks share is included once. Its names are its own: nothing else calls a hook's function `log2`, and
/// nothing in a kernel can be reached. A source has at most 64 KiB. It has no directives, no overrides, no attributes other than `@align`,
/// `@size` and `@must_use`, no variables that threads share, no barriers and no subgroup operations. Its arrays and structs hold at most 16
/// KiB, counted as often as they are named; the length of an array is a number or a constant that is one. A function, counting everything
/// that it calls once per call, has at most 65,536 words and signs, and 256 KiB of arrays, structs and copies of them.
///
/// In a browser, its own compiler enforces these rules, or bounds of its own.
///
/// Give variables a value where they are declared: one browser was seen to keep the value of `var sum: f32;` from one call to the next.
///
/// Shaders with a hook keep their bounds checks: a read outside of a buffer gives zero or some element of it, and nothing else of the
/// device's memory. A source without loops costs less than one with loops: the caller's loops are guarded against running forever, and the
/// guard slows down all loops of the shader.
///
/// A `mask_mod` is first evaluated for every pair of query and key, once for all heads if its source does not contain the word `head`.
/// Tiles of keys that it hides from a whole tile of queries are then skipped.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{FlashAttention, FlashParams, Gpu, Hook, Tensor, DType};
/// let gpu = Gpu::request().await?;
/// // Relative positions: a learned value for each distance, as in T5.
/// let distances = Tensor::upload(&gpu, [1, 1, 1, 5], DType::F32, &[0.5, 0.2, 0.1, 0.0, -0.1]).await?;
/// let relative = Hook::new("relative", "
///     fn relative(score: f32, at: Position) -> f32 {
///         let distance = max(at.query, at.key) - min(at.query, at.key);
///         return score + distances[min(distance, 4u)];
///     }").with_buffer("distances", &distances);
/// let params = FlashParams::default().with_score_mod(relative);
/// let x = Tensor::upload(&gpu, [1, 1, 6, 8], DType::F32, &[0.0; 48]).await?;
/// let (_, lse) = FlashAttention::new(&gpu, params)?.forward_with_lse(&wgpu_attention::AttentionInputs::new(&x, &x, &x)).await?;
/// let first: f32 = [0.5f32, 0.2, 0.1, 0.0, -0.1, -0.1].iter().map(|x| x.exp()).sum();
/// assert!((lse.read().await?[0] - first.ln()).abs() < 1e-5);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Hook {
    /// WGSL text that defines the functions.
    pub source: String,
    /// The function's name.
    pub entry: String,
    /// For a `score_mod`, its gradient: `fn NAME(score: f32, at: Position, d_out: f32) -> f32`, which turns the gradient of its result
    /// (`d_out`) into the gradient of its argument.
    #[cfg_attr(feature = "serde", serde(default))]
    pub grad_entry: Option<String>,
    /// What the source reads, by name: `array<f32>` for an f32 tensor, `array<u32>` for any other (16-bit and 8-bit
    /// elements as words), from the tensor's first element on. A call brings them as `buffers.NAME`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub buffers: Vec<(String, Layout)>,
    /// Tensors for calls that bring none, by those names.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(crate) carried: Vec<(String, Carried)>,
}

/// A tensor on a device, of which planning knows nothing.
pub(crate) trait Carry: Any + fmt::Debug + Portable {
    fn is_same(&self, other: &dyn Any) -> bool;
}

/// Goes from thread to thread where there are threads.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) trait Portable: Send + Sync {}
#[cfg(not(target_arch = "wasm32"))]
impl<T: Send + Sync> Portable for T {}
#[cfg(target_arch = "wasm32")]
pub(crate) trait Portable {}
#[cfg(target_arch = "wasm32")]
impl<T> Portable for T {}

/// What stands for a hook's buffer where a call brings none.
#[derive(Clone, Debug)]
pub(crate) struct Carried(pub Arc<dyn Carry>);

impl PartialEq for Carried {
    fn eq(&self, other: &Self) -> bool {
        let other: &dyn Any = &*other.0;
        self.0.is_same(other)
    }
}

impl Hook {
    /// The function `entry` of `source`, with no gradient and no buffers.
    pub fn new(entry: impl Into<String>, source: impl Into<String>) -> Self {
        Self { source: source.into(), entry: entry.into(), grad_entry: None, buffers: vec![], carried: vec![] }
    }

    /// The same with a gradient.
    pub fn with_gradient(self, entry: impl Into<String>) -> Self {
        Self { grad_entry: Some(entry.into()), ..self }
    }

    /// The same with one more buffer, which the source reads by this name and which every call brings.
    pub fn declaring(mut self, name: impl Into<String>, layout: Layout) -> Self {
        self.buffers.push((name.into(), layout));
        self
    }
}

/// A hook in its place in a kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed {
    /// `score_mod[0]` and so on.
    pub place: String,
    pub hook: Hook,
}

impl Placed {
    /// What the entry must look like.
    fn signature(&self) -> String {
        let entry = &self.hook.entry;
        match self.is_mask() {
            true => format!("fn {entry}(at: Position) -> bool"),
            false => format!("fn {entry}(score: f32, at: Position) -> f32"),
        }
    }

    /// Its place, and what it defines.
    pub fn describe(&self) -> String {
        let gradient = self.hook.grad_entry.as_ref();
        let gradient =
            gradient.map_or(String::new(), |e| format!(" and `fn {e}(score: f32, at: Position, d_out: f32) -> f32`"));
        format!("{} (`{}`{gradient})", self.place, self.signature())
    }

    /// Whether one text serves it and another.
    pub fn shares_text(&self, other: &Self) -> bool {
        (&self.hook.source, &self.hook.buffers) == (&other.hook.source, &other.hook.buffers)
    }

    /// The source with names of its own: see [`Text::renamed`].
    pub fn source(&self, prefix: &str, taken: &[&str]) -> String {
        let text = Text::new(&self.hook.source);
        text.map_or(String::new(), |text| text.renamed(prefix, &self.hook.buffers, taken))
    }

    /// Whether its text can be a hook's.
    fn check_text(&self) -> Result<()> {
        let Self { place, hook } = self;
        let bytes = hook.source.len();
        let bound = format!("at most {} bytes", text::MOST_BYTES);
        require(bytes <= text::MOST_BYTES, &format!("{place}.source.len()"), bytes, bound)?;
        let refused = |line, message| Error::Hook { hook: self.describe(), line, message };
        let told = |problem: text::Problem| refused(Some(problem.line), problem.message);
        let text = Text::new(&hook.source).map_err(told)?;
        #[cfg(not(target_arch = "wasm32"))]
        text.check().map_err(told)?;
        for entry in [Some(&hook.entry), hook.grad_entry.as_ref()].into_iter().flatten() {
            if !text.declares(entry) {
                return Err(refused(None, format!("the source has no function `{entry}`")));
            }
        }
        let twice = hook.buffers.iter().find(|(name, _)| text.declares(name));
        let bound = "another name: the source declares this one";
        twice.map_or(Ok(()), |(name, _)| {
            require(false, &format!("{place}.buffers: {name}"), format!("\"{name}\""), bound)
        })
    }

    /// A function `hook_N` that calls the entry, so that a compiler tells a wrong signature there. A gradient is called
    /// along, so that an error in it shows at once.
    pub fn call(&self, number: usize, prefix: &str) -> String {
        let entry = format!("{prefix}{}", self.hook.entry);
        let call = match self.is_mask() {
            true => format!("fn hook_{number}(at: Position) -> bool {{ return {entry}(at); }}\n"),
            false => format!("fn hook_{number}(score: f32, at: Position) -> f32 {{ return {entry}(score, at); }}\n"),
        };
        let gradient = self.hook.grad_entry.as_ref().map(|entry| {
            let parameters = "score: f32, at: Position, d_out: f32";
            format!("fn hook_{number}_grad({parameters}) -> f32 {{ return {prefix}{entry}(score, at, d_out); }}\n")
        });
        call + &gradient.unwrap_or_default()
    }

    /// Whether its source has any of these words, outside of comments. Without the name of a field it cannot read the field,
    /// and without a keyword it has no such statement.
    pub fn says(&self, words: &[&str]) -> bool {
        Text::new(&self.hook.source).map_or(true, |text| text.says(words))
    }

    /// Whether its source may have a loop, or anything like it.
    pub fn may_loop(&self) -> bool {
        self.says(&["for", "while", "loop"])
    }

    /// What it carries for a buffer.
    pub fn carried(&self, name: &str) -> Option<&Carried> {
        self.hook.carried.iter().find(|(other, _)| other == name).map(|(_, carried)| carried)
    }

    pub fn is_mask(&self) -> bool {
        self.place.starts_with("mask")
    }
}

/// Hooks in their order, score hooks first.
pub(crate) fn place(score_mod: &[Hook], mask_mod: &[Hook]) -> Vec<Placed> {
    let of = |what: &'static str, hooks: &[Hook]| -> Vec<Placed> {
        let placed = |(i, hook): (usize, &Hook)| Placed { place: format!("{what}[{i}]"), hook: hook.clone() };
        hooks.iter().enumerate().map(placed).collect()
    };
    [of("score_mod", score_mod), of("mask_mod", mask_mod)].concat()
}

/// Names that are names, buffers that can be bound, one buffer to a name.
pub(crate) fn check(caps: &Caps, hooks: &[Placed]) -> Result<()> {
    for placed @ Placed { place, hook } in hooks {
        let names = [("entry", Some(&hook.entry)), ("grad_entry", hook.grad_entry.as_ref())];
        for (what, name) in names.into_iter().filter_map(|(what, name)| Some((what, name?))) {
            require(is_name(name), &format!("{place}.{what}"), format!("\"{name}\""), "the name of a WGSL function")?;
        }
        if let Some(entry) = hook.grad_entry.as_ref().filter(|_| placed.is_mask()) {
            return Err(Error::argument(format!("{place}.grad_entry"), entry, "unset: a mask has no gradient"));
        }
        for (name, layout) in &hook.buffers {
            let what = format!("{place}.buffers: {name}");
            require(is_name(name), &what, format!("\"{name}\""), "the name of a WGSL variable")?;
            let span = layout.byte_span()?;
            let alignment = caps.binding_alignment();
            let bound = format!("a multiple of {alignment}: bindings are aligned");
            require(span.start.is_multiple_of(alignment), &format!("{what}: offset in bytes"), span.start, bound)?;
            let bytes = (span.end - span.start).next_multiple_of(4);
            caps.within(&what, "maxStorageBufferBindingSize", bytes, caps.binding_bytes)?;
        }
    }
    hooks.iter().try_for_each(Placed::check_text)?;
    let all = || hooks.iter().flat_map(|placed| placed.hook.buffers.iter().map(move |b| (placed, b)));
    for (i, (placed, (name, layout))) in all().enumerate() {
        let same = |other: &Placed, theirs: &Layout| theirs == layout && other.carried(name) == placed.carried(name);
        let other = all().take(i).find(|(other, (known, theirs))| known == name && !same(other, theirs));
        if let Some((first, _)) = other {
            let bound = format!("the same tensor as in {}, or under another name", first.place);
            return Err(Error::argument(format!("{}.buffers: {name}", placed.place), "another tensor", bound));
        }
    }
    Ok(())
}

/// The buffers of all hooks, each name once.
pub(crate) fn buffers(hooks: &[Placed]) -> Vec<(&str, &Layout)> {
    let mut found: Vec<(&str, &Layout)> = Vec::new();
    for (name, layout) in hooks.iter().flat_map(|placed| &placed.hook.buffers) {
        if found.iter().all(|(other, _)| other != name) {
            found.push((name, layout));
        }
    }
    found
}

/// What a call calls a hook's buffer.
pub(crate) fn tensor_name(buffer: &str) -> Name {
    format!("buffers.{buffer}").into()
}

/// The WGSL type of a buffer's elements.
pub(crate) fn element(layout: &Layout) -> &'static str {
    if layout.dtype == DType::F32 { "f32" } else { "u32" }
}

/// What is no name in WGSL.
const KEYWORDS: [&str; 27] = [
    "_",
    "alias",
    "break",
    "case",
    "const",
    "const_assert",
    "continue",
    "continuing",
    "default",
    "diagnostic",
    "discard",
    "else",
    "enable",
    "false",
    "fn",
    "for",
    "if",
    "let",
    "loop",
    "override",
    "requires",
    "return",
    "struct",
    "switch",
    "true",
    "var",
    "while",
];

fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !text.starts_with("__")
        && !KEYWORDS.contains(&text)
}
