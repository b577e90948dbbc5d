//! How results and progress are shown.

use content::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    /// Prints the result: `value` as one line of JSON, or `text` for people.
    pub(super) fn result(self, value: &Value, text: impl FnOnce() -> String) {
        match self.json {
            true => println!("{value}"),
            false => println!("{}", text()),
        }
    }
}

/// A bar on standard error; invisible when that is no terminal. Goes away when dropped.
pub(super) struct Meter {
    bar: ProgressBar,
}

impl Meter {
    pub(super) fn new(what: &'static str) -> Self {
        let bar = ProgressBar::new(0).with_message(what);
        let template = "{msg} [{bar:30}] {bytes} of {total_bytes}, {elapsed} ({eta} left)";
        // A template that cannot be parsed would be our mistake; the plain bar is no reason to fail.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// A bar of things rather than of bytes.
    pub(super) fn counting() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos} of {len}, {elapsed}") {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// What is being done now.
    pub(super) fn name(&self, what: &'static str) {
        self.bar.set_message(what);
    }

    pub(super) fn show(&self, progress: Progress) {
        self.bar.set_length(progress.total_bytes);
        self.bar.set_position(progress.done_bytes);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Bytes for people, in binary units.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(8 << 30), "8.0 GiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
    }
}
