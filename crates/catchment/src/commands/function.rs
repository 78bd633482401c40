//! `catchment function …`.

use crate::connection::Session;
use crate::text;
use anyhow::Result;
use catchment_types::FunctionView;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum FunctionCommand {
    /// List the functions that jobs can name.
    List,
    /// Describe one function: its class, its digest, and what its --config takes.
    #[command(after_help = "\
Examples:
  catchment function inspect fedavg
  catchment job create pinned --function fedavg@$(catchment function inspect fedavg --output json | jq -r .digest)")]
    Inspect {
        /// The function.
        name: String,
    },
}

impl FunctionCommand {
    /// Runs it.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::List => {
                let functions = session.brief.functions().await?;
                let row = |function: &FunctionView| {
                    [
                        function.name.clone(),
                        function.version.clone(),
                        text::word(&function.class),
                        text::short(function.digest),
                        function.summary.clone(),
                    ]
                };
                let empty = "the server has no functions: build it with `make build`, or start it with --functions DIR";
                session.output.list(&functions, ["NAME", "VERSION", "CLASS", "DIGEST", "SUMMARY"], row, empty)
            }
            Self::Inspect { name } => {
                let function = session.brief.function(&name).await?;
                session.output.item(&function, || describe(&function))
            }
        }
    }
}

fn describe(function: &FunctionView) -> String {
    let config = if function.config_help.is_empty() { "takes none" } else { &function.config_help };
    text::pairs(&[
        ("function", function.name.clone()),
        ("version", function.version.clone()),
        ("digest", function.digest.to_string()),
        ("class", text::word(&function.class)),
        ("exact sums", if function.exact { "yes" } else { "no" }.to_owned()),
        ("summary", function.summary.clone()),
        ("config", config.to_owned()),
    ])
}
