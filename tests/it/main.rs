//! The tests that use qmigrate as its users do: one binary, so that it is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is wrong")]

/// A QMP peer that plays a script.
mod scripted_peer;
/// Recorded conversations as tests read them, and where each leads.
mod conversation;
/// Plays a recorded conversation to the real driver.
mod player;
/// A guest moved again and again, with a proof after each move.
mod back_and_forth;
/// A real guest with a heart, the built command, and hold points.
mod lab;
/// As little of a debugger as changes a guest's memory behind its back.
mod debugger;
/// A Linux guest whose writer checks its own memory.
mod linux_guest;
/// What a Linux guest writes on its serial line, in whichever QEMU it runs.
mod serial_line;
/// A small QEMU, the built command, and what must be as before after a refusal.
mod small_qemu;
/// The helpers that more than one module uses: where QEMU is, how a skip is told.
mod support;

/// Destinations that cannot be had: a sentence, a hint, and the source untouched.
mod bad_destination;
/// Destinations that differ from their source: each difference is named before anything is sent.
mod compare;
/// Sources that cannot be moved: a sentence, a hint, exit 2, and the source untouched.
mod bad_input;
/// All that stands in the way, in one run; `migrate` refuses with the same.
mod check;
/// Sources that somebody would start anew: the guest never runs twice.
mod supervised;
/// Sizes, rates and times that are none: each flag refuses them before anything is touched.
mod bad_units;

/// Readers that go away and an interrupt before anything moves: the end is the same, and nothing is left.
mod lost_terminal;
/// Connecting to a QMP socket: every way in which it fails.
mod qmp_connect;
/// The QMP transport against a scripted peer.
mod qmp_transport;
/// Recorded conversations with real QEMUs.
mod fixtures;
/// Recorded conversations played to the real driver: as they were, reordered, delayed, cut.
mod replay;
/// Bytes to lines to messages: arbitrary input.
mod qmp_wire;

/// The embedded guest on a real QEMU: it boots, its heart beats, its memory verifies.
mod guest_boots;
/// What the model of a command line says of QEMU, asked of QEMU.
mod command_line;
/// What a guest dirties, and what moving it would take.
mod estimate;
/// Old and new QEMUs: limits set in the words that each has, and what each can do.
mod dialect;
/// A guest moved in every way that the command offers.
mod moves;
/// What a user has allowed, carried out, and nothing else.
mod consent;
/// A Linux guest moved, which is its own witness.
mod linux_moves;
/// Every version of QEMU, and pairs of them.
mod versions;
/// The demo holds what it shows.
mod demo;
/// The runner of plans: killed, stopped and started again; its link.
mod lab_runner;
/// An engine that runs on without its terminal.
mod detach;
/// The hand-over when something goes wrong in it.
mod handover;
/// A QEMU that hangs wherever it is waited for.
mod hung;
/// Templates: malformed ones, guests started from them, and the same one back after every move.
mod template;
/// Guests that were changed since they were started: what was plugged in is repeated, or named as what cannot be.
mod hotplug;
/// What a killed engine leaves is brought to its end by `recover`.
mod recover;
/// A migration that is held on its way, and what must be true after it.
mod case;
/// What a migration has left behind, told apart from what other tests have.
mod audit;
/// Each fault at each moment, with the end that is promised.
mod fault_matrix;
/// Cases of QEMU's own tests, with this engine as the driver.
mod qemu_suite;
/// A link that carries nothing any more while both sides live.
mod dead_link;
/// What a copied command line would do to its source, and that a rewritten one does not.
mod naive_copy;
/// People and programs that meddle while a guest is moved.
mod meddling;
/// What a QEMU has from its host besides its user, and its destination has too.
mod standing;
/// Options with which QEMU runs other programs.
mod host_programs;
/// Guests with a tap, and the one that the destination gets beside it.
mod tap;
/// Policies that are only asked: while a guest is moved, and of its record afterwards.
mod shadows;
