//! Text of an item from named columns: `{title} {brand}`.

use crate::error::{Fault, fault};

/// A parsed template; braces are written `{{` and `}}`.
#[derive(Debug, PartialEq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, PartialEq)]
enum Part {
    Literal(String),
    Column(String),
}

impl Template {
    /// # Errors
    /// Usage when braces do not match or no column is named.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let wrong = |why: &str| fault(Fault::Usage, format!("--text `{text}`: {why}"));
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.peek() == Some(&c) => {
                    chars.next();
                    literal.push(c);
                }
                '{' => {
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some('{') | None => return Err(wrong("a `{` is not closed")),
                            Some(c) => name.push(c),
                        }
                    }
                    let name = name.trim();
                    if name.is_empty() {
                        return Err(wrong("a column between braces has no name"));
                    }
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Column(name.to_owned()));
                }
                '}' => return Err(wrong("a `}` has no `{`; write `}}` for a brace")),
                c => literal.push(c),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        let template = Self { parts };
        if template.columns().next().is_none() {
            return Err(wrong("it names no column; write e.g. `{title} {brand}`"));
        }
        Ok(template)
    }

    /// The columns it names, in order, repeats included.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// The text with the columns' `values` put in, white space collapsed.
    pub(super) fn fill(&self, mut value: impl FnMut(&str) -> String) -> String {
        let text: String = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Literal(text) => text.clone(),
                Part::Column(name) => value(name),
            })
            .collect();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_put_in() {
        let template = Template::parse("{ title } by {brand}, {{{title}}}").unwrap();
        assert_eq!(template.columns().collect::<Vec<_>>(), ["title", "brand", "title"]);
        assert_eq!(template.fill(str::to_uppercase), "TITLE by BRAND, {TITLE}");
        assert_eq!(template.fill(|_| String::new()), "by , {}");
    }

    #[test]
    fn broken_templates_are_refused() {
        for bad in ["", "title", "{title", "{a{b}", "title}", "{}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
