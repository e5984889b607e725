//! The page (being written).
use super::{DemoReport, Extras};
/// Renders the page.
pub fn render_html(_report: &DemoReport, _extras: &Extras) -> anyhow::Result<String> {
    Ok(String::new())
}
