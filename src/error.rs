//! What can go wrong, in words that name the argument, its value and the bound.

use std::fmt::Display;

/// Everything that this crate reports. Nothing panics on a caller's input.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has an invalid value.
    #[error("{argument} is {value}; it must be {bound}")]
    Argument {
        /// The argument's name, as the caller wrote it.
        argument: String,
        /// Its value.
        value: String,
        /// What it must be.
        bound: String,
    },
    /// The work needs more than the device offers.
    #[error("{what} needs {needed} of {limit}; \"{adapter}\" has {available}")]
    Limit {
        /// The kernel, tensor or buffer.
        what: String,
        /// The limit by its WebGPU name.
        limit: &'static str,
        /// How much of it is needed.
        needed: u64,
        /// How much there is.
        available: u64,
        /// The adapter's name.
        adapter: String,
    },
    /// A tensor belongs to a device other than the one that is asked to use it.
    #[error(
        "{argument} belongs to another device or `Gpu` (on \"{theirs}\"); it must belong to this kernel's own (on \"{ours}\")"
    )]
    OtherDevice {
        /// The tensor's name.
        argument: String,
        /// The adapter that it belongs to.
        theirs: String,
        /// The adapter that was asked.
        ours: String,
    },
    /// No adapter fits.
    #[error("no GPU adapter: {reason}")]
    NoAdapter {
        /// What was looked for and what was found.
        reason: String,
    },
    /// The adapter refused to give a device.
    #[error("\"{adapter}\" gave no device: {reason}")]
    NoDevice {
        /// The adapter's name.
        adapter: String,
        /// Its own words.
        reason: String,
    },
    /// A driver or browser rejected a shader.
    #[error("shader {shader} was rejected: {message}")]
    Shader {
        /// The kernel and variant.
        shader: String,
        /// The compiler's own words.
        message: String,
    },
    /// The compiler rejected one of the caller's functions.
    #[error("{hook}{}: {message}", .line.map_or(String::new(), |line| format!(", line {line} of its source")))]
    Hook {
        /// The hook's place, and the function that it should define.
        hook: String,
        /// The line of the hook's own source, from 1; unset if the source lacks the function.
        line: Option<u32>,
        /// The compiler's own words.
        message: String,
    },
    /// The device has no memory left.
    #[error("out of GPU memory: {what}")]
    OutOfMemory {
        /// What was being made, and its size where there is one.
        what: String,
    },
    /// The device is gone: unplugged, reset by the system, or destroyed.
    #[error("the GPU device is lost: {reason}")]
    DeviceLost {
        /// The driver's own words, if it has any, or that the device was destroyed.
        reason: String,
    },
    /// The GPU did not finish in time.
    #[error("the GPU did not finish within {seconds} s")]
    Timeout {
        /// How long the call waited.
        seconds: u64,
    },
    /// The GPU did what was asked, but its API reported an error: a defect in this crate.
    #[error("{what}: {message}")]
    Internal {
        /// What was being done.
        what: String,
        /// The API's own words.
        message: String,
    },
}

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The same of a tensor's layout, by its name.
    pub(crate) fn of(self, tensor: &str) -> Self {
        match self {
            Self::Argument { argument, value, bound } => {
                Self::Argument { argument: format!("{tensor}.{argument}"), value, bound }
            }
            other => other,
        }
    }

    pub(crate) fn argument(argument: impl Display, value: impl Display, bound: impl Display) -> Self {
        Self::Argument { argument: argument.to_string(), value: value.to_string(), bound: bound.to_string() }
    }
}

/// An `Error` unless something optional is set exactly where it is wanted, for the reason `why`.
pub(crate) fn require_set(argument: &str, given: bool, wanted: bool, why: &str) -> Result<()> {
    let has = |set: bool| if set { "set" } else { "unset" };
    require(given == wanted, argument, has(given), format!("{}, {why}", has(wanted)))
}

/// `Ok` if `holds`, else the error that names the argument, its value and the bound.
pub(crate) fn require(holds: bool, argument: &str, value: impl Display, bound: impl Display) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::argument(argument, value, bound)) }
}
