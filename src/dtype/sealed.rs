//! What a number on the host is, closed to other crates.

use super::DType;
use half::{bf16, f16};

pub trait Number: Copy {
    /// The type that stores it as it is.
    const DTYPE: Option<DType>;

    fn to_f64(self) -> f64;
}

macro_rules! number {
    ($($ty:ty: $dtype:expr),*) => {
        $(impl Number for $ty {
            const DTYPE: Option<DType> = $dtype;

            fn to_f64(self) -> f64 {
                self.into()
            }
        })*
    };
}
number!(
    f32: Some(DType::F32),
    f64: None,
    f16: Some(DType::F16),
    bf16: Some(DType::Bf16),
    u8: Some(DType::U8),
    u32: Some(DType::U32)
);
