//! Pictures: from a file, or a landscape.

use image::{Rgb, RgbImage};

/// Colors from 0 to 1, row by row.
pub struct Picture {
    pub height: usize,
    pub width: usize,
    pub colors: Vec<[f32; 3]>,
}

impl Picture {
    /// A picture from a file, of at least `least` pixels each way.
    pub fn open(path: &str, least: usize) -> Result<Self, Box<dyn std::error::Error>> {
        let image = image::open(path).map_err(|e| format!("{path}: {e}"))?.to_rgb8();
        let (width, height) = (image.width() as usize, image.height() as usize);
        if width < least || height < least {
            return Err(format!("{path}: {width} × {height} pixels, expected {least} or more each way").into());
        }
        let colors = image.pixels().map(|pixel| pixel.0.map(|x| f32::from(x) / 255.0)).collect();
        Ok(Self { height, width, colors })
    }

    /// Hills by a lake at sunset: smooth gradients, sharp edges, fine stripes.
    pub fn landscape() -> Self {
        let (height, width) = (256, 384);
        let mut colors = Vec::with_capacity(height * width);
        for y in 0..height {
            for x in 0..width {
                colors.push(scene(x as f32 / width as f32, y as f32 / height as f32));
            }
        }
        Self { height, width, colors }
    }

    /// The color at a place, mirrored at the borders.
    pub fn at(&self, y: isize, x: isize) -> [f32; 3] {
        let mirror = |i: isize, n: usize| {
            let n = n as isize;
            let i = if i < 0 { -i } else { i };
            (if i >= n { 2 * n - 2 - i } else { i }) as usize
        };
        self.colors[mirror(y, self.height) * self.width + mirror(x, self.width)]
    }

    /// The picture as it is shown.
    pub fn image(&self) -> RgbImage {
        let mut image = RgbImage::new(self.width as u32, self.height as u32);
        for (pixel, color) in image.pixels_mut().zip(&self.colors) {
            *pixel = Rgb(color.map(|x| (x.clamp(0.0, 1.0) * 255.0).round() as u8));
        }
        image
    }
}

fn scene(x: f32, y: f32) -> [f32; 3] {
    let mix = |a: [f32; 3], b: [f32; 3], t: f32| std::array::from_fn(|i| a[i] + (b[i] - a[i]) * t.clamp(0.0, 1.0));
    let water = 0.68;
    // The lake shows the land above it, darker and in ripples.
    let mirrored = y > water;
    let ripple = if mirrored { 0.004 * (700.0 * (y - water + 0.1).sqrt()).sin() } else { 0.0 };
    let (x, y) = if mirrored { (x + ripple * 4.0, 2.0 * water - y + ripple) } else { (x, y) };
    let mut color = mix([0.16, 0.22, 0.45], [0.98, 0.62, 0.35], y / water * 1.1);
    let (sun_x, sun_y) = ((x - 0.68) * 1.5, y - 0.3);
    let from_sun = (sun_x * sun_x + sun_y * sun_y).sqrt();
    color = mix([1.0, 0.93, 0.72], color, if from_sun < 0.07 { 0.0 } else { 0.55 + 1.2 * (from_sun - 0.07) });
    for (i, shade) in [[0.42, 0.33, 0.46], [0.27, 0.27, 0.38], [0.11, 0.2, 0.19]].into_iter().enumerate() {
        let step = i as f32;
        let ridge = 0.40 + 0.08 * step + 0.07 * (5.0 * x + 2.3 * step).sin() + 0.025 * (17.0 * x + 5.0 * step).sin();
        if y > ridge {
            color = mix(shade, [0.75, 0.5, 0.42], 0.5 - 0.15 * step - 1.2 * (y - ridge));
            // Rows of trees on the nearest hill.
            if i == 2 && (260.0 * (x + 0.3 * y)).sin() > 0.3 {
                color = mix(color, [0.03, 0.09, 0.06], 0.8);
            }
        }
    }
    if mirrored { mix(color, [0.08, 0.12, 0.25], 0.4) } else { color }
}
