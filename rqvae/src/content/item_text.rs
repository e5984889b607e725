//! The textual side of an item.

use serde::{Deserialize, Serialize};

/// What is known of an item in words; unknown fields are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ItemText {
    /// Title.
    pub title: String,
    /// Brand or maker.
    pub brand: String,
    /// Category paths, each from the root.
    pub categories: Vec<Vec<String>>,
    /// Free text.
    pub description: String,
}

impl ItemText {
    /// One text for a content encoder: `Title: …. Brand: …. Categories: A > B, A > C. Description: …`.
    ///
    /// Unknown fields are left out. An item that is nothing but free text is that text, without a label.
    pub fn render(&self) -> String {
        let paths: Vec<String> = self.categories.iter().map(|path| path.join(" > ")).collect();
        let fields = [
            ("Title", self.title.trim()),
            ("Brand", self.brand.trim()),
            ("Categories", &paths.join(", ")),
            ("Description", self.description.trim()),
        ];
        let known: Vec<_> = fields.iter().filter(|(_, text)| !text.is_empty()).collect();
        match known.as_slice() {
            [("Description", text)] => (*text).to_owned(),
            known => known.iter().map(|(label, text)| format!("{label}: {text}")).collect::<Vec<_>>().join(". "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_fields_are_rendered_with_labels() {
        let item = ItemText {
            title: " OPI Lacquer ".to_owned(),
            brand: "OPI".to_owned(),
            categories: vec![vec!["Beauty".to_owned(), "Nails".to_owned()], vec!["Gifts".to_owned()]],
            description: String::new(),
        };
        assert_eq!(item.render(), "Title: OPI Lacquer. Brand: OPI. Categories: Beauty > Nails, Gifts");
        let item = ItemText { brand: String::new(), categories: Vec::new(), description: "Red.".to_owned(), ..item };
        assert_eq!(item.render(), "Title: OPI Lacquer. Description: Red.");
    }

    #[test]
    fn free_text_has_no_label() {
        let item = ItemText { description: " red lamp".to_owned(), ..ItemText::default() };
        assert_eq!(item.render(), "red lamp");
        assert_eq!(ItemText::default().render(), "");
    }
}
