//! A page that measures: shown in Chromium until it has said all that it has to.

use crate::page::Page;
use crate::{Result, serve};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(600);

/// Prints what a page of a folder writes into its `pre`, once its body has the attribute `data-done`; fails if that is not "well".
pub fn run(folder: &Path, chromium: &Path, name: &str) -> Result<()> {
    serve::during(folder, |address| {
        let page = Page::open(chromium, &format!("{address}{name}"), true)?;
        page.until(name, "'done' in document.body.dataset", PATIENCE)?;
        println!("{}", page.text("pre")?);
        match page.value("document.body.dataset.done")?.as_str() {
            Some("well") => Ok(()),
            _ => Err(format!("{name} did not end well")),
        }
    })
}
