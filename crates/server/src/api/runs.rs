//! `/tintype/runs`: the runs of a template with their reports, and the logs of runs and of platform images
//! while they grow. These are ours; Azure has neither.

use std::convert::Infallible;
use std::time::Duration;

use arm::{ArmError, ResourceId};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{LogChunk, Operation, OperationEnd, OperationState, StoreError, Tx};

use crate::AppState;
use crate::http::error::ApiError;
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::jobs::make_platform_image;

/// Runs of a template that are remembered, with their logs.
const RUNS_KEPT_MAX: usize = 50;
/// Between two looks for new chunks of a log that is streamed.
const STREAM_PAUSE: Duration = Duration::from_millis(500);
/// Prefix of the logs of platform images.
const PLATFORM_PREFIX: &str = "platform-";

/// A run of a template, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunEntry {
    /// Id of the run and of its operation.
    pub(crate) run_id: String,
    /// Whether it asked for unchanged steps to be taken from the step cache.
    pub(crate) reuse: bool,
}

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(Method::GET, "/tintype/runs", list).on(Method::GET, "/tintype/runs/{run}/log", log)
}

/// Adds a run to a template's; the oldest beyond [`RUNS_KEPT_MAX`] is forgotten, and its log with it.
///
/// # Errors
/// The database's own.
pub(crate) async fn remember(tx: &mut Tx<'_>, template_key: &str, entry: RunEntry) -> Result<(), StoreError> {
    let mut runs = of_template(tx, template_key).await?;
    runs.push(entry);
    while runs.len() > RUNS_KEPT_MAX {
        tx.delete_log(&runs.remove(0).run_id).await?;
    }
    write(tx, template_key, &runs).await
}

/// Forgets a template's runs and their logs.
///
/// # Errors
/// The database's own.
pub(crate) async fn forget(tx: &mut Tx<'_>, template_key: &str) -> Result<(), StoreError> {
    let runs = of_template(tx, template_key).await?;
    if runs.is_empty() {
        return Ok(());
    }
    for run in &runs {
        tx.delete_log(&run.run_id).await?;
    }
    write(tx, template_key, &[]).await
}

/// A template's runs, oldest first.
async fn of_template(tx: &mut Tx<'_>, template_key: &str) -> Result<Vec<RunEntry>, StoreError> {
    let key = setting_key(template_key);
    let Some(bytes) = tx.setting(&key).await? else { return Ok(Vec::new()) };
    serde_json::from_slice(&bytes).map_err(|error| StoreError::Inconsistent {
        table: "settings",
        column: "value",
        row: key,
        reason: error.to_string(),
    })
}

async fn write(tx: &mut Tx<'_>, template_key: &str, runs: &[RunEntry]) -> Result<(), StoreError> {
    let encode = |source| StoreError::Encode { table: "settings", column: "value", source };
    let bytes = serde_json::to_vec(runs).map_err(encode)?;
    tx.set_setting(&setting_key(template_key), &bytes).await
}

fn setting_key(template_key: &str) -> String {
    format!("template-runs/{template_key}")
}

async fn list(State(state): State<AppState>, query: Query) -> Result<Json<Value>, ApiError> {
    let template = query.get("template").ok_or_else(|| ArmError::missing_parameter("template"))?;
    let id = ResourceId::parse(template)?;
    let key = id.key();
    let runs = state
        .store
        .read(|tx| {
            Box::pin(async {
                if !tx.exists(&key).await? {
                    return Err(ArmError::resource_not_found(&id).into());
                }
                let mut runs = Vec::new();
                for entry in of_template(tx, &key).await?.into_iter().rev() {
                    if let Some(operation) = tx.operation(&entry.run_id).await? {
                        runs.push(render(&entry, &operation));
                    }
                }
                Ok::<_, ApiError>(runs)
            })
        })
        .await?;
    Ok(Json(json!({ "value": runs })))
}

fn render(entry: &RunEntry, operation: &Operation) -> Value {
    let (status, ended, report, error) = match &operation.state {
        OperationState::InProgress => ("Running", None, None, None),
        OperationState::Ended { at, end } => match end {
            OperationEnd::Succeeded(report) => ("Succeeded", Some(*at), report.as_ref(), None),
            OperationEnd::Failed(error) => ("Failed", Some(*at), None, Some(error)),
            OperationEnd::Canceled(error) => ("Canceled", Some(*at), None, Some(error)),
        },
    };
    json!({
        "runId": entry.run_id,
        "status": status,
        "startTime": arm::time::plain(operation.started_at),
        "endTime": ended.map(arm::time::plain),
        "reuse": entry.reuse,
        "report": report,
        "error": error,
    })
}

async fn log(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let run = path.segment(2).to_ascii_lowercase();
    let after = match query.get("after") {
        None => 0,
        Some(text) => text.parse::<i64>().ok().filter(|after| *after >= 0).ok_or_else(|| {
            ArmError::invalid_parameter(
                "after",
                "after must be the number of the last chunk that was read, or 0.",
            )
        })?,
    };
    let (chunks, ended) = look(&state, &run, after).await?;
    let streams = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    if streams {
        return Ok(stream(state, run, after));
    }
    let chunks: Vec<Value> =
        chunks.iter().map(|chunk| json!({ "seq": chunk.seq, "text": text(chunk) })).collect();
    Ok(Json(json!({ "chunks": chunks, "ended": ended })).into_response())
}

/// Chunks after a number, and whether nothing will follow those.
async fn look(state: &AppState, run: &str, after: i64) -> Result<(Vec<LogChunk>, bool), ApiError> {
    state
        .store
        .read(|tx| {
            Box::pin(async {
                let ended = ended(tx, state, run).await?;
                let chunks = tx.read_log(run, after).await?;
                // A full read may not be the last, even of a run that has ended.
                Ok::<_, ApiError>((chunks.clone(), ended && chunks.is_empty()))
            })
        })
        .await
}

/// Whether a run, or the making of a platform image, is over. 404 for what there is not.
async fn ended(tx: &mut Tx<'_>, state: &AppState, run: &str) -> Result<bool, ApiError> {
    if let Some(digest) = run.strip_prefix(PLATFORM_PREFIX) {
        let resource = make_platform_image::operation_resource(state, digest);
        if !tx.operations_in_progress(&resource).await?.is_empty() {
            return Ok(false);
        }
        if !tx.read_log(run, 0).await?.is_empty() {
            return Ok(true);
        }
    } else if let Some(operation) = tx.operation(run).await? {
        return Ok(operation.state != OperationState::InProgress);
    }
    let shown: String = run.chars().filter(|c| !c.is_control()).take(100).collect();
    Err(ArmError::not_found(format!("There is no run '{shown}'.")).into())
}

/// The log as server-sent events: `id` is the chunk's number, each line a `data` line; `event: end` at the end.
fn stream(state: AppState, run: String, after: i64) -> Response {
    let events = futures::stream::unfold(Some((state, run, after)), |at| async {
        let (state, run, mut after) = at?;
        loop {
            match look(&state, &run, after).await {
                Ok((_, true)) => {
                    return Some((Ok::<_, Infallible>(Bytes::from_static(b"event: end\ndata:\n\n")), None));
                }
                Ok((chunks, false)) if chunks.is_empty() => tokio::time::sleep(STREAM_PAUSE).await,
                Ok((chunks, false)) => {
                    let events: String = chunks.iter().map(event).collect();
                    after = chunks.last().map_or(after, |chunk| chunk.seq);
                    return Some((Ok(Bytes::from(events)), Some((state, run, after))));
                }
                // The client sees the stream break off, and asks again from the last id.
                Err(_) => return None,
            }
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

fn event(chunk: &LogChunk) -> String {
    let text = text(chunk);
    let lines = text.trim_end_matches('\n').split(['\n', '\r']).map(|line| format!("data: {line}\n"));
    format!("id: {}\n{}\n", chunk.seq, lines.collect::<String>())
}

fn text(chunk: &LogChunk) -> String {
    String::from_utf8_lossy(&chunk.bytes).into_owned()
}
