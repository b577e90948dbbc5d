//! Table `settings`: a few bytes under a name, such as the hash of a client secret.

use crate::cells::Cells;
use crate::{StoreError, Tx};

/// Largest value in bytes.
const MAX_SETTING_BYTES: usize = 1024 * 1024;

impl Tx<'_> {
    /// The value under `key`, if there is one.
    ///
    /// # Errors
    /// The database's own.
    pub async fn setting(&mut self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let query = sqlx::query("SELECT key, value FROM settings WHERE key = $1").bind(key.to_owned());
        let row = self.fetch_optional("read a setting", query).await?;
        row.map(|row| Cells::new("settings", "key", &row).bytes("value")).transpose()
    }

    /// Writes or replaces the value under `key`.
    ///
    /// # Errors
    /// [`StoreError::Limit`] above 1 MiB.
    pub async fn set_setting(&mut self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        if value.len() > MAX_SETTING_BYTES {
            return Err(StoreError::Limit { what: "bytes of a setting", limit: MAX_SETTING_BYTES });
        }
        let now = self.now().await?.timestamp_micros();
        let query = sqlx::query(
            "INSERT INTO settings (key, value, updated_at) VALUES ($1, $2, $3) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
        )
        .bind(key.to_owned())
        .bind(value.to_vec())
        .bind(now);
        self.execute("write a setting", query).await?;
        Ok(())
    }

    /// Removes the value under `key`; one that is not there is no error.
    ///
    /// # Errors
    /// The database's own.
    pub async fn delete_setting(&mut self, key: &str) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM settings WHERE key = $1").bind(key.to_owned());
        self.execute("remove a setting", query).await?;
        Ok(())
    }
}
