//! start, powerOff, restart, deallocate. Each is done within the request: a VM's process comes up within
//! seconds, and a guest that does not shut down in time is ended. The power state is written before and after,
//! so that two actions never work on one VM; should the server die in between, `reconcile` mends the state.

use std::time::Duration;

use arm::ArmError;
use axum::extract::State;
use axum::http::StatusCode;
use model::virtual_machine::{PowerState, VirtualMachine};
use vmhost::{VmError, VmHandle, VmSpec};

use super::write::busy;
use super::{not_found, vm_id};
use crate::AppState;
use crate::copies::hold;
use crate::http::error::{ApiError, chain};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::jobs::create_virtual_machine::{image_reference, reading_turn};

/// How long a guest may take to shut down before it is ended: the answer must come within the request.
const SHUTDOWN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Start,
    Restart,
    PowerOff,
    Deallocate,
}

impl Action {
    fn parse(name: &str) -> Option<Action> {
        let actions = [
            ("start", Action::Start),
            ("restart", Action::Restart),
            ("powerOff", Action::PowerOff),
            ("deallocate", Action::Deallocate),
        ];
        actions.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, action)| action)
    }

    fn during(self) -> PowerState {
        match self {
            Action::Start | Action::Restart => PowerState::Starting,
            Action::PowerOff => PowerState::Stopping,
            Action::Deallocate => PowerState::Deallocating,
        }
    }

    fn after(self) -> PowerState {
        match self {
            Action::Start | Action::Restart => PowerState::Running,
            Action::PowerOff => PowerState::Stopped,
            Action::Deallocate => PowerState::Deallocated,
        }
    }
}

pub(super) async fn act(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let name = path.segment(path.len().saturating_sub(1));
    let Some(action) = Action::parse(name) else {
        let shown: String = name.chars().take(80).collect();
        let message = format!(
            "The action '{shown}' is not implemented for virtual machines; there are start, powerOff, restart and deallocate."
        );
        return Err(ArmError::new(501, "NotImplemented", message).with_target(shown).into());
    };
    let hard = query.get("skipShutdown").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let id = vm_id(&path)?;
    let before = begin(&state, &path, &id, action).await?;
    // A task of its own: a client that goes away must not leave the VM half way.
    let task = tokio::spawn(async move {
        let done = carry_out(&state, &before, action, hard).await;
        let power = match &done {
            Ok(()) => action.after(),
            Err(_) => PowerState::Stopped,
        };
        set(&state, &id, power).await?;
        done
    });
    task.await.map_err(ApiError::internal)??;
    Ok(StatusCode::OK)
}

/// Takes the VM for this action.
async fn begin(
    state: &AppState,
    path: &ArmPath,
    id: &str,
    action: Action,
) -> Result<VirtualMachine, ApiError> {
    state
        .store
        .write(|tx| {
            Box::pin(async {
                let mut found = tx.get::<VirtualMachine>(id).await?.ok_or_else(|| not_found(path))?;
                let working = match found.data.power {
                    None | Some(PowerState::Starting | PowerState::Stopping | PowerState::Deallocating) => {
                        true
                    }
                    Some(PowerState::Running | PowerState::Stopped | PowerState::Deallocated) => false,
                };
                if found.state.is_busy() || working {
                    return Err(busy(&found));
                }
                let before = found.data.clone();
                found.data = found.data.powered(action.during());
                tx.update(&mut found).await?;
                Ok(before)
            })
        })
        .await
}

async fn set(state: &AppState, id: &str, power: PowerState) -> Result<(), ApiError> {
    state
        .store
        .write(|tx| {
            Box::pin(async {
                let Some(mut found) = tx.get::<VirtualMachine>(id).await? else { return Ok(()) };
                found.data = found.data.powered(power);
                Ok(tx.update(&mut found).await?)
            })
        })
        .await
}

async fn carry_out(
    state: &AppState,
    vm: &VirtualMachine,
    action: Action,
    hard: bool,
) -> Result<(), ApiError> {
    let failed = |error: &dyn std::error::Error| {
        ApiError::new(
            409,
            "VMPowerActionFailed",
            format!("The action could not be carried out: {}.", chain(error)),
        )
    };
    let handle = VmHandle::attach(&state.fabric.vm_dir(vm.vm_id));
    if action != Action::Start {
        stop(&handle, hard).await.map_err(|error| failed(&error))?;
    }
    if matches!(action, Action::PowerOff | Action::Deallocate) {
        return Ok(());
    }
    match handle.status().await {
        // It runs already.
        Ok(_) => return Ok(()),
        Err(VmError::Ended(_)) => {}
        Err(error) => return Err(failed(&error)),
    }
    let mut spec = VmSpec::read(handle.dir()).map_err(|error| failed(&error))?;
    // The host, or the server's place on it, may have changed since the VM was made.
    spec.accelerator = state.fabric.accelerator().await.map_err(|error| failed(&error))?;
    spec.outbound = state.fabric.outbound().clone();
    if let Ok(manifest) = spec.base.manifest.parse() {
        let (region, turn) = (&vm.spec.location, reading_turn(vm));
        // Zones that have it by now and had not when the VM was made.
        if let Err(error) = hold(&state.fabric, region, &manifest, &image_reference(vm)).await {
            tracing::warn!(vm = %vm.name, error = chain(&error), "cannot hold the image of a VM");
        }
        let places = state.fabric.reading_places(region, &manifest, turn).await;
        // Those that are known may be back by the time that the process opens them.
        if let Ok(places) = places
            && !places.is_empty()
        {
            spec.base.stores = places;
        }
    }
    VmHandle::spawn(state.fabric.program(), handle.dir(), &spec).await.map_err(|error| failed(&error))?;
    Ok(())
}

async fn stop(handle: &VmHandle, hard: bool) -> Result<(), VmError> {
    if !hard {
        match handle.press_power_button().await {
            Ok(()) => match handle.wait_ended(SHUTDOWN).await {
                Ok(_) => return Ok(()),
                Err(VmError::Timeout { .. }) => {}
                Err(error) => return Err(error),
            },
            Err(VmError::Ended(_)) => return Ok(()),
            // A guest that is paused or not up yet has no button.
            Err(VmError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
    }
    handle.power_off().await.map(|_| ())
}
