//! Brings flags, environment and file together; see the module above for how.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::{
    Arg, ArgAction, ArgMatches, Command, builder::ValueParser, error::ErrorKind, parser::ValueSource,
};

use super::{Problems, Stop, file};

/// Every flag's variable begins with this.
const PREFIX: &str = "CULVERT_";

/// The values of one flag and where they come from.
struct Given {
    values: Vec<OsString>,
    place: String,
    /// They are not on the command line, so clap has to be told of them.
    tell: bool,
}

/// Parses the command line with what environment and file add to it.
pub(super) fn matches(
    command: Command,
    command_line: &[OsString],
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<ArgMatches, Stop> {
    let lenient = leaf_map(command.clone(), &|command| command.mut_args(any_text));
    let lenient = match shown(lenient).try_get_matches_from(command_line) {
        Ok(matches) => matches,
        // The help of the real command says more: what values there are.
        Err(lenient) if lenient.kind() == ErrorKind::DisplayHelp => {
            let strict = shown(command).try_get_matches_from(command_line);
            return Err(Stop::Clap(strict.err().unwrap_or(lenient)));
        }
        Err(error) => return Err(Stop::Clap(error)),
    };
    let (path, given) = leaf(&lenient);

    let mut problems = Problems::default();
    let mut built = command.clone();
    built.build();
    let flags: Vec<Arg> = flags(find(&built, &path)).cloned().collect();
    let file_path = flags
        .iter()
        .any(|flag| flag.get_id() == "config")
        .then(|| from_line(given, "config").map(|mut values| values.remove(0)))
        .flatten()
        .or_else(|| environment(&variable("config")));
    let mut settings =
        file_path.as_ref().map(|path| file::read(Path::new(path), &mut problems)).unwrap_or_default();
    let all: Vec<&Arg> = every_flag(&built).collect();

    let mut told: Vec<OsString> = Vec::new();
    for flag in &flags {
        let name = flag.get_long().unwrap_or_default();
        let from_file = settings.remove(name);
        let given = if let Some(values) = from_line(given, flag.get_id().as_str()) {
            Given { values, place: format!("--{name}"), tell: false }
        } else if let Some(value) = environment(&variable(name)) {
            Given { values: split(flag, value), place: variable(name), tell: true }
        } else if let Some(values) = from_file {
            let file = file_path.as_deref().map(Path::new).unwrap_or_else(|| Path::new(""));
            Given { values, place: format!("{}: {name}", file.display()), tell: true }
        } else {
            if flag.is_required_set() {
                let reason = format!("is required: {}", about(flag));
                problems.add(format!("--{name} ({}, {name}:)", variable(name)), None, reason);
            }
            continue;
        };
        let good =
            given.values.iter().filter(|value| try_alone(flag, value, &given.place, &mut problems)).count();
        if given.tell && good == given.values.len() {
            told.extend(words(flag, given.values));
        }
    }
    for (key, _) in settings {
        // A file may serve several subcommands: their flags are known, though not used here.
        if !all.iter().any(|flag| flag.get_long() == Some(&key)) {
            let file = file_path.as_deref().map(Path::new).unwrap_or_else(|| Path::new(""));
            problems.add(format!("{}: {key}", file.display()), None, unknown(&key, &all));
        }
    }
    if !problems.is_empty() {
        return Err(Stop::Problems(problems));
    }

    let mut command_line = command_line.to_vec();
    // Before a `--`, after which nothing is a flag.
    let end = command_line.iter().position(|word| word == "--").unwrap_or(command_line.len());
    command_line.splice(end..end, told);
    shown(command).try_get_matches_from(command_line).map_err(Stop::Clap)
}

/// A flag with its values, as on a command line.
fn words(flag: &Arg, values: Vec<OsString>) -> Vec<OsString> {
    let name = format!("--{}", flag.get_long().unwrap_or_default());
    if takes_value(flag) {
        let word = |value: OsString| {
            let mut word = OsString::from(format!("{name}="));
            word.push(value);
            word
        };
        values.into_iter().map(word).collect()
    } else {
        // A switch, which `true` turns on.
        values.iter().filter(|value| *value == "true").map(|_| name.clone().into()).collect()
    }
}

/// Adds to the help how else each flag can be said.
fn shown(command: Command) -> Command {
    leaf_map(command, &|command| {
        command.mut_args(|arg| match arg.get_long() {
            // As text: were clap told by `env()`, it would read the variable itself, with a precedence
            // of its own.
            Some(name) if !arg.is_positional() && !matches!(name, "help" | "version") => {
                let help = format!("{} [env: {}]", about(&arg), variable(name));
                arg.help(help)
            }
            _ => arg,
        })
    })
}

/// The first words of a flag's help.
fn about(flag: &Arg) -> String {
    flag.get_help().map(ToString::to_string).unwrap_or_default()
}

/// A flag that takes whatever text it is given.
fn any_text(arg: Arg) -> Arg {
    let arg = arg.required(false);
    if takes_value(&arg) { arg.value_parser(ValueParser::os_string()) } else { arg }
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// Applies `f` to the command and to all its subcommands.
fn leaf_map(command: Command, f: &dyn Fn(Command) -> Command) -> Command {
    f(command).mut_subcommands(|subcommand| leaf_map(subcommand, f))
}

fn find<'a>(command: &'a Command, path: &[String]) -> &'a Command {
    path.iter().fold(command, |command, name| command.find_subcommand(name).unwrap_or(command))
}

/// The subcommand that was chosen, and what it was given.
fn leaf(matches: &ArgMatches) -> (Vec<String>, &ArgMatches) {
    let (mut path, mut matches) = (Vec::new(), matches);
    while let Some((name, chosen)) = matches.subcommand() {
        path.push(name.to_owned());
        matches = chosen;
    }
    (path, matches)
}

/// The flags with a long name that configure something.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|arg| arg.get_long().is_some_and(|name| !matches!(name, "help" | "version")))
}

fn every_flag(command: &Command) -> Box<dyn Iterator<Item = &Arg> + '_> {
    Box::new(flags(command).chain(command.get_subcommands().flat_map(every_flag)))
}

/// What the command line says of a flag.
fn from_line(matches: &ArgMatches, id: &str) -> Option<Vec<OsString>> {
    if matches.value_source(id) != Some(ValueSource::CommandLine) {
        return None;
    }
    match matches.try_get_raw(id) {
        Ok(Some(values)) => Some(values.map(OsStr::to_owned).collect()),
        Ok(None) | Err(_) => Some(Vec::new()),
    }
}

/// A variable holds one text; a flag that can be repeated splits it at commas.
fn split(flag: &Arg, value: OsString) -> Vec<OsString> {
    match (flag.get_action(), value.to_str()) {
        (ArgAction::Append, Some(text)) => text.split(',').map(|part| part.trim().into()).collect(),
        _ => vec![value],
    }
}

/// Whether the flag's own parser takes the value, all else left aside.
fn try_alone(flag: &Arg, value: &OsStr, place: &str, problems: &mut Problems) -> bool {
    let parser = flag.get_value_parser().clone();
    let alone = Arg::new("value").required(true).allow_hyphen_values(true).value_parser(parser);
    let command = Command::new("value").no_binary_name(true).disable_help_flag(true).arg(alone);
    let Err(error) = command.try_get_matches_from([OsStr::new("--"), value]) else { return true };
    problems.add(place, Some(value.to_string_lossy().into_owned()), reason(flag, &error));
    false
}

/// The parser's complaint without clap's frame around it.
fn reason(flag: &Arg, error: &clap::Error) -> String {
    if !takes_value(flag) {
        return "write true or false".to_owned();
    }
    let possible: Vec<String> =
        flag.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if !possible.is_empty() {
        return format!("write one of {}", possible.join(", "));
    }
    let complaint = std::error::Error::source(error).map(ToString::to_string);
    complaint.unwrap_or_else(|| format!("this is not what it takes: {}", about(flag)))
}

/// What to say of a key that no flag has.
fn unknown(key: &str, flags: &[&Arg]) -> String {
    let names = flags.iter().filter_map(|flag| flag.get_long());
    let nearest = names.min_by_key(|name| distance(name, key)).filter(|name| distance(name, key) <= 3);
    match nearest {
        Some(name) => format!("there is no such setting; did you mean {name}?"),
        None => "there is no such setting; --help lists them all".to_owned(),
    }
}

/// Edit distance (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.replace('-', "_").to_uppercase())
}
