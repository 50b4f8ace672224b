//! Guides: FlexAttention's examples, and how a kernel is added.

// Its examples check themselves against the references of the feature `catalogue`.
#[cfg_attr(any(not(doctest), feature = "catalogue"), doc = include_str!("guide/flex_attention.md"))]
pub mod flex_attention {}

#[doc = include_str!("guide/adding_a_kernel.md")]
pub mod adding_a_kernel {}
