//! Errors as JavaScript's.

use wasm_bindgen::JsValue;
use wgpu_attention::Error;

/// What a JavaScript promise is rejected with.
pub type Result<T> = std::result::Result<T, Failure>;

/// An `Error` of the crate, or an argument that is not what the types say.
pub struct Failure(JsValue);

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let name = match &e {
            Error::Argument { .. } => "Argument",
            Error::Limit { .. } => "Limit",
            Error::OtherDevice { .. } => "OtherDevice",
            Error::NoAdapter { .. } => "NoAdapter",
            Error::NoDevice { .. } => "NoDevice",
            Error::Shader { .. } => "Shader",
            Error::Hook { .. } => "Hook",
            Error::OutOfMemory { .. } => "OutOfMemory",
            Error::DeviceLost { .. } => "DeviceLost",
            Error::Timeout { .. } => "Timeout",
            _ => "Internal",
        };
        Self::new(name, &e.to_string())
    }
}

impl Failure {
    fn new(name: &str, message: &str) -> Self {
        let error = js_sys::Error::new(message);
        error.set_name(name);
        Self(error.into())
    }

    /// An argument has a value that it must not have.
    pub fn argument(argument: &str, value: String, bound: &str) -> Self {
        Error::Argument { argument: argument.into(), value, bound: bound.into() }.into()
    }
}

impl From<Failure> for JsValue {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}
