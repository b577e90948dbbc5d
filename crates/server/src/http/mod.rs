//! HTTP as ARM speaks it. A request passes, from the outside in:
//!
//! ```text
//!   serve.rs   TLS, limits on connections, header sizes and times, graceful stop
//!   front.rs   request ids · canonical path · panic and timeout → envelope
//!   routes.rs  public endpoints │ everything else behind auth::require_token and check_scope
//!   extract.rs what handlers take: ArmPath, ApiVersion, Query, JsonBody, Principal
//!   lro.rs     202/201 headers, and the answer to polls
//! ```

pub mod error;
pub mod extract;
pub(crate) mod front;
pub mod lro;
pub mod path;
pub mod query;
pub mod routes;
pub(crate) mod serve;
