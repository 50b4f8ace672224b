//! The chain of functions that change a score or hide a key: this crate's own and the caller's.

use crate::program::hook::Placed;
use std::fmt::Write;

/// What changes a score; see `shaders/score/position.wgsl`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Chain {
    /// This crate's functions that change a score, in order.
    pub scores: Vec<&'static str>,
    /// This crate's functions that hide keys.
    pub masks: Vec<&'static str>,
    /// The caller's functions, which follow on either.
    pub hooks: Vec<Placed>,
    /// Where gradients go through it.
    pub gradient: Option<Gradient>,
}

/// How far a gradient goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gradient {
    /// To scale · q·k.
    Score,
    /// To what the bias is added to.
    Bias,
}

impl Chain {
    /// The same without what changes a score.
    pub fn of_masks(&self) -> Self {
        let hooks = self.hooks.iter().filter(|placed| placed.is_mask()).cloned().collect();
        Self { scores: vec![], masks: self.masks.clone(), hooks, gradient: None }
    }

    /// The functions that call the caller's, which change scores or hide keys.
    fn calls(&self, mask: bool) -> impl Iterator<Item = String> {
        let placed = self.hooks.iter().enumerate().filter(move |(_, placed)| placed.is_mask() == mask);
        placed.map(|(i, _)| format!("hook_{i}"))
    }

    /// Whether anything changes a score.
    pub fn scores_change(&self) -> bool {
        !self.scores.is_empty() || self.calls(false).next().is_some()
    }

    /// Whether anything hides a key.
    pub fn masks_hide(&self) -> bool {
        !self.masks.is_empty() || self.calls(true).next().is_some()
    }

    /// `score_gradient`: the chain again, and back through it. What only adds to a score lets its gradient through.
    fn gradient_wgsl(&self, gradient: Gradient) -> String {
        let mut forth = String::from("    let x0 = s;\n");
        let mut back = Vec::new();
        let own = self.scores.iter().map(ToString::to_string);
        for (i, name) in own.chain(self.calls(false)).enumerate() {
            let _ = writeln!(forth, "    let x{} = {name}(x{i}, at);", i + 1);
            let before_bias = gradient == Gradient::Bias && name == "softcap";
            if !["alibi", "bias"].contains(&name.as_str()) && !before_bias {
                back.push(format!("    d = {name}_grad(x{i}, at, d);\n"));
            }
        }
        back.reverse();
        format!(
            "fn score_gradient(s: f32, d_out: f32, r: Row, c: Col, w: Work) -> f32 {{
    let at = position_of(r, c, w);
{forth}    var d = d_out;
{}    return d;
}}
",
            back.concat()
        )
    }

    pub fn wgsl(&self) -> String {
        const AT: &str = "    let at = position_of(r, c, w);\n";
        let mut score = String::from("    return s;\n");
        if self.scores_change() {
            score = format!("{AT}    var x = s;\n");
            score.extend(self.scores.iter().map(|name| format!("    x = {name}(x, at);\n")));
            score.extend(self.calls(false).map(|name| format!("    x = still_hidden(x, {name}(x, at));\n")));
            score += "    return x * 1.4426950408889634;\n";
        }
        let mut masks = String::from("    return true;\n");
        if self.masks_hide() {
            let names = self.masks.iter().map(ToString::to_string).chain(self.calls(true));
            let calls: Vec<String> = names.map(|name| format!("{name}(at)")).collect();
            masks = format!("{AT}    return {};\n", calls.join(" & "));
        }
        format!(
            "const SCORED: bool = {};
const HAS_MASK: bool = {};
fn score(s: f32, r: Row, c: Col, w: Work) -> f32 {{
{score}}}
fn mask_allows(r: Row, c: Col, w: Work) -> bool {{
{masks}}}
{}",
            self.scores_change(),
            self.masks_hide(),
            self.gradient.map_or(String::new(), |gradient| self.gradient_wgsl(gradient))
        )
    }
}
