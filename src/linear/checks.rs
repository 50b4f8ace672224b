//! Whether a tensor of a call is as it has to be.

use crate::error::require;
use crate::program::Operand;
use crate::{DType, Result};

/// Whether a tensor, if it is there, has this shape and type: f32 where it is exact.
pub(super) fn check_tensor(
    name: &str,
    operand: Option<&Operand>,
    wanted: Option<[usize; 4]>,
    exact: bool,
) -> Result<()> {
    let Some(Operand { layout, .. }) = operand else { return Ok(()) };
    let shape = wanted.unwrap_or(layout.shape);
    let bound = format!("{shape:?}, to match the other inputs");
    require(layout.shape == shape, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
    let fits = if exact { layout.dtype == DType::F32 } else { layout.dtype.is_float() };
    let bound = if exact { "f32" } else { "f32, f16 or bf16" };
    require(fits, &format!("{name}.dtype"), layout.dtype, bound)?;
    layout.byte_span().map(|_| ())
}

/// The same of an output, which can be written.
pub(super) fn check_output(name: &str, operand: Option<&Operand>, wanted: [usize; 4], exact: bool) -> Result<()> {
    check_tensor(name, operand, Some(wanted), exact)?;
    operand.map_or(Ok(()), |operand| operand.layout.check_output(name))
}
