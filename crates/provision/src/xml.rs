//! Writing text into XML.

/// `text` with everything that XML gives a meaning to replaced, for element content and attribute values.
///
/// Characters that XML 1.0 cannot express at all (most control characters) become U+FFFD: a user's name for a tag or
/// host must not make the whole document unreadable. Carriage returns are written as references, or a parser would
/// turn them into line feeds.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_parser_reads_back() {
        let nasty = "a<b>&\"c\"'\r\n\t]]>";
        let doc = format!("<r>{}</r>", escape(nasty));
        assert_eq!(roxmltree::Document::parse(&doc).unwrap().root_element().text(), Some(nasty));
        assert_eq!(escape("a\0b"), "a\u{fffd}b");
    }

    proptest! {
        #[test]
        fn any_text_makes_a_readable_document(text in ".*") {
            let doc = format!("<r a=\"{0}\">x{0}</r>", escape(&text));
            let doc = roxmltree::Document::parse(&doc).unwrap();
            let read = doc.root_element().text().unwrap();
            prop_assert_eq!(read.chars().count(), text.chars().count() + 1);
        }
    }
}
