//! Bodies of polls and of lists.

use chrono::{DateTime, Utc};
use model::operation::{Operation, OperationState};
use serde_json::{Map, Value, json};

use crate::time;

/// Who answers the poll: each family writes the body its own way (REFERENCE.md 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationFamily {
    /// Galleries and what is in them: `capsOperations`.
    Gallery,
    /// Images and machines: `operations`.
    Compute,
    /// Disks and snapshots: `DiskOperations`.
    Disk,
    /// Image templates: `operations`, in image builder's spelling.
    ImageBuilder,
    /// Resource groups and deployments: `operationresults`.
    Resources,
}

impl OperationFamily {
    /// The segment of the poll's URL.
    pub fn segment(self) -> &'static str {
        match self {
            Self::Gallery => "capsOperations",
            Self::Compute | Self::ImageBuilder => "operations",
            Self::Disk => "DiskOperations",
            Self::Resources => "operationresults",
        }
    }
}

/// The body of `GET …/operations/{id}`: always with status 200.
pub fn poll_body(family: OperationFamily, id: &str, operation: &Operation) -> Value {
    let moment = |at: DateTime<Utc>| match family {
        OperationFamily::ImageBuilder => time::image_builder(at),
        _ => time::compute(at),
    };
    let (status, ended, output, failure) = match &operation.state {
        OperationState::InProgress => ("InProgress", None, None, None),
        OperationState::Succeeded { ended, output } => ("Succeeded", Some(*ended), output.as_ref(), None),
        OperationState::Failed { ended, failure } => ("Failed", Some(*ended), None, Some(failure)),
        OperationState::Canceled { ended, failure } => ("Canceled", Some(*ended), None, failure.as_ref()),
    };
    let mut body = Map::new();
    if family == OperationFamily::ImageBuilder {
        body.insert("name".into(), json!(id.to_ascii_uppercase()));
        body.insert("status".into(), json!(status));
    }
    body.insert("startTime".into(), json!(moment(operation.started)));
    if let Some(ended) = ended {
        body.insert("endTime".into(), json!(moment(ended)));
    }
    if family != OperationFamily::ImageBuilder {
        body.insert("status".into(), json!(status));
    }
    if let Some(output) = output {
        body.insert("properties".into(), json!({ "output": output }));
    }
    if let Some(failure) = failure {
        body.insert("error".into(), json!({ "code": failure.code, "message": failure.message }));
    }
    if family != OperationFamily::ImageBuilder {
        body.insert("name".into(), json!(id));
    }
    Value::Object(body)
}

/// A page of a list: `nextLink` is absent on the last one.
pub fn list_body(values: Vec<Value>, next_link: Option<&str>) -> Value {
    match next_link {
        Some(next) => json!({ "value": values, "nextLink": next }),
        None => json!({ "value": values }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Failure;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn compute_polls() {
        let running = Operation::start(at(0));
        insta::assert_snapshot!(poll_body(OperationFamily::Gallery, "ab-1", &running), @r#"{"startTime":"1970-01-01T00:00:00.0000000+00:00","status":"InProgress","name":"ab-1"}"#);
        let done = running
            .finish(OperationState::Succeeded { ended: at(2), output: Some(json!({"a": 1})) })
            .unwrap();
        insta::assert_snapshot!(poll_body(OperationFamily::Compute, "ab-1", &done), @r#"{"startTime":"1970-01-01T00:00:00.0000000+00:00","endTime":"1970-01-01T00:00:02.0000000+00:00","status":"Succeeded","properties":{"output":{"a":1}},"name":"ab-1"}"#);
    }

    #[test]
    fn image_builder_polls() {
        let failure = Failure::new("Unauthorized", "no");
        let failed =
            Operation::start(at(0)).finish(OperationState::Failed { ended: at(2), failure }).unwrap();
        insta::assert_snapshot!(poll_body(OperationFamily::ImageBuilder, "ab-1", &failed), @r#"{"name":"AB-1","status":"Failed","startTime":"1970-01-01T00:00:00.0000000Z","endTime":"1970-01-01T00:00:02.0000000Z","error":{"code":"Unauthorized","message":"no"}}"#);
    }

    #[test]
    fn the_last_page_has_no_link() {
        assert_eq!(list_body(vec![], None), json!({ "value": [] }));
        assert_eq!(list_body(vec![], Some("https://x")), json!({ "value": [], "nextLink": "https://x" }));
    }
}
