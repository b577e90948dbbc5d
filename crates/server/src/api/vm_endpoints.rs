//! Routes of vm endpoints.

use crate::http::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
}
