use proptest::prelude::*;
use serde_json::json;

use super::*;

fn sound() -> Value {
    json!({
        "name": "p", "repeats": 2, "censor_after": "10s",
        "guests": [
            { "name": "a", "memory": "64MiB", "working_set": "16MiB", "rate": "1MiB/s" },
            { "name": "b", "memory": "64MiB", "working_set": "16MiB", "pattern": "uniform", "spread": "10s" },
        ],
        "policies": [{ "name": "ours" }, { "name": "fixed", "options": ["--policy", "fixed"] }],
        "budgets": [{ "name": "300ms", "options": ["--max-downtime", "300ms"] }],
        "links": [
            { "name": "gigabit", "rate": "1Gbit/s" },
            { "name": "step", "rate": "1Gbit/s", "steps": [{ "after": "2s", "rate": "250Mbit/s" }] },
        ],
        "cells": [{ "links": ["gigabit"] }, { "guests": ["a"], "policies": ["ours"], "links": ["step"], "repeats": 3 }],
    })
}

fn parsed(value: &Value) -> Result<Plan, PlanError> {
    Plan::parse(&value.to_string())
}

fn names(plan: &Plan) -> Vec<String> {
    plan.cells.iter().map(ToString::to_string).collect()
}

fn done(plan: &Plan, cell: &Cell, repeat: u32, censored: bool) -> Done {
    Done { definition: plan.definition(cell), repeat, censored }
}

/// All runs in their order; each ends as it is told.
fn play(plan: &Plan, mut done_before: Vec<Done>, censored: impl Fn(&Cell) -> bool) -> Vec<(String, u32)> {
    let mut order = Vec::new();
    while let Some((cell, repeat)) = plan.next(&done_before, |_| true) {
        order.push((cell.to_string(), repeat));
        done_before.push(done(plan, cell, repeat, censored(cell)));
    }
    order
}

#[test]
fn cells_are_products_in_which_what_is_left_out_means_all() {
    let plan = parsed(&sound()).unwrap();
    assert_eq!(
        names(&plan),
        [
            "a/ours/300ms/gigabit",
            "a/fixed/300ms/gigabit",
            "b/ours/300ms/gigabit",
            "b/fixed/300ms/gigabit",
            "a/ours/300ms/step"
        ]
    );
    assert_eq!(plan.cells.iter().map(|cell| cell.repeats).collect::<Vec<_>>(), [2, 2, 2, 2, 3]);
    let step = &plan.cells[4].link;
    assert_eq!(step.rate.unwrap().bytes_per_second(), 125_000_000);
    assert_eq!(
        (step.steps[0].after, step.steps[0].rate.bytes_per_second()),
        (Duration::from_secs(2), 31_250_000)
    );
}

#[test]
fn the_plans_of_this_repository_can_be_read() {
    for text in
        [include_str!("../../../benches/plans/goals.json"), include_str!("../../../benches/plans/grid.json")]
    {
        assert!(!Plan::parse(text).unwrap().cells.is_empty());
    }
}

#[test]
fn what_is_wrong_with_a_plan_is_said_with_the_name_of_the_field() {
    let cases: [(&str, Value, &str); 19] = [
        ("/name", Value::Null, "name"),
        ("/repeats", json!(0), "repeats"),
        ("/censor_after", json!("soon"), "censor_after"),
        ("/guests", json!([]), "guests"),
        ("/guests/1/memory", json!("lots"), "guests[1].memory"),
        ("/guests/1/working_set", json!("64MiB"), "guests[1].working_set"),
        ("/guests/1/pattern", json!("zigzag"), "guests[1].pattern"),
        ("/guests/0/rate", json!(5), "guests[0].rate"),
        ("/guests/1/name", json!("a"), "guests[1].name"),
        ("/guests/0/name", json!("a/b"), "guests[0].name"),
        ("/policies/1/options", json!("--policy fixed"), "policies[1].options"),
        ("/policies/1/options", json!(["--incoming=defer"]), "policies[1].options"),
        ("/links/0/rate", json!("fast"), "links[0].rate"),
        ("/links/1/steps/0/after", json!("never"), "links[1].steps[0].after"),
        ("/links/1/steps/0", json!({ "after": "1s" }), "links[1].steps[0].rate"),
        ("/links/1", json!({ "name": "x", "steps": [{ "after": "1s", "rate": "1" }] }), "links[1].rate"),
        ("/cells/0/links", json!(["none"]), "cells[0].links"),
        ("/cells/1", json!({ "links": ["gigabit"] }), "cells[1]"),
        ("/cells/0", json!({ "gests": ["a"] }), "cells[0].gests"),
    ];
    for (pointer, value, field) in cases {
        let mut plan = sound();
        *plan.pointer_mut(pointer).unwrap() = value;
        assert_eq!(parsed(&plan).unwrap_err().field, field, "{pointer}");
    }
    let mut plan = sound();
    plan.as_object_mut().unwrap().remove("links");
    assert_eq!(parsed(&plan).unwrap_err().to_string(), "links: it is missing");
    assert_eq!(Plan::parse("{").unwrap_err().field, "the plan");
}

#[test]
fn cells_take_turns() {
    let plan = parsed(&sound()).unwrap();
    let all = names(&plan);
    let there = all.iter().map(|name| (name.clone(), 1));
    let back = all.iter().rev().map(|name| (name.clone(), 2));
    let mut expected: Vec<_> = there.chain(back).collect();
    expected.push((all[4].clone(), 3));
    assert_eq!(play(&plan, Vec::new(), |_| false), expected);
}

#[test]
fn what_was_done_is_not_done_again_and_what_is_missing_comes_first() {
    let plan = parsed(&sound()).unwrap();
    let all = play(&plan, Vec::new(), |_| false);
    let before = [0, 2, 3].map(|at| done(&plan, &plan.cells[at], 1, false)).to_vec();
    let left = play(&plan, before, |_| false);
    assert_eq!(left.len(), all.len() - 3);
    assert_eq!(left[0], (names(&plan)[1].clone(), 1));
}

#[test]
fn figures_of_another_definition_are_another_cells() {
    let plan = parsed(&sound()).unwrap();
    let before = vec![done(&plan, &plan.cells[0], 1, false)];
    let mut changed = sound();
    changed["guests"][0]["rate"] = "2MiB/s".into();
    let changed = parsed(&changed).unwrap();
    assert_eq!(changed.next(&before, |_| true).unwrap().0.to_string(), names(&plan)[0]);
}

#[test]
fn a_cell_is_cut_short_when_its_first_three_repeats_were_censored() {
    let mut plan = sound();
    plan["repeats"] = 10.into();
    plan["cells"] = json!([{ "guests": ["a"], "links": ["gigabit"] }]);
    let plan = parsed(&plan).unwrap();
    let order = play(&plan, Vec::new(), |cell| cell.policy.name == "fixed");
    let of = |policy: &str| order.iter().filter(|(name, _)| name.contains(policy)).count();
    assert_eq!((of("ours"), of("fixed")), (10, 3));
    let second_ended = [true, false, true].iter().zip(1..);
    let before =
        second_ended.map(|(&censored, repeat)| done(&plan, &plan.cells[0], repeat, censored)).collect();
    assert_eq!(play(&plan, before, |_| false).iter().filter(|(name, _)| name.contains("ours")).count(), 7);
}

#[test]
fn a_cell_that_may_not_run_is_left_out() {
    let plan = parsed(&sound()).unwrap();
    let (cell, repeat) = plan.next(&[], |cell| cell.guest.name == "b").unwrap();
    assert_eq!((cell.to_string(), repeat), ("b/ours/300ms/gigabit".to_owned(), 1));
}

#[test]
fn repeats_begin_at_moments_spread_over_the_time_that_was_asked_for() {
    let plan = parsed(&sound()).unwrap();
    let guest = &plan.cells[2].guest;
    let begins: Vec<_> = (1..=4).map(|repeat| guest.begins_after(repeat, 4).as_millis()).collect();
    assert_eq!(begins, [1000, 3500, 6000, 8500]);
}

proptest! {
    /// Wherever a runner was killed, the one that goes on does exactly the rest, each run once.
    #[test]
    fn a_plan_is_done_whole_however_often_its_runner_is_killed(kept in proptest::collection::vec(any::<bool>(), 11)) {
        let plan = parsed(&sound()).unwrap();
        let all = play(&plan, Vec::new(), |_| false);
        let is_kept = |at: usize| kept[at];
        let find = |name: &str| plan.cells.iter().find(|cell| cell.to_string() == name).unwrap();
        let before: Vec<_> = all.iter().enumerate().filter(|(at, _)| is_kept(*at))
            .map(|(_, (name, repeat))| done(&plan, find(name), *repeat, false)).collect();
        let rest: Vec<_> = all.iter().enumerate().filter(|(at, _)| !is_kept(*at)).map(|(_, run)| run.clone()).collect();
        prop_assert_eq!(play(&plan, before, |_| false), rest);
    }
}
