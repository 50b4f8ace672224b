//! Every shader through the compiler of a real browser (Dawn), which sees what naga does not: barriers in divergent
//! control flow. A page, served from here, compiles them and posts what the browser said.

use crate::page::Page;
use crate::{Result, of_file, serve};
use std::path::Path;
use std::time::Duration;
use tiny_http::{Header, Method, Response, Server};

const PAGE: &str = include_str!("shaders.html");
/// A barrier that one thread alone reaches: a compiler that lets it pass checks nothing.
const CONTROL: &str = "@compute @workgroup_size(2) fn main(@builtin(local_invocation_index) i: u32) {
    if (i == 0u) { workgroupBarrier(); }
}";
/// How long one shader may take; the page asks for them one after another.
const PATIENCE: Duration = Duration::from_secs(120);

/// Compiles every shader of a folder with core limits, every eighth to a pipeline.
pub fn compile(folder: &Path, chromium: &Path) -> Result<()> {
    let shaders = read(folder)?;
    let (server, address) = serve::open(0)?;
    let page = Page::blank(chromium, true)?;
    let report = std::thread::scope(|scope| {
        let answered = scope.spawn(|| answer(&server, &shaders));
        page.start(&address)?;
        answered.join().unwrap_or_else(|_| Err("the server panicked".into()))
    });
    judge(&report?, &shaders)
}

/// Every shader, by file name.
fn read(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(of_file(folder))? {
        let path = entry.map_err(of_file(folder))?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        found.push((name, std::fs::read_to_string(&path).map_err(of_file(&path))?));
    }
    found.sort();
    Ok(found)
}

/// Answers the page until it has posted its report: a line a shader, its name, a tab, and what was wrong with it.
fn answer(server: &Server, shaders: &[(String, String)]) -> Result<String> {
    let mut last = String::from("the page itself");
    while let Some(mut request) = server.recv_timeout(PATIENCE).map_err(|e| e.to_string())? {
        if *request.method() == Method::Post {
            let mut report = String::new();
            std::io::Read::read_to_string(request.as_reader(), &mut report).map_err(|e| e.to_string())?;
            let _ = request.respond(Response::from_string("thanks"));
            return Ok(report);
        }
        let path = request.url().trim_start_matches('/').to_string();
        last.clone_from(&path);
        let (text, kind) = match path.as_str() {
            "" => (PAGE.to_string(), "text/html"),
            "names" => {
                (shaders.iter().map(|(name, _)| format!("{name}\n")).collect::<String>() + "control", "text/plain")
            }
            "control" => (CONTROL.to_string(), "text/plain"),
            name => (shaders.iter().find(|(n, _)| n == name).map_or(String::new(), |(_, t)| t.clone()), "text/plain"),
        };
        let header = Header::from_bytes("Content-Type", kind).expect("plain letters");
        let _ = request.respond(Response::from_string(text).with_header(header));
    }
    Err(format!("the browser asked for nothing more within {} s of /{last}", PATIENCE.as_secs()))
}

fn judge(report: &str, shaders: &[(String, String)]) -> Result<()> {
    let verdict = |name: &str| {
        let line = report.lines().find(|line| line.split('\t').next() == Some(name));
        line.map(|line| line.split('\t').nth(1).unwrap_or_default())
    };
    let mut wrong = Vec::new();
    for (name, _) in shaders {
        match verdict(name) {
            Some("") => {}
            Some(message) => wrong.push(format!("{name}: {message}")),
            None => wrong.push(format!("{name}: the page did not report on it: {report}")),
        }
    }
    if verdict("control").is_none_or(str::is_empty) {
        wrong.push("a divergent barrier was accepted: this compiler checks nothing".into());
    }
    println!("{}", report.lines().filter(|l| l.starts_with("adapter")).collect::<String>());
    println!(
        "{} shaders compiled by the browser, every eighth to a pipeline, {} rejected; the control was rejected",
        shaders.len() - wrong.len(),
        wrong.len()
    );
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}
