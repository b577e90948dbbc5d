//! Snapshots: the routes. What they do is what disks do; the handlers find the type in the path.

use axum::http::Method;

use super::disks::{access, delete, get, list, patch, put};
use crate::http::routes::Routes;

/// Type of a snapshot's row.
pub(crate) const TYPE: &str = "microsoft.compute/snapshots";

pub(super) fn routes(routes: Routes) -> Routes {
    const SNAPSHOTS: &str =
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots";
    const SNAPSHOT: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots/{snapshot}";
    const BEGIN: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots/{snapshot}/begingetaccess";
    const END: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots/{snapshot}/endgetaccess";
    routes
        .on(Method::GET, "/subscriptions/{subscription}/providers/microsoft.compute/snapshots", list)
        .on(Method::GET, SNAPSHOTS, list)
        .on(Method::PUT, SNAPSHOT, put)
        .on(Method::PATCH, SNAPSHOT, patch)
        .on(Method::GET, SNAPSHOT, get)
        .on(Method::DELETE, SNAPSHOT, delete)
        .on(Method::POST, BEGIN, access::begin)
        .on(Method::POST, END, access::end)
}
