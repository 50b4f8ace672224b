//! Guides: FlexAttention's examples, uses of the score reduction, and how a kernel is added.

// Its examples check themselves against the references of the feature `catalogue`.
#[cfg_attr(any(not(doctest), feature = "catalogue"), doc = include_str!("guide/flex_attention.md"))]
pub mod flex_attention {}

#[cfg_attr(any(not(doctest), feature = "catalogue"), doc = include_str!("guide/score_reduction.md"))]
pub mod score_reduction {}

#[doc = include_str!("guide/adding_a_kernel.md")]
pub mod adding_a_kernel {}
