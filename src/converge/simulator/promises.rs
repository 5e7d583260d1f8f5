//! What must hold for any guest, link and budget.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::converge::{Budget, Consent, Consents, Controller};
use crate::record::Choice;
use crate::units::{DowntimeMs, Size};

/// Longer than any of these guests and links gives a controller to think about.
const FOR_EVER_MS: f64 = 600_000.0;

fn mebibytes(number: u64) -> Size {
    Size::from_mebibytes(number).unwrap()
}

fn rate(mebibytes_per_second: f64) -> Rate {
    Rate::from_bytes_per_second(numbers::whole(mebibytes_per_second * 1_048_576.0)).unwrap()
}

fn any_guest() -> impl Strategy<Value = Guest> {
    let region = (prop_oneof![Just(Order::Sweep), Just(Order::Uniform)], 1_u64..400, 0.1_f64..2000.0);
    let phases = proptest::option::of((1.0_f64..10_000.0, 1.0_f64..10_000.0, 0.0_f64..20_000.0));
    (64_u64..512, proptest::collection::vec(region, 0..3), phases, any::<u64>()).prop_map(
        |(memory, regions, phases, seed)| {
            let guest =
                regions.into_iter().fold(Guest::idle(mebibytes(memory)), |guest, (order, size, pace)| {
                    guest.writes(order, mebibytes(size), rate(pace))
                });
            let guest = phases.map_or(guest.clone(), |(on, off, begun)| guest.in_phases(on, off, begun));
            guest.seeded(seed)
        },
    )
}

fn any_link() -> impl Strategy<Value = Link> {
    let steps = proptest::collection::vec((1.0_f64..20_000.0, 10.0_f64..2000.0), 0..3);
    (10.0_f64..2000.0, steps, 0_u64..8_000_000).prop_map(|(pace, steps, room)| {
        let (link, _) =
            steps.into_iter().fold((Link::steady(rate(pace)), 0.0), |(link, from_ms), (after_ms, pace)| {
                (link.then(from_ms + after_ms, rate(pace)), from_ms + after_ms)
            });
        link.with_room_for(room)
    })
}

fn any_qemu() -> impl Strategy<Value = Qemu> {
    let bandwidth = proptest::option::of((10.0_f64..1000.0).prop_map(rate));
    let throttle =
        prop_oneof![Just(None), Just(Some(AutoConverge::DEFAULT)), Just(Some(AutoConverge::BY_HAND))];
    (bandwidth, throttle).prop_map(|(max_bandwidth, auto_converge)| Qemu {
        max_bandwidth,
        auto_converge,
        ..Qemu::default()
    })
}

fn any_budget() -> impl Strategy<Value = Budget> {
    (1_u64..5000, proptest::option::of(500_u64..60_000)).prop_map(|(max_downtime_ms, max_time_ms)| Budget {
        max_downtime: DowntimeMs::new(max_downtime_ms).unwrap(),
        max_time: max_time_ms.map(Duration::from_millis),
    })
}

fn any_consents() -> impl Strategy<Value = Consents> {
    let pause = prop_oneof![Just(Consent::Given), Just(Consent::Withheld)];
    (proptest::option::of(1_u8..=99), pause).prop_map(|(throttle_percent, pause)| Consents {
        throttle_percent,
        pause,
        ..Consents::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// And where no limit would do, the migration is given up: there is always an end.
    #[test]
    fn the_controller_sets_no_limit_above_the_budget_and_comes_to_an_end(
        guest in any_guest(), link in any_link(), qemu in any_qemu(), budget in any_budget(),
    ) {
        let mut controller = Controller::new(budget, Consents::default());
        prop_assert!(controller.limit_ms() <= budget.max_downtime.milliseconds());
        let run = run(Simulator::new(guest, link, qemu), &mut controller);
        for (_, verdict) in &run.verdicts {
            if let Choice::Limit { downtime_limit_ms } = verdict.choice {
                prop_assert!(downtime_limit_ms <= budget.max_downtime.milliseconds(), "{:?}", verdict);
            }
        }
        let gave_up = run.verdicts.iter().any(|(_, verdict)| {
            matches!(verdict.choice, Choice::Infeasible { .. } | Choice::OutOfTime)
        });
        prop_assert_eq!(gave_up, run.outcome.blackout_ms.is_none());
        prop_assert!(run.outcome.total_ms < FOR_EVER_MS, "{:?}", run.outcome);
        if let Some(max_time) = budget.max_time {
            // It is asked every 100 ms; a blackout that has begun is not given up for the time.
            let latest_ms = max_time.as_secs_f64() * 1e3 + 150.0 + run.outcome.blackout_ms.unwrap_or(0.0);
            prop_assert!(run.outcome.total_ms <= latest_ms, "{:?}", run.outcome);
        }
    }

    /// Whatever is consented to: no more than that is done, no freeze is longer than the budget, and there is an end.
    #[test]
    fn the_controller_does_nothing_that_was_not_consented_to(
        guest in any_guest(), link in any_link(), budget in any_budget(), consents in any_consents(),
        sampled in any::<bool>(),
    ) {
        let auto_converge = consents.throttle_percent.map(|_| AutoConverge::BY_HAND);
        let simulator = Simulator::new(guest.clone(), link, Qemu { auto_converge, ..Qemu::default() });
        let mut controller = Controller::new(budget, consents);
        let run = if sampled {
            run_sampled(simulator, guest, &mut controller)
        } else {
            run(simulator, &mut controller)
        };
        for (_, verdict) in &run.verdicts {
            match verdict.choice {
                Choice::Throttle { percent } => {
                    prop_assert!(percent <= consents.throttle_percent.unwrap_or(0), "{:?}", verdict);
                    let freeze_ms = 10.0 * f64::from(percent) / f64::from(100 - percent);
                    prop_assert!(freeze_ms <= numbers::as_f64(budget.max_downtime.milliseconds()), "{:?}", verdict);
                }
                Choice::Pause => prop_assert_eq!(consents.pause, Consent::Given),
                Choice::Limit { downtime_limit_ms } => {
                    prop_assert!(downtime_limit_ms <= budget.max_downtime.milliseconds(), "{:?}", verdict);
                }
                _ => {}
            }
        }
        prop_assert!(consents.throttle_percent.is_some() || run.outcome.throttled_ms <= 0.0);
        let gave_up = run.verdicts.iter().any(|(_, verdict)| {
            matches!(verdict.choice, Choice::Infeasible { .. } | Choice::OutOfTime)
        });
        prop_assert_eq!(gave_up, run.outcome.blackout_ms.is_none());
        prop_assert!(run.outcome.total_ms < FOR_EVER_MS, "{:?}", run.outcome);
    }

    /// What a driver sees moves as it does with a QEMU, whatever is said meanwhile.
    #[test]
    fn time_bytes_and_passes_never_go_back(
        guest in any_guest(), link in any_link(), qemu in any_qemu(),
        commands in proptest::collection::vec((0_usize..300, any_command()), 0..10),
    ) {
        let total_bytes = guest.total_bytes();
        let mut simulator = Simulator::new(guest, link, qemu);
        let mut last: Option<Sample> = None;
        for number in 0..2000 {
            for (_, command) in commands.iter().filter(|(at, _)| *at == number) {
                simulator.command(*command);
            }
            let sample = match simulator.step() {
                Event::Sample(sample) => sample,
                Event::Ended(outcome) => {
                    prop_assert_eq!(simulator.step(), Event::Ended(outcome));
                    prop_assert!(outcome.blackout_ms.is_none_or(|blackout_ms| blackout_ms > 0.0));
                    prop_assert!(outcome.throttled_ms <= outcome.total_ms);
                    break;
                }
            };
            prop_assert!(sample.remaining_bytes <= total_bytes && sample.total_bytes == total_bytes);
            if let Some(last) = last {
                prop_assert!(sample.at_ms > last.at_ms && sample.at_ms <= last.at_ms + ASK_EVERY_MS + 1.0);
                prop_assert!(sample.transferred_bytes >= last.transferred_bytes && sample.passes >= last.passes);
            }
            last = Some(sample);
        }
    }

    #[test]
    fn a_run_is_the_same_each_time(
        guest in any_guest(), link in any_link(), qemu in any_qemu(), budget in any_budget(),
    ) {
        let again = || run(Simulator::new(guest.clone(), link.clone(), qemu.clone()), &mut Controller::new(budget, Consents::default()));
        prop_assert_eq!(again(), again());
    }

    /// Nothing is dirtied once the guest stands still: one pass more at most, and it is over.
    #[test]
    fn a_guest_that_is_stopped_arrives(guest in any_guest(), link in any_link(), after in 0_usize..50) {
        let mut simulator = Simulator::new(guest, link, Qemu { downtime_limit_ms: 1, ..Qemu::default() });
        let mut number = 0;
        let outcome = loop {
            match simulator.step() {
                Event::Ended(outcome) => break outcome,
                Event::Sample(_) if number == after => simulator.command(Command::Stop),
                Event::Sample(sample) => prop_assert!(sample.at_ms < FOR_EVER_MS),
            }
            number += 1;
        };
        prop_assert!(outcome.blackout_ms.is_some());
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (0_u64..10_000).prop_map(|ms| Command::DowntimeLimit { ms }),
        proptest::option::of((1.0_f64..1000.0).prop_map(rate)).prop_map(Command::MaxBandwidth),
        proptest::option::of((1.0_f64..1000.0).prop_map(rate)).prop_map(Command::SwitchoverBandwidth),
        (0_u64..200).prop_map(|percent| Command::MaxThrottle { percent }),
        Just(Command::Stop),
        Just(Command::Cancel),
    ]
}

fn ended(mut simulator: Simulator) -> Outcome {
    loop {
        if let Event::Ended(outcome) = simulator.step() {
            return outcome;
        }
    }
}

#[test]
fn the_switch_takes_no_notice_of_max_bandwidth_and_may_be_told_so() {
    let guest = || Guest::idle(mebibytes(128)).writes(Order::Sweep, mebibytes(64), rate(1000.0));
    let qemu = Qemu { downtime_limit_ms: 700, max_bandwidth: Some(rate(20.0)), ..Qemu::default() };
    let link = || Link::steady(rate(100.0));
    let mut unaware = Simulator::new(guest(), link(), qemu.clone());
    while let Event::Sample(sample) = unaware.step() {
        assert!(sample.at_ms < 60_000.0 || sample.passes > 10);
        if sample.passes > 10 {
            unaware.command(Command::Cancel);
        }
    }
    let aware =
        ended(Simulator::new(guest(), link(), Qemu { switchover_bandwidth: Some(rate(100.0)), ..qemu }));
    let blackout_ms = aware.blackout_ms.unwrap();
    assert!((640.0..660.0).contains(&blackout_ms), "{aware:?}");
}

#[test]
fn a_long_pass_is_looked_into_every_five_seconds_where_the_throttle_is_on() {
    let passes = |auto_converge| {
        let guest = Guest::idle(mebibytes(512)).writes(Order::Sweep, mebibytes(400), rate(100.0));
        let qemu = Qemu { auto_converge, downtime_limit_ms: 1, ..Qemu::default() };
        let mut simulator = Simulator::new(guest, Link::steady(rate(20.0)), qemu);
        let mut passes = 0;
        while let Event::Sample(sample) = simulator.step() {
            if sample.at_ms > 38_000.0 {
                passes = sample.passes;
                simulator.command(Command::Cancel);
            }
        }
        passes
    };
    // The second pass lasts from 20 s to 40 s. The timer looks when it finds the same pass twice: at 30 s and 35 s.
    assert_eq!((passes(None), passes(Some(AutoConverge::BY_HAND))), (2, 4));
}

#[test]
fn a_tight_limit_costs_a_slow_writer_no_time_and_saves_it_a_long_blackout() {
    let guest = || Guest::idle(mebibytes(512)).writes(Order::Sweep, mebibytes(64), rate(32.0));
    let moved = |downtime_limit_ms| {
        let link = Link::steady(Rate::from_bytes_per_second(114_000_000).unwrap());
        ended(Simulator::new(guest(), link, Qemu { downtime_limit_ms, ..Qemu::default() }))
    };
    let (loose, tight) = (moved(300), moved(10));
    assert!(loose.blackout_ms > tight.blackout_ms.map(|ms| 3.0 * ms), "{loose:?} {tight:?}");
    assert!(tight.total_ms < loose.total_ms * 1.1, "{loose:?} {tight:?}");
}
