//! Whether a uniform struct lies in memory as its shader reads it.

/// Bytes of the one address that a struct is given here.
const ADDRESS: usize = 16;

/// The names and offsets of the fields of `Params` in a shader's text behind the addresses, and their size. What the text uses beyond
/// it is not looked at.
pub fn fields(text: &str) -> (Vec<(String, usize)>, usize) {
    let start = text.find("struct Params").expect("a struct of this name");
    let end = start + text[start..].find("\n}").expect("its end") + 2;
    let before = "struct Addresses { none: vec4u }\n@group(0) @binding(0) var<uniform> params: Params;\n";
    let text = format!("{before}{}", &text[start..end]);
    let module = naga::front::wgsl::parse_str(&text).expect("valid WGSL");
    let found = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params"));
    let naga::TypeInner::Struct { members, span } = &found.expect("the struct").1.inner else { panic!("no struct") };
    let field = |m: &naga::StructMember| (m.name.clone().unwrap_or_default(), m.offset as usize - ADDRESS);
    let (addresses, own) = members.split_first().expect("fields");
    assert_eq!(addresses.name.as_deref(), Some("at"), "addresses come first");
    (own.iter().map(field).collect(), *span as usize - ADDRESS)
}

/// Asserts that a struct has the size and the fields of the shader's, in order; those that pad it are not named.
macro_rules! assert_layout {
    ($ty:ty, $text:expr, $($field:ident)*) => {
        let (theirs, size) = $crate::program::shader::layout::fields($text);
        let ours = vec![$((stringify!($field).to_string(), std::mem::offset_of!($ty, $field))),*];
        assert_eq!((theirs, size), (ours, size_of::<$ty>()));
    };
}
pub(crate) use assert_layout;
