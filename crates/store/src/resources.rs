//! Table `resources`: documents by key, with compare-and-swap by generation.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use crate::cells::Cells;
use crate::path::key_of;
use crate::{Document, ProvisioningState, StoreError, Tx};

/// Most items that one page of a list can hold.
pub const MAX_PAGE_ITEMS: u32 = 1000;

const COLUMNS: &str = "key, id, type, subscription, resource_group, parent_key, name, location, \
                       provisioning_state, generation, schema, doc, created_at, updated_at";

/// Which resources a list holds. Every field that is set must match; case does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Type, such as "Microsoft.Compute/galleries".
    pub ty: Option<String>,
    /// Subscription id.
    pub subscription: Option<String>,
    /// Name of the resource group.
    pub resource_group: Option<String>,
    /// Id of the containing resource.
    pub parent: Option<String>,
    /// Key of the last item of the page before ([`Listing::next`]).
    pub after: Option<String>,
    /// Most items to return; at most [`MAX_PAGE_ITEMS`], which is also the default (0).
    pub limit: u32,
}

/// One page, ordered by key.
#[derive(Debug, Clone)]
pub struct Listing<T> {
    /// The documents.
    pub items: Vec<Document<T>>,
    /// [`Filter::after`] for the next page; `None` on the last.
    pub next: Option<String>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Doc<T> {
    data: T,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    extra: Map<String, Value>,
}

impl Tx<'_> {
    /// The resource with this id (any case), if there is one.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`] if the row does not fit `T`; the database's own.
    pub async fn get<T: DeserializeOwned>(&mut self, id: &str) -> Result<Option<Document<T>>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM resources WHERE key = $1");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(key_of(id));
        self.fetch_optional("read a resource", query).await?.as_ref().map(document).transpose()
    }

    /// The resource of this type with this name, as it is written, in whatever group it is: for types whose names are
    /// unique in the service. The first by key if there are several.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`] if the row does not fit `T`; the database's own.
    pub async fn find_by_name<T: DeserializeOwned>(
        &mut self,
        ty: &str,
        name: &str,
    ) -> Result<Option<Document<T>>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM resources WHERE type = $1 AND name = $2 ORDER BY key LIMIT 1");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(key_of(ty)).bind(name.to_owned());
        self.fetch_optional("find a resource", query).await?.as_ref().map(document).transpose()
    }

    /// Whether a resource with this id (any case) exists.
    ///
    /// # Errors
    /// The database's own.
    pub async fn exists(&mut self, id: &str) -> Result<bool, StoreError> {
        let query = sqlx::query("SELECT key FROM resources WHERE key = $1").bind(key_of(id));
        Ok(self.fetch_optional("look for a resource", query).await?.is_some())
    }

    /// Writes a new resource; sets its generation to 1 and its times.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`], [`StoreError::ParentMissing`].
    pub async fn insert<T: Serialize + Sync>(
        &mut self,
        document: &mut Document<T>,
    ) -> Result<(), StoreError> {
        if self.exists(&document.key).await? {
            return Err(StoreError::AlreadyExists { key: document.key.clone() });
        }
        if let Some(parent) = &document.parent
            && !self.exists(parent).await?
        {
            return Err(StoreError::ParentMissing { key: document.key.clone(), parent: parent.clone() });
        }
        let now = self.now().await?;
        let doc = encode(document)?;
        let query = sqlx::query(
            "INSERT INTO resources (key, id, type, subscription, resource_group, parent_key, name, location, \
             provisioning_state, generation, schema, doc, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 1, $10, $11, $12, $12)",
        )
        .bind(document.key.clone())
        .bind(document.id.clone())
        .bind(document.ty.clone())
        .bind(document.subscription.clone())
        .bind(document.resource_group.clone())
        .bind(document.parent.clone())
        .bind(document.name.clone())
        .bind(document.location.clone())
        .bind(document.state.as_str())
        .bind(document.schema)
        .bind(doc)
        .bind(now.timestamp_micros());
        self.execute("insert a resource", query).await?;
        document.generation = 1;
        document.created_at = now;
        document.updated_at = now;
        Ok(())
    }

    /// Writes location, state, schema, data and extra of a resource that was read before, and counts
    /// its generation up.
    ///
    /// # Errors
    /// [`StoreError::StaleDocument`] if it was changed meanwhile, [`StoreError::NotFound`] if it is gone.
    pub async fn update<T: Serialize + Sync>(
        &mut self,
        document: &mut Document<T>,
    ) -> Result<(), StoreError> {
        let now = self.now().await?;
        let doc = encode(document)?;
        let query = sqlx::query(
            "UPDATE resources SET location = $1, provisioning_state = $2, schema = $3, doc = $4, updated_at = $5, \
             generation = generation + 1 WHERE key = $6 AND generation = $7",
        )
        .bind(document.location.clone())
        .bind(document.state.as_str())
        .bind(document.schema)
        .bind(doc)
        .bind(now.timestamp_micros())
        .bind(document.key.clone())
        .bind(document.generation);
        if self.execute("update a resource", query).await? == 0 {
            let found = self.generation(&document.key).await?;
            return Err(StoreError::StaleDocument {
                key: document.key.clone(),
                expected: document.generation,
                found,
            });
        }
        document.generation += 1;
        document.updated_at = now;
        Ok(())
    }

    /// Deletes a resource and the links that go out from it.
    ///
    /// # Errors
    /// [`StoreError::HasChildren`], [`StoreError::Referenced`], [`StoreError::NotFound`].
    pub async fn delete(&mut self, id: &str) -> Result<(), StoreError> {
        let key = key_of(id);
        let query = sqlx::query("SELECT id FROM resources WHERE parent_key = $1 ORDER BY key LIMIT 1")
            .bind(key.clone());
        if let Some(row) = self.fetch_optional("look for nested resources", query).await? {
            let child = Cells::new("resources", "id", &row).text("id")?;
            return Err(StoreError::HasChildren { key, child });
        }
        let query = sqlx::query(
            "SELECT from_key, kind FROM links WHERE to_key = $1 AND from_key <> $1 ORDER BY from_key LIMIT 1",
        )
        .bind(key.clone());
        if let Some(row) = self.fetch_optional("look for references", query).await? {
            let cells = Cells::new("links", "from_key", &row);
            return Err(StoreError::Referenced {
                key,
                by: cells.text("from_key")?,
                kind: cells.text("kind")?,
            });
        }
        let query = sqlx::query("DELETE FROM resources WHERE key = $1").bind(key.clone());
        match self.execute("delete a resource", query).await? {
            0 => Err(StoreError::NotFound { what: "resource", key }),
            _ => Ok(()),
        }
    }

    /// One page of the resources that `filter` matches.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`] if a row does not fit `T`; the database's own.
    pub async fn list<T: DeserializeOwned>(&mut self, filter: &Filter) -> Result<Listing<T>, StoreError> {
        let conditions = [
            ("type =", filter.ty.as_deref()),
            ("subscription =", filter.subscription.as_deref()),
            ("resource_group =", filter.resource_group.as_deref()),
            ("parent_key =", filter.parent.as_deref()),
            ("key >", filter.after.as_deref()),
        ];
        let limit = match filter.limit {
            0 => MAX_PAGE_ITEMS,
            n => n.min(MAX_PAGE_ITEMS),
        };
        let mut sql = format!("SELECT {COLUMNS} FROM resources");
        let mut values = Vec::new();
        for (condition, value) in conditions {
            let Some(value) = value else { continue };
            values.push(key_of(value));
            let word = if values.len() == 1 { "WHERE" } else { "AND" };
            sql.push_str(&format!(" {word} {condition} ${}", values.len()));
        }
        // One more than asked for tells whether there is a next page.
        sql.push_str(&format!(" ORDER BY key LIMIT {}", limit + 1));
        let query =
            values.into_iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| query.bind(value));
        let rows = self.fetch_all("list resources", query).await?;
        let mut items = rows.iter().map(document).collect::<Result<Vec<Document<T>>, _>>()?;
        let more = items.len() > limit as usize;
        items.truncate(limit as usize);
        let next = if more { items.last().map(|last| last.key.clone()) } else { None };
        Ok(Listing { items, next })
    }

    async fn generation(&mut self, key: &str) -> Result<i64, StoreError> {
        let query = sqlx::query("SELECT key, generation FROM resources WHERE key = $1").bind(key.to_owned());
        match self.fetch_optional("read a resource", query).await? {
            Some(row) => Cells::new("resources", "key", &row).int("generation"),
            None => Err(StoreError::NotFound { what: "resource", key: key.to_owned() }),
        }
    }
}

fn encode<T: Serialize>(document: &Document<T>) -> Result<String, StoreError> {
    let doc = Doc { data: &document.data, extra: document.extra.clone() };
    serde_json::to_string(&doc).map_err(|source| StoreError::Encode {
        table: "resources",
        column: "doc",
        source,
    })
}

fn document<T: DeserializeOwned>(row: &AnyRow) -> Result<Document<T>, StoreError> {
    let cells = Cells::new("resources", "key", row);
    let state = cells.text("provisioning_state")?;
    let doc: Doc<T> = serde_json::from_str(&cells.text("doc")?).map_err(|e| cells.wrong("doc", e))?;
    Ok(Document {
        key: cells.text("key")?,
        id: cells.text("id")?,
        ty: cells.text("type")?,
        name: cells.text("name")?,
        parent: cells.opt_text("parent_key")?,
        subscription: cells.text("subscription")?,
        resource_group: cells.text("resource_group")?,
        location: cells.text("location")?,
        state: ProvisioningState::parse(&state)
            .ok_or_else(|| cells.wrong("provisioning_state", format!("'{state}' is no state")))?,
        generation: cells.int("generation")?,
        schema: cells.int("schema")?,
        data: doc.data,
        extra: doc.extra,
        created_at: cells.time("created_at")?,
        updated_at: cells.time("updated_at")?,
    })
}
