//! From a template to the ordered steps of a build: pure planning, nothing is run.
//!
//! ```text
//!  Boot ▶ Customize 0 ▶ … ▶ Customize n ▶ Deprovision ▶ Shutdown ▶ Commit ▶ Validate 0 … ▶ Distribute 0 …
//!  Validate 0 … ▶ Distribute 0 …                                     (sourceValidationOnly: nothing is built)
//! ```
//!
//! Order is the safety rule: nothing is distributed that was not deprovisioned, shut down, committed and
//! validated before.

use serde::{Deserialize, Serialize};

use crate::image_template::{Customizer, Distributor, ImageTemplateSpec, OnError, RunStage, Validator};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Starts a machine from the source.
    Boot,
    /// Runs one customizer.
    Customize {
        /// Its place in the template.
        index: usize,
        /// What to run.
        customizer: Customizer,
    },
    /// Takes the machine's identity out of the disk (RULES.md 2A, "Hidden last step").
    Deprovision,
    /// Shuts the machine down cleanly.
    Shutdown,
    /// Stores what changed on the disk.
    Commit,
    /// Runs one validator in a freshly booted machine.
    Validate {
        /// Its place in the template.
        index: usize,
        /// What to run.
        validator: Validator,
    },
    /// Publishes to one target.
    Distribute {
        /// Its place in the template.
        index: usize,
        /// Where to.
        distributor: Box<Distributor>,
    },
}

/// What validation looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValidationSubject {
    /// What this build committed.
    Built,
    /// The template's source as it is.
    Source,
}

/// A build, planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildPlan {
    /// In order.
    pub steps: Vec<Step>,
    /// What is validated and distributed.
    pub subject: ValidationSubject,
    /// For customizing, validating and distributing together.
    pub timeout_minutes: u32,
    /// What becomes of the build's machine when a customizer fails.
    pub on_customizer_error: OnError,
    /// What becomes of the validation's machine when a validator fails.
    pub on_validation_error: OnError,
    /// Whether a failed validation stops distribution. The run is a failure either way.
    pub distribute_after_failed_validation: bool,
}

impl BuildPlan {
    /// Plans the build of a template that has passed [`ImageTemplateSpec::check`].
    pub fn new(spec: &ImageTemplateSpec) -> Self {
        let validation = spec.validate.clone().unwrap_or_default();
        let subject = if validation.source_validation_only {
            ValidationSubject::Source
        } else {
            ValidationSubject::Built
        };
        let mut steps = Vec::new();
        if subject == ValidationSubject::Built {
            steps.push(Step::Boot);
            let customize = spec.customize.iter().cloned().enumerate();
            steps.extend(customize.map(|(index, customizer)| Step::Customize { index, customizer }));
            steps.extend([Step::Deprovision, Step::Shutdown, Step::Commit]);
        }
        let validate = validation.validators.into_iter().enumerate();
        steps.extend(validate.map(|(index, validator)| Step::Validate { index, validator }));
        let distribute = spec.distribute.iter().cloned().map(Box::new).enumerate();
        steps.extend(distribute.map(|(index, distributor)| Step::Distribute { index, distributor }));
        let handling = spec.error_handling.unwrap_or_default();
        Self {
            steps,
            subject,
            timeout_minutes: spec.build_timeout_minutes(),
            on_customizer_error: handling.on_customizer_error.unwrap_or_default(),
            on_validation_error: handling.on_validation_error.unwrap_or_default(),
            distribute_after_failed_validation: validation.continue_distribute_on_failure,
        }
    }

    /// Whether a machine for validation has to be started.
    pub fn validates(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Validate { .. }))
    }
}

impl Step {
    /// The stage of the run that this step belongs to.
    pub fn stage(&self) -> RunStage {
        match self {
            Self::Boot => RunStage::Building,
            Self::Customize { .. } | Self::Deprovision | Self::Shutdown | Self::Commit => {
                RunStage::Customizing
            }
            Self::Validate { .. } => RunStage::Validating,
            Self::Distribute { .. } => RunStage::Distributing,
        }
    }

    /// A short name for logs and messages: `customize 1 (Shell "install nginx")`.
    pub fn label(&self) -> String {
        let named =
            |name: &Option<String>| name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        match self {
            Self::Boot => "boot".into(),
            Self::Customize { index, customizer } => {
                format!("customize {index} ({}{})", customizer.kind.type_name(), named(&customizer.name))
            }
            Self::Deprovision => "deprovision".into(),
            Self::Shutdown => "shut down".into(),
            Self::Commit => "commit".into(),
            Self::Validate { index, validator } => {
                format!("validate {index} ({}{})", validator.kind.type_name(), named(&validator.name))
            }
            Self::Distribute { index, distributor } => {
                format!("distribute {index} ({})", distributor.run_output_name)
            }
        }
    }
}
