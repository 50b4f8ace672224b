//! Params as plain JavaScript objects: their types, and what they are in Rust.

mod linear;

pub use linear::{FeatureMap, LinearParams, LinearRule};

use crate::error::{Failure, Result};
use js_sys::{Array, ArrayBuffer, Object};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tsify::{Ts, Tsify};
use wasm_bindgen::{JsCast, JsValue};
use wgpu_attention::gate::{Pool, Selector};
use wgpu_attention::{Causal, NeighborhoodAxis, Window};

/// Which diagonal a causal mask follows: "bottomRight" (the last query sees every key) or "topLeft" (the first query sees one
/// key).
#[derive(Clone, Copy, Deserialize, Tsify)]
#[serde(rename_all = "camelCase")]
pub enum CausalDiagonal {
    BottomRight,
    TopLeft,
}

impl From<CausalDiagonal> for Causal {
    fn from(diagonal: CausalDiagonal) -> Self {
        match diagonal {
            CausalDiagonal::BottomRight => Self::BottomRight,
            CausalDiagonal::TopLeft => Self::TopLeft,
        }
    }
}

/// Sliding window: keys before and after the query's own position, both inclusive; where unset, all.
#[derive(Default, Deserialize, Tsify)]
#[serde(default)]
pub struct SlidingWindow {
    #[tsify(optional)]
    pub left: Option<usize>,
    #[tsify(optional)]
    pub right: Option<usize>,
}

/// A WGSL function that changes a score, `fn NAME(score: f32, at: Position) -> f32`, or hides a key,
/// `fn NAME(at: Position) -> bool`.
#[derive(Deserialize, Tsify)]
pub struct Hook {
    /// The function's name.
    pub entry: String,
    /// WGSL text that defines it.
    pub source: String,
}

fn hooks(hooks: Vec<Hook>) -> Vec<wgpu_attention::Hook> {
    hooks.into_iter().map(|hook| wgpu_attention::Hook::new(hook.entry, hook.source)).collect()
}

/// What flash attention computes.
#[derive(Default, Deserialize, Tsify)]
#[serde(rename_all = "camelCase", default)]
pub struct FlashParams {
    #[tsify(optional)]
    pub causal: Option<CausalDiagonal>,
    #[tsify(optional)]
    pub window: SlidingWindow,
    /// Factor of q·k. Default: 1/√width.
    #[tsify(optional)]
    pub scale: Option<f32>,
    /// Soft cap c of the scaled scores: c·tanh(score / c).
    #[tsify(optional)]
    pub softcap: Option<f32>,
    /// One slope per query head: score − slope·distance.
    #[tsify(optional)]
    pub alibi_slopes: Option<Vec<f32>>,
    /// Functions that change a score, one after another.
    #[tsify(optional)]
    pub score_mod: Vec<Hook>,
    /// Functions that say which keys are seen.
    #[tsify(optional)]
    pub mask_mod: Vec<Hook>,
}

impl From<FlashParams> for wgpu_attention::FlashParams {
    fn from(params: FlashParams) -> Self {
        Self {
            causal: params.causal.map(Causal::from),
            window: Window { left: params.window.left, right: params.window.right },
            scale: params.scale,
            softcap: params.softcap,
            alibi_slopes: params.alibi_slopes,
            score_mod: hooks(params.score_mod),
            mask_mod: hooks(params.mask_mod),
        }
    }
}

/// One axis of a space.
#[derive(Deserialize, Tsify)]
pub struct Axis {
    /// How many positions it has: at least 2.
    pub length: usize,
    /// How many keys a query sees along this axis: at least 2, and window · dilation is at most length.
    pub window: usize,
    /// How many neighbouring queries share a window. Default: 1.
    #[serde(default = "one")]
    #[tsify(optional)]
    pub stride: usize,
    /// Distance between neighbouring keys of a window. Default: 1.
    #[serde(default = "one")]
    #[tsify(optional)]
    pub dilation: usize,
    /// Whether no query sees the keys after it. Default: no.
    #[serde(default)]
    #[tsify(optional)]
    pub causal: bool,
}

fn one() -> usize {
    1
}

/// What neighborhood attention computes.
#[derive(Default, Deserialize, Tsify)]
#[serde(rename_all = "camelCase", default)]
pub struct NeighborhoodParams {
    /// One to three axes; tokens are their positions in row-major order, the last axis fastest.
    pub axes: Vec<Axis>,
    /// Factor of q·k. Default: 1/√width.
    #[tsify(optional)]
    pub scale: Option<f32>,
    /// Functions that change a score, one after another.
    #[tsify(optional)]
    pub score_mod: Vec<Hook>,
    /// Functions that say which keys of the neighborhood are seen.
    #[tsify(optional)]
    pub mask_mod: Vec<Hook>,
}

impl From<NeighborhoodParams> for wgpu_attention::NeighborhoodParams {
    fn from(params: NeighborhoodParams) -> Self {
        let axis = |Axis { length, window, stride, dilation, causal }| NeighborhoodAxis {
            length,
            window,
            stride,
            dilation,
            causal,
        };
        Self {
            axes: params.axes.into_iter().map(axis).collect(),
            scale: params.scale,
            score_mod: hooks(params.score_mod),
            mask_mod: hooks(params.mask_mod),
        }
    }
}

/// What block-sparse attention computes, besides the mask.
#[derive(Default, Deserialize, Tsify)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockSparseParams {
    #[tsify(optional)]
    pub causal: Option<CausalDiagonal>,
    /// Factor of q·k. Default: 1/√width.
    #[tsify(optional)]
    pub scale: Option<f32>,
    /// Soft cap c of the scaled scores: c·tanh(score / c).
    #[tsify(optional)]
    pub softcap: Option<f32>,
    /// Functions that change a score, one after another.
    #[tsify(optional)]
    pub score_mod: Vec<Hook>,
    /// Functions that say which keys of the chosen blocks are seen.
    #[tsify(optional)]
    pub mask_mod: Vec<Hook>,
}

impl From<BlockSparseParams> for wgpu_attention::BlockSparseParams {
    fn from(params: BlockSparseParams) -> Self {
        Self {
            causal: params.causal.map(Causal::from),
            scale: params.scale,
            softcap: params.softcap,
            score_mod: hooks(params.score_mod),
            mask_mod: hooks(params.mask_mod),
        }
    }
}

/// How the tokens of a block become one row.
#[derive(Clone, Copy, Deserialize, Tsify)]
#[serde(rename_all = "camelCase")]
pub enum Pooling {
    Max,
    Min,
    Avg,
}

impl From<Pooling> for Pool {
    fn from(pooling: Pooling) -> Self {
        match pooling {
            Pooling::Max => Self::Max,
            Pooling::Min => Self::Min,
            Pooling::Avg => Self::Avg,
        }
    }
}

/// How a row's scores become a choice of blocks: those above a probability, a share of all, the fewest that add up to a
/// probability, or as many as hold a number of keys.
#[derive(Deserialize, Tsify)]
#[serde(rename_all = "camelCase")]
pub enum BlockSelector {
    Threshold(f64),
    Density(f64),
    TopP(f64),
    Budget(usize),
}

/// What a gate computes.
#[derive(Default, Deserialize, Tsify)]
#[serde(rename_all = "camelCase", default)]
pub struct SeerGateParams {
    /// Queries and keys of a block, powers of two. Default: 64 and 64.
    #[tsify(optional)]
    pub block: Option<[usize; 2]>,
    /// How queries are pooled. Default: the mean.
    #[tsify(optional)]
    pub pool_q: Option<Vec<Pooling>>,
    /// How keys are pooled. Default: maximum, minimum, mean.
    #[tsify(optional)]
    pub pool_k: Option<Vec<Pooling>>,
    /// Base of the gate's rotary embedding; 0: none. Default: 10000.
    #[tsify(optional)]
    pub rope_theta: Option<f32>,
    /// Causal mask, by blocks. Default: true (from the bottom right).
    #[tsify(optional)]
    pub causal: Option<bool>,
    /// How blocks are chosen. Default: threshold 0.002.
    #[tsify(optional)]
    pub selector: Option<BlockSelector>,
    /// Whether every row chooses the first block too. Default: no.
    #[tsify(optional)]
    pub sink: bool,
    /// Whether every row chooses the blocks of its own tokens too. Default: no.
    #[tsify(optional)]
    pub diagonal: bool,
    /// Whether the last two blocks of queries choose all that they see. Default: yes.
    #[tsify(optional)]
    pub last_rows_dense: Option<bool>,
}

impl From<SeerGateParams> for wgpu_attention::gate::SeerGateParams {
    fn from(params: SeerGateParams) -> Self {
        let usual = Self::default();
        let pools = |given: Option<Vec<Pooling>>| given.map(|all| all.into_iter().map(Pool::from).collect());
        Self {
            block: params.block.unwrap_or(usual.block),
            pool_q: pools(params.pool_q).unwrap_or(usual.pool_q),
            pool_k: pools(params.pool_k).unwrap_or(usual.pool_k),
            rope_theta: params.rope_theta.map_or(usual.rope_theta, |theta| (theta != 0.0).then_some(theta)),
            causal: params.causal.map_or(usual.causal, |causal| causal.then_some(Causal::BottomRight)),
            selector: params.selector.map_or(usual.selector, |selector| match selector {
                BlockSelector::Threshold(t) => Selector::Threshold(t),
                BlockSelector::Density(r) => Selector::Density(r),
                BlockSelector::TopP(p) => Selector::TopP(p),
                BlockSelector::Budget(keys) => Selector::Budget(keys),
            }),
            sink: params.sink,
            diagonal: params.diagonal,
            last_rows_dense: params.last_rows_dense.unwrap_or(usual.last_rows_dense),
        }
    }
}

/// The params of a kernel from what JavaScript gave.
pub fn params<P, R>(given: Option<Ts<P>>) -> Result<R>
where
    P: Tsify<JsType: Clone> + DeserializeOwned + Default + Into<R>,
{
    let Some(given) = given else { return Ok(P::default().into()) };
    check_names(&given.js_value(), &[P::DECL, SlidingWindow::DECL, Axis::DECL, Hook::DECL, BlockSelector::DECL])?;
    given.to_rust().map(P::into).map_err(|_| mistyped::<P>(&given.js_value()))
}

/// Whether every property is declared, including those of objects within.
fn check_names(value: &JsValue, declared: &[&str]) -> Result<()> {
    let Some(object) = value.dyn_ref::<Object>().filter(|_| !ArrayBuffer::is_view(value)) else { return Ok(()) };
    for entry in Object::entries(object).iter() {
        let entry = Array::from(&entry);
        let name = entry.get(0).as_string().unwrap_or_default();
        let known = Array::is_array(value) || declared.iter().any(|text| declares(text, &name));
        if !known {
            return Err(Failure::argument(
                "params",
                format!("\"{name}\""),
                "an object whose properties are all documented",
            ));
        }
        check_names(&entry.get(1), declared)?;
    }
    Ok(())
}

/// Whether a TypeScript declaration has the property.
fn declares(text: &str, name: &str) -> bool {
    text.contains(&format!(" {name}:")) || text.contains(&format!(" {name}?:"))
}

/// Names the property that is not of its type: the one that cannot be read by itself.
fn mistyped<P: Tsify<JsType: Clone> + DeserializeOwned>(given: &JsValue) -> Failure {
    let failure = |name: &str, value: &JsValue, bound: &str| {
        let text = js_sys::JSON::stringify(value).ok().and_then(|text| text.as_string());
        Failure::argument(name, text.unwrap_or_default(), bound)
    };
    for entry in Object::entries(given.unchecked_ref()).iter() {
        let Ok(alone) = Object::from_entries(&Array::of1(&entry)) else { continue };
        if Ts::<P>::new_unchecked(alone.into()).to_rust().is_err() {
            let entry = Array::from(&entry);
            let name = entry.get(0).as_string().unwrap_or_default();
            let ty = between(P::DECL, &format!(" {name}?: "), ";").unwrap_or("as documented");
            let choices =
                [CausalDiagonal::DECL, Pooling::DECL, BlockSelector::DECL, LinearRule::DECL, FeatureMap::DECL];
            let choice = choices.iter().find_map(|text| between(text, &format!("type {ty} = "), ";"));
            return failure(&format!("params.{name}"), &entry.get(1), choice.unwrap_or(ty));
        }
    }
    failure("params", given, "an object of the documented type")
}

/// What stands between two pieces of a text.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(found, _)| found)
}
