//! A rule that a request broke.

use std::fmt;

/// What kind of rule was broken. `arm` maps each kind to one HTTP status and error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A resource's own name, in the URL, is malformed.
    Name,
    /// A property has a value outside its rule.
    Parameter,
    /// The same where Azure's disks say `BadRequest` (RULES.md of the doctor, 2.5).
    BadRequest,
    /// A property that may not change was changed.
    Immutable,
    /// The template as a whole is inconsistent (image builder's `ValidationFailed`).
    Template,
    /// Another resource already holds what was asked for.
    Conflict,
    /// The operation is not possible in the present state.
    NotAllowed,
    /// Deletion is blocked until the version's end of life (RULES.md 2D, 43).
    BlockedBeforeEndOfLife,
}

/// One broken rule: message is cause and remedy, in Azure's words where Azure has words for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Violation {
    /// The kind of rule.
    pub rule: Rule,
    /// What is wrong and what would satisfy the rule.
    pub message: String,
    /// The property that broke it, as a path (`properties.identifier.publisher`), where there is one.
    pub target: Option<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Violation {
    /// A violation that belongs to one property or parameter.
    pub fn at(rule: Rule, target: impl Into<String>, message: impl Into<String>) -> Self {
        Self { rule, message: message.into(), target: Some(target.into()) }
    }

    /// A violation of the request as a whole.
    pub fn of(rule: Rule, message: impl Into<String>) -> Self {
        Self { rule, message: message.into(), target: None }
    }

    /// RULES.md 2D, 18: a number outside its range.
    pub fn out_of_range(target: &str, value: i64, min: i64, max: i64) -> Self {
        Self::at(
            Rule::Parameter,
            target,
            format!(
                "The value {value} of parameter {target} is out of range. The value must be between {min} and {max}, inclusive"
            ),
        )
    }
}
