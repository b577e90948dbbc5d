//! `tintype serve`: the service.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;
use server::{Config, Server};
use tokio::signal::unix::{SignalKind, signal};

/// Runs the service: the ARM REST API over HTTPS, and the builds and VMs behind it.
///
/// Settings come from flags, then the environment, then the file.
///
/// Examples:
///   tintype serve --data-dir /var/lib/tintype
///   tintype serve --config /etc/tintype.toml --listen 0.0.0.0:8443
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Configuration file (tintype.toml).
    #[arg(long, env = "TINTYPE_CONFIG")]
    config: Option<PathBuf>,
    /// Folder for everything that is not in a region's store.
    #[arg(long, env = "TINTYPE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, env = "TINTYPE_LISTEN")]
    listen: Option<SocketAddr>,
    /// Print one JSON line when ready (url, ca, credentials).
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut config = match (&arguments.config, &arguments.data_dir) {
        (Some(path), _) => Config::load(path)?,
        (None, Some(dir)) => Config::new(dir),
        (None, None) => anyhow::bail!("say where data may live: --data-dir DIR or --config FILE"),
    };
    if let Some(dir) = arguments.data_dir {
        config.data_dir = dir;
    }
    if let Some(listen) = arguments.listen {
        config.listen = listen;
    }
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let server = Server::start(config).await?;
    if arguments.json {
        let ready = json!({"url": server.url, "ca": server.ca_pem, "credentials": server.credentials});
        println!("{ready}");
    } else {
        println!("Tintype serves {}", server.url);
        println!("  authority    {}", server.ca_pem.display());
        println!("  credentials  {}", server.credentials.display());
    }
    // The trial boot takes seconds, and the first VM should not have to wait for it. Its failure is reported
    // by whatever needs it.
    let state = server.state.clone();
    tokio::spawn(async move {
        match state.fabric.accelerator().await {
            Ok(accelerator) => tracing::info!(?accelerator, "QEMU answers"),
            Err(error) => tracing::warn!(%error, "QEMU does not answer"),
        }
    });
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result.context("cannot listen for SIGINT")?,
    }
    server.shutdown().await;
    Ok(())
}
