//! The command `qmigrate`: parse, logging, call, exit code.

/// What was typed, and what is meant by it.
mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return cli::unreadable(&error),
    };
    log(arguments.verbose);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(code) => code,
        Err(error) => cli::fail(&error),
    }
}

/// What happened, on standard error, as much of it as was asked for.
fn log(verbose: u8) {
    let level = match verbose {
        0 => "error",
        1 => "qmigrate=info",
        _ => "qmigrate=debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("QMIGRATE_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A terminal that has gone away is no reason to end.
        .log_internal_errors(false)
        .without_time()
        .init();
}
