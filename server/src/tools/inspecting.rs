//! What rooms there are on disk, and how large they are.

use std::io::{self, BufRead as _, BufReader, Write};

use roomful_protocol::id::RoomId;
use serde_json::json;

use super::running::Running;
use super::{Offline, ToolError, Whence};
use crate::archive::DamagedRoom;
use crate::archive::listing::{Depth, Listed, Told, verify};
use crate::clock::Clock;
use crate::config::Config;

/// How rooms are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A table with a sum.
    Table,
    /// One JSON object a line.
    Json,
}

/// Tells of rooms, or of all where none is named.
///
/// # Errors
/// They can't be read, or the output can't be written. Where something was found to be damaged, that has been told before.
pub fn inspect(
    config: &Config,
    whence: Whence,
    rooms: &[RoomId],
    depth: Depth,
    mut report: Report<impl Write>,
    clock: &Clock,
) -> Result<(), ToolError> {
    match whence {
        Whence::Server => from_server(config, rooms, depth, &mut report)?,
        Whence::Directory => from_directory(config, rooms, depth, &mut report, clock)?,
    }
    report.end()
}

fn from_directory(
    config: &Config,
    rooms: &[RoomId],
    depth: Depth,
    report: &mut Report<impl Write>,
    clock: &Clock,
) -> Result<(), ToolError> {
    let offline = Offline::open(config, clock)?;
    if rooms.is_empty() && depth == Depth::Read {
        let mut written = Ok(());
        verify(&offline.local, &mut |finding| {
            if written.is_ok() {
                written = report.put(&Told::of(finding));
            }
        });
        written.map_err(output_failed)?;
    }
    let frozen = offline.freeze()?;
    let told = if rooms.is_empty() {
        frozen.rooms(&mut |room| report.put(&Told::Room(Listed::of(&frozen, room, depth)?)))
    } else {
        let mut rooms = offline.find(&frozen, rooms)?.into_iter();
        rooms.try_for_each(|room| report.put(&Told::Room(Listed::of(&frozen, room, depth)?)))
    };
    told.map_err(|error| match report.failure.take() {
        Some(failure) => output_failed(failure),
        None => offline.failed(error),
    })?;
    drop(frozen);
    offline.close()
}

fn from_server(
    config: &Config,
    rooms: &[RoomId],
    depth: Depth,
    report: &mut Report<impl Write>,
) -> Result<(), ToolError> {
    let names: Vec<_> = rooms.iter().map(|room| room.name.as_str()).collect();
    let tenant = rooms.first().map(|room| room.tenant.as_str());
    let body = json!({ "tenant": tenant, "rooms": names, "verify": depth == Depth::Read });
    let answer = Running::new(config)?.ask("/v1/storage/inspect", Some(&body))?;
    for line in BufReader::new(answer).lines() {
        let told = line.and_then(|line| Ok(serde_json::from_str(&line)?));
        let told: Told = told.map_err(super::running::RunningError::Broken)?;
        report.put(&told).map_err(output_failed)?;
    }
    Ok(())
}

fn output_failed(source: io::Error) -> ToolError {
    let what = "the output".to_owned();
    ToolError::Output { what, source }
}

/// What is told, as far as it has come.
#[derive(Debug)]
pub struct Report<W> {
    out: W,
    form: Form,
    rooms: u64,
    entries: u64,
    bytes: u64,
    damaged: Vec<DamagedRoom>,
    /// What is wrong with all that is stored.
    findings: u64,
    /// Why the output doesn't take more.
    failure: Option<io::Error>,
}

impl<W: Write> Report<W> {
    /// Nothing yet.
    pub fn new(form: Form, out: W) -> Self {
        Self {
            out,
            form,
            rooms: 0,
            entries: 0,
            bytes: 0,
            damaged: Vec::new(),
            findings: 0,
            failure: None,
        }
    }

    fn put(&mut self, told: &Told) -> io::Result<()> {
        let written = match (self.form, told) {
            (Form::Json, told) => serde_json::to_writer(&mut self.out, told)
                .map_err(io::Error::from)
                .and_then(|()| self.out.write_all(b"\n")),
            (Form::Table, Told::Found { finding }) => writeln!(self.out, "DAMAGED: {finding}"),
            (Form::Table, Told::Room(listed)) => self.write_row(listed),
        };
        let written = written.and_then(|()| self.count(told));
        written.map_err(|error| {
            let again = io::Error::new(error.kind(), error.to_string());
            self.failure = Some(error);
            again
        })
    }

    fn write_row(&mut self, listed: &Listed) -> io::Result<()> {
        if self.rooms == 0 {
            let titles = "entries        bytes      first       head   snapshot             epoch           wake  room";
            writeln!(self.out, "{titles:>99}")?;
        }
        let wake = match listed.wake_ms {
            None => "-".to_owned(),
            Some(0) => "start".to_owned(),
            Some(at_ms) => at_ms.to_string(),
        };
        let Listed {
            tenant,
            room,
            entries,
            bytes,
            first,
            head,
            snapshot,
            epoch,
            ..
        } = listed;
        write!(
            self.out,
            "{entries:>11}  {bytes:>11}  {first:>9}  {head:>9}  {snapshot:>9}  {epoch:>16}  {wake:>13}  {tenant}/{room}"
        )?;
        match &listed.damaged {
            None => writeln!(self.out),
            Some(damage) => writeln!(self.out, "  DAMAGED: {damage}"),
        }
    }

    fn count(&mut self, told: &Told) -> io::Result<()> {
        let Told::Room(listed) = told else {
            self.findings += 1;
            return Ok(());
        };
        self.rooms += 1;
        self.entries += listed.entries;
        self.bytes += listed.bytes;
        if let Some(damage) = &listed.damaged {
            self.damaged.push(DamagedRoom {
                room: listed
                    .id()
                    .ok_or_else(|| io::Error::other("a room without a name"))?,
                damage: damage.clone(),
            });
        }
        Ok(())
    }

    fn end(mut self) -> Result<(), ToolError> {
        let Self {
            rooms,
            entries,
            bytes,
            ..
        } = self;
        let sum = match self.form {
            Form::Table => writeln!(self.out, "{rooms} rooms, {entries} entries, {bytes} bytes"),
            Form::Json => Ok(()),
        };
        sum.and_then(|()| self.out.flush()).map_err(output_failed)?;
        match (self.damaged.is_empty(), self.findings) {
            (true, 0) => Ok(()),
            (true, findings) => Err(ToolError::Findings(findings)),
            (false, _) => Err(ToolError::DamagedRooms(self.damaged)),
        }
    }
}
