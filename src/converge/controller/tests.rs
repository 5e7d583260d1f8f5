//! The controller by itself, on samples that are made up.

use proptest::prelude::*;

use super::*;

fn budget(max_downtime_ms: u64) -> Budget {
    Budget { max_downtime: DowntimeMs::new(max_downtime_ms).unwrap(), max_time: None }
}

/// A sample at the start of a pass, on a link of 100 MB/s.
fn pass(number: u64, remaining_bytes: u64, at_ms: f64) -> Sample {
    Sample {
        at_ms,
        transferred_bytes: rounded_up(at_ms * 1e5),
        remaining_bytes,
        total_bytes: 1 << 30,
        passes: number,
        dirty_bytes_per_second: 0,
        stream_bytes_per_second: 0,
        downtime_limit_ms: 0,
        throttle_percent: 0,
    }
}

#[test]
fn a_guest_that_converges_is_left_alone_with_a_tight_limit() {
    let mut controller = Controller::new(budget(300), Consents::default());
    assert_eq!(controller.limit_ms(), 2);
    for (number, remaining) in (1..8).map(|number| (number, 1_u64 << (30 - 3 * number))) {
        let at_ms = as_f64(number) * 1000.0;
        let verdict = controller.observe(&pass(number, remaining, at_ms), at_ms);
        assert!(verdict.is_none_or(|verdict| verdict.choice == Choice::Wait));
    }
    assert_eq!(controller.limit_ms(), 2);
}

#[test]
fn what_to_expect_is_said_once_as_the_second_pass_begins() {
    let mut controller = Controller::new(budget(300), Consents::default());
    let mut told = Vec::new();
    for number in 1..8 {
        let at_ms = as_f64(number) * 1000.0;
        told.extend(controller.observe(&pass(number, 1 << (30 - 3 * number), at_ms), at_ms));
    }
    let [Verdict { choice: Choice::Wait, forecast: Some(forecast), .. }] = &told[..] else {
        panic!("{told:?}")
    };
    // 16 MiB left, at 100 MB/s and half a second of the guest.
    assert!((5.0..40.0).contains(&forecast.blackout_ms), "{forecast:?}");
    assert!((100.0..300.0).contains(&forecast.stream_ms.unwrap()), "{forecast:?}");
    let (low, high) = forecast.blackout_between_ms.unwrap();
    assert!(low <= forecast.blackout_ms && forecast.blackout_ms <= high, "{forecast:?}");
}

#[test]
fn the_limit_rises_to_what_a_plateau_needs_and_not_to_the_whole_budget() {
    let mut controller = Controller::new(budget(300), Consents::default());
    let mut raised = (1..20).filter_map(|number| {
        let at_ms = as_f64(number) * 200.0;
        match controller.observe(&pass(number, 1_000_000, at_ms), at_ms)?.choice {
            Choice::Limit { downtime_limit_ms } => Some(downtime_limit_ms),
            _ => None,
        }
    });
    // 10 ms at 100 MB/s.
    assert!((11..=12).contains(&raised.next().unwrap()));
}

/// 262 ms of copy and 35 ms of switch are within 300 ms; a limit has to leave room for what QEMU takes the rate to be.
#[test]
fn a_guest_that_only_a_pause_brings_over_is_stopped_where_its_user_consents() {
    let paused = |pause| {
        let mut controller = Controller::new(budget(300), Consents { pause, ..Consents::default() });
        (1..8).find_map(|number| {
            let at_ms = as_f64(number) * 262.0;
            let verdict = controller.observe(&pass(number, 26_200_000, at_ms), at_ms)?;
            (verdict.choice == Choice::Pause).then_some(verdict)
        })
    };
    let forecast = paused(Consent::Given).unwrap().forecast.unwrap();
    assert!((262.0..=300.0).contains(&forecast.blackout_ms), "{forecast:?}");
    assert_eq!(paused(Consent::Withheld), None);
}

/// When a guest whose passes have these sizes, one a second, is given up, and which downtime would do.
fn given_up(max_time: Option<Duration>, left_bytes: impl Fn(u64) -> u64) -> Option<(u64, u64)> {
    let budget = Budget { max_time, ..budget(300) };
    let mut controller = Controller::new(budget, Consents::default());
    (1..100).find_map(|number| {
        let at_ms = as_f64(number) * 1000.0;
        match controller.observe(&pass(number, left_bytes(number), at_ms), at_ms)?.choice {
            Choice::Infeasible { smallest_downtime_ms, .. } => Some((number, smallest_downtime_ms)),
            _ => None,
        }
    })
}

#[test]
fn a_guest_whose_passes_are_alike_is_given_up_after_five_seconds_that_are_sure() {
    let (number, smallest_downtime_ms) = given_up(None, |_| 100_000_000).unwrap();
    assert_eq!(number, 8);
    assert!((1000..1200).contains(&smallest_downtime_ms), "{smallest_downtime_ms}");
}

#[test]
fn a_guest_whose_passes_differ_is_given_half_a_minute() {
    let (number, _) =
        given_up(None, |number| if number % 3 == 0 { 60_000_000 } else { 100_000_000 }).unwrap();
    assert!((30..36).contains(&number), "{number}");
}

#[test]
fn where_there_is_a_time_it_is_waited_for_until_even_a_rest_would_come_too_late() {
    let (number, _) = given_up(Some(Duration::from_secs(20)), |_| 100_000_000).unwrap();
    assert!((18..=20).contains(&number), "{number}");
}

#[test]
fn the_time_budget_ends_it_once() {
    let mut budget = budget(300);
    budget.max_time = Some(Duration::from_secs(1));
    let mut controller = Controller::new(budget, Consents::default());
    assert_eq!(controller.observe(&pass(1, 1, 999.0), 999.0), None);
    assert_eq!(controller.observe(&pass(1, 1, 1001.0), 1001.0).unwrap().choice, Choice::OutOfTime);
    assert_eq!(controller.observe(&pass(1, 1, 1002.0), 1002.0), None);
}

proptest! {
    #[test]
    fn no_sequence_of_passes_sends_a_limit_above_the_budget(
        max_downtime_ms in 1_u64..2_000_000,
        passes in proptest::collection::vec((0_u64..1 << 40, 0.0..1e4), 1..60),
    ) {
        let mut controller = Controller::new(budget(max_downtime_ms), Consents::default());
        prop_assert!(controller.limit_ms() <= max_downtime_ms);
        let mut at_ms = 0.0;
        for (number, (remaining, elapsed_ms)) in (1..).zip(passes) {
            at_ms += elapsed_ms;
            let before = controller.limit_ms();
            if let Some(Verdict { choice: Choice::Limit { downtime_limit_ms }, .. }) =
                controller.observe(&pass(number, remaining, at_ms), at_ms)
            {
                prop_assert!(downtime_limit_ms > before && downtime_limit_ms <= max_downtime_ms);
                prop_assert_eq!(downtime_limit_ms, controller.limit_ms());
            }
        }
    }
}
