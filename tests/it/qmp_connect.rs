//! Every way to connect to a monitor, and every way in which that fails.

use std::os::unix::net::UnixListener as StdUnixListener;
use std::time::Duration;

use qapi::qmp::query_status;
use qmigrate::qmp::{Address, Client, ConnectError, Deadlines, Leg, WireError};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};

use crate::scripted_peer::{ScriptedPeer, soon};

/// How connecting to `address` fails, and how long that may take.
async fn failure(address: &Address, milliseconds: u64) -> ConnectError {
    let deadlines = Deadlines { connect: Duration::from_millis(milliseconds) };
    soon(Client::connect(address, Leg::Destination, deadlines)).await.expect_err("no connection")
}

/// How connecting fails to a listener that says `bytes` to its first client and then does nothing, or closes.
async fn failure_after(bytes: &[u8], close: bool, milliseconds: u64) -> ConnectError {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let address = Address::unix(path).unwrap();
    let (error, _stream) = tokio::join!(failure(&address, milliseconds), async {
        let (mut stream, _) = soon(listener.accept()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        (!close).then_some(stream)
    });
    error
}

#[tokio::test]
async fn each_way_not_to_connect_has_its_own_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    let address = Address::unix(&path).unwrap();
    let error = failure(&address, 5000).await;
    assert!(matches!(error, ConnectError::NotFound { .. }), "{error}");
    assert_eq!(error.to_string(), format!("the destination at {address}: there is no such socket"));
    drop(StdUnixListener::bind(&path).unwrap());
    let error = failure(&address, 5000).await;
    assert!(matches!(error, ConnectError::NobodyListens { .. }), "{error}");

    let human = b"QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ";
    let error = failure_after(human, false, 5000).await;
    assert!(matches!(error, ConnectError::HumanMonitor { .. }), "{error}");
    let error = failure_after(b"SSH-2.0-OpenSSH_9.2\r\n", false, 5000).await;
    assert!(matches!(error, ConnectError::NotQmp { cause: WireError::NotQmp { .. }, .. }), "{error}");
    for strange in [&b"{\"return\": {}}\n"[..], b"{\"QMP\": {}}\n", b"5\n"] {
        let error = failure_after(strange, false, 5000).await;
        assert!(matches!(error, ConnectError::NotQmp { cause: WireError::NoGreeting { .. }, .. }), "{error}");
    }
    let error = failure_after(b"{\"QMP\"", true, 5000).await;
    assert!(matches!(error, ConnectError::ClosedBeforeGreeting { .. }), "{error}");
}

#[tokio::test]
async fn who_holds_a_silent_monitor_is_named_by_pid() {
    let error = failure_after(b"", false, 200).await;
    let this = i32::try_from(std::process::id()).unwrap();
    assert!(matches!(error, ConnectError::NoGreeting { pid: Some(pid), .. } if pid == this), "{error}");
    assert!(
        error.to_string().contains(&format!("connected to process {this}, but no greeting came")),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_greets_and_then_stands_still_is_a_timeout() {
    let (stream, mut peer) = ScriptedPeer::pair();
    peer.send(&json!({"QMP": {"version": {"qemu": {"major": 5, "minor": 2, "micro": 0}}}})).await;
    let error = soon(Client::over(stream, Leg::Source, Deadlines::default(), None)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { what: "negotiation", .. }), "{error}");
    assert_eq!(error.to_string(), "the source: negotiation took longer than 5 s");
}

#[tokio::test]
async fn an_event_that_comes_before_the_greeting_is_no_greeting() {
    let (stream, mut peer) = ScriptedPeer::pair();
    let early = json!({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}});
    peer.send(&early).await;
    peer.send(&early).await;
    let (client, ()) = soon(async {
        tokio::join!(Client::over(stream, Leg::Source, Deadlines::default(), None), peer.greet(&["oob"]))
    })
    .await;
    assert!(client.unwrap().supports_out_of_band());
    let error = failure_after(b"{\"event\": \"STOP\"}\r\n", true, 5000).await;
    assert!(matches!(error, ConnectError::ClosedBeforeGreeting { .. }), "{error}");
}

#[tokio::test]
async fn a_monitor_that_refuses_to_negotiate_is_quoted() {
    let bytes = b"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 5, \"minor\": 2, \"micro\": 0}}}}\n\
        {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u0007\"}}\n";
    let error = failure_after(bytes, false, 5000).await;
    let ConnectError::NegotiationRefused { desc, .. } = error else { panic!("{error}") };
    assert_eq!(desc, r"no\u{7}");
}

/// A full queue of waiting clients makes a connect fail at once with EAGAIN, instead of letting it wait.
#[tokio::test]
async fn a_monitor_with_a_full_queue_is_waited_for() {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let listening = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&listening), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&listening, Backlog::new(1).unwrap()).unwrap();
    let waiting: Vec<_> = (0..2).map(|_| std::os::unix::net::UnixStream::connect(&path).unwrap()).collect();
    let address = Address::unix(&path).unwrap();
    let error = failure(&address, 200).await;
    assert!(matches!(error, ConnectError::NoGreeting { pid: None, .. }), "{error}");
    // A second attempt works as soon as the others are gone.
    let listener = UnixListener::from_std(StdUnixListener::from(listening)).unwrap();
    let deadlines = Deadlines { connect: Duration::from_secs(20) };
    let (client, ()) = soon(async {
        tokio::join!(Client::connect(&address, Leg::Source, deadlines), async {
            drop(waiting);
            for _ in 0..2 {
                listener.accept().await.unwrap();
            }
            let (stream, _) = listener.accept().await.unwrap();
            ScriptedPeer::over(stream).greet(&[]).await;
        })
    })
    .await;
    assert_eq!(client.unwrap().peer_pid(), i32::try_from(std::process::id()).ok());
}

#[tokio::test]
async fn a_monitor_on_tcp_is_talked_to_as_well() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Address = format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap();
    let (client, mut peer) = soon(async {
        tokio::join!(Client::connect(&address, Leg::Source, Deadlines::default()), async {
            let mut peer = ScriptedPeer::over(listener.accept().await.unwrap().0);
            peer.greet(&["oob"]).await;
            peer
        })
    })
    .await;
    let client = client.unwrap();
    assert_eq!(
        (client.peer_pid(), client.greeting().version.to_string()),
        (None, "10.0.2 (scripted)".to_owned())
    );
    let reply = client.send(&query_status {});
    let asked = peer.asked().await;
    peer.answer(&asked, json!(1)).await;
    assert_eq!(soon(reply).await.unwrap(), json!(1));
    drop(listener);
    let error = failure(&address, 5000).await;
    assert!(matches!(error, ConnectError::NobodyListens { .. }), "{error}");
}
