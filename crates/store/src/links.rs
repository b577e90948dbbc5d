//! Table `links`: references between resources that must not dangle. The target cannot be deleted
//! while a link points to it; links vanish with the resource that they go out from.

use crate::cells::Cells;
use crate::path::key_of;
use crate::{StoreError, Tx};

/// A reference from one resource to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Key of the resource that refers.
    pub from: String,
    /// Key of the resource that is referred to.
    pub to: String,
    /// What the reference means, such as "source".
    pub kind: String,
}

impl Tx<'_> {
    /// Makes `from` refer to `to` (ids in any case). Doing it twice is doing it once.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if either resource does not exist.
    pub async fn link(&mut self, from: &str, to: &str, kind: &str) -> Result<(), StoreError> {
        for id in [from, to] {
            if !self.exists(id).await? {
                return Err(StoreError::NotFound { what: "resource", key: key_of(id) });
            }
        }
        let query = sqlx::query(
            "INSERT INTO links (from_key, to_key, kind) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(key_of(from))
        .bind(key_of(to))
        .bind(kind.to_owned());
        self.execute("link resources", query).await?;
        Ok(())
    }

    /// Takes a reference back. Returns whether there was one.
    ///
    /// # Errors
    /// The database's own.
    pub async fn unlink(&mut self, from: &str, to: &str, kind: &str) -> Result<bool, StoreError> {
        let query = sqlx::query("DELETE FROM links WHERE from_key = $1 AND to_key = $2 AND kind = $3")
            .bind(key_of(from))
            .bind(key_of(to))
            .bind(kind.to_owned());
        Ok(self.execute("unlink resources", query).await? > 0)
    }

    /// The references that go out from a resource, ordered.
    ///
    /// # Errors
    /// The database's own.
    pub async fn links_from(&mut self, id: &str) -> Result<Vec<Link>, StoreError> {
        self.links("SELECT from_key, to_key, kind FROM links WHERE from_key = $1 ORDER BY to_key, kind", id)
            .await
    }

    /// The references that point to a resource, ordered.
    ///
    /// # Errors
    /// The database's own.
    pub async fn links_to(&mut self, id: &str) -> Result<Vec<Link>, StoreError> {
        self.links("SELECT from_key, to_key, kind FROM links WHERE to_key = $1 ORDER BY from_key, kind", id)
            .await
    }

    async fn links(&mut self, sql: &'static str, id: &str) -> Result<Vec<Link>, StoreError> {
        let rows = self.fetch_all("read links", sqlx::query(sql).bind(key_of(id))).await?;
        rows.iter()
            .map(|row| {
                let cells = Cells::new("links", "from_key", row);
                Ok(Link {
                    from: cells.text("from_key")?,
                    to: cells.text("to_key")?,
                    kind: cells.text("kind")?,
                })
            })
            .collect()
    }
}
