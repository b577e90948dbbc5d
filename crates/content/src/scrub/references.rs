//! References that are damaged. A name has the digest of its owner's text; the text is found where the same owner has another
//! reference, in this store or in a replica.

use std::collections::BTreeSet;

use super::VerifyOptions;
use crate::Result;
use crate::store::Store;

impl Store {
    /// Counts references that cannot be read, and how many of them were repaired.
    pub(super) async fn check_references(&self, options: &VerifyOptions) -> Result<(u64, u64)> {
        let read = self.read_refs(None).await?;
        if read.damaged.is_empty() || !options.repair {
            return Ok((read.damaged.len() as u64, 0));
        }
        let mut owners: BTreeSet<String> = read.whole.into_iter().map(|reference| reference.owner).collect();
        for replica in &options.replicas {
            match replica.read_refs(None).await {
                Ok(read) => owners.extend(read.whole.into_iter().map(|reference| reference.owner)),
                Err(error) => tracing::warn!(%error, store = %replica.location(), "no help with references"),
            }
        }
        let mut repaired = 0;
        for damaged in &read.damaged {
            let Some(owner) = owners.iter().find(|owner| damaged.is_of(owner)) else { continue };
            self.rewrite_ref(&damaged.path, owner).await?;
            repaired += 1;
        }
        Ok((read.damaged.len() as u64, repaired))
    }
}
