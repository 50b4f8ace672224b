//! Softmax attention by families.

use super::Attention;
use crate::token_lists::TokenListParams;
#[cfg(doc)]
use crate::{AttentionInputs, BlockMask};
use crate::{BlockSparseParams, FlashParams, NeighborhoodParams};

/// Flash attention with fixed params on one device.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{AttentionInputs, DType, FlashAttention, FlashParams, Gpu, Seqlens, Tensor};
/// let gpu = Gpu::request().await?;
/// // Two sequences in one batch, of 5 and 2 tokens: the second is padded, and padding is not seen.
/// let x = Tensor::upload(&gpu, [2, 1, 5, 8], DType::F32, &[1.0; 80]).await?;
/// let attention = FlashAttention::new(&gpu, FlashParams { scale: Some(0.0), ..Default::default() })?;
/// let inputs = AttentionInputs { seqlens_k: Some(Seqlens::Host(&[5, 2])), ..AttentionInputs::new(&x, &x, &x) };
/// let (_, lse) = attention.forward_with_lse(&inputs).await?;
/// let lse = lse.read().await?; // with all scores 0: the logarithm of the number of keys
/// assert!((lse[0] - 5f32.ln()).abs() < 1e-6 && (lse[5] - 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
pub type FlashAttention = Attention<FlashParams>;

/// Neighborhood attention with fixed params on one device: each query sees the window of its nearest keys on every axis, shifted inwards at
/// a border so that it keeps its size. Tokens are the positions of a grid in row-major order: [batch, heads, tokens, head_dim]. It takes q,
/// k and v, but no lengths, packed sequences, bias or mask; see [`NeighborhoodParams`].
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, Gpu, NeighborhoodAttention, NeighborhoodAxis, NeighborhoodParams, Tensor};
/// let gpu = Gpu::request().await?;
/// // A picture of 3 × 5 positions, windows of 3 × 3. With all scores 0 the output is the mean of the window.
/// let axes = vec![NeighborhoodAxis::new(3, 3), NeighborhoodAxis::new(5, 3)];
/// let params = NeighborhoodParams { axes, scale: Some(0.0), ..Default::default() };
/// let values: Vec<f32> = (0..15).map(|i| i as f32).collect();
/// let x = Tensor::upload(&gpu, [1, 1, 15, 1], DType::F32, &values).await?;
/// let out = NeighborhoodAttention::new(&gpu, params)?.forward(&x, &x, &x).await?.read().await?;
/// let expected = [6.0, 6.0, 7.0, 8.0, 8.0]; // columns 0 to 2, 0 to 2, 1 to 3, 2 to 4, 2 to 4 of all three rows
/// assert!(out.iter().zip(expected.iter().cycle()).all(|(x, y)| (x - y).abs() < 1e-5));
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
///
/// For users of NATTEN: `na1d`, `na2d` and `na3d` correspond to one, two and three axes.
///
/// | NATTEN | here |
/// |---|---|
/// | `query`, `key`, `value` [batch, *space, heads, dim] | the same memory as a tensor of [`crate::Layout::heads_last`], [batch, heads, tokens, dim] |
/// | `kernel_size` | `window` of each axis |
/// | `stride`, `dilation`, `is_causal` | `stride`, `dilation`, `causal` of each axis |
/// | `scale` | `scale` |
/// | `additional_keys`, `additional_values` | `additional_k`, `additional_v` of [`AttentionInputs`] |
/// | `return_lse` | [`Attention::forward_with_lse`] |
/// | `q_tile_shape`, `kv_tile_shape`, `backend` | chosen by the plan, which says what it chose |
pub type NeighborhoodAttention = Attention<NeighborhoodParams>;

/// Block-sparse attention with fixed params on one device: `out = softmax(score(scale · q kᵀ)) v` over the keys in the blocks that a
/// [`BlockMask`] selects for each head and block of queries, except those that a causal mask or the lengths hide. Blocks outside the mask
/// are never computed. A row that sees nothing has output 0 and LSE −∞.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{AttentionInputs, BlockGrid, BlockMask, BlockSparseAttention, BlockSparseParams, Gpu, Tensor, DType};
/// let gpu = Gpu::request().await?;
/// // 4 queries and 6 keys in blocks of 2 × 2: the first block of queries sees the last block of keys, the second the first.
/// let grid = BlockGrid { batch: 1, heads: 1, queries: 4, keys: 6, block: [2, 2] };
/// let mask = BlockMask::from_fn(&gpu, grid, |_batch, _head, i, j| i + j == 2 && j == 2 || i == 1 && j == 0).await?;
/// let q = Tensor::upload(&gpu, [1, 1, 4, 1], DType::F32, &[0.0; 4]).await?;
/// let k = Tensor::upload(&gpu, [1, 1, 6, 1], DType::F32, &[0.0; 6]).await?;
/// let v = Tensor::upload(&gpu, [1, 1, 6, 1], DType::F32, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).await?;
/// let attention = BlockSparseAttention::new(&gpu, BlockSparseParams::default())?;
/// let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&q, &k, &v) };
/// let (out, _) = attention.forward_with_lse(&inputs).await?;
/// assert_eq!(out.read().await?, [5.5, 5.5, 1.5, 1.5]); // all scores are 0: means of 5, 6 and of 1, 2
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
pub type BlockSparseAttention = Attention<BlockSparseParams>;

/// Attention over lists of tokens with fixed params on one device: `out = softmax(score(scale · q kᵀ)) v` over the keys that
/// [`crate::AttentionInputs::token_lists`] names for each block of queries, except those that a causal mask, the lengths or a mask hide. Rows of k
/// and v that no list names are not read. A row that sees nothing has output 0 and LSE −∞.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::token_lists::{TokenListAttention, TokenListParams, TokenLists};
/// use wgpu_attention::{AttentionInputs, DType, Gpu, Layout, Tensor};
/// let gpu = Gpu::request().await?;
/// // Two queries, each with a list of at most 3 of the 5 keys: 1 and 4; 0, 2 and 3.
/// let tokens = Tensor::upload_u32(&gpu, &[1, 4, u32::MAX, 0, 2, 3]).await?;
/// let tokens = tokens.view(Layout::heads_first(DType::U32, [1, 1, 2, 3]))?;
/// let q = Tensor::upload(&gpu, [1, 1, 2, 1], DType::F32, &[0.0; 2]).await?;
/// let k = Tensor::upload(&gpu, [1, 1, 5, 1], DType::F32, &[0.0; 5]).await?;
/// let v = Tensor::upload(&gpu, [1, 1, 5, 1], DType::F32, &[1.0, 2.0, 3.0, 5.0, 8.0]).await?;
/// let attention = TokenListAttention::new(&gpu, TokenListParams::default())?;
/// let inputs = AttentionInputs::new(&q, &k, &v).with_token_lists(TokenLists { tokens: &tokens, block: 1 });
/// let (out, _) = attention.forward_with_lse(&inputs).await?;
/// assert_eq!(out.read().await?, [5.0, 3.0]); // all scores are 0: means of 2, 8 and of 1, 3, 5
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
pub type TokenListAttention = Attention<TokenListParams>;
