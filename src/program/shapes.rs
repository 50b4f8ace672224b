//! What planning looks at: layouts by name, and numbers.

use super::Name;
use crate::error::require;
use crate::layout::{MAX_BATCH, MAX_HEADS};
use crate::{Error, Layout, Result};

/// Types, shapes and strides of a call's tensors by name, and what else it is planned for: lengths and offsets on the host, sizes of
/// blocks. Outputs that are not named get a contiguous buffer of their own.
///
/// ```
/// use wgpu_attention::plan::{AttentionParams, Caps, Shapes};
/// use wgpu_attention::{DType, FlashParams, Layout};
/// let tokens = Layout::heads_first(DType::F16, [1, 8, 1024, 64]);
/// let shapes = Shapes::new([("q", tokens.clone()), ("k", tokens.clone()), ("v", tokens)]).numbers("seqlens_k", [700]);
/// let program = FlashParams::default().plan(&Caps::core(), &shapes)?;
/// assert_eq!(program.tensor("out").unwrap().layout.shape, [1, 8, 1024, 64]);
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shapes {
    tensors: Vec<(Name, Layout, usize)>,
    numbers: Vec<(Name, Vec<usize>)>,
    wanted: Vec<Name>,
}

impl From<&Shapes> for Shapes {
    fn from(shapes: &Shapes) -> Self {
        shapes.clone()
    }
}

impl Shapes {
    /// A buffer for each of these tensors.
    pub fn new<N: Into<Name>>(tensors: impl IntoIterator<Item = (N, Layout)>) -> Self {
        tensors.into_iter().fold(Self::default(), |all, (name, layout)| all.tensor(name, layout))
    }

    /// The same with one more tensor, or another layout in place of the one that was there.
    pub fn tensor(mut self, name: impl Into<Name>, layout: Layout) -> Self {
        let name = name.into();
        match self.tensors.iter_mut().find(|(other, ..)| *other == name) {
            Some((_, old, _)) => *old = layout,
            None => self.tensors.push((name, layout, self.tensors.len())),
        }
        self
    }

    /// The same with a tensor where there is one.
    pub fn tensor_if(self, name: impl Into<Name>, layout: Option<Layout>) -> Self {
        match layout {
            Some(layout) => self.tensor(name, layout),
            None => self,
        }
    }

    /// The same with these numbers.
    pub fn numbers(mut self, name: impl Into<Name>, numbers: impl Into<Vec<usize>>) -> Self {
        let (name, numbers) = (name.into(), numbers.into());
        self.numbers.retain(|(other, _)| *other != name);
        self.numbers.push((name, numbers));
        self
    }

    /// The same with numbers where there are some.
    pub fn numbers_if(self, name: impl Into<Name>, numbers: Option<impl Into<Vec<usize>>>) -> Self {
        match numbers {
            Some(numbers) => self.numbers(name, numbers),
            None => self,
        }
    }

    /// The same where an optional output is wanted, with a layout of its own.
    pub fn wanted(mut self, name: impl Into<Name>) -> Self {
        self.wanted.push(name.into());
        self
    }

    /// The same where these tensors share one buffer, at their layouts' offsets.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that does not exist.
    pub fn in_one_buffer(mut self, names: &[&str]) -> Result<Self> {
        let missing = |name: &str| Error::argument(name, "unset", "a tensor in the shapes");
        let place = |name: &&str| self.place(name).ok_or_else(|| missing(name));
        let places = names.iter().map(place).collect::<Result<Vec<_>>>()?;
        let first = places.iter().map(|&i| self.tensors[i].2).min();
        for i in places {
            self.tensors[i].2 = first.unwrap_or(i);
        }
        Ok(self)
    }

    /// Where a tensor's elements lie.
    pub fn layout(&self, name: &str) -> Option<&Layout> {
        self.place(name).map(|i| &self.tensors[i].1)
    }

    /// Numbers by their name.
    pub fn get_numbers(&self, name: &str) -> Option<&[usize]> {
        self.numbers.iter().find(|(other, _)| other == name).map(|(_, numbers)| &**numbers)
    }

    /// Puts a tensor into the buffer of the `first` one.
    #[cfg(feature = "wgpu")]
    pub(crate) fn push(&mut self, name: Name, layout: Layout, first: usize) {
        self.tensors.push((name, layout, first));
    }

    #[cfg(feature = "wgpu")]
    pub(crate) fn push_numbers(&mut self, name: Name, numbers: Vec<usize>) {
        self.numbers.push((name, numbers));
    }

    pub(crate) fn tensors(&self) -> &[(Name, Layout, usize)] {
        &self.tensors
    }

    pub(crate) fn all_numbers(&self) -> &[(Name, Vec<usize>)] {
        &self.numbers
    }

    /// Whether an output that may be left out is there, or wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.wanted.iter().any(|other| other == name) || self.layout(name).is_some()
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.tensors.iter().position(|(other, ..)| other == name)
    }

    /// Tensors within 2^64 bytes, with no more batch entries and heads than any kernel takes.
    pub(crate) fn check_sizes(&self) -> Result<()> {
        self.tensors.iter().try_for_each(|(name, layout, _)| check_size(name, layout))
    }

    /// Nothing but these tensors and numbers.
    pub(crate) fn check_names(&self, tensors: &[&str], numbers: &[&str]) -> Result<()> {
        let all = self.tensors.iter().map(|(name, ..)| name).chain(&self.wanted).map(|name| (name, tensors));
        for (name, known) in all.chain(self.numbers.iter().map(|(name, _)| (name, numbers))) {
            let fits = known.iter().any(|other| match other.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == other,
            });
            require(fits, name, "set", format!("unset here: the known names are {}", known.join(", ")))?;
        }
        Ok(())
    }
}

/// The same for one tensor.
pub(super) fn check_size(name: &str, layout: &Layout) -> Result<()> {
    layout.byte_span().map_err(|e| e.of(name))?;
    let most = [MAX_BATCH, MAX_HEADS, u32::MAX as usize, u32::MAX as usize];
    if let Some(i) = (0..4).find(|&i| layout.shape[i] > most[i]) {
        let bound = format!("at most {}", most[i]);
        return Err(Error::argument(format!("{name}.shape[{i}]"), layout.shape[i], bound));
    }
    Ok(())
}

/// From an object: a tensor is one of `dtype`, `shape` and, where they are not those of a contiguous one, `strides` and `offset`; those
/// with the same `buffer` lie in one. Numbers are arrays. `wanted` has the names of outputs.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Shapes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Entry {
            Numbers(Vec<usize>),
            Wanted(Vec<String>),
            Tensor {
                dtype: crate::DType,
                shape: [usize; 4],
                strides: Option<[usize; 3]>,
                #[serde(default)]
                offset: usize,
                buffer: Option<String>,
            },
        }
        let entries = std::collections::BTreeMap::<String, Entry>::deserialize(deserializer)?;
        let (mut shapes, mut buffers) = (Self::default(), std::collections::BTreeMap::<String, Vec<String>>::new());
        for (name, entry) in entries {
            shapes = match entry {
                Entry::Numbers(numbers) => shapes.numbers(name, numbers),
                Entry::Wanted(names) if name == "wanted" => names.into_iter().fold(shapes, Self::wanted),
                Entry::Wanted(_) => {
                    return Err(serde::de::Error::custom(format!("{name}: neither a tensor nor numbers")));
                }
                Entry::Tensor { dtype, shape, strides, offset, buffer } => {
                    if let Some(buffer) = buffer {
                        buffers.entry(buffer).or_default().push(name.clone());
                    }
                    let contiguous = Layout::heads_first(dtype, shape).at(offset);
                    shapes.tensor(name, Layout { strides: strides.unwrap_or(contiguous.strides), ..contiguous })
                }
            };
        }
        for names in buffers.values() {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            shapes = shapes.in_one_buffer(&names).map_err(serde::de::Error::custom)?;
        }
        Ok(shapes)
    }
}
