//! `sidrec serve`.

use super::AskingArgs;
use crate::error::{Fault, cannot_create, fault, input_missing};
use crate::progress::Stage;
use crate::serve::limits::Limits;
use crate::serve::metrics::Metrics;
use crate::serve::swap::Versions;
use crate::serve::version::{Source, Version};
use crate::serve::{Ended, Server, Tokens, check_address, reload_when_told};
use anyhow::{Context, Result};
use clap::Args;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

fn address(text: &str) -> Result<SocketAddr, String> {
    let found =
        text.to_socket_addrs().map_err(|e| format!("expected a host and a port such as 127.0.0.1:8080: {e}"))?;
    found.into_iter().next().ok_or_else(|| "no such host".to_string())
}

#[derive(Args)]
pub(super) struct ServeArgs {
    /// Run directory
    #[arg(long, value_name = "DIR", env = "SIDREC_RUN")]
    run: PathBuf,
    /// Catalogue directory, or a folder with a file `current` that names the catalogue in it
    #[arg(long, value_name = "DIR", env = "SIDREC_CATALOGUE")]
    catalogue: PathBuf,
    /// Host and port; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080", value_parser = address, env = "SIDREC_ADDR")]
    addr: SocketAddr,
    #[command(flatten)]
    asking: AskingArgs,
    /// File with the token that requests must bring; the variable SIDREC_TOKEN does as well
    #[arg(long, value_name = "FILE", env = "SIDREC_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// File with the token for changes; the variable SIDREC_ADMIN_TOKEN does as well
    #[arg(long, value_name = "FILE", env = "SIDREC_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    /// Serve without a token on an address that others can reach
    #[arg(long)]
    allow_unauthenticated: bool,
    /// Load what is current anew whenever it changes
    #[arg(long)]
    watch: bool,
    #[command(flatten, next_help_heading = "Limits")]
    limits: Limits,
}

/// A token from a file or from the environment, never from the command line, where others could see it.
fn token(file: Option<&Path>, variable: &str) -> Result<Option<String>> {
    let text = match file {
        Some(path) if !path.is_file() => return Err(input_missing(path)),
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => match std::env::var(variable) {
            Ok(text) => text,
            Err(_) => return Ok(None),
        },
    };
    let token = text.trim();
    if token.len() < 8 {
        let place = file.map_or_else(|| variable.to_string(), |path| path.display().to_string());
        return Err(fault(Fault::Usage, format!("{place}: a token of at least 8 characters is expected")));
    }
    Ok(Some(token.to_string()))
}

pub(super) fn serve(args: ServeArgs) -> Result<()> {
    let tokens = Tokens {
        user: token(args.token_file.as_deref(), "SIDREC_TOKEN")?,
        admin: token(args.admin_token_file.as_deref(), "SIDREC_ADMIN_TOKEN")?,
    };
    check_address(args.addr, &tokens, args.allow_unauthenticated)?;
    let metrics = Arc::new(Metrics::default());
    let source = Source { run: args.run, catalogue: args.catalogue, asking: args.asking.asking() };
    let stage = Stage::new("load", 0);
    let version = Version::load(&source)?;
    let items = version.catalogue.trie.items_total();
    let names = format!("{} on index {}", version.model_version, version.index_version);
    stage.done(&format!("{names}, {items} items"));
    let versions = Arc::new(Versions::new(version, Some(source), Arc::clone(&metrics)));
    let server = Server::new(Arc::clone(&versions), &args.limits, tokens, metrics)?;

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let listener =
            TcpListener::bind(args.addr).await.map_err(|e| cannot_create(Path::new(&args.addr.to_string()), e))?;
        let address = listener.local_addr()?;
        eprintln!("serving on http://{address}  (page /, routes /docs, Ctrl-C stops)");
        let (stop, stopped) = watch::channel(false);
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            eprintln!("stopping: open requests are answered first");
            let _ = stop.send(true);
        });
        tokio::spawn(reload_when_told(versions, args.watch));
        server.run(listener, stopped).await
    })?;
    match ended {
        Ended::Stopped => Ok(()),
        Ended::CutOff => Err(fault(Fault::Temporary, "some requests did not end in time and were cut off")),
        Ended::DeviceLost => Err(fault(Fault::Temporary, "the device is lost; start the server anew")),
    }
}
