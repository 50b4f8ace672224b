//! Microsoft's HLSL compiler, as a library: what Direct3D runs has gone through it.

use crate::Result;
use libloading::{Library, Symbol};
use std::ffi::c_void;
use std::path::Path;

/// An object of COM: its first word is the address of its functions. On Linux this compiler's have two destructors after the three of
/// `IUnknown`.
type Object = *mut *const [usize; 8];

const FIRST: usize = 5;
/// Of `IUnknown`.
const RELEASE: usize = 2;
/// Of `IDxcCompiler3`.
const COMPILE: usize = FIRST;
/// Of `IDxcOperationResult`.
const STATUS: usize = FIRST;
const ERRORS: usize = FIRST + 2;
/// Of `IDxcBlob`.
const POINTER: usize = FIRST;
const SIZE: usize = FIRST + 1;

#[repr(C)]
struct Id(u32, u16, u16, [u8; 8]);

const DXC_COMPILER: Id = Id(0x73e2_2d93, 0xe6ce, 0x47f3, [0xb5, 0xbf, 0xf0, 0x66, 0x4f, 0x39, 0xc1, 0xb0]);
const COMPILER_3: Id = Id(0x228b_4687, 0x5a6a, 0x4730, [0x90, 0x0c, 0x97, 0x02, 0xb2, 0x20, 0x3f, 0x54]);
const RESULT: Id = Id(0x5834_6cda, 0xdde7, 0x4497, [0x94, 0x61, 0x6f, 0x87, 0xaf, 0x5e, 0x06, 0x59]);

#[repr(C)]
struct Buffer {
    text: *const u8,
    bytes: usize,
    encoding: u32,
}

const UTF_8: u32 = 65001;

type Create = unsafe extern "C" fn(*const Id, *const Id, *mut Object) -> i32;
type Compile =
    unsafe extern "C" fn(Object, *const Buffer, *const *const i32, u32, *const c_void, *const Id, *mut Object) -> i32;
type GetStatus = unsafe extern "C" fn(Object, *mut i32) -> i32;
type GetErrors = unsafe extern "C" fn(Object, *mut Object) -> i32;
type GetPointer = unsafe extern "C" fn(Object) -> *const u8;
type GetSize = unsafe extern "C" fn(Object) -> usize;
type Release = unsafe extern "C" fn(Object) -> u32;

pub struct Compiler {
    object: Object,
    /// It holds the code.
    _library: Library,
}

/// A function of an object.
///
/// # Safety
/// The object has a function of this type there.
unsafe fn function<F: Copy>(object: Object, at: usize) -> F {
    // SAFETY: the caller's.
    unsafe { std::mem::transmute_copy(&(**object)[at]) }
}

impl Compiler {
    /// From a `libdxcompiler.so` of version 3.7.
    pub fn load(path: &Path) -> Result<Self> {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        // SAFETY: the types are those of the library's header, `dxcapi.h`.
        unsafe {
            let library = Library::new(path).map_err(|e| failed(&e))?;
            let create: Symbol<Create> = library.get(b"DxcCreateInstance").map_err(|e| failed(&e))?;
            let mut object: Object = std::ptr::null_mut();
            let status = create(&DXC_COMPILER, &COMPILER_3, &mut object);
            if status < 0 || object.is_null() {
                return Err(failed(&format!("no compiler: {status:#x}")));
            }
            Ok(Self { object, _library: library })
        }
    }

    /// Compiles a compute shader as strictly as wgpu does, or returns what is wrong with it.
    pub fn compile(&self, text: &str) -> Result<()> {
        // Characters are 32 bits wide on Linux.
        let wide = |word: &str| word.chars().map(|c| c as i32).chain([0]).collect::<Vec<_>>();
        let words = ["-E", "main", "-T", "cs_6_2", "-HV", "2018", "-Ges", "-no-warnings"].map(wide);
        let arguments = words.each_ref().map(|word| word.as_ptr());
        let source = Buffer { text: text.as_ptr(), bytes: text.len(), encoding: UTF_8 };
        // SAFETY: the types are those of the library's header, and what is passed lives until the calls return.
        unsafe {
            let mut result: Object = std::ptr::null_mut();
            let compile: Compile = function(self.object, COMPILE);
            let count = arguments.len() as u32;
            let called =
                compile(self.object, &source, arguments.as_ptr(), count, std::ptr::null(), &RESULT, &mut result);
            if called < 0 || result.is_null() {
                return Err(format!("the compiler gives no result: {called:#x}"));
            }
            let (mut status, mut errors) = (0, std::ptr::null_mut());
            function::<GetStatus>(result, STATUS)(result, &mut status);
            function::<GetErrors>(result, ERRORS)(result, &mut errors);
            let mut said = String::new();
            if !errors.is_null() {
                let (start, bytes) = (function::<GetPointer>(errors, POINTER), function::<GetSize>(errors, SIZE));
                let text = std::slice::from_raw_parts(start(errors), bytes(errors));
                said = String::from_utf8_lossy(text).trim_end_matches('\0').into();
                function::<Release>(errors, RELEASE)(errors);
            }
            function::<Release>(result, RELEASE)(result);
            if status < 0 { Err(said) } else { Ok(()) }
        }
    }
}
