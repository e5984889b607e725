//! One value of a table, as typed as its file format is.

use serde_json::Value;

/// A value; CSV knows only texts and nulls.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    /// Absent, null, or an empty CSV field.
    Null,
    /// A whole number of 64 bits.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of anything.
    List(Vec<Cell>),
    /// A list of numbers, at least one of them with a fraction, kept densely.
    Numbers(Vec<f32>),
}

/// Longest external id in bytes.
const MAX_KEY_BYTES: usize = 512;

impl Cell {
    /// The same value as read from JSON; a list of numbers becomes dense.
    pub(super) fn from_json(value: Value) -> Self {
        match value {
            Value::Null | Value::Object(_) => Self::Null,
            Value::Bool(b) => Self::Bool(b),
            Value::Number(n) => n.as_i64().map_or_else(|| Self::Float(n.as_f64().unwrap_or(f64::NAN)), Self::Int),
            Value::String(s) => Self::Text(s),
            Value::Array(values) => {
                if values.iter().any(Value::is_f64) && values.iter().all(Value::is_number) {
                    let numbers = values.iter().map(|v| v.as_f64().unwrap_or(f64::NAN) as f32);
                    Self::Numbers(numbers.collect())
                } else {
                    Self::List(values.into_iter().map(Self::from_json).collect())
                }
            }
        }
    }

    /// What kind of value this is, for messages.
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Int(_) => "a whole number",
            Self::Float(_) => "a number with a fraction, or one beyond 64 bits",
            Self::Bool(_) => "a truth value",
            Self::Text(_) => "a text",
            Self::List(_) | Self::Numbers(_) => "a list",
        }
    }

    /// An external id, exactly as written; a whole number becomes its digits.
    pub(super) fn key(&self, column: &str) -> Result<String, String> {
        match self {
            Self::Int(n) => Ok(n.to_string()),
            Self::Text(s) if s.is_empty() => Err(format!("`{column}` is empty")),
            Self::Text(s) if s.len() > MAX_KEY_BYTES => {
                Err(format!("`{column}` is {} bytes long, at most {MAX_KEY_BYTES} are allowed", s.len()))
            }
            Self::Text(s) => Ok(s.clone()),
            Self::Null => Err(format!("`{column}` is missing")),
            other => Err(format!("`{column}` is {}; expected a text or a whole number", other.kind())),
        }
    }

    /// Text with white space collapsed; lists are joined by commas, nothing is empty.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Int(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Text(s) => s.split_whitespace().collect::<Vec<_>>().join(" "),
            Self::List(cells) => cells.iter().map(Self::text).filter(|s| !s.is_empty()).collect::<Vec<_>>().join(", "),
            Self::Numbers(numbers) => numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }
    }

    /// Category paths from the root: a list of paths, one path as a list of texts, or a text `A > B > C`
    /// (several separated by `|`; a text that is a JSON list is read as one).
    pub(super) fn paths(&self) -> Vec<Vec<String>> {
        let path = |cells: &[Self]| -> Vec<String> { cells.iter().map(Self::text).filter(|s| !s.is_empty()).collect() };
        let mut paths: Vec<Vec<String>> = match self {
            Self::List(cells) if cells.iter().any(|c| matches!(c, Self::List(_))) => cells
                .iter()
                .map(|cell| match cell {
                    Self::List(inner) => path(inner),
                    other => vec![other.text()],
                })
                .collect(),
            Self::List(cells) => vec![path(cells)],
            Self::Text(s) if s.trim_start().starts_with('[') => match serde_json::from_str::<Value>(s) {
                Ok(value) => return Self::from_json(value).paths(),
                Err(_) => vec![vec![self.text()]],
            },
            Self::Text(s) => s
                .split('|')
                .map(|p| p.split(" > ").map(|s| Self::Text(s.to_owned()).text()))
                .map(|p| p.filter(|s| !s.is_empty()).collect())
                .collect(),
            Self::Null => Vec::new(),
            other => vec![vec![other.text()]],
        };
        paths.retain(|p| p.iter().any(|s| !s.is_empty()));
        paths
    }

    /// A vector of finite numbers: a list, or a text of numbers separated by commas, semicolons or blanks.
    pub(super) fn vector(&self, column: &str) -> Result<Vec<f32>, String> {
        let numbers = match self {
            Self::Numbers(numbers) => numbers.clone(),
            Self::List(cells) => cells
                .iter()
                .map(|cell| match cell {
                    Self::Int(n) => Ok(*n as f32),
                    Self::Float(x) => Ok(*x as f32),
                    other => Err(format!("`{column}` holds {} in its list", other.kind())),
                })
                .collect::<Result<_, _>>()?,
            Self::Text(s) => s
                .trim()
                .trim_start_matches('[')
                .trim_end_matches(']')
                .split(|c: char| c == ',' || c == ';' || c.is_whitespace())
                .filter(|part| !part.is_empty())
                .map(|part| part.parse::<f32>().map_err(|_| format!("`{column}` holds `{part}`, which is no number")))
                .collect::<Result<_, _>>()?,
            Self::Null => return Err(format!("`{column}` is missing")),
            other => {
                return Err(format!("`{column}` is {}; expected a list of numbers", other.kind()));
            }
        };
        if numbers.is_empty() {
            return Err(format!("`{column}` is empty"));
        }
        match numbers.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(format!("`{column}` holds {} at place {at}", numbers[at])),
            None => Ok(numbers),
        }
    }

    /// A whole number such as a position.
    pub(super) fn whole(&self, column: &str) -> Result<i64, String> {
        match self {
            Self::Int(n) => Ok(*n),
            Self::Float(x) if x.fract() == 0.0 && x.abs() < 9e15 => Ok(*x as i64),
            Self::Text(s) => s.trim().parse().map_err(|_| format!("`{column}` is `{}`, no whole number", clip(s))),
            Self::Null => Err(format!("`{column}` is missing")),
            other => Err(format!("`{column}` is {}; expected a whole number", other.kind())),
        }
    }
}

/// The first characters of a text, for messages.
pub(super) fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().take(40).collect();
    if clipped.len() < text.len() {
        clipped.push('…');
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Cell {
        Cell::from_json(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn ids_are_kept_exactly_or_refused() {
        assert_eq!(json("\" 007 \"").key("item_id").unwrap(), " 007 ");
        assert_eq!(json("9007199254740993").key("item_id").unwrap(), "9007199254740993");
        for bad in ["1.5", "1e3", "18446744073709551617", "\"\"", "null", "[1]"] {
            assert!(json(bad).key("item_id").is_err(), "{bad}");
        }
        assert!(Cell::Text("x".repeat(513)).key("item_id").is_err());
    }

    #[test]
    fn categories_come_in_three_shapes() {
        let a_b = vec![vec!["A".to_owned(), "B".to_owned()]];
        assert_eq!(json(r#"[["A","B"]]"#).paths(), a_b);
        assert_eq!(json(r#"["A","B"]"#).paths(), a_b);
        assert_eq!(json(r#""A > B""#).paths(), a_b);
        assert_eq!(Cell::Text(r#"[["A","B"]]"#.to_owned()).paths(), a_b);
        assert_eq!(json(r#""A|B""#).paths(), vec![vec!["A"], vec!["B"]]);
        assert!(json(r#"[[],[""]]"#).paths().is_empty());
        assert!(Cell::Null.paths().is_empty());
    }

    #[test]
    fn vectors_are_lists_or_texts_of_finite_numbers() {
        assert_eq!(json("[1, 2.5]").vector("e").unwrap(), [1.0, 2.5]);
        assert_eq!(Cell::Text("[1, 2.5 ]".to_owned()).vector("e").unwrap(), [1.0, 2.5]);
        assert!(Cell::Text("1 nan".to_owned()).vector("e").unwrap_err().contains("place 1"));
        assert!(json("[1, null]").vector("e").is_err());
        assert!(json("[]").vector("e").is_err());
    }
}
