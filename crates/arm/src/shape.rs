//! The properties that Azure has for a type, and how a request is read against them.
//!
//! Reading is one walk over the body that
//! 1. finds each property, with or without regard to case as the api-version wants, and gives it its canonical
//!    name;
//! 2. refuses, ignores or keeps a property that Azure does not have;
//! 3. drops what only the server writes (clients send back what they read) and explicit nulls, which mean
//!    "absent" (CLIENTS.md 5.3);
//! 4. splits the rest into what the model has a field for and what is only kept.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::api_version::ApiVersion;
use crate::error::ArmError;

/// The properties of one object. `name` is Azure's type name, which messages show.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) fields: &'static [(&'static str, Kind)],
}

/// What is known of a property.
pub(crate) enum Kind {
    /// The model has a field for it; its inside, if any, is the user's (tags).
    Typed,
    /// Azure has it, we keep it and give it back.
    Kept,
    /// Only the server writes it, or it is written only and never shown: dropped.
    Dropped,
    /// An object.
    Object(&'static Shape),
    /// A list of objects.
    List(&'static Shape),
    /// An object whose properties depend on one of them.
    OneOf(&'static Variants),
    /// A list of such.
    ListOf(&'static Variants),
}

/// Shapes told apart by the text in the property `tag`.
pub(crate) struct Variants {
    pub(crate) tag: &'static str,
    pub(crate) shapes: &'static [(&'static str, &'static Shape)],
}

/// How strictly a body is read: see the table in [`crate::api_version`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// Compute up to what we know.
    Compute,
    /// Compute beyond what we know.
    ComputeNewer,
    /// Image builder ≥ 2024-02-01, with its Go package for messages.
    ImageBuilder { go_package: String },
    /// Image builder before.
    ImageBuilderLenient,
}

impl Strictness {
    /// For a type of Microsoft.Compute or Microsoft.Resources whose properties are known up to that release.
    pub(crate) fn compute(version: &ApiVersion, known_until: (u16, u8, u8)) -> Self {
        let (year, month, day) = known_until;
        let newer = version.is_at_least(year, month, day)
            && ApiVersion::parse(&format!("{year:04}-{month:02}-{day:02}")).as_ref() != Ok(version);
        if newer { Self::ComputeNewer } else { Self::Compute }
    }

    /// For image templates.
    pub(crate) fn image_builder(version: &ApiVersion) -> Self {
        if version.is_at_least(2024, 2, 1) {
            Self::ImageBuilder { go_package: version.go_package() }
        } else {
            Self::ImageBuilderLenient
        }
    }

    fn case_counts(&self) -> bool {
        matches!(self, Self::ImageBuilder { .. })
    }
}

/// A body that was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Read {
    /// What the model has fields for, under canonical names.
    pub(crate) typed: Value,
    /// What is only kept, at the same paths.
    pub(crate) extra: Map<String, Value>,
}

/// Reads a body.
pub(crate) fn read(body: Value, shape: &Shape, strictness: &Strictness) -> Result<Read, ArmError> {
    let mut walk = Walk { strictness, path: Vec::new() };
    let (typed, extra) = walk.object(body, shape)?;
    let extra = match extra {
        Some(Value::Object(extra)) => extra,
        _ => Map::new(),
    };
    Ok(Read { typed, extra })
}

/// Takes the typed part into a wire struct.
pub(crate) fn typed<T: DeserializeOwned>(read: Value, strictness: &Strictness) -> Result<T, ArmError> {
    serde_path_to_error::deserialize(read).map_err(|error| {
        let path = error.path().to_string();
        malformed(strictness, &path, &error.into_inner().to_string())
    })
}

/// A value of the wrong JSON type at `path`.
fn malformed(strictness: &Strictness, path: &str, cause: &str) -> ArmError {
    match strictness {
        Strictness::Compute | Strictness::ComputeNewer => {
            ArmError::invalid_request_content(&format!("{cause}. Path '{path}'")).with_target(path)
        }
        Strictness::ImageBuilder { .. } | Strictness::ImageBuilderLenient => ArmError::new(
            400,
            "ValidationFailed",
            format!("Unmarshalling entity encountered error: {path}: {cause}.{GO_ADVICE}"),
        )
        .with_target(path),
    }
}

const GO_ADVICE: &str = " There is an issue with the syntax with the JSON template you are submitting. Please check the JSON \
     template for syntax and grammar. For more information on the syntax and grammar of the JSON template, visit \
     http://aka.ms/azvmimagebuildertmplref.";

struct Walk<'a> {
    strictness: &'a Strictness,
    path: Vec<Step>,
}

/// One step down: the property and the type that has it.
struct Step {
    owner: &'static str,
    property: String,
    index: Option<usize>,
}

/// What is only kept of a value; `None` for nothing.
type Extra = Option<Value>;

impl Walk<'_> {
    fn object(&mut self, value: Value, shape: &Shape) -> Result<(Value, Extra), ArmError> {
        let Value::Object(properties) = value else { return Err(self.wrong_type("an object", &value)) };
        let (mut typed, mut extra) = (Map::new(), Map::new());
        for (name, value) in properties {
            let Some((name, kind)) = self.find(shape, &name) else {
                self.unknown(shape, name, value, &mut extra)?;
                continue;
            };
            if value.is_null() {
                continue;
            }
            self.path.push(Step { owner: shape.name, property: name.to_owned(), index: None });
            let (value, kept) = self.value(value, kind)?;
            self.path.pop();
            typed.extend(value.map(|value| (name.to_owned(), value)));
            extra.extend(kept.map(|kept| (name.to_owned(), kept)));
        }
        Ok((Value::Object(typed), (!extra.is_empty()).then_some(Value::Object(extra))))
    }

    fn value(&mut self, value: Value, kind: &Kind) -> Result<(Option<Value>, Extra), ArmError> {
        let some = |(typed, extra)| (Some(typed), extra);
        match kind {
            Kind::Typed => Ok((Some(value), None)),
            Kind::Kept => Ok((None, Some(value))),
            Kind::Dropped => Ok((None, None)),
            Kind::Object(shape) => self.object(value, shape).map(some),
            Kind::OneOf(variants) => self.variant(value, variants).map(some),
            Kind::List(shape) => self.list(value, |walk, item| walk.object(item, shape)).map(some),
            Kind::ListOf(variants) => self.list(value, |walk, item| walk.variant(item, variants)).map(some),
        }
    }

    fn list(
        &mut self,
        value: Value,
        mut item: impl FnMut(&mut Self, Value) -> Result<(Value, Extra), ArmError>,
    ) -> Result<(Value, Extra), ArmError> {
        let Value::Array(values) = value else { return Err(self.wrong_type("a list", &value)) };
        let (mut typed, mut extra) = (Vec::new(), Vec::new());
        for (index, value) in values.into_iter().enumerate() {
            if let Some(step) = self.path.last_mut() {
                step.index = Some(index);
            }
            let (value, kept) = item(self, value)?;
            typed.push(value);
            extra.push(kept);
        }
        if let Some(step) = self.path.last_mut() {
            step.index = None;
        }
        let any = extra.iter().any(Option::is_some);
        let extra = any.then(|| {
            extra.into_iter().map(|kept| kept.unwrap_or_else(|| Value::Object(Map::new()))).collect()
        });
        Ok((Value::Array(typed), extra))
    }

    /// An object of a variant that is not known is passed on with its tag alone: the type's own `parse` names
    /// those that it would take.
    fn variant(&mut self, value: Value, variants: &Variants) -> Result<(Value, Extra), ArmError> {
        let Value::Object(mut properties) = value else { return Err(self.wrong_type("an object", &value)) };
        let key = properties.keys().find(|key| self.same(key, variants.tag)).cloned();
        let tag = key.as_ref().and_then(|key| properties.get(key)).cloned().unwrap_or(Value::Null);
        let known =
            tag.as_str().and_then(|tag| variants.shapes.iter().find(|(name, _)| self.same(name, tag)));
        let (Some((name, shape)), Some(key)) = (known, key) else {
            return Ok((Value::Object(Map::from_iter([(variants.tag.to_owned(), tag)])), None));
        };
        properties.insert(key, Value::String((*name).to_owned()));
        self.object(Value::Object(properties), shape)
    }

    fn find<'s>(&self, shape: &'s Shape, name: &str) -> Option<(&'static str, &'s Kind)> {
        shape.fields.iter().find(|(field, _)| self.same(field, name)).map(|(field, kind)| (*field, kind))
    }

    fn same(&self, canonical: &str, written: &str) -> bool {
        if self.strictness.case_counts() {
            canonical == written
        } else {
            canonical.eq_ignore_ascii_case(written)
        }
    }

    fn unknown(
        &self,
        shape: &Shape,
        name: String,
        value: Value,
        extra: &mut Map<String, Value>,
    ) -> Result<(), ArmError> {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
        let path = match self.text().as_str() {
            "" => shown.clone(),
            parent => format!("{parent}.{shown}"),
        };
        match self.strictness {
            Strictness::ComputeNewer => {
                extra.insert(name, value);
                Ok(())
            }
            Strictness::ImageBuilderLenient => Ok(()),
            Strictness::Compute => {
                let cause = format!(
                    "Could not find member '{shown}' on object of type '{}'. Path '{path}'",
                    shape.name
                );
                // ARM's front door reads the top level, the provider the rest.
                let error = if self.path.is_empty() {
                    ArmError::invalid_request_content(&cause)
                } else {
                    ArmError::new(400, "BadRequest", format!("{cause}."))
                };
                Err(error.with_target(path))
            }
            Strictness::ImageBuilder { go_package } => {
                let mut message = "Unmarshalling entity encountered error: ".to_owned();
                for step in &self.path {
                    let mut field = step.property.clone();
                    field[..1].make_ascii_uppercase();
                    message +=
                        &format!("unmarshalling type *{go_package}.{}: struct field {field}: ", step.owner);
                }
                let own = format!("unmarshalling type *{go_package}.{}", shape.name);
                message += &format!("{own}: {own}, unknown field \"{shown}\".{GO_ADVICE}");
                Err(ArmError::new(400, "ValidationFailed", message).with_target(path))
            }
        }
    }

    fn wrong_type(&self, expected: &str, found: &Value) -> ArmError {
        let found = match found {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        malformed(self.strictness, &self.text(), &format!("invalid type: {found}, expected {expected}"))
    }

    /// `properties.distribute[0].targetRegions`.
    fn text(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            if !text.is_empty() {
                text.push('.');
            }
            text += &step.property;
            if let Some(index) = step.index {
                text += &format!("[{index}]");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const INNER: Shape = Shape {
        name: "Inner",
        fields: &[("vmBoot", Kind::Typed), ("kept", Kind::Kept), ("state", Kind::Dropped)],
    };
    const OUTER: Shape = Shape {
        name: "Outer",
        fields: &[
            ("location", Kind::Typed),
            ("properties", Kind::Object(&INNER)),
            ("items", Kind::List(&INNER)),
            ("steps", Kind::ListOf(&Variants { tag: "type", shapes: &[("Shell", &SHELL)] })),
        ],
    };
    const SHELL: Shape = Shape { name: "Shell", fields: &[("type", Kind::Typed), ("inline", Kind::Typed)] };

    fn strict() -> Strictness {
        Strictness::ImageBuilder { go_package: "v2024_02_01".into() }
    }

    #[test]
    fn a_body_is_split_and_spelled_canonically() {
        let body = json!({
            "Location": "x", "PROPERTIES": {"VMBOOT": 1, "Kept": {"a": null}, "state": "x"},
            "items": [{"vmBoot": 1}, {"kept": 2}], "steps": [{"TYPE": "shell", "Inline": []}]
        });
        let read = read(body, &OUTER, &Strictness::Compute).unwrap();
        assert_eq!(
            read.typed,
            json!({"location": "x", "properties": {"vmBoot": 1}, "items": [{"vmBoot": 1}, {}], "steps": [{"type": "Shell", "inline": []}]})
        );
        assert_eq!(
            Value::Object(read.extra),
            json!({"properties": {"kept": {"a": null}}, "items": [{}, {"kept": 2}]})
        );
    }

    #[test]
    fn unknown_properties_by_strictness() {
        let body = || json!({"properties": {"vmboot": 1, "nope": 2}, "items": []});
        let only = || json!({"properties": {"nope": 2}});
        let error = read(body(), &OUTER, &strict()).unwrap_err();
        assert_eq!(error.code, "ValidationFailed");
        assert!(error.message.starts_with(
            "Unmarshalling entity encountered error: unmarshalling type *v2024_02_01.Outer: struct field Properties: unmarshalling type *v2024_02_01.Inner: unmarshalling type *v2024_02_01.Inner, unknown field \"vmboot\". There is an issue"
        ), "{}", error.message);
        assert_eq!(error.target.as_deref(), Some("properties.vmboot"));

        let error = read(only(), &OUTER, &Strictness::Compute).unwrap_err();
        assert_eq!(error.code, "BadRequest");
        assert_eq!(
            error.message,
            "Could not find member 'nope' on object of type 'Inner'. Path 'properties.nope'."
        );
        let error = read(json!({"nope": 1}), &OUTER, &Strictness::Compute).unwrap_err();
        assert_eq!(
            error.message,
            "The request content was invalid and could not be deserialized: 'Could not find member 'nope' on object of type 'Outer'. Path 'nope''."
        );

        let kept = read(only(), &OUTER, &Strictness::ComputeNewer).unwrap();
        assert_eq!(Value::Object(kept.extra), only());
        let dropped = read(only(), &OUTER, &Strictness::ImageBuilderLenient).unwrap();
        assert!(dropped.extra.is_empty());
    }

    #[test]
    fn wrong_types_name_the_place() {
        let error = read(json!({"items": [{}, 7]}), &OUTER, &Strictness::Compute).unwrap_err();
        assert_eq!(error.target.as_deref(), Some("items[1]"));
        assert_eq!(read(json!([]), &OUTER, &strict()).unwrap_err().code, "ValidationFailed");
        let error = read(json!({"steps": [{"type": "Shell", "inlin": 1}]}), &OUTER, &strict()).unwrap_err();
        assert_eq!(error.target.as_deref(), Some("steps[0].inlin"));
    }

    #[test]
    fn strictness_follows_the_version() {
        let at = |text: &str| Strictness::compute(&ApiVersion::parse(text).unwrap(), (2024, 7, 1));
        assert_eq!(at("2021-01-01"), Strictness::Compute);
        assert_eq!(at("2024-07-01"), Strictness::Compute);
        assert_eq!(at("2024-11-01"), Strictness::ComputeNewer);
    }
}
