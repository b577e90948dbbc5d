//! What was measured, beside what was wanted.

use std::fs;

use comfy_table::{ContentArrangement, Table as Grid, presets};
use serde_json::{Value, json};

/// Whether a goal was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    Missed,
    /// Could not be measured.
    Failed,
    /// For comparison: no goal.
    Shown,
}

impl Verdict {
    pub(super) fn of(reached: bool) -> Self {
        if reached { Self::Ok } else { Self::Missed }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missed => "MISSED",
            Self::Failed => "FAILED",
            Self::Shown => "",
        }
    }
}

/// One line.
pub(super) struct Row {
    pub(super) work: String,
    pub(super) measured: String,
    pub(super) goal: String,
    pub(super) verdict: Verdict,
    /// The same for programs.
    pub(super) value: Value,
}

impl Row {
    pub(super) fn goal(work: &str, measured: String, goal: &str, reached: bool, value: Value) -> Self {
        let (work, goal) = (work.to_owned(), goal.to_owned());
        Self { work, measured, goal, verdict: Verdict::of(reached), value }
    }

    pub(super) fn shown(work: &str, measured: String, value: Value) -> Self {
        Self { work: work.to_owned(), measured, goal: String::new(), verdict: Verdict::Shown, value }
    }

    pub(super) fn failed(part: &str, error: &anyhow::Error) -> Self {
        Self {
            work: format!("part {part}"),
            measured: format!("{error:#}"),
            goal: String::new(),
            verdict: Verdict::Failed,
            value: Value::Null,
        }
    }
}

pub(super) struct Table {
    rows: Vec<Row>,
    load_before: String,
}

impl Table {
    pub(super) fn begin() -> Self {
        Self { rows: Vec::new(), load_before: load() }
    }

    pub(super) fn add(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows);
    }

    pub(super) fn print(&self, as_json: bool) {
        if as_json {
            let row = |row: &Row| {
                json!({
                    "work": row.work, "measured": row.measured, "goal": row.goal,
                    "verdict": row.verdict.text(), "value": row.value,
                })
            };
            let rows: Vec<_> = self.rows.iter().map(row).collect();
            println!("{}", json!({ "machine": machine(), "load_before": self.load_before, "rows": rows }));
            return;
        }
        println!("{}", machine());
        println!("load averages before: {}; after: {}", self.load_before, load());
        let mut grid = Grid::new();
        grid.load_preset(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
        grid.set_header(["work", "measured", "goal", ""]);
        for row in &self.rows {
            grid.add_row([&row.work, &row.measured, &row.goal, row.verdict.text()]);
        }
        println!("{grid}");
    }
}

/// Processor, cores, memory, kernel.
fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
        line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} cores ({}), {} of memory, Linux {}",
        field("/proc/cpuinfo", "model name"),
        field("/proc/meminfo", "MemTotal"),
        kernel.trim()
    )
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// The middle of some figures; of none, it is not a number.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
