//! A limit on how fast replications write, shared by all that were given the same one.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many bytes a second, in turn: who comes while the line is busy waits until it is free. There are no bursts, so a
/// frame of 1 MiB is the most that is ever written ahead.
#[derive(Debug)]
pub struct Bandwidth {
    bytes_per_s: u64,
    free_at: Mutex<Instant>,
}

impl Bandwidth {
    /// A limit; 0 counts as 1.
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Waits for the turn to write so many bytes.
    pub(super) async fn take(&self, bytes: u64) {
        let turn = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*free_at).max(Instant::now());
            *free_at = turn + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writers_take_turns() {
        let line = Bandwidth::new(1000);
        let began = Instant::now();
        tokio::join!(line.take(50), line.take(150), line.take(1));
        // The first begins at once, the others when those before them are through.
        assert!(began.elapsed() >= Duration::from_millis(200));
    }
}
