//! A router that knows its routes: axum's own cannot list them, and the test that every endpoint needs
//! a token must be able to.

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};

use crate::AppState;

/// A route of the service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// HTTP method.
    pub method: String,
    /// Pattern in lower case, such as "/subscriptions/{subscription}/resourcegroups".
    pub path: &'static str,
}

/// Routes under construction.
#[derive(Default)]
pub struct Routes {
    router: Router<AppState>,
    list: Vec<Route>,
}

impl Routes {
    /// Adds a handler. `path` is in lower case but for the names in braces.
    ///
    /// # Panics
    /// On a pattern that could never match, or that is there twice: both are mistakes in this program,
    /// found by the first test that builds the router.
    #[must_use]
    pub fn on<H, T>(mut self, method: Method, path: &'static str, handler: H) -> Routes
    where
        H: Handler<T, AppState>,
        T: 'static,
    {
        let literal = path.split('/').filter(|segment| !segment.starts_with('{'));
        assert!(
            literal.into_iter().all(|segment| !segment.contains(|c: char| c.is_uppercase())),
            "route {path} has capitals: the router sees lower-case paths"
        );
        let filter = MethodFilter::try_from(method.clone()).expect("a standard method");
        let handlers: MethodRouter<AppState> = on(filter, handler);
        self.router = self.router.route(path, handlers);
        self.list.push(Route { method: method.to_string(), path });
        self
    }

    /// The router and the list of what it routes.
    pub(crate) fn into_parts(self) -> (Router<AppState>, Vec<Route>) {
        (self.router, self.list)
    }
}
