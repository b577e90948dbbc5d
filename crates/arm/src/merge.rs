//! Putting JSON together: what was kept into an answer, a PATCH into a resource.

use serde_json::{Map, Value};

/// Adds what was kept to an answer. What is there already wins: the model knows better than the request did.
pub(crate) fn add_extra(answer: &mut Map<String, Value>, extra: &Map<String, Value>) {
    for (name, kept) in extra {
        match (answer.get_mut(name), kept) {
            (None, kept) => {
                answer.insert(name.clone(), kept.clone());
            }
            (Some(Value::Object(answer)), Value::Object(kept)) => add_extra(answer, kept),
            (Some(Value::Array(answers)), Value::Array(kept)) if answers.len() == kept.len() => {
                for (answer, kept) in answers.iter_mut().zip(kept) {
                    if let (Value::Object(answer), Value::Object(kept)) = (answer, kept) {
                        add_extra(answer, kept);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Applies a PATCH body to a resource as it was rendered: objects are merged, everything else is replaced
/// (RFC 7386, but null is "leave it", as Azure's clients mean it). `tags` are replaced whole, as ARM does.
///
/// The result goes through the type's `parse` like a PUT.
pub fn apply_patch(rendered: Value, patch: Value) -> Value {
    match (rendered, patch) {
        (Value::Object(mut target), Value::Object(patch)) => {
            for (name, value) in patch {
                let key = target.keys().find(|key| key.eq_ignore_ascii_case(&name)).cloned().unwrap_or(name);
                match value {
                    Value::Null => {}
                    value if key == "tags" => {
                        target.insert(key, value);
                    }
                    value => {
                        let old = target.get_mut(&key).map(Value::take).unwrap_or(Value::Null);
                        target.insert(key, apply_patch(old, value));
                    }
                }
            }
            Value::Object(target)
        }
        (_, patch) => patch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn extra_never_overrides() {
        let mut answer = json!({"a": {"b": 1}, "list": [{"x": 1}, {"x": 2}], "odd": [1]});
        let extra = json!({"a": {"b": 9, "c": 2}, "list": [{}, {"y": 3}], "odd": [{}, {}], "new": [4]});
        let (Value::Object(map), Value::Object(extra)) = (&mut answer, extra) else { unreachable!() };
        add_extra(map, &extra);
        assert_eq!(
            answer,
            json!({"a": {"b": 1, "c": 2}, "list": [{"x": 1}, {"x": 2, "y": 3}], "odd": [1], "new": [4]})
        );
    }

    #[test]
    fn a_patch_merges_objects_and_replaces_the_rest() {
        let old =
            json!({"tags": {"a": "1"}, "properties": {"description": "x", "list": [1, 2], "keep": true}});
        let patch =
            json!({"tags": {"b": "2"}, "Properties": {"description": "y", "list": [3], "keep": null}});
        assert_eq!(
            apply_patch(old, patch),
            json!({"tags": {"b": "2"}, "properties": {"description": "y", "list": [3], "keep": true}})
        );
    }
}
