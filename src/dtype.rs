//! Types of elements, in memory and on the host.

mod sealed;

use half::{bf16, f16};
use std::fmt;

/// The type of stored elements. Arithmetic is f32 whatever is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper 16 bits of an f32.
    Bf16,
    /// One byte: for masks, where zero is false.
    U8,
    /// 32-bit unsigned integers: offsets and indices, and masks, where zero is false.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::U8 => 1,
        }
    }

    /// `values` rounded to nearest even, as stored.
    pub(crate) fn encode<E: Element>(self, values: &[E]) -> Vec<u8> {
        if E::DTYPE == Some(self) {
            return bytemuck::cast_slice(values).to_vec();
        }
        let values = values.iter().map(|x| x.to_f64());
        match self {
            DType::F32 => values.flat_map(|x| (x as f32).to_le_bytes()).collect(),
            DType::F16 => values.flat_map(|x| f16::from_f64(x).to_le_bytes()).collect(),
            DType::Bf16 => values.flat_map(|x| bf16::from_f64(x).to_le_bytes()).collect(),
            DType::U8 => values.map(|x| x.round_ties_even() as u8).collect(),
            DType::U32 => values.flat_map(|x| (x.round_ties_even() as u32).to_le_bytes()).collect(),
        }
    }

    pub(crate) fn decode(self, bytes: &[u8]) -> f32 {
        match self {
            DType::F32 => bytemuck::pod_read_unaligned(bytes),
            DType::F16 => bytemuck::pod_read_unaligned::<f16>(bytes).to_f32(),
            DType::Bf16 => bytemuck::pod_read_unaligned::<bf16>(bytes).to_f32(),
            DType::U8 => f32::from(bytes[0]),
            DType::U32 => bytemuck::pod_read_unaligned::<u32>(bytes) as f32,
        }
    }

    /// `x` rounded to nearest even in this type.
    pub fn round(self, x: f32) -> f32 {
        self.decode(&self.encode(&[x]))
    }
}

impl DType {
    /// Whether it holds numbers to compute with.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::Bf16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::U8 => "u8",
            DType::U32 => "u32",
        })
    }
}

/// A type of number on the host that tensors can be made from: f32, f64, [`half::f16`], [`half::bf16`], u8 or u32.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Number {}

impl<E: bytemuck::Pod + Send + Sync + sealed::Number> Element for E {}
