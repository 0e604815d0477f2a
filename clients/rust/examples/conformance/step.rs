//! One step of a case: its fields, taken one by one, so that a field that nobody took is noticed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use roomful_client::{Epoch, Offset, Payload, PayloadFormat, Position};
use serde_json::{Map, Value};

/// What was saved, by name.
pub(crate) type Variables = BTreeMap<String, Value>;

/// The fields that are left.
pub(crate) struct Step {
    fields: Map<String, Value>,
}

impl Step {
    /// A step with its variables filled in. `$i` stays: it belongs to the repetition.
    pub(crate) fn new(value: &Value, variables: &Variables) -> Result<Self> {
        let Value::Object(fields) = fill(value, variables)? else {
            bail!("a step is an object")
        };
        Ok(Self { fields })
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name)
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>> {
        let text = |value: Value| {
            value
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("{name} is no text"))
        };
        self.take(name).map(text).transpose()
    }

    pub(crate) fn needed_text(&mut self, name: &str) -> Result<String> {
        self.text(name)?
            .with_context(|| format!("{name} is missing"))
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<Option<u64>> {
        let number = |value: Value| {
            value
                .as_u64()
                .with_context(|| format!("{name} is no whole number"))
        };
        self.take(name).map(number).transpose()
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        let flag = |value: Value| {
            value
                .as_bool()
                .with_context(|| format!("{name} is neither true nor false"))
        };
        self.take(name).map(flag).transpose()
    }

    pub(crate) fn position(&mut self, name: &str) -> Result<Option<Position>> {
        self.take(name).map(|value| position(&value)).transpose()
    }

    /// A field that may be null, if it is there at all.
    pub(crate) fn payload_or_null(&mut self, name: &str) -> Result<Option<Option<Payload>>> {
        self.take(name)
            .map(|value| payload_or_null(&value))
            .transpose()
    }

    pub(crate) fn within(&mut self) -> Result<Duration> {
        Ok(Duration::from_millis(
            self.number("within_ms")?.unwrap_or(5_000),
        ))
    }

    pub(crate) fn finish(&self) -> Result<()> {
        let left: Vec<&String> = self.fields.keys().collect();
        ensure!(left.is_empty(), "unknown fields {left:?}");
        Ok(())
    }
}

/// `7-42`, or another position and what is added to its parts.
pub(crate) fn position(value: &Value) -> Result<Position> {
    if let Some(text) = value.as_str() {
        return text
            .parse()
            .with_context(|| format!("{text:?} is no position"));
    }
    let of = position(
        value
            .get("of")
            .context("a position is a text, or has \"of\"")?,
    )?;
    let plus = |name: &str| {
        value
            .get(name)
            .map_or(Some(0), Value::as_i64)
            .with_context(|| format!("{name} is no number"))
    };
    let add = |part: u64, plus: i64| {
        part.checked_add_signed(plus)
            .context("a position below zero")
    };
    Ok(Position::new(
        Epoch(add(of.epoch.0, plus("epoch")?)?),
        Offset(add(of.offset.0, plus("offset")?)?),
    ))
}

pub(crate) fn payload_or_null(value: &Value) -> Result<Option<Payload>> {
    if value.is_null() {
        Ok(None)
    } else {
        payload(value).map(Some)
    }
}

pub(crate) fn payload(value: &Value) -> Result<Payload> {
    let fields = value.as_object().filter(|fields| fields.len() == 1);
    let (format, content) = fields
        .and_then(|fields| fields.iter().next())
        .context("a payload has one field")?;
    let text = || content.as_str().context("a payload's content is a text");
    Ok(match format.as_str() {
        "json" => Payload::json(content.to_string()),
        "text" => Payload::text(text()?),
        "binary" => Payload::binary(BASE64.decode(text()?)?),
        "msgpack" => Payload {
            format: PayloadFormat::MessagePack,
            bytes: BASE64.decode(text()?)?.into(),
        },
        other => bail!("{other:?} is no payload format"),
    })
}

/// A payload as cases write it, so that two of them compare as they should: `json` by value, the others by bytes.
pub(crate) fn written(payload: &Payload) -> Value {
    let bytes = &payload.bytes;
    let text = String::from_utf8_lossy(bytes);
    let (format, content) = match payload.format {
        PayloadFormat::Json => ("json", serde_json::from_str(&text).unwrap_or(Value::Null)),
        PayloadFormat::Text => ("text", Value::from(text)),
        PayloadFormat::Binary => ("binary", Value::from(BASE64.encode(bytes))),
        PayloadFormat::MessagePack => ("msgpack", Value::from(BASE64.encode(bytes))),
    };
    Value::Object(Map::from_iter([(format.to_owned(), content)]))
}

/// The value with `$i` counted.
pub(crate) fn numbered(value: &Value, i: u64) -> Value {
    match value {
        Value::String(text) => Value::from(text.replace("$i", &i.to_string())),
        Value::Array(items) => items.iter().map(|item| numbered(item, i)).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, item)| (name.clone(), numbered(item, i)))
            .collect(),
        other => other.clone(),
    }
}

fn fill(value: &Value, variables: &Variables) -> Result<Value> {
    Ok(match value {
        Value::String(text) => fill_text(text, variables)?,
        Value::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| fill(item, variables))
                .collect::<Result<_>>()?,
        ),
        Value::Object(fields) => {
            let filled = fields
                .iter()
                .map(|(name, item)| Ok((name.clone(), fill(item, variables)?)));
            Value::Object(filled.collect::<Result<_>>()?)
        }
        other => other.clone(),
    })
}

fn fill_text(text: &str, variables: &Variables) -> Result<Value> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        filled.push_str(before);
        let (name, after) = after.split_at(name_length(after));
        rest = after;
        if name == "i" {
            filled.push_str("$i");
            continue;
        }
        let value = variables
            .get(name)
            .with_context(|| format!("unknown variable ${name}"))?;
        if filled.is_empty() && rest.is_empty() && before.is_empty() {
            return Ok(value.clone());
        }
        filled.push_str(
            &value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned),
        );
    }
    filled.push_str(rest);
    Ok(Value::from(filled))
}

/// How long the variable's name is that the text begins with.
fn name_length(text: &str) -> usize {
    let word = |text: &str| {
        text.bytes()
            .take_while(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
            .count()
    };
    let name = word(text);
    let member = [".user", ".member"]
        .iter()
        .find(|member| text[name..].starts_with(**member));
    name + member.map_or(0, |member| member.len())
}
