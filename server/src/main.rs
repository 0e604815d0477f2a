//! The command line of Roomful.
//!
//! It turns arguments into a configuration, starts the logs and hands over to the library; what a command
//! prints goes through `console`. Exit codes: 0 done, 1 the server or a command failed, 2 the arguments or
//! the configuration are wrong and nothing was started, 130 a second signal ended the server before everybody was
//! told to come back.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use roomful_protocol::id::{IdError, RoomId, RoomName, TenantId};
use roomful_server::archive::listing::Depth;
use roomful_server::auth::{self, MintError, Minted};
use roomful_server::clock::Clock;
use roomful_server::config::{Config, Flag, Problems, Secret, Sources};
use roomful_server::tools::copying::{self, Target};
use roomful_server::tools::inspecting::{self, Form, Report};
use roomful_server::tools::restoring::{self, Existing};
use roomful_server::tools::{ToolError, Whence};
use roomful_server::{app, console, logging};

/// Roomful keeps rooms of people in step over WebSocket.
#[derive(Debug, Parser)]
#[command(name = "roomful", version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ConfigArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server; what `roomful` alone does
    Serve(ConfigArgs),
    /// Read the configuration, say what is wrong with it, and start nothing
    CheckConfig(ConfigArgs),
    /// Print every key with its default and its documentation, as TOML
    PrintConfig(PrintArgs),
    /// Say what of the rooms on disk is damaged and what a repair would lose, while no server uses them
    Repair(RepairArgs),
    /// Make a token for development, signed with the first HS256 key of the configuration
    Token(TokenArgs),
    /// Tell what rooms there are on disk, and how large they are
    Inspect(InspectArgs),
    /// Copy rooms on disk into a file
    Export(ExportArgs),
    /// Bring the rooms of a file into the data directory, each with a new epoch
    Import(ImportArgs),
    /// Copy all rooms on disk as they are at one moment into a file, and who is revoked
    Backup(BackupArgs),
    /// Make a data directory of a file; every room gets a new epoch
    Restore(RestoreArgs),
}

/// Where the configuration comes from. What isn't given here comes from the environment, the file, or the defaults.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// Configuration file, which has to exist [default: roomful.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the public listener (listen.public)
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address of the admin listener (listen.admin)
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<SocketAddr>,
    /// Directory for what outlives the process (data_dir)
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Threads that hold connections and rooms; 0 for one per core (shards)
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
    /// Let a server without keys listen beyond this machine (listen.allow_anonymous)
    #[arg(long)]
    allow_anonymous: bool,
    /// What is logged, such as debug or "info,roomful_server=debug" (log.filter)
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Any other key; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_setting)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct PrintArgs {
    /// Print what this start would use, instead of the defaults; secrets are left out
    #[arg(long)]
    effective: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
struct RepairArgs {
    /// Repair it: keep the damaged journal aside, and go on with what is whole of it
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// Who the token is of
    #[arg(long)]
    user: String,
    /// The tenant
    #[arg(long, default_value = "default")]
    tenant: String,
    /// Room pattern, such as "chat:*" or "inbox:{user}"; may be given more than once
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    rooms: Vec<String>,
    /// Verbs, comma-separated: join, publish, signal, presence, history, state, lock, timer, or * for all
    #[arg(long, value_name = "VERBS", value_delimiter = ',', default_value = "*")]
    verbs: Vec<String>,
    /// Lifetime: a number and s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_seconds)]
    expires_in: u64,
    /// Secret to sign with, instead of a configured key
    #[arg(long, value_parser = parse_secret)]
    secret: Option<Secret>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Which rooms on disk, and of whom to ask for them.
#[derive(Debug, Args)]
struct RoomsArgs {
    /// Room, such as chat:lobby; may be given more than once
    #[arg(long = "room", value_name = "ROOM", value_parser = parse_room)]
    rooms: Vec<RoomName>,
    /// Whose rooms they are
    #[arg(long, default_value = "default", value_parser = TenantId::parse)]
    tenant: TenantId,
}

#[derive(Debug, Args)]
struct InspectArgs {
    #[command(flatten)]
    rooms: RoomsArgs,
    /// Read everything that is stored of them, and compare its checksums
    #[arg(long)]
    verify: bool,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Ask the server that runs on the data directory, through its admin listener
    #[arg(long)]
    running: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
#[command(mut_arg("rooms", |rooms| rooms.required(true)))]
struct ExportArgs {
    /// File to write, which must not be there; - for the output
    file: PathBuf,
    #[command(flatten)]
    rooms: RoomsArgs,
    /// Ask the server that runs on the data directory, through its admin listener
    #[arg(long)]
    running: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// File of an export or a backup
    file: PathBuf,
    /// Put the rooms of the file in the place of those that are there
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
struct BackupArgs {
    /// File to write, which must not be there; - for the output
    file: PathBuf,
    /// Ask the server that runs on the data directory, through its admin listener
    #[arg(long)]
    running: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// File of a backup or an export
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Config(#[from] Problems),
    #[error(transparent)]
    Token(#[from] MintError),
    #[error(transparent)]
    Logging(#[from] logging::LoggingError),
    #[error(transparent)]
    Run(#[from] app::RunError),
    #[error(transparent)]
    Repair(#[from] app::RepairFailed),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("the output can't be written")]
    Output(#[from] io::Error),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn run(cli: Cli) -> Result<(), CommandError> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => serve(args),
        Command::CheckConfig(args) => check_config(args),
        Command::PrintConfig(args) => print_config(args),
        Command::Repair(args) => repair(args),
        Command::Token(args) => token(args),
        Command::Inspect(args) => inspect(args),
        Command::Export(args) => export(args),
        Command::Import(args) => import(args),
        Command::Backup(args) => backup(args),
        Command::Restore(args) => restore(args),
    }
}

fn serve(args: ConfigArgs) -> Result<(), CommandError> {
    let sources = args.into_sources();
    let config = Config::load(&sources)?;
    logging::init(&config.log)?;
    config
        .warnings()
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));
    Ok(app::run(&config, sources)?)
}

fn check_config(args: ConfigArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.into_sources())?;
    for warning in config.warnings() {
        console::complain(&format!("warning: {warning}"))?;
    }
    Ok(console::print("ok")?)
}

fn print_config(args: PrintArgs) -> Result<(), CommandError> {
    let config = if args.effective {
        Config::load(&args.config.into_sources())?
    } else {
        Config::default()
    };
    Ok(console::print(&config.to_toml())?)
}

fn repair(args: RepairArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.into_sources())?;
    let mut printed = Ok(());
    let repaired = app::repair(&config, args.apply, &mut |line| {
        if printed.is_ok() {
            printed = console::print(line);
        }
    });
    printed?;
    Ok(repaired?)
}

fn token(args: TokenArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.into_sources())?;
    let wanted = Minted {
        user: args.user,
        tenant: args.tenant,
        rooms: args.rooms,
        verbs: args.verbs,
        lifetime_s: args.expires_in,
        secret: args.secret,
    };
    Ok(console::print(&auth::mint(
        &config.auth,
        &wanted,
        Clock::system().unix_ms(),
    )?)?)
}

fn inspect(args: InspectArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.into_sources())?;
    let form = if args.json { Form::Json } else { Form::Table };
    let depth = if args.verify {
        Depth::Read
    } else {
        Depth::Known
    };
    let report = Report::new(form, console::output());
    let (whence, rooms) = (whence(args.running), args.rooms.into_ids());
    Ok(inspecting::inspect(
        &config,
        whence,
        &rooms,
        depth,
        report,
        &Clock::system(),
    )?)
}

fn export(args: ExportArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.into_sources())?;
    let (whence, rooms) = (whence(args.running), args.rooms.into_ids());
    let target = target(args.file);
    let told = copying::export(&config, whence, &rooms, &target, &Clock::system())?;
    tell_of(&target, &told)
}

fn backup(args: BackupArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.into_sources())?;
    let (whence, target) = (whence(args.running), target(args.file));
    let told = copying::backup(&config, whence, &target, &Clock::system())?;
    tell_of(&target, &told)
}

fn import(args: ImportArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.into_sources())?;
    let existing = if args.replace {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    let told = restoring::import(&config, &args.file, existing, &Clock::system())?;
    Ok(console::print(&told)?)
}

fn restore(args: RestoreArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.into_sources())?;
    let told = restoring::restore(&config, &args.file, &Clock::system())?;
    Ok(console::print(&told)?)
}

fn whence(running: bool) -> Whence {
    if running {
        Whence::Server
    } else {
        Whence::Directory
    }
}

fn target(file: PathBuf) -> Target {
    if file.as_os_str() == "-" {
        Target::Output
    } else {
        Target::File(file)
    }
}

/// Says what a file has in it, beside the output where that is the file.
fn tell_of(target: &Target, told: &str) -> Result<(), CommandError> {
    match target {
        Target::File(_) => console::print(told)?,
        Target::Output => console::complain(told)?,
    }
    Ok(())
}

impl RoomsArgs {
    fn into_ids(self) -> Vec<RoomId> {
        let Self { rooms, tenant } = self;
        let id = |name| RoomId {
            tenant: tenant.clone(),
            name,
        };
        rooms.into_iter().map(id).collect()
    }
}

impl ConfigArgs {
    fn into_sources(self) -> Sources {
        let named = [
            (
                "--listen",
                "listen.public",
                self.listen.map(|address| address.to_string()),
            ),
            (
                "--admin-listen",
                "listen.admin",
                self.admin_listen.map(|address| address.to_string()),
            ),
            ("--data-dir", "data_dir", self.data_dir),
            (
                "--shards",
                "shards",
                self.shards.map(|shards| shards.to_string()),
            ),
            (
                "--allow-anonymous",
                "listen.allow_anonymous",
                self.allow_anonymous.then(|| true.to_string()),
            ),
            ("--log", "log.filter", self.log),
        ];
        let flag = |name: &str, key: &str, value| Flag {
            name: name.to_owned(),
            key: key.to_owned(),
            value,
        };
        let named = named
            .into_iter()
            .filter_map(|(name, key, value)| Some(flag(name, key, value?)));
        // `--set` goes last: it is the more explicit one.
        let set = self
            .set
            .into_iter()
            .map(|(key, value)| flag(&format!("--set {key}"), &key, value));
        Sources::of_process(self.config, named.chain(set).collect())
    }
}

/// Shows help and version, or what is wrong with the arguments, as clap words it.
fn explain(error: &clap::Error) -> ExitCode {
    let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
    match error.print() {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(error: &CommandError) -> ExitCode {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    let code = match error {
        CommandError::Config(_) | CommandError::Token(_) => EXIT_USAGE,
        CommandError::Run(app::RunError::Interrupted { .. }) => EXIT_INTERRUPTED,
        CommandError::Tool(ToolError::Output { source, .. })
            if source.kind() == io::ErrorKind::BrokenPipe =>
        {
            return ExitCode::SUCCESS;
        }
        CommandError::Logging(_)
        | CommandError::Run(_)
        | CommandError::Repair(_)
        | CommandError::Tool(_)
        | CommandError::Output(_) => 1,
    };
    match console::complain(&text) {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::FAILURE,
    }
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("write it as key=value, such as connection.rooms_max=64")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

fn parse_room(text: &str) -> Result<RoomName, IdError> {
    RoomName::parse(text.as_bytes())
}

fn parse_secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

fn parse_seconds(text: &str) -> Result<u64, String> {
    let wrong = "write a number and a unit: 90s, 15m, 1h or 7d";
    let unit = text
        .find(|character: char| !character.is_ascii_digit())
        .ok_or(wrong)?;
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong.to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(seconds))
        .ok_or_else(|| wrong.to_owned())
}

const AFTER_HELP: &str = "\
The configuration is read from roomful.toml, then the environment (listen.public is ROOMFUL_LISTEN__PUBLIC), then flags; later
ones win. `roomful print-config` shows every key.

Exit codes: 0 done, 1 failed, 2 wrong arguments or configuration, 130 ended by a second signal.";

/// What shells and clap use for a wrong command line.
const EXIT_USAGE: u8 = 2;

/// What shells use for a program that was interrupted.
const EXIT_INTERRUPTED: u8 = 130;

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    fn flags(args: ConfigArgs) -> Vec<(String, String, String)> {
        let flags = args.into_sources().flags.into_iter();
        flags
            .map(|flag| (flag.name, flag.key, flag.value))
            .collect()
    }

    /// clap's own check of the declarations.
    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The server's flags mean the same with and without the word `serve`.
    #[test]
    fn serve_is_the_default_command() {
        let line = "--listen 0.0.0.0:1 --admin-listen [::1]:2 --data-dir d --shards 3 --allow-anonymous --log debug --set a.b=c=d";
        let bare = parse(&format!("roomful {line}")).unwrap();
        assert!(bare.command.is_none());
        let Some(Command::Serve(serve)) = parse(&format!("roomful serve {line}")).unwrap().command
        else {
            panic!("serve is a command");
        };
        let expected = [
            ("--listen", "listen.public", "0.0.0.0:1"),
            ("--admin-listen", "listen.admin", "[::1]:2"),
            ("--data-dir", "data_dir", "d"),
            ("--shards", "shards", "3"),
            ("--allow-anonymous", "listen.allow_anonymous", "true"),
            ("--log", "log.filter", "debug"),
            ("--set a.b", "a.b", "c=d"),
        ]
        .map(|(name, key, value)| (name.to_owned(), key.to_owned(), value.to_owned()));
        let bare = flags(bare.serve);
        assert_eq!(bare, expected);
        assert_eq!(flags(serve), expected);
        let keys = Config::default().to_toml();
        for (_, key, _) in &bare[..6] {
            let name = key.rsplit('.').next().unwrap();
            assert!(keys.contains(&format!("\n{name} = ")), "{key} is a key");
        }
    }

    /// What clap can't read ends with its words, not with a server.
    #[test]
    fn wrong_arguments_are_refused() {
        for line in [
            "roomful --bogus",
            "roomful serve --shards many",
            "roomful --listen localhost",
            "roomful --set novalue",
            "roomful token",
            "roomful token --user ann --expires-in 1w",
            "roomful nonsense",
        ] {
            assert!(parse(line).is_err_and(|error| error.use_stderr()), "{line}");
        }
    }

    /// Lifetimes are a number and a unit.
    #[test]
    fn lifetimes_have_a_unit() {
        for (text, seconds) in [
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("1h", Some(3_600)),
            ("7d", Some(604_800)),
        ] {
            assert_eq!(parse_seconds(text).ok(), seconds, "{text}");
        }
        for text in [
            "",
            "h",
            "1",
            "-1h",
            "1.5h",
            "1 h",
            "99999999999999999999s",
            "999999999999999999d",
        ] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    /// A secret on the command line isn't in the `Debug` of what was parsed.
    #[test]
    fn a_secret_argument_is_not_shown() {
        let cli = parse("roomful token --user ann --secret hunter2").unwrap();
        assert!(!format!("{cli:?}").contains("hunter2"));
    }
}
