//! What the program understands: one place, so that `--help` tells the whole of it.

use crate::commands::ClientCommand;
use crate::commands::log::LogCommand;
use crate::connection::{CONNECTION_HEADING, Connection};
use crate::coordinator::CoordinatorRole;
use crate::key::KeyCommand;
use crate::up::{NodeRole, Up};
use catchment_simulator::Simulate;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

const AFTER_HELP: &str = "\
Begin:
  catchment up                                                      serve on http://127.0.0.1:7070
  catchment job create digits --function fedavg --rounds 20 --goal 10 --model initial.safetensors
  catchment submit digits --client phone-7 --file update.safetensors --num-samples 120
  catchment watch digits
  catchment model get digits --out model.safetensors

Exit status:
  0    done; for watch and --wait: the job completed or was stopped, the update is in a model
  1    failed: a file, a damaged answer or log, anything not named below
  2    wrong arguments
  3    the server could not be reached, or the call broke off
  4    the server said no: it refused the call, the job failed, or the update was not counted
  64   bad configuration: a spec file or a server address that does not read
  130  interrupted (SIGINT); 143: terminated (SIGTERM)

Results go to standard output, as tables on a terminal and as JSON, one object a line, elsewhere; --output chooses.
Errors, logs (RUST_LOG) and progress go to standard error.";

/// Aggregation for federated learning: clients submit model updates, one global model comes out.
#[derive(Debug, Parser)]
#[command(name = "catchment", version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Write logs as JSON, one object a line.
    #[arg(long, global = true, env = "CATCHMENT_LOG_JSON", display_order = 900)]
    pub log_json: bool,
    /// The server to call.
    #[command(flatten)]
    pub connection: Connection,
}

impl Arguments {
    /// The program's arguments; ends the program with help or an error where they are none.
    pub fn read() -> Self {
        let mut matches = definition().get_matches();
        Self::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit())
    }
}

/// The command line, without the options for calling a server in the help of commands that call none.
fn definition() -> clap::Command {
    let mut whole = Arguments::command();
    whole.build();
    fn hide(command: clap::Command) -> clap::Command {
        let prints_results = command.get_name() == "log";
        hide_but(command, if prints_results { &["output"] } else { &[] })
    }
    fn hide_but(command: clap::Command, kept: &'static [&'static str]) -> clap::Command {
        let command = command.mut_args(|argument| {
            let is_connection = argument.get_help_heading() == Some(CONNECTION_HEADING);
            let is_kept = kept.contains(&argument.get_id().as_str());
            argument.hide(is_connection && !is_kept)
        });
        command.mut_subcommands(|command| hide_but(command, kept))
    }
    ["up", "node", "coordinator", "simulate", "openapi", "key", "log"]
        .into_iter()
        .fold(whole, |whole, name| whole.mut_subcommand(name, hide))
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Up(Box<Up>),
    Node(Box<NodeRole>),
    Coordinator(CoordinatorRole),
    Simulate(Box<Simulate>),
    /// Print the description of the HTTP interface (OpenAPI).
    Openapi,
    /// Make a key that the members of a cluster share.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Look at an event log, take it away in a file, and repair it, while no process works on it.
    #[command(subcommand)]
    Log(LogCommand),
    /// Make the calls of functions for the node that started this process. (Nodes start it; people do not.)
    #[command(hide = true)]
    Runner,
    #[command(flatten)]
    Client(ClientCommand),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_hold_together() {
        Arguments::command().debug_assert();
        definition().debug_assert();
    }

    #[test]
    fn every_argument_and_command_has_a_help_text() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "command `{}` has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {} has no help", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }

    #[test]
    fn help_shows_the_server_s_options_where_they_matter() {
        let help = |name: &str| {
            let whole = definition();
            whole.find_subcommand(name).unwrap().clone().render_long_help().to_string()
        };
        assert!(help("watch").contains("--url"));
        assert!(help("up").contains("--listen") && !help("up").contains("--url"), "{}", help("up"));
        assert!(!help("openapi").contains("--url"));
        let whole = definition();
        let restore = whole.find_subcommand("log").and_then(|log| log.find_subcommand("restore")).unwrap();
        let restore = restore.clone().render_long_help().to_string();
        assert!(restore.contains("--output") && !restore.contains("--url"), "{restore}");
    }

    #[test]
    fn global_options_may_stand_before_and_after_the_command() {
        for line in ["catchment --output json job list", "catchment job list --output json"] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(arguments.connection.output, Some(crate::output::Format::Json));
        }
    }
}
