//! XML as Azure Storage writes it: one document, elements in order, text escaped.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// A document under construction. What is opened is closed by the closure's end or by [`Xml::finish`], so that it is
/// always well formed.
#[derive(Debug)]
pub(super) struct Xml {
    text: String,
    root: &'static str,
}

impl Xml {
    /// A document with this root element.
    pub(super) fn document(root: &'static str) -> Self {
        Self { text: format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><{root}>"), root }
    }

    /// A document whose root has attributes, name and value.
    pub(super) fn document_with(root: &'static str, attributes: &[(&'static str, &str)]) -> Self {
        let mut xml = Self { text: format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><{root}"), root };
        for (name, value) in attributes {
            xml.text.push_str(&format!(" {name}=\""));
            escape(value, &mut xml.text);
            xml.text.push('"');
        }
        xml.text.push('>');
        xml
    }

    /// An element with text.
    pub(super) fn text(&mut self, name: &str, text: &str) -> &mut Self {
        self.text.push_str(&format!("<{name}>"));
        escape(text, &mut self.text);
        self.text.push_str(&format!("</{name}>"));
        self
    }

    /// An element with text, unless that is absent.
    pub(super) fn maybe(&mut self, name: &str, text: Option<&str>) -> &mut Self {
        if let Some(text) = text {
            self.text(name, text);
        }
        self
    }

    /// An element with elements.
    pub(super) fn nest(&mut self, name: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.text.push_str(&format!("<{name}>"));
        fill(self);
        self.text.push_str(&format!("</{name}>"));
        self
    }

    /// The whole document.
    pub(super) fn finish(mut self) -> String {
        self.text.push_str(&format!("</{}>", self.root));
        self.text
    }
}

impl IntoResponse for Xml {
    fn into_response(self) -> Response {
        let mut response = self.finish().into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        response
    }
}

/// Characters that XML 1.0 does not have are left out; blob names cannot hold them.
fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#xD;"),
            '\t' | '\n' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out() {
        let mut xml = Xml::document_with("A", &[("B", "\"<")]);
        xml.nest("C", |xml| {
            xml.text("D", "</D>&\u{0}").maybe("E", None);
        });
        assert_eq!(
            xml.finish(),
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><A B=\"&quot;&lt;\"><C><D>&lt;/D&gt;&amp;</D></C></A>"
        );
    }
}
