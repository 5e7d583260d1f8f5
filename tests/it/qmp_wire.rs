//! Bytes that come in any pieces, and bytes that are no QMP.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use qapi::qmp::query_status;
use qmigrate::qmp::wire::{Decoder, LONGEST_LINE_BYTES};
use qmigrate::qmp::{Load, Message, WireError};

use crate::scripted_peer::{ScriptedPeer, soon};

/// Whole lines, as monitors of all ages may send them.
const LINES: &[&str] = &[
    "\n",
    "{\"return\": {}, \"id\": 1}\r\n",
    "{\"return\": {\"status\": \"running\"}}\n",
    "{\"error\": {\"class\": \"GenericError\", \"desc\": \"\\u001b[2J\"}, \"id\": 1}\n",
    "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"novel\"}, \"timestamp\": {\"seconds\": -1}}\n",
    "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 18446744073709551615, \"microseconds\": 1}}\n",
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2}}, \"capabilities\": [\"oob\"]}}\n",
    "{\"error\": 5, \"event\": null}\n",
    " 5 \r\n",
    "[\"\\u00e9\"]\n",
];

/// Pieces of lines, and of what is no QMP.
const PIECES: &[&str] = &[
    "\n",
    "{",
    "}\n",
    "[[[[",
    "\"",
    "\\ud800",
    "{\"return\": ",
    "{\"error\": ",
    "{\"event\": ",
    "18446744073709551616",
    "-1e999",
    "QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ",
];

fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        12 => prop::sample::select(LINES).prop_map(|line| line.as_bytes().to_vec()),
        2 => prop::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..24),
    ];
    prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

/// What a decoder makes of `bytes` when they come in pieces of the given sizes, over and over.
fn decode(bytes: &[u8], sizes: &[usize]) -> (Vec<Message>, Option<WireError>) {
    let mut decoder = Decoder::with_limit(200);
    let mut messages = Vec::new();
    let mut sizes = sizes.iter().cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
        rest = behind;
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    assert!(messages.len() <= bytes.len(), "each message takes a byte at least");
    (messages, None)
}

/// `QMIGRATE_WIRE_CASES` sets how many inputs are tried.
#[test]
fn arbitrary_bytes_mean_the_same_however_they_are_cut() {
    let cases = std::env::var("QMIGRATE_WIRE_CASES").map_or(4096, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let sizes = prop::collection::vec(1_usize..40, 1..8);
    let counted = std::cell::Cell::new((0_u64, 0_u64));
    let outcome = TestRunner::new(config).run(&(conversation(), sizes), |(bytes, sizes)| {
        let whole = decode(&bytes, &[usize::MAX]);
        prop_assert_eq!(&decode(&bytes, &sizes), &whole);
        let (inputs, messages) = counted.get();
        counted.set((inputs + 1, messages + whole.0.len() as u64));
        Ok(())
    });
    println!("{} inputs, {} messages in them", counted.get().0, counted.get().1);
    outcome.unwrap();
}

#[test]
fn a_line_that_never_ends_is_refused_after_64_mib() {
    let mut decoder = Decoder::default();
    let piece = vec![b' '; 1 << 20];
    for _ in 0..LONGEST_LINE_BYTES / piece.len() {
        decoder.buffer().extend_from_slice(&piece);
        assert_eq!(decoder.next_message(), Ok(None));
    }
    decoder.buffer().extend_from_slice(b" ");
    assert_eq!(decoder.next_message(), Err(WireError::LineTooLong { limit_bytes: LONGEST_LINE_BYTES }));
}

/// Whatever a monitor says after its greeting, a call ends when the connection does.
#[test]
fn arbitrary_bytes_never_leave_a_caller_waiting() {
    let config = Config { cases: 256, failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = TestRunner::new(config).run(&conversation(), |bytes| {
        runtime.block_on(async {
            let (client, mut peer) = ScriptedPeer::connected().await;
            let mut events = client.events();
            let reply = client.send(&query_status {});
            peer.asked().await;
            peer.send_bytes(&bytes).await;
            drop(peer);
            let _ = soon(reply).await;
            soon(client.closed()).await;
            while soon(events.next()).await.is_ok() {}
            assert_eq!(client.load(), Load::default());
        });
        Ok(())
    });
    outcome.unwrap();
}
