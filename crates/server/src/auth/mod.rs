//! Who is asking: the service's own token endpoint and keys, and the check of every bearer token.
//!
//! ```text
//!   clients.rs   app id + secret ──┐
//!   token.rs     POST …/token ─────┴─▶ keys.rs signs (RS256)  ◀── discovery.rs tells where all this is
//!   bearer.rs    Authorization: Bearer … ──▶ keys.rs verifies ──▶ Principal for the handlers
//! ```

mod bearer;
mod clients;
mod discovery;
mod keys;
mod token;

use crate::http::routes::Routes;

pub use bearer::Principal;
pub(crate) use bearer::require_token;
pub use clients::ClientError;
pub(crate) use clients::{BOOTSTRAP_FILE, Clients};
pub use keys::KeyError;
pub(crate) use keys::SigningKeys;

/// The endpoints that need no token.
pub(crate) fn public_routes(routes: Routes) -> Routes {
    let routes = discovery::routes(routes);
    token::routes(routes)
}
