//! Progress for people: bars on a terminal, plain lines elsewhere, always on stderr.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// One stage of a job.
pub struct Stage {
    name: String,
    bar: Option<ProgressBar>,
    began: Instant,
    last_line: Instant,
}

impl Stage {
    /// Begins a stage; `total` 0 when it is not known.
    pub fn new(name: &str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = if total == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(total) };
            let text = if total == 0 {
                "{spinner} {prefix:<22} {msg}"
            } else {
                "  {prefix:<22} [{bar:28}] {pos}/{len} {msg} {eta}"
            };
            let style = ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("━╸ "));
            bar.set_prefix(name.to_string());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("{name} ...");
        }
        Self { name: name.to_string(), bar, began: Instant::now(), last_line: Instant::now() }
    }

    /// `done` of the total, with a few words.
    pub fn at(&mut self, done: u64, total: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(message.to_string());
        } else if self.last_line.elapsed() > Duration::from_secs(15) {
            self.last_line = Instant::now();
            eprintln!("{}: {done}/{total} {message}", self.name);
        }
    }

    /// A line that stays.
    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Ends the stage with a few words on the result; returns its seconds.
    pub fn done(self, message: &str) -> f64 {
        let seconds = self.began.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("✓ {:<22} {:>7.1} s  {message}", self.name, seconds);
        seconds
    }
}
