//! A plan: which guests are moved under which policies and budgets over which links, and how often.
//!
//! A plan is one JSON object. What is measured stands in `guests`, `policies`, `budgets` and `links`, each entry with a
//! name; `cells` says which of them meet: every entry there is a product, and a list that is left out of it means all.
//!
//! ```json
//! {
//!   "name": "example", "repeats": 10, "censor_after": "60s",
//!   "guests": [{ "name": "sweep", "memory": "320MiB", "working_set": "256MiB", "rate": "60MiB/s", "pattern": "sweep" }],
//!   "policies": [{ "name": "ours", "options": [] },
//!                { "name": "fixed", "options": ["--policy", "fixed", "--allow", "policy=fixed"] }],
//!   "budgets": [{ "name": "300ms", "options": ["--max-downtime", "300ms"] }],
//!   "links": [{ "name": "gigabit", "rate": "1Gbit/s" },
//!             { "name": "step", "rate": "1Gbit/s", "steps": [{ "after": "2s", "rate": "250Mbit/s" }] }],
//!   "cells": [{ "policies": ["ours", "fixed"], "links": ["gigabit"] }, { "links": ["step"], "repeats": 3 }]
//! }
//! ```
//!
//! A guest without a `rate` writes as fast as it can; a link without one is a unix socket that nothing slows down. A
//! migration begins so long after its guest has begun to write as `warm_up` says (1 s), and with a `spread` the repeats
//! begin at moments spread over that time, such as the period of a phased guest.

/// The fields of a JSON object, each named by its path when it is not what it must be.
mod fields;

pub use fields::PlanError;

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use self::fields::Fields;
use crate::guest::{Content, Pattern, Workload};
use crate::units::{Rate, parse_duration, show_duration};

const WARM_UP: Duration = Duration::from_secs(1);
const CENSOR_AFTER: Duration = Duration::from_secs(60);
/// A cell whose first repeats were all censored has said what it can say.
const REPEATS_WHERE_CENSORED: u32 = 3;
/// What the runner says itself.
const OPTIONS_OF_THE_RUNNER: [&str; 5] = ["--incoming", "--report", "--json", "--detach", "--dry-run"];

/// A guest of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its name in the plan.
    pub name: String,
    /// What it does.
    pub workload: Workload,
    /// So long it writes before it is moved.
    pub warm_up: Duration,
    /// Over so much more time the moments are spread at which the repeats begin.
    pub spread: Duration,
}

/// Options of `migrate` under a name: a policy or a budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Its name in the plan.
    pub name: String,
    /// The words that go on the command line.
    pub words: Vec<String>,
}

/// What a stream travels over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name in the plan.
    pub name: String,
    /// How much it carries as the migration begins; `None` is a unix socket that nothing slows down.
    pub rate: Option<Rate>,
    /// How that changes on the way.
    pub steps: Vec<Step>,
}

/// A change of a link's rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// So long after `migrate` was started.
    pub after: Duration,
    /// The new rate.
    pub rate: Rate,
}

/// What is done again and again, and compared with other cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Who is moved.
    pub guest: Guest,
    /// By which policy.
    pub policy: Options,
    /// Within which budgets.
    pub budget: Options,
    /// Over which link.
    pub link: Link,
    /// How often.
    pub repeats: u32,
}

/// A plan, whose cells are in the order in which they take turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What is done.
    pub cells: Vec<Cell>,
    /// A migration that takes longer than this is ended.
    pub censor_after: Duration,
}

/// A run that stands in the results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The [`Plan::definition`] of its cell.
    pub definition: String,
    /// Which repeat it was, from 1.
    pub repeat: u32,
    /// Whether it was ended at the time of censoring.
    pub censored: bool,
}

impl Plan {
    /// Reads a plan.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let value: Value = serde_json::from_str(text).map_err(|error| PlanError::new("the plan", error))?;
        let known = ["name", "repeats", "censor_after", "guests", "policies", "budgets", "links", "cells"];
        let fields = Fields::of(&value, "", &known)?;
        let guests = named(&fields, "guests", guest, |guest: &Guest| &guest.name)?;
        let policies = named(&fields, "policies", options, |policy: &Options| &policy.name)?;
        let budgets = named(&fields, "budgets", options, |budget: &Options| &budget.name)?;
        let links = named(&fields, "links", link, |link: &Link| &link.name)?;
        let usual_repeats = fields.count_if("repeats")?.unwrap_or(1);
        let mut cells: Vec<Cell> = Vec::new();
        for (path, entry) in fields.list("cells")? {
            let entry = Fields::of(entry, &path, &["guests", "policies", "budgets", "links", "repeats"])?;
            let repeats = entry.count_if("repeats")?.unwrap_or(usual_repeats);
            let guests = chosen(&entry, "guests", &guests, |guest| &guest.name)?;
            let policies = chosen(&entry, "policies", &policies, |policy| &policy.name)?;
            let budgets = chosen(&entry, "budgets", &budgets, |budget| &budget.name)?;
            let links = chosen(&entry, "links", &links, |link| &link.name)?;
            for ((guest, link), (budget, policy)) in
                product(&product(&guests, &links), &product(&budgets, &policies))
            {
                let cell = Cell { guest, policy, budget, link, repeats };
                if cells.iter().any(|before| before.to_string() == cell.to_string()) {
                    return Err(PlanError::new(path, format!("{cell} is there twice")));
                }
                cells.push(cell);
            }
        }
        Ok(Self {
            name: fields.text("name")?.to_owned(),
            cells,
            censor_after: duration_if(&fields, "censor_after")?.unwrap_or(CENSOR_AFTER),
        })
    }

    /// The next run that is to be done, of the cells that may be: a first repeat of every cell, then a second one of every
    /// cell, so that what else happens on the machine happens to all of them. Every other time they go backwards: what the
    /// run before has left behind (memory that is mapped already) is each neighbour's in turn.
    pub fn next(&self, done: &[Done], may_run: impl Fn(&Cell) -> bool) -> Option<(&Cell, u32)> {
        let most = self.cells.iter().map(|cell| cell.repeats).max().unwrap_or(0);
        let last = self.cells.len().saturating_sub(1);
        let turns = (1..=most).flat_map(|repeat| {
            let place = move |number| if repeat % 2 == 1 { number } else { last - number };
            (0..=last).filter_map(move |number| Some((self.cells.get(place(number))?, repeat)))
        });
        turns.filter(|(cell, repeat)| *repeat <= cell.repeats && may_run(cell)).find(|(cell, repeat)| {
            let of_this_cell = Turns { done, definition: self.definition(cell) };
            !of_this_cell.has(*repeat) && !of_this_cell.are_cut_short()
        })
    }

    /// All that makes the figures of a cell what they are; figures of another definition are another cell's, whatever its name.
    pub fn definition(&self, cell: &Cell) -> String {
        let Cell { guest: Guest { workload, warm_up, spread, .. }, policy, budget, link, .. } = cell;
        let rate = workload.dirty_rate().map_or_else(|| "no rate".to_owned(), |rate| rate.to_string());
        let words =
            policy.words.iter().chain(&budget.words).map(String::as_str).collect::<Vec<_>>().join(" ");
        let first = link.rate.map_or_else(|| "unix socket".to_owned(), |rate| rate.to_string());
        let steps =
            link.steps.iter().map(|step| format!(", after {} {}", show_duration(step.after), step.rate));
        let link_words: String = std::iter::once(first).chain(steps).collect();
        format!(
            "{cell}: {} of memory, {} of it {} at {rate}, {}, moved after {} + {}; options [{words}]; {link_words}; ended \
             after {}",
            workload.memory(),
            workload.working_set(),
            workload.pattern(),
            workload.content(),
            show_duration(*warm_up),
            show_duration(*spread),
            show_duration(self.censor_after)
        )
    }
}

/// `guest/policy/budget/link`.
impl fmt::Display for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guest, policy, budget, link, .. } = self;
        formatter.pad(&format!("{}/{}/{}/{}", guest.name, policy.name, budget.name, link.name))
    }
}

impl Guest {
    /// How long it writes before this repeat of so many.
    pub fn begins_after(&self, repeat: u32, repeats: u32) -> Duration {
        self.warm_up + self.spread * repeat.saturating_sub(1) / repeats.max(1)
    }
}

/// What was done of one cell.
struct Turns<'a> {
    done: &'a [Done],
    definition: String,
}

impl Turns<'_> {
    fn get(&self, repeat: u32) -> Option<&Done> {
        self.done.iter().find(|done| done.repeat == repeat && done.definition == self.definition)
    }

    fn has(&self, repeat: u32) -> bool {
        self.get(repeat).is_some()
    }

    fn are_cut_short(&self) -> bool {
        (1..=REPEATS_WHERE_CENSORED).all(|repeat| self.get(repeat).is_some_and(|done| done.censored))
    }
}

fn product<A: Clone, B: Clone>(left: &[A], right: &[B]) -> Vec<(A, B)> {
    left.iter().flat_map(|left| right.iter().map(move |right| (left.clone(), right.clone()))).collect()
}

/// A list of things with names, each of which is there once.
fn named<T>(
    fields: &Fields<'_>,
    list: &str,
    read: impl Fn(&Fields<'_>) -> Result<T, PlanError>,
    name: impl Fn(&T) -> &String,
) -> Result<Vec<T>, PlanError> {
    let known: &[&str] = match list {
        "guests" => &["name", "memory", "working_set", "rate", "pattern", "content", "warm_up", "spread"],
        "links" => &["name", "rate", "steps"],
        _ => &["name", "options"],
    };
    let mut things: Vec<T> = Vec::new();
    for (path, value) in fields.list(list)? {
        let entry = Fields::of(value, &path, known)?;
        let thing = read(&entry)?;
        if things.iter().any(|before| name(before) == name(&thing)) {
            return Err(entry.wrong("name", format!("'{}' is there twice", name(&thing))));
        }
        things.push(thing);
    }
    Ok(things)
}

/// Those that are named; all, if none are.
fn chosen<T: Clone>(
    entry: &Fields<'_>,
    list: &str,
    things: &[T],
    name: impl Fn(&T) -> &String,
) -> Result<Vec<T>, PlanError> {
    let Some(names) = entry.texts_if(list)? else { return Ok(things.to_vec()) };
    let find = |wanted: &String| {
        let thing = things.iter().find(|thing| name(thing) == wanted).cloned();
        thing.ok_or_else(|| entry.wrong(list, format!("'{wanted}' is not among the {list} of the plan")))
    };
    names.iter().map(find).collect()
}

fn guest(fields: &Fields<'_>) -> Result<Guest, PlanError> {
    let workload = Workload::new(
        fields.parsed("memory")?,
        fields.parsed("working_set")?,
        fields.parsed_if("rate")?,
        fields.parsed_if("pattern")?.unwrap_or(Pattern::Sweep),
        fields.parsed_if("content")?.unwrap_or(Content::Incompressible),
    );
    Ok(Guest {
        name: name(fields)?,
        workload: workload.map_err(|error| fields.wrong("working_set", error))?,
        warm_up: duration_if(fields, "warm_up")?.unwrap_or(WARM_UP),
        spread: duration_if(fields, "spread")?.unwrap_or(Duration::ZERO),
    })
}

fn options(fields: &Fields<'_>) -> Result<Options, PlanError> {
    let words = fields.texts_if("options")?.unwrap_or_default();
    let is_the_runners =
        |word: &&String| OPTIONS_OF_THE_RUNNER.iter().any(|own| word.split('=').next() == Some(own));
    match words.iter().find(is_the_runners) {
        Some(word) => Err(fields.wrong("options", format!("{word} is said by the runner itself"))),
        None => Ok(Options { name: name(fields)?, words }),
    }
}

fn link(fields: &Fields<'_>) -> Result<Link, PlanError> {
    let rate: Option<Rate> = fields.parsed_if("rate")?;
    let mut steps: Vec<Step> = Vec::new();
    if fields.has("steps") {
        for (path, step) in fields.list("steps")? {
            let step = Fields::of(step, &path, &["after", "rate"])?;
            let after = parse_duration(step.text("after")?).map_err(|error| step.wrong("after", error))?;
            if steps.last().is_some_and(|before| before.after >= after) {
                return Err(step.wrong("after", "steps stand in the order in which they are taken"));
            }
            steps.push(Step { after, rate: step.parsed("rate")? });
        }
    }
    if rate.is_none() && !steps.is_empty() {
        return Err(fields.wrong("rate", "it is missing, and a link with steps has one to begin with"));
    }
    Ok(Link { name: name(fields)?, rate, steps })
}

/// A name, which stands between strokes in the name of a cell.
fn name(fields: &Fields<'_>) -> Result<String, PlanError> {
    match fields.text("name")? {
        "" => Err(fields.wrong("name", "it is empty")),
        name if name.contains('/') => Err(fields.wrong("name", "it must not contain a '/'")),
        name => Ok(name.to_owned()),
    }
}

fn duration_if(fields: &Fields<'_>, name: &str) -> Result<Option<Duration>, PlanError> {
    if !fields.has(name) {
        return Ok(None);
    }
    parse_duration(fields.text(name)?).map(Some).map_err(|error| fields.wrong(name, error))
}

#[cfg(test)]
mod tests;
