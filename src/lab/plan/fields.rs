//! The fields of a JSON object, each named by its path when it is not what it must be.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

/// What is wrong with a plan, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {wrong}")]
pub struct PlanError {
    /// The path of the field, such as `guests[1].rate`.
    pub field: String,
    /// What is wrong with it.
    pub wrong: String,
}

impl PlanError {
    pub(super) fn new(field: impl Into<String>, wrong: impl fmt::Display) -> Self {
        Self { field: field.into(), wrong: wrong.to_string() }
    }
}

/// One object of a plan.
pub(super) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// An object that has no other fields than these.
    pub(super) fn of(value: &'a Value, path: &str, known: &[&str]) -> Result<Self, PlanError> {
        let whole = if path.is_empty() { "the plan" } else { path };
        let map = value.as_object().ok_or_else(|| PlanError::new(whole, "it must be an object"))?;
        let fields = Self { path: path.to_owned(), map };
        match map.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => {
                let wrong = format!("there is no such field; there are {}", known.join(", "));
                Err(PlanError::new(fields.path(name), wrong))
            }
            None => Ok(fields),
        }
    }

    /// The path of a field.
    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    pub(super) fn wrong(&self, name: &str, wrong: impl fmt::Display) -> PlanError {
        PlanError::new(self.path(name), wrong)
    }

    /// Whether the field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    fn required(&self, name: &str) -> Result<&'a Value, PlanError> {
        self.map.get(name).ok_or_else(|| self.wrong(name, "it is missing"))
    }

    /// A text.
    pub(super) fn text(&self, name: &str) -> Result<&'a str, PlanError> {
        self.required(name)?.as_str().ok_or_else(|| self.wrong(name, "it must be a text"))
    }

    /// A text that means something.
    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&self, name: &str) -> Result<T, PlanError> {
        self.text(name)?.parse().map_err(|error| self.wrong(name, error))
    }

    /// The same where it may be left out.
    pub(super) fn parsed_if<T: FromStr<Err: fmt::Display>>(
        &self,
        name: &str,
    ) -> Result<Option<T>, PlanError> {
        self.has(name).then(|| self.parsed(name)).transpose()
    }

    /// A whole number of one or more, that may be left out.
    pub(super) fn count_if(&self, name: &str) -> Result<Option<u32>, PlanError> {
        let Some(value) = self.map.get(name) else { return Ok(None) };
        let number =
            value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|&number| number > 0);
        number.map(Some).ok_or_else(|| self.wrong(name, "it must be a whole number, 1 or more"))
    }

    /// A list of one entry or more, each with its path.
    pub(super) fn list(&self, name: &str) -> Result<Vec<(String, &'a Value)>, PlanError> {
        let list = self.required(name)?.as_array().filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| self.wrong(name, "it must be a list, and not an empty one"))?;
        let path = |at| format!("{}[{at}]", self.path(name));
        Ok(list.iter().enumerate().map(|(at, value)| (path(at), value)).collect())
    }

    /// A list of texts that may be left out.
    pub(super) fn texts_if(&self, name: &str) -> Result<Option<Vec<String>>, PlanError> {
        let Some(value) = self.map.get(name) else { return Ok(None) };
        let texts: Option<Vec<String>> = value
            .as_array()
            .and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect());
        texts.map(Some).ok_or_else(|| self.wrong(name, "it must be a list of texts"))
    }
}
