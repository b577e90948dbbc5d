//! A VHD distributor: the image as a fixed VHD in a page blob.

use build::Events;
use model::image_template::{Distributor, DistributorKind};

use super::super::journal::Journal;
use super::super::{Built, EVENTS_MAX, Run};
use crate::jobs::create_image_template::staging_account;
use crate::jobs::vhd_target::{self, VhdTarget};
use crate::jobs::write_vhd::write_vhd;

/// A log's line for each of so many parts of the disk.
const PROGRESS_PARTS: u64 = 10;

/// A VHD that was written.
pub(in crate::jobs::run_image_template) struct PublishedVhd {
    /// Its address, without a SAS.
    pub(in crate::jobs::run_image_template) uri: String,
    /// Length of the blob.
    pub(in crate::jobs::run_image_template) bytes: u64,
    /// Bytes of pages that were written.
    pub(in crate::jobs::run_image_template) sent_bytes: u64,
}

pub(super) async fn publish(
    run: &Run,
    built: &Built,
    distributor: &Distributor,
    journal: &mut Journal,
) -> Result<PublishedVhd, String> {
    let (uri, target) = target(run, distributor).await?;
    let (events, receiver) = Events::channel(EVENTS_MAX);
    let writing = async {
        let written = write(run, built, &uri, &target, &events).await;
        // The journal ends when there is no more to come.
        drop(events);
        written
    };
    let (written, ()) = tokio::join!(writing, journal.listen(receiver));
    written
}

/// The blob, and its address without a SAS.
async fn target(run: &Run, distributor: &Distributor) -> Result<(String, VhdTarget), String> {
    let state = &run.context.state;
    match &distributor.kind {
        DistributorKind::Vhd { uri: Some(uri), sealed_query } => {
            let target = vhd_target::open(state, uri, sealed_query.as_deref());
            let target = target.map_err(|reason| format!("'{uri}' cannot be written: {reason}"))?;
            Ok((uri.clone(), target))
        }
        _ => {
            let blobs = staging_account::ensure(state, &run.template.id)
                .await
                .map_err(|error| error.error_object()["message"].as_str().unwrap_or_default().to_owned())?;
            let blob = blobs.vhd(distributor.run_output_name.as_str(), &run.run_id);
            let uri = format!("{}{}/{}", state.endpoint.blob_url(&blob.account), blob.container, blob.name);
            Ok((uri, VhdTarget::Own(blob)))
        }
    }
}

async fn write(
    run: &Run,
    built: &Built,
    uri: &str,
    target: &VhdTarget,
    events: &Events,
) -> Result<PublishedVhd, String> {
    let spec = run.spec();
    let mut next = 1;
    let progress = |done: u64, of: u64| {
        let part = done.saturating_mul(PROGRESS_PARTS).checked_div(of).unwrap_or_default();
        if part >= next {
            next = part + 1;
            events
                .try_line(build::Stream::Customization, format!("{uri}: {} %", part * 100 / PROGRESS_PARTS));
        }
    };
    let state = &run.context.state;
    let writing = write_vhd(state, &spec.location, built.output.manifest, target, progress);
    let written = tokio::select! {
        written = tokio::time::timeout_at(built.deadline, writing) => written.map_err(|_| {
            let minutes = spec.build_timeout_minutes();
            format!("'{uri}' was not written within {minutes} minutes (buildTimeoutInMinutes)")
        })??,
        () = run.stop.cancelled() => return Err("The run was stopped while the VHD was written.".to_owned()),
    };
    Ok(PublishedVhd { uri: uri.to_owned(), bytes: written.bytes, sent_bytes: written.sent_bytes })
}

#[cfg(test)]
mod tests;
