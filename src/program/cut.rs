//! Work cut into boxes that fit a device's bindings and dispatches, and about one submit each.

use super::Part;
use super::argument::{Argument, bound_range};
use crate::{Caps, Result};

/// Most dispatches of one kernel of a call: the host plans each, and keeps its parameters.
const MOST_PARTS: usize = 1 << 18;

/// `Ok` if work in so many dispatches can be planned.
pub(crate) fn within_parts(caps: &Caps, what: &str, parts: f64) -> Result<()> {
    caps.within(what, "dispatches of one kernel of a call", parts as u64, MOST_PARTS as u64)
}

/// Cuts `whole` until each part fits the device's bindings and dispatch sizes, and about one submit of work; nothing is left of an
/// empty one. `tile_flops` is what one tile of one head costs.
///
/// # Errors
/// [`crate::Error::Limit`] if one batch entry and head alone is too large to bind, or if there would be too many parts.
pub(crate) fn cut(caps: &Caps, arguments: &[Argument], whole: Part, tile_flops: f64) -> Result<Vec<Part>> {
    let mut done = Vec::new();
    let mut open = if whole.is_empty() { vec![] } else { vec![whole] };
    let what = arguments.first().map_or("a call", |argument| argument.name);
    if let [whole] = &open[..] {
        let flops = whole.sizes().iter().map(|&n| n as f64).product::<f64>() * tile_flops;
        let by_grid = whole.sizes().map(|n| n as f64 / f64::from(caps.workgroups));
        within_parts(caps, what, by_grid.iter().fold(flops / caps.submit_flops(), |most, &n| most.max(n)))?;
    }
    while let Some(part) = open.pop() {
        within_parts(caps, what, (done.len() + open.len()) as f64)?;
        let mut halves = None;
        for (i, argument) in arguments.iter().enumerate() {
            let range = bound_range(caps, arguments, i, &part);
            let limit = caps.binding_bytes.min(u64::from(u32::MAX) * argument.layout().dtype.bytes());
            let bytes = range.end - range.start;
            if bytes > limit {
                halves = part.halves(&[0, 1]);
                if halves.is_none() {
                    caps.within(argument.name, "maxStorageBufferBindingSize", bytes, limit)?;
                }
                break;
            }
        }
        if halves.is_none() {
            let sizes = part.sizes();
            let too_many = (0..3).find(|&d| sizes[d] > caps.workgroups as usize);
            let flops = sizes.iter().map(|&n| n as f64).product::<f64>() * tile_flops;
            halves = match too_many {
                Some(d) => part.halves(&[d]),
                None if flops > caps.submit_flops() => part.halves(&[0, 1, 2]),
                None => None,
            };
        }
        match halves {
            Some([first, second]) => open.extend([second, first]),
            None => done.push(part),
        }
    }
    Ok(done)
}
