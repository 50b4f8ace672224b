//! Guides: where to look for what.

#[doc = include_str!("guide/embedding.md")]
pub mod embedding {}

#[doc = include_str!("guide/kernels.md")]
pub mod kernels {}

// Its examples check themselves against the references of the feature `catalogue`.
#[cfg_attr(any(not(doctest), feature = "catalogue"), doc = include_str!("guide/flex_attention.md"))]
pub mod flex_attention {}

#[cfg_attr(any(not(doctest), feature = "catalogue"), doc = include_str!("guide/score_reduction.md"))]
pub mod score_reduction {}

#[cfg_attr(any(not(doctest), feature = "catalogue"), doc = include_str!("guide/patterns.md"))]
pub mod patterns {}

#[doc = include_str!("guide/promises.md")]
pub mod promises {}

#[doc = include_str!("guide/command_line.md")]
pub mod command_line {}

#[doc = include_str!("guide/javascript.md")]
pub mod javascript {}

#[doc = include_str!("guide/comparison.md")]
pub mod comparison {}

#[doc = include_str!("guide/adding_a_kernel.md")]
pub mod adding_a_kernel {}
