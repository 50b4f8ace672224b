//! A page in headless Chromium, as a visitor uses it.

use crate::Result;
use headless_chrome::protocol::cdp::Emulation::SetDeviceMetricsOverride;
use headless_chrome::protocol::cdp::Page::CaptureScreenshotFormatOption::Png;
use headless_chrome::protocol::cdp::Runtime::ConsoleAPICalledEventTypeOption as Said;
use headless_chrome::protocol::cdp::{Log::LogEntryLevel, types::Event};
use headless_chrome::{Browser, LaunchOptions, Tab};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a page may take to load.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page.
pub struct Page {
    tab: Arc<Tab>,
    /// Errors and warnings of the console, and what was thrown.
    complaints: Arc<Mutex<Vec<String>>>,
    // The program ends with it.
    _browser: Browser,
}

/// How an action failed.
fn failed<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> String {
    move |e| format!("{what}: {e}")
}

impl Page {
    /// Opens an address, with WebGPU's software adapter if wanted, and waits for it.
    pub fn open(chromium: &Path, address: &str, webgpu: bool) -> Result<Self> {
        let page = Self::blank(chromium, webgpu)?;
        page.start(address)?;
        page.until(address, "document.readyState === 'complete'", PATIENCE)?;
        Ok(page)
    }

    /// An empty page.
    pub fn blank(chromium: &Path, webgpu: bool) -> Result<Self> {
        let mut arguments = vec![
            "--disable-component-update",
            "--disable-quic",
            "--disable-gpu-watchdog",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
        ];
        // Without a GPU it has no other adapter.
        if webgpu {
            arguments.extend(["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]);
        }
        let options = LaunchOptions {
            path: Some(chromium.into()),
            sandbox: false,
            enable_gpu: true,
            idle_browser_timeout: Duration::from_secs(3600),
            args: arguments.into_iter().map(OsStr::new).collect(),
            ..LaunchOptions::default()
        };
        let browser = Browser::new(options).map_err(failed("chromium"))?;
        let tab = browser.new_tab().map_err(failed("a new tab"))?;
        tab.set_default_timeout(PATIENCE);
        let complaints = Arc::new(Mutex::new(vec![]));
        let page = Self { tab, complaints, _browser: browser };
        page.listen()?;
        page.size(1200, 900)?;
        Ok(page)
    }

    /// Goes to an address.
    pub fn start(&self, address: &str) -> Result<()> {
        self.tab.navigate_to(address).map_err(failed(address)).map(|_| ())
    }

    fn listen(&self) -> Result<()> {
        let complaints = self.complaints.clone();
        let note = move |text: String| complaints.lock().expect("no panic under this lock").push(text);
        let listener = move |event: &Event| match event {
            Event::RuntimeConsoleAPICalled(said) if matches!(said.params.Type, Said::Error | Said::Warning) => {
                note(
                    said.params
                        .args
                        .iter()
                        .map(|x| format!("{} ", x.description.clone().unwrap_or_default()))
                        .collect(),
                );
            }
            Event::RuntimeExceptionThrown(thrown) => {
                let details = &thrown.params.exception_details;
                let object = details.exception.as_ref().and_then(|x| x.description.clone());
                note(format!("thrown: {} {}", details.text, object.unwrap_or_default()));
            }
            Event::LogEntryAdded(entry)
                if matches!(entry.params.entry.level, LogEntryLevel::Error | LogEntryLevel::Warning) =>
            {
                note(format!("{} {}", entry.params.entry.text, entry.params.entry.url.clone().unwrap_or_default()));
            }
            _ => {}
        };
        let listened = self.tab.enable_runtime().and_then(Tab::enable_log);
        listened.and_then(|tab| tab.add_event_listener(Arc::new(listener))).map_err(failed("listening")).map(|_| ())
    }

    /// What the console has complained of so far.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().expect("no panic under this lock").clone()
    }

    /// The page's width and height in pixels.
    pub fn size(&self, width: u32, height: u32) -> Result<()> {
        let metrics = SetDeviceMetricsOverride {
            width,
            height,
            device_scale_factor: 1.0,
            mobile: width < 600,
            scale: None,
            screen_width: None,
            screen_height: None,
            position_x: None,
            position_y: None,
            dont_set_visible_size: None,
            screen_orientation: None,
            viewport: None,
            display_feature: None,
            device_posture: None,
        };
        self.tab.call_method(metrics).map_err(failed("the page's size")).map(|_| ())
    }

    /// The value of an expression, awaited.
    pub fn value(&self, expression: &str) -> Result<Value> {
        let whole = format!("(async () => JSON.stringify(await ({expression})))()");
        let found = self.tab.evaluate(&whole, true).map_err(failed(expression))?;
        let text = found.value.as_ref().and_then(Value::as_str).unwrap_or("null");
        serde_json::from_str(text).map_err(failed(expression))
    }

    pub fn text(&self, selector: &str) -> Result<String> {
        let found = self.value(&format!("document.querySelector({selector:?}).textContent"))?;
        Ok(found.as_str().unwrap_or_default().to_string())
    }

    /// Clicks in the middle of an element, as a mouse does.
    pub fn click(&self, selector: &str) -> Result<()> {
        let element = self.tab.wait_for_element(selector).map_err(failed(selector))?;
        element.scroll_into_view().and_then(|e| e.click()).map_err(failed(selector)).map(|_| ())
    }

    /// Presses a key where the focus is.
    pub fn press(&self, key: &str) -> Result<()> {
        self.tab.press_key(key).map_err(failed(key)).map(|_| ())
    }

    /// Moves a control of a form, as if by hand.
    pub fn set(&self, selector: &str, value: &str) -> Result<()> {
        let script = format!(
            "(() => {{ const e = document.querySelector({selector:?}); \
             if (e.type === 'checkbox') {{ e.checked = {value:?} === 'true'; e.dispatchEvent(new Event('change')); }} \
             else {{ e.value = {value:?}; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }} }})()"
        );
        self.value(&script).map(|_| ())
    }

    /// Waits until an expression is true.
    pub fn until(&self, what: &str, expression: &str, patience: Duration) -> Result<()> {
        let start = Instant::now();
        while self.value(expression)? != Value::Bool(true) {
            if start.elapsed() > patience {
                let notice = self.text("#notice").unwrap_or_default();
                return Err(format!("{what}: not within {} s; {notice} {:?}", patience.as_secs(), self.complaints()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The whole page as a picture.
    pub fn screenshot(&self, path: &Path) -> Result<()> {
        let png = self.tab.capture_screenshot(Png, None, None, true).map_err(failed("screenshot"))?;
        std::fs::write(path, png).map_err(crate::of_file(path))
    }
}
