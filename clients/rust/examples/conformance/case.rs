//! A case: reading it, and running its steps.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use roomful_client::{Error, Identity};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::actor::Actor;
use crate::step::{Step, Variables, position};

pub(crate) struct Case {
    pub(crate) name: String,
    steps: Vec<Value>,
}

impl Case {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let parse = || -> Result<Self> {
            let case: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
            let name = case["name"].as_str().context("name is missing")?.to_owned();
            ensure!(
                path.file_stem().is_some_and(|stem| *stem == *name),
                "the case is named {name:?}"
            );
            ensure!(case["about"].is_string(), "about is missing");
            Ok(Self {
                name,
                steps: case["steps"]
                    .as_array()
                    .context("steps are missing")?
                    .clone(),
            })
        };
        parse().with_context(|| format!("in {}", path.display()))
    }

    pub(crate) async fn run(&self, url: &str) -> Result<()> {
        let run = format!("{:012x}", rand::random::<u64>() & 0xffff_ffff_ffff);
        let variables = Variables::from([("run".to_owned(), Value::from(run))]);
        let mut play = Play {
            url,
            variables,
            actors: BTreeMap::new(),
        };
        let mut outcome = Ok(());
        for (index, step) in self.steps.iter().enumerate() {
            outcome = play
                .step(step)
                .await
                .with_context(|| format!("step {} {step}", index + 1));
            if outcome.is_err() {
                break;
            }
        }
        for actor in play.actors.values() {
            actor.client.close().await;
        }
        outcome
    }
}

/// A case that runs.
struct Play<'a> {
    url: &'a str,
    variables: Variables,
    actors: BTreeMap<String, Actor>,
}

impl Play<'_> {
    async fn step(&mut self, step: &Value) -> Result<()> {
        let mut step = Step::new(step, &self.variables)?;
        let within = step.within()?;
        let save = step.text("save")?;
        let error = match step.take("expect") {
            // Here `error` is a field of what is expected.
            Some(what) => {
                let what = what.as_str().context("expect is a text")?.to_owned();
                let actor = self.actor(&mut step)?;
                let saved = timeout(within, actor.expect(&what, step)).await;
                return self.keep(
                    save,
                    saved.map_err(|_| anyhow!("nothing fitting came in time"))??,
                );
            }
            None => step.number("error")?,
        };
        let what = step.needed_text("do")?;
        let outcome = timeout(within, self.act(&what, step))
            .await
            .map_err(|_| anyhow!("it took too long"))?;
        let saved = match (outcome, error) {
            (Ok(saved), None) => saved,
            (Ok(_), Some(code)) => bail!("it succeeded; error {code} was expected"),
            (Err(error), None) => return Err(error),
            (Err(error), Some(code)) => {
                let got = error
                    .downcast_ref::<Error>()
                    .and_then(Error::code)
                    .map(|code| u64::from(code.0));
                ensure!(
                    got == Some(code),
                    "error {code} was expected, not: {error:#}"
                );
                None
            }
        };
        self.keep(save, saved)
    }

    /// Does what a step without a client says, or lets its client act.
    async fn act(&mut self, what: &str, mut step: Step) -> Result<Option<Value>> {
        match what {
            "same" => {
                let values = step.take("of").context("of is missing")?;
                step.finish()?;
                same(values.as_array().context("of is a list")?).map(|()| None)
            }
            "pause" => {
                let pause = step.number("ms")?.context("ms is missing")?;
                step.finish()?;
                sleep(Duration::from_millis(pause)).await;
                Ok(None)
            }
            "connect" => {
                let name = step.needed_text("client")?;
                ensure!(
                    !self.actors.contains_key(&name),
                    "{name} is connected already"
                );
                let actor = Actor::connect(self.url, step).await?;
                let user = actor
                    .client
                    .identity()
                    .map(|Identity { user, .. }| user.as_str().to_owned());
                self.variables
                    .insert(format!("{name}.user"), Value::from(user));
                self.actors.insert(name, actor);
                Ok(None)
            }
            _ => {
                let name = step.needed_text("client")?;
                let actor = self
                    .actors
                    .get_mut(&name)
                    .with_context(|| format!("{name} is not connected"))?;
                let saved = actor.act(what, step).await?;
                if let Some(member) = actor.member {
                    self.variables
                        .insert(format!("{name}.member"), Value::from(member.0));
                }
                Ok(saved)
            }
        }
    }

    fn actor(&mut self, step: &mut Step) -> Result<&mut Actor> {
        let name = step.needed_text("client")?;
        self.actors
            .get_mut(&name)
            .with_context(|| format!("{name} is not connected"))
    }

    fn keep(&mut self, save: Option<String>, saved: Option<Value>) -> Result<()> {
        if let Some(name) = save {
            self.variables
                .insert(name, saved.context("the step has nothing to save")?);
        }
        Ok(())
    }
}

fn same(values: &[Value]) -> Result<()> {
    // A position may be written in two ways.
    let plain = |value: &Value| {
        position(value).map_or_else(|_| value.clone(), |at| Value::from(at.to_string()))
    };
    let values: Vec<Value> = values.iter().map(plain).collect();
    ensure!(values.len() > 1, "there is nothing to compare");
    ensure!(
        values.windows(2).all(|pair| pair[0] == pair[1]),
        "they differ: {}",
        Value::from(values)
    );
    Ok(())
}
