//! Some of the cases: every kernel, and each feature once.

use super::Case;
use crate::{Caps, Result};
use std::collections::BTreeSet;

/// What a case costs besides its texts, in letters of these.
const BESIDES: usize = 20_000;

/// What a case reaches (its kernels, its label, the words of its name), and what it costs: how much text a driver compiles.
struct Reached {
    features: BTreeSet<String>,
    cost: usize,
}

/// Which of the cases to take for a short run: a few that together run every kernel that all of them run on a device with `caps`, and have
/// every word of all names (features, types, layouts). They are picked one after another, each the one that adds most for its cost. In
/// order.
///
/// # Errors
/// Those of planning a case.
pub fn sample<'a>(cases: impl IntoIterator<Item = &'a dyn Case>, caps: &Caps) -> Result<Vec<usize>> {
    let all = cases.into_iter().map(|case| Reached::of(case, caps)).collect::<Result<Vec<_>>>()?;
    let mut missing: BTreeSet<&String> = all.iter().flat_map(|case| &case.features).collect();
    let mut chosen = BTreeSet::new();
    while !missing.is_empty() {
        let gain = |i: usize| {
            let new = all[i].features.iter().filter(|feature| missing.contains(feature)).count();
            new as f64 / all[i].cost as f64
        };
        // Of equals the first.
        let Some(best) = (0..all.len()).rev().max_by(|&a, &b| gain(a).total_cmp(&gain(b))) else { break };
        chosen.insert(best);
        all[best].features.iter().for_each(|feature| {
            missing.remove(feature);
        });
    }
    Ok(chosen.into_iter().collect())
}

impl Reached {
    fn of(case: &dyn Case, caps: &Caps) -> Result<Self> {
        let (name, kernels) = (case.name(), case.kernels(caps)?);
        let cost = BESIDES + kernels.iter().map(|kernel| kernel.wgsl.len()).sum::<usize>();
        let mut features: BTreeSet<String> = kernels.into_iter().map(|kernel| kernel.name).collect();
        features.extend(name.split_once(':').map(|(label, _)| label.to_string()));
        let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let words = words.filter(|word| word.len() > 1 && word.contains(char::is_alphabetic));
        features.extend(words.map(str::to_string));
        Ok(Self { features, cost })
    }
}
