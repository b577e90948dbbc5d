//! Table `placements`: in which regions a version's bytes are, or are to be. Desired state for the reconciler.

use sqlx::any::AnyRow;

use crate::cells::Cells;
use crate::path::key_of;
use crate::{StoreError, Tx};

/// A version in one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Key of the version (or image, or disk).
    pub version_key: String,
    /// Region's name, such as "eastus".
    pub region: String,
    /// Id of the content manifest.
    pub manifest: String,
    /// Where it is.
    pub state: PlacementState,
    /// Bytes that were sent to the region for this version.
    pub bytes_moved: u64,
    /// 0 to 100.
    pub progress: u8,
}

/// Where a placement is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlacementState {
    /// Wanted, not begun.
    Pending,
    /// Blocks are being copied.
    Replicating,
    /// Every block is there.
    Completed,
    /// The last attempt failed; it is tried again.
    Failed {
        /// Why.
        error: String,
    },
}

impl Tx<'_> {
    /// Writes or replaces the placement of a version in a region.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the version does not exist.
    pub async fn put_placement(&mut self, placement: &Placement) -> Result<(), StoreError> {
        if !self.exists(&placement.version_key).await? {
            return Err(StoreError::NotFound { what: "resource", key: placement.version_key.clone() });
        }
        let now = self.now().await?.timestamp_micros();
        let (state, error) = match &placement.state {
            PlacementState::Pending => ("pending", None),
            PlacementState::Replicating => ("replicating", None),
            PlacementState::Completed => ("completed", None),
            PlacementState::Failed { error } => ("failed", Some(error.clone())),
        };
        let query = sqlx::query(
            "INSERT INTO placements (version_key, region, manifest, state, bytes_moved, progress, error, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (version_key, region) DO UPDATE SET \
             manifest = excluded.manifest, state = excluded.state, bytes_moved = excluded.bytes_moved, \
             progress = excluded.progress, error = excluded.error, updated_at = excluded.updated_at",
        )
        .bind(key_of(&placement.version_key))
        .bind(placement.region.clone())
        .bind(placement.manifest.clone())
        .bind(state)
        .bind(i64::try_from(placement.bytes_moved).unwrap_or(i64::MAX))
        .bind(i64::from(placement.progress.min(100)))
        .bind(error)
        .bind(now);
        self.execute("write a placement", query).await?;
        Ok(())
    }

    /// The placements of a version, by region.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn placements(&mut self, version_id: &str) -> Result<Vec<Placement>, StoreError> {
        let query = sqlx::query("SELECT * FROM placements WHERE version_key = $1 ORDER BY region")
            .bind(key_of(version_id));
        self.fetch_all("read placements", query).await?.iter().map(placement).collect()
    }

    /// Placements that are not complete, oldest change first: what the reconciler has to do.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn incomplete_placements(&mut self, limit: u32) -> Result<Vec<Placement>, StoreError> {
        let query = sqlx::query(
            "SELECT * FROM placements WHERE state <> 'completed' ORDER BY updated_at, version_key, region LIMIT $1",
        )
        .bind(i64::from(limit));
        self.fetch_all("read placements", query).await?.iter().map(placement).collect()
    }

    /// Drops the placement of a version in a region. Returns whether there was one.
    ///
    /// # Errors
    /// The database's own.
    pub async fn delete_placement(&mut self, version_id: &str, region: &str) -> Result<bool, StoreError> {
        let query = sqlx::query("DELETE FROM placements WHERE version_key = $1 AND region = $2")
            .bind(key_of(version_id))
            .bind(region.to_owned());
        Ok(self.execute("delete a placement", query).await? > 0)
    }
}

fn placement(row: &AnyRow) -> Result<Placement, StoreError> {
    let cells = Cells::new("placements", "version_key", row);
    let name = cells.text("state")?;
    let state = match (name.as_str(), cells.opt_text("error")?) {
        ("pending", None) => PlacementState::Pending,
        ("replicating", None) => PlacementState::Replicating,
        ("completed", None) => PlacementState::Completed,
        ("failed", Some(error)) => PlacementState::Failed { error },
        (name, _) => return Err(cells.wrong("state", format!("'{name}' does not fit error"))),
    };
    Ok(Placement {
        version_key: cells.text("version_key")?,
        region: cells.text("region")?,
        manifest: cells.text("manifest")?,
        state,
        bytes_moved: cells.count("bytes_moved")?,
        progress: cells.count("progress")?,
    })
}
