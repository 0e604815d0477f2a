//! The steps about state, locks, timers and cursors.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use roomful_client::{
    Change, Error, Key, KeyPrefix, LockInfo, Position, Room, RoomEvent, StateItem,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::actor::check;
use crate::step::{Step, numbered, payload, payload_or_null, position, written};

/// Locks that were asked for and not waited for, in order.
pub(crate) type Waiting = VecDeque<JoinHandle<Result<Position, Error>>>;

/// What a client does to what a room keeps; gives what it saves.
pub(crate) async fn act(
    what: &str,
    room: &Room,
    waiting: &mut Waiting,
    mut step: Step,
) -> Result<Option<Value>> {
    match what {
        "write" => {
            let template = step.take("changes").context("changes is missing")?;
            let (count, current) = (step.number("count")?.unwrap_or(1), step.take("current"));
            step.finish()?;
            let mut last = None;
            for i in 1..=count {
                let outcome = room.state().write(changes(&numbered(&template, i))?).await;
                if let Err(Error::Conflict { current: items, .. }) = &outcome {
                    let items = items.iter().map(item);
                    check("current", current.clone(), items.collect::<Value>())?;
                }
                last = Some(json!(outcome?.position.to_string()));
            }
            Ok(last)
        }
        "on_disconnect" => {
            let changes = changes(&step.take("changes").context("changes is missing")?)?;
            step.finish()?;
            room.state().on_disconnect(changes).await?;
            Ok(None)
        }
        "watch_state" => {
            let prefixes = prefixes(&mut step, "prefixes")?;
            step.finish()?;
            room.state().watch(prefixes).await?;
            Ok(None)
        }
        "acquire" => {
            let lock = key(&mut step, "lock")?;
            let ttl = Duration::from_millis(step.number("ttl_ms")?.unwrap_or(30_000));
            let queue = step.flag("queue")?.unwrap_or(false);
            let wait = step.flag("wait")?.unwrap_or(true);
            step.finish()?;
            let locks = room.locks();
            if !wait {
                waiting.push_back(spawned(async move { locks.acquire(lock, ttl).await }));
                return Ok(None);
            }
            let fence = if queue {
                locks.acquire(lock, ttl).await?
            } else {
                locks.try_acquire(lock, ttl).await?
            };
            Ok(Some(json!(fence.to_string())))
        }
        "release" => {
            let lock = key(&mut step, "lock")?;
            step.finish()?;
            room.locks().release(lock).await?;
            Ok(None)
        }
        "set_timer" => {
            let name = key(&mut step, "name")?;
            let in_ms = step.number("in_ms")?.unwrap_or(0);
            let payload = payload(&step.take("payload").context("payload is missing")?)?;
            step.finish()?;
            let due_ms = unix_ms()? + in_ms;
            let set = room.timers().set(name, due_ms, payload).await?;
            Ok(Some(json!(set.position.to_string())))
        }
        "cancel_timer" => {
            let name = key(&mut step, "name")?;
            step.finish()?;
            let cancelled = room.timers().cancel(name).await?;
            Ok(Some(json!(cancelled.position.to_string())))
        }
        "cursors" => {
            let (read, delivered) = (step.position("read")?, step.position("delivered")?);
            let (unread, at) = (step.number("unread")?, step.take("at"));
            step.finish()?;
            let cursors = if read.is_none() && delivered.is_none() {
                room.cursors().await?
            } else {
                room.set_cursors(read, delivered).await?
            };
            check("unread", unread, cursors.unread)?;
            let text = |cursor: Option<Position>| json!(cursor.map(|at| at.to_string()));
            check(
                "at",
                at,
                json!([text(cursors.read), text(cursors.delivered)]),
            )?;
            Ok(None)
        }
        other => bail!("there is no step {other:?}"),
    }
}

/// Waits until the copy of the state is this.
pub(crate) async fn expect_state(room: &Room, mut step: Step) -> Result<()> {
    let items = step.take("items").context("items is missing")?;
    step.finish()?;
    let state = room.state();
    let shown = || state.items().iter().map(item).collect::<Value>();
    while !state.is_complete() || !matches(&items, &shown()) {
        sleep(POLL).await;
    }
    Ok(())
}

/// Waits until the copy of the locks shows this one so.
pub(crate) async fn expect_lock(room: &Room, mut step: Step) -> Result<()> {
    let lock = key(&mut step, "lock")?;
    let (held, queue) = (step.take("held"), step.take("queue"));
    step.finish()?;
    let wanted = (held.context("held is missing")?, queue.unwrap_or(json!([])));
    let shown = |lock: Option<LockInfo>| {
        let held = lock.as_ref().and_then(|lock| lock.held.as_ref());
        let queue = lock.iter().flat_map(|lock| &lock.queue);
        let queue: Value = queue.map(|waiter| waiter.user.as_str()).collect();
        (json!(held.map(|holder| holder.user.as_str())), queue)
    };
    while shown(room.locks().get(&lock)) != wanted {
        sleep(POLL).await;
    }
    Ok(())
}

/// Waits for the outcome of an `acquire` without `wait`.
pub(crate) async fn expect_granted(waiting: &mut Waiting, mut step: Step) -> Result<Option<Value>> {
    step.take("room");
    let error = step.number("error")?;
    step.finish()?;
    let acquired = waiting.front_mut().context("no lock is waited for")?;
    let outcome = acquired.await?;
    waiting.pop_front();
    match (outcome, error) {
        (Ok(fence), None) => Ok(Some(json!(fence.to_string()))),
        (Err(refused), Some(code)) => {
            let got = refused.code().map(|code| u64::from(code.0));
            ensure!(got == Some(code), "{refused} came, not {code}");
            Ok(None)
        }
        (Ok(fence), Some(code)) => bail!("granted at {fence}, not refused with {code}"),
        (Err(refused), None) => Err(refused.into()),
    }
}

/// Whether a timer's event is the one that is described; gives what the step saves.
pub(crate) fn check_timer(event: RoomEvent, mut step: Step) -> Result<Option<Value>> {
    let (wanted_name, wanted_what) = (step.text("name")?, step.text("what")?);
    let (wanted_payload, user) = (step.take("payload"), step.text("user")?);
    step.finish()?;
    let RoomEvent::Timer {
        position,
        user: of,
        name,
        what,
        payload,
        ..
    } = event
    else {
        bail!("something else than a timer came: {event:?}");
    };
    check("name", wanted_name.as_deref(), name.as_str())?;
    check("what", wanted_what.as_deref(), what.name())?;
    check("user", user.as_deref(), of.as_str())?;
    let payload = payload.as_ref().map_or(Value::Null, written);
    check("payload", wanted_payload, payload)?;
    Ok(Some(json!(position.to_string())))
}

/// How the keys begin that are to be watched; null or nothing there: none.
pub(crate) fn prefixes(step: &mut Step, name: &str) -> Result<Option<Vec<KeyPrefix>>> {
    let Some(Value::Array(texts)) = step.take(name) else {
        return Ok(None);
    };
    let prefix = |text: &Value| {
        let text = text.as_str().context("a prefix is a text")?;
        Ok(KeyPrefix::parse(text)?)
    };
    texts.iter().map(prefix).collect::<Result<_>>().map(Some)
}

fn changes(changes: &Value) -> Result<Vec<Change>> {
    let changes = changes.as_array().context("changes is no list")?;
    changes.iter().map(change).collect()
}

fn change(value: &Value) -> Result<Change> {
    let mut step = Step::new(value, &std::collections::BTreeMap::new())?;
    let name = key(&mut step, "key")?;
    let (put, patch) = (step.take("put"), step.take("patch"));
    let (if_version, if_fence) = (step.position("if_version")?, step.take("if_fence"));
    let if_absent = step.flag("if_absent")?.unwrap_or(false);
    step.finish()?;
    let mut change = match (put, patch) {
        (Some(value), None) => {
            let value = payload_or_null(&value)?;
            value.map_or(Change::delete(name.clone()), |value| {
                Change::put(name, value)
            })
        }
        (None, Some(value)) => Change::patch(name, payload(&value)?),
        _ => bail!("a change has put or patch"),
    };
    change.if_version = if_version;
    change.if_absent = if_absent;
    if let Some(fence) = if_fence {
        let mut step = Step::new(&fence, &std::collections::BTreeMap::new())?;
        let lock = key(&mut step, "lock")?;
        let fence = position(&step.take("fence").context("fence is missing")?)?;
        step.finish()?;
        change = change.if_fence(lock, fence);
    }
    Ok(change)
}

fn key(step: &mut Step, name: &str) -> Result<Key> {
    Ok(Key::parse(&step.needed_text(name)?)?)
}

fn item(item: &StateItem) -> Value {
    let value = item.value.as_ref().map_or(Value::Null, written);
    json!({"key": item.key.as_str(), "value": value, "version": item.version.to_string()})
}

/// Whether the items are the wanted ones; a version counts where one is wanted.
fn matches(wanted: &Value, shown: &Value) -> bool {
    let (Some(wanted), Some(shown)) = (wanted.as_array(), shown.as_array()) else {
        return false;
    };
    let same = |(wanted, shown): (&Value, &Value)| {
        let same = |field: &str| wanted.get(field) == shown.get(field);
        same("key") && same("value") && (wanted.get("version").is_none() || same("version"))
    };
    wanted.len() == shown.len() && wanted.iter().zip(shown).all(same)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the runner has no shutdown that could wait for it"
)]
fn spawned<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(work)
}

/// The server's clock too, since both run on one machine.
#[expect(clippy::disallowed_methods, reason = "the runner has no clock to set")]
fn unix_ms() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_millis())?)
}

/// How often a copy is looked at.
const POLL: Duration = Duration::from_millis(5);
