//! ARM's error envelope and the errors that every provider shares, in ARM's words.
//!
//! Which to use: a rule of the domain is a [`model::Violation`] and becomes an error by `From`; everything that
//! ARM's front door says before a provider is asked has a constructor here. Statuses and codes come from
//! recorded traffic where there is any (`recorded_errors.json`), else from Azure's published texts.

use model::{InvalidTransition, Rule, Violation};
use serde_json::{Value, json};

use crate::api_version::ApiVersion;
use crate::resource_id::{InvalidResourceId, ResourceId};
use crate::resource_type::ResourceType;

/// One cause among several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorDetail {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// The property.
    pub target: Option<String>,
}

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ArmError {
    /// HTTP status.
    pub status: u16,
    /// For programs.
    pub code: String,
    /// For people: cause and remedy.
    pub message: String,
    /// The property or parameter.
    pub target: Option<String>,
    /// Causes, where there are several.
    pub details: Vec<ErrorDetail>,
}

impl ArmError {
    /// An error without target and details.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), target: None, details: Vec::new() }
    }

    /// The same with a target.
    #[must_use]
    pub fn with_target(self, target: impl Into<String>) -> Self {
        Self { target: Some(target.into()), ..self }
    }

    /// The same with one more cause.
    #[must_use]
    pub fn with_detail(mut self, detail: ErrorDetail) -> Self {
        self.details.push(detail);
        self
    }

    /// `{"error":{"code","message"[,"target"][,"details"]}}`.
    pub fn to_json(&self) -> Value {
        json!({ "error": self.body() })
    }

    /// The inner object, as poll bodies carry it.
    pub fn body(&self) -> Value {
        let mut body = json!({ "code": self.code, "message": self.message });
        if let Some(target) = &self.target {
            body["target"] = json!(target);
        }
        if !self.details.is_empty() {
            let detail = |detail: &ErrorDetail| match &detail.target {
                Some(target) => json!({ "code": detail.code, "target": target, "message": detail.message }),
                None => json!({ "code": detail.code, "message": detail.message }),
            };
            body["details"] = self.details.iter().map(detail).collect();
        }
        body
    }

    // ---- not found ----

    /// The gateway's 404: nothing is there under this id. Send the header `x-ms-failure-cause: gateway` with it.
    pub fn resource_not_found(id: &ResourceId) -> Self {
        let path: Vec<&str> = id.names().collect();
        Self::new(
            404,
            "ResourceNotFound",
            format!(
                "The Resource '{}/{}' under resource group '{}' was not found. For more details please go to \
                 https://aka.ms/ARMResourceNotFoundFix",
                id.resource_type(),
                path.join("/"),
                id.resource_group().unwrap_or("<null>")
            ),
        )
    }

    /// A provider's 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "NotFound", message)
    }

    /// RULES.md 2D, 10: a child was asked for and its parent does not exist.
    pub fn parent_resource_not_found(parent: &str) -> Self {
        Self::new(
            404,
            "ParentResourceNotFound",
            format!(
                "Can not perform requested operation on nested resource. Parent resource {parent} not found."
            ),
        )
    }

    /// No such resource group.
    pub fn resource_group_not_found(name: &str) -> Self {
        Self::new(404, "ResourceGroupNotFound", format!("Resource group '{name}' could not be found."))
    }

    /// No such subscription.
    pub fn subscription_not_found(id: &str) -> Self {
        Self::new(404, "SubscriptionNotFound", format!("The subscription '{id}' could not be found."))
    }

    /// No such type in a known namespace.
    pub fn invalid_resource_type(resource_type: &ResourceType, version: &ApiVersion) -> Self {
        Self::new(
            404,
            "InvalidResourceType",
            format!(
                "The resource type '{}' could not be found in the namespace '{}' for api version '{version}'.",
                resource_type.path(),
                resource_type.namespace()
            ),
        )
    }

    /// No such namespace.
    pub fn invalid_resource_namespace(namespace: &str) -> Self {
        Self::new(
            404,
            "InvalidResourceNamespace",
            format!("The resource namespace '{namespace}' is invalid."),
        )
    }

    // ---- the request itself ----

    /// `api-version` is absent.
    pub fn missing_api_version() -> Self {
        Self::new(
            400,
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        )
    }

    /// `api-version` is no version, or none that ARM itself has.
    pub fn invalid_api_version(version: &str, supported: &[&str]) -> Self {
        let shown: String = version.chars().filter(|c| !c.is_control()).take(60).collect();
        Self::new(
            400,
            "InvalidApiVersionParameter",
            format!(
                "The api-version '{shown}' is invalid. The supported versions are '{}'.",
                supported.join(",")
            ),
        )
    }

    /// The provider does not have this version for this type.
    pub fn no_registered_provider(
        location: &str,
        version: &ApiVersion,
        resource_type: &ResourceType,
        supported: &[&str],
    ) -> Self {
        Self::new(
            400,
            "NoRegisteredProviderFound",
            format!(
                "No registered resource provider found for location '{location}' and API version '{version}' for type '{}'. The \
                 supported api-versions are '{}'.",
                resource_type.path(),
                supported.join(", ")
            ),
        )
    }

    /// The body is no JSON, or not the JSON that was expected. `cause` without a full stop.
    pub fn invalid_request_content(cause: &str) -> Self {
        Self::new(
            400,
            "InvalidRequestContent",
            format!("The request content was invalid and could not be deserialized: '{cause}'."),
        )
    }

    /// A parameter's value is outside its rule.
    pub fn invalid_parameter(target: &str, message: impl Into<String>) -> Self {
        Self::new(400, "InvalidParameter", message).with_target(target)
    }

    /// A required parameter is absent, in Compute's words.
    pub fn missing_parameter(name: &str) -> Self {
        Self::invalid_parameter(name, format!("Required parameter '{name}' is missing (null)."))
    }

    /// `location` is absent.
    pub fn location_required() -> Self {
        Self::new(400, "LocationRequired", "The location property is required for this definition.")
    }

    /// RULES.md 2D, 3: no such region here.
    pub fn location_not_available(location: &str, resource_type: &ResourceType, available: &[&str]) -> Self {
        Self::new(
            400,
            "LocationNotAvailableForResourceType",
            format!(
                "The provided location '{location}' is not available for resource type '{resource_type}'. List of available regions \
                 for the resource type is '{}'.",
                available.join(",")
            ),
        )
    }

    /// The URL's subscription is no UUID.
    pub fn invalid_subscription_id(id: &str) -> Self {
        Self::new(
            400,
            "InvalidSubscriptionId",
            format!("The provided subscription identifier '{id}' is malformed or invalid."),
        )
    }

    /// The resource exists and does not have this method.
    pub fn method_not_allowed(method: &str) -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            format!("The requested resource does not support http method '{method}'."),
        )
    }

    /// The body is larger than the server accepts.
    pub fn request_too_large(bytes_max: usize) -> Self {
        Self::new(
            413,
            "RequestContentTooLarge",
            format!("The request content exceeds the maximum size of {bytes_max} bytes."),
        )
    }

    // ---- who is asking ----

    /// No `Authorization` header.
    pub fn authentication_failed() -> Self {
        Self::new(
            401,
            "AuthenticationFailed",
            "Authentication failed. The 'Authorization' header is missing.",
        )
    }

    /// A token that does not verify.
    pub fn invalid_authentication_token(cause: &str) -> Self {
        Self::new(401, "InvalidAuthenticationToken", format!("The access token is invalid. {cause}"))
    }

    /// A token past its time.
    pub fn expired_authentication_token() -> Self {
        Self::new(
            401,
            "ExpiredAuthenticationToken",
            "The access token expiry UTC time is earlier than current UTC time.",
        )
    }

    /// The caller may not do this.
    pub fn authorization_failed(client: &str, action: &str, scope: &str) -> Self {
        Self::new(
            403,
            "AuthorizationFailed",
            format!(
                "The client '{client}' with object id '{client}' does not have authorization to perform action '{action}' over scope \
                 '{scope}' or the scope is invalid. If access was recently granted, please refresh your credentials."
            ),
        )
    }

    // ---- state ----

    /// Something stands in the way.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, "Conflict", message)
    }

    /// Not possible in the present state.
    pub fn operation_not_allowed(message: impl Into<String>) -> Self {
        Self::new(409, "OperationNotAllowed", message)
    }

    /// RULES.md 2D, 4: it still has children.
    pub fn cannot_delete_nested() -> Self {
        Self::new(409, "CannotDeleteResource", "Can not delete resource before nested resources are deleted.")
    }

    /// RULES.md 2A: a PUT over an existing template.
    pub fn template_update_not_supported() -> Self {
        Self::conflict("Update/Upgrade of image templates is currently not supported")
    }

    /// `If-Match` or `If-None-Match` does not hold.
    pub fn precondition_failed() -> Self {
        Self::new(
            412,
            "PreconditionFailed",
            "The condition set in the request's If-Match or If-None-Match header was not satisfied.",
        )
    }

    /// The group is going away.
    pub fn resource_group_being_deleted(name: &str) -> Self {
        Self::new(
            409,
            "ResourceGroupBeingDeleted",
            format!(
                "The resource group '{name}' is in deprovisioning state and cannot perform this operation."
            ),
        )
    }

    /// Our own failure. The cause belongs in the log, the correlation id in the message.
    pub fn internal(correlation_id: &str) -> Self {
        Self::new(
            500,
            "InternalServerError",
            format!(
                "The server encountered an internal error. Its log has the cause under the correlation id '{correlation_id}'."
            ),
        )
    }
}

impl From<Violation> for ArmError {
    fn from(violation: Violation) -> Self {
        let (status, code) = match violation.rule {
            Rule::Name | Rule::Parameter => (400, "InvalidParameter"),
            Rule::BadRequest => (400, "BadRequest"),
            Rule::Template => (400, "ValidationFailed"),
            Rule::Immutable => (409, "PropertyChangeNotAllowed"),
            Rule::Conflict => (409, "Conflict"),
            Rule::NotAllowed => (409, "OperationNotAllowed"),
            Rule::BlockedBeforeEndOfLife => (409, "DeleteGalleryImageVersionBlockedBeforeEndOfLife"),
        };
        Self { target: violation.target, ..Self::new(status, code, violation.message) }
    }
}

impl From<InvalidTransition> for ArmError {
    fn from(refusal: InvalidTransition) -> Self {
        Self::operation_not_allowed(format!(
            "Operation is not allowed: {refusal}. Wait until it has ended and try again."
        ))
    }
}

impl From<InvalidResourceId> for ArmError {
    fn from(error: InvalidResourceId) -> Self {
        Self::new(400, "LinkedInvalidPropertyId", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_are_azures() {
        let id = ResourceId::parse(
            "/subscriptions/s/resourceGroups/rg/providers/microsoft.compute/VIRTUALMACHINES/vm1",
        )
        .unwrap();
        insta::assert_json_snapshot!(ArmError::resource_not_found(&id).to_json(), @r#"
        {
          "error": {
            "code": "ResourceNotFound",
            "message": "The Resource 'Microsoft.Compute/virtualMachines/vm1' under resource group 'rg' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
          }
        }
        "#);
        let violation = Violation::out_of_range("replicaCount", 0, 1, 100);
        let detail = ErrorDetail { code: "A".into(), message: "b".into(), target: Some("c".into()) };
        insta::assert_json_snapshot!(ArmError::from(violation).with_detail(detail).to_json(), @r#"
        {
          "error": {
            "code": "InvalidParameter",
            "message": "The value 0 of parameter replicaCount is out of range. The value must be between 1 and 100, inclusive",
            "target": "replicaCount",
            "details": [
              {
                "code": "A",
                "target": "c",
                "message": "b"
              }
            ]
          }
        }
        "#);
    }
}
