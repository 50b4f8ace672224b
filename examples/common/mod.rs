//! What the examples share: colors for weights, and titled pictures.
#![allow(dead_code)] // each example uses its part

pub mod picture;

use std::fmt::Write;

/// Colors of a drawing.
#[derive(Clone, Copy)]
pub struct Theme {
    pub name: &'static str,
    pub text: &'static str,
    pub faint: &'static str,
    pub panel: &'static str,
    /// The colors of the smallest and of the largest weight.
    weights: [[f32; 3]; 2],
}

pub const LIGHT: Theme = Theme {
    name: "light",
    text: "#1f2328",
    faint: "#59636e",
    panel: "#f3f5f8",
    weights: [[200.0, 220.0, 247.0], [9.0, 45.0, 120.0]],
};

pub const DARK: Theme = Theme {
    name: "dark",
    text: "#f0f6fc",
    faint: "#9198a1",
    panel: "#161b22",
    weights: [[24.0, 56.0, 102.0], [166.0, 212.0, 255.0]],
};

impl Theme {
    /// The color of a weight from 0 to 1.
    pub fn color(&self, weight: f32) -> String {
        let [from, to] = self.weights;
        let mix = |i: usize| (from[i] + (to[i] - from[i]) * weight.clamp(0.0, 1.0)).round() as u8;
        format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
    }
}

/// A drawing as SVG.
pub struct Svg {
    text: String,
    size: [usize; 2],
}

impl Svg {
    pub fn new(width: usize, height: usize) -> Self {
        Self { text: String::new(), size: [width, height] }
    }

    pub fn add(&mut self, element: &str) {
        self.text.push_str(element);
        self.text.push('\n');
    }

    /// A line of text; `class` is title, note or small.
    pub fn line(&mut self, [x, y]: [usize; 2], class: &str, anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.add(&format!(r#"<text x="{x}" y="{y}" class="{class}" text-anchor="{anchor}">{text}</text>"#));
    }

    /// Cells of a grid, row by row: nothing for None, or a weight from 0 to 1. Neighbors of one color become one path.
    pub fn cells(&mut self, theme: &Theme, [x, y]: [usize; 2], side: usize, columns: usize, cells: &[Option<f32>]) {
        const LEVELS: usize = 12;
        let level = |cell: &Option<f32>| cell.map(|w| (w.clamp(0.0, 1.0) * (LEVELS - 1) as f32).round() as usize);
        for of in 0..LEVELS {
            let mut path = String::new();
            for (row, cells) in cells.chunks(columns).enumerate() {
                let mut start = 0;
                for run in cells.chunk_by(|a, b| level(a) == level(b)) {
                    if level(&run[0]) == Some(of) {
                        let (left, top, width) = (x + start * side, y + row * side, run.len() * side);
                        write!(path, "M{left} {top}h{width}v{side}h-{width}z").expect("a string grows");
                    }
                    start += run.len();
                }
            }
            if !path.is_empty() {
                let color = theme.color(of as f32 / (LEVELS - 1) as f32);
                self.add(&format!(r#"<path fill="{color}" d="{path}"/>"#));
            }
        }
    }

    /// The smallest to the largest color, with words at both ends.
    pub fn legend(&mut self, theme: &Theme, [x, y]: [usize; 2], ends: [&str; 2]) {
        let cells: Vec<Option<f32>> = (0..12).map(|i| Some(i as f32 / 11.0)).collect();
        self.line([x, y + 11], "small", "end", ends[0]);
        self.cells(theme, [x + 8, y], 12, 12, &cells);
        self.line([x + 8 + 144 + 8, y + 11], "small", "start", ends[1]);
    }

    /// A picture, as large as its box.
    pub fn picture(&mut self, [x, y]: [usize; 2], [width, height]: [usize; 2], picture: &image::RgbImage) {
        let mut png = std::io::Cursor::new(vec![]);
        picture.write_to(&mut png, image::ImageFormat::Png).expect("a PNG in memory");
        let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, png.into_inner());
        self.add(&format!(
            r#"<image x="{x}" y="{y}" width="{width}" height="{height}" image-rendering="pixelated" href="data:image/png;base64,{data}"/>"#
        ));
    }

    pub fn finish(self, theme: &Theme, background: Option<&str>) -> String {
        let Self { text, size: [width, height] } = self;
        let Theme { text: color, faint, .. } = theme;
        let background = background
            .map_or(String::new(), |color| format!("<rect width=\"{width}\" height=\"{height}\" fill=\"{color}\"/>\n"));
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<style>text {{ font-family: system-ui, sans-serif; fill: {color} }} .title {{ font-size: 15px; font-weight: 600 }} .note, .small {{ font-size: 12px; fill: {faint} }}</style>
{background}{text}</svg>
"#
        )
    }
}
