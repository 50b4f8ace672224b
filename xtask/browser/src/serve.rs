//! A folder of static files over HTTP, on this machine only.

use crate::Result;
use std::path::Path;
use tiny_http::{Header, Request, Response, Server};

/// At a port, or at any that is free where it is 0; and the address.
pub fn open(port: u16) -> Result<(Server, String)> {
    let server = Server::http(("127.0.0.1", port)).map_err(|e| format!("port {port}: {e}"))?;
    let address = server.server_addr().to_ip().ok_or("no address to serve from")?;
    Ok((server, format!("http://localhost:{}/", address.port())))
}

/// Serves until the program is ended.
pub fn forever(folder: &Path, port: u16) -> Result<()> {
    let (server, address) = open(port)?;
    println!("open {address} (end with Ctrl-C)");
    serve(&server, folder);
    Ok(())
}

/// Serves while something is done with the address.
pub fn during<R>(folder: &Path, work: impl FnOnce(&str) -> Result<R>) -> Result<R> {
    let (server, address) = open(0)?;
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&server, folder));
        let done = work(&address);
        server.unblock();
        done
    })
}

/// Answers until the server is unblocked.
fn serve(server: &Server, folder: &Path) {
    for request in server.incoming_requests() {
        answer(request, folder);
    }
}

fn answer(request: Request, folder: &Path) {
    let path = request.url().split(['?', '#']).next().unwrap_or_default().trim_start_matches('/').to_string();
    let name = if path.is_empty() { "index.html" } else { &path };
    // All files lie side by side.
    let found = if name.contains(['/', '\\']) { None } else { std::fs::read(folder.join(name)).ok() };
    let _ = match found {
        Some(bytes) => request.respond(Response::from_data(bytes).with_header(content_type(name))),
        None => request.respond(Response::from_string(format!("there is no {name}")).with_status_code(404)),
    };
}

fn content_type(name: &str) -> Header {
    let kind = match name.rsplit('.').next() {
        Some("html") => "text/html",
        Some("css") => "text/css",
        Some("js" | "mjs") => "text/javascript",
        Some("wasm") => "application/wasm",
        _ => "text/plain",
    };
    Header::from_bytes("Content-Type", kind).expect("plain letters")
}
