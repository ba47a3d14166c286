//! What a tunnel carries: bytes, ends and resets, exactly.

use std::{future::pending, io, time::Duration};

use hbone::copy::{End, Meter, direct};
use sim::{Pipe, Rng, World, pipe, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    task::spawn_local,
    time::sleep,
};

/// Writes `total` bytes in pieces of random length, then ends. Returns what was written.
async fn write_all(mut to: WriteHalf<Pipe>, mut rng: Rng, total: usize) -> Vec<u8> {
    let mut written = Vec::new();
    while written.len() < total {
        let piece = rng.bytes(100_000);
        to.write_all(&piece).await.expect("the other side reads");
        written.extend_from_slice(&piece);
        if rng.below(20) == 0 {
            sleep(Duration::from_millis(rng.below(50) as u64)).await;
        }
    }
    to.shutdown().await.expect("an end");
    written
}

async fn read_all(mut from: ReadHalf<Pipe>, mut rng: Rng) -> Vec<u8> {
    let mut read = Vec::new();
    let mut buffer = vec![0; 50_000];
    loop {
        let most = rng.below(buffer.len()) + 1;
        match from.read(&mut buffer[..most]).await.expect("no reset") {
            0 => return read,
            count => read.extend_from_slice(&buffer[..count]),
        }
        if rng.below(50) == 0 {
            sleep(Duration::from_millis(rng.below(50) as u64)).await;
        }
    }
}

/// Both directions at once, each ending on its own.
async fn exchange(a: Pipe, b: Pipe, seed: u64, total: usize) {
    let ((ar, aw), (br, bw)) = (split(a), split(b));
    let there = spawn_local(write_all(aw, Rng::new(seed), total));
    let back = spawn_local(write_all(bw, Rng::new(seed + 1), total / 3));
    let (at_b, at_a) = tokio::join!(read_all(br, Rng::new(seed + 2)), read_all(ar, Rng::new(seed + 3)));
    assert!(at_b == there.await.expect("written"), "bytes differ on the way there, seed {seed}");
    assert!(at_a == back.await.expect("written"), "bytes differ on the way back, seed {seed}");
}

#[test]
fn bytes_are_exact_however_they_are_cut() {
    for seed in 0..12 {
        run(async move {
            let world = World::new().await;
            world.chop.set(Some(seed));
            let pool = world.pool();
            let mut running = Vec::new();
            for stream in 0..4 {
                let (caller, accepted) = world.pair(&pool).await;
                running.push((
                    spawn_local(exchange(caller.app, accepted.app, seed * 100 + stream * 10, 300_000)),
                    caller.end,
                    accepted.end,
                ));
            }
            for (exchange, here, there) in running {
                exchange.await.expect("exact");
                assert!(matches!(here.await.expect("an end"), End::Finished));
                assert!(matches!(there.await.expect("an end"), End::Finished));
            }
            assert_eq!(world.wires.borrow().len(), 1, "four connections share one tunnel");
        });
    }
}

#[test]
fn bulk_is_exact_and_counted() {
    run(async {
        let world = World::new().await;
        let (caller, accepted) = world.pair(&world.pool()).await;
        let meter = caller.meter.clone();
        exchange(caller.app, accepted.app, 7, 24 << 20).await;
        assert!(matches!(caller.end.await.expect("an end"), End::Finished));
        assert!(meter.sent() >= 24 << 20 && meter.received() >= 8 << 20);
    });
}

#[test]
fn direct_bytes_are_exact() {
    for seed in 0..8 {
        run(async move {
            let (near, a, _) = pipe(64 << 10, Some(seed));
            let (far, b, _) = pipe(10_000, Some(seed + 1));
            let copy = spawn_local(async move {
                let meter = Meter::new();
                let end = direct(near, far, &meter, pending(), ()).await;
                (end, meter.sent(), meter.received())
            });
            exchange(a, b, seed, 500_000).await;
            let (end, sent, received) = copy.await.expect("an end");
            assert!(matches!(end, End::Finished));
            assert!(sent >= 500_000 && received >= 166_666);
        });
    }
}

#[test]
fn a_half_closed_connection_goes_on_the_other_way() {
    for caller_first in [true, false] {
        run(async move {
            let world = World::new().await;
            let (caller, accepted) = world.pair(&world.pool()).await;
            let (mut first, mut second) =
                if caller_first { (caller.app, accepted.app) } else { (accepted.app, caller.app) };
            first.write_all(b"question").await.expect("written");
            first.shutdown().await.expect("an end");
            let mut question = Vec::new();
            second.read_to_end(&mut question).await.expect("an orderly end");
            assert_eq!(question, b"question");
            // Long after: no idle timeout ends what is carried.
            sleep(Duration::from_secs(3600)).await;
            second.write_all(b"answer").await.expect("written");
            second.shutdown().await.expect("an end");
            let mut answer = Vec::new();
            first.read_to_end(&mut answer).await.expect("an orderly end");
            assert_eq!(answer, b"answer");
            assert!(matches!(caller.end.await.expect("an end"), End::Finished));
            assert!(matches!(accepted.end.await.expect("an end"), End::Finished));
        });
    }
}

async fn expect_reset(mut app: Pipe) {
    let error = app.read(&mut [0; 10]).await.expect_err("a reset, not an end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn resets_are_carried_both_ways() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();

        let (caller, accepted) = world.pair(&pool).await;
        caller.app.reset();
        expect_reset(accepted.app).await;
        assert!(matches!(caller.end.await.expect("an end"), End::ResetByLocal));
        assert!(matches!(accepted.end.await.expect("an end"), End::ResetByRemote));

        let (caller, accepted) = world.pair(&pool).await;
        accepted.app.reset();
        expect_reset(caller.app).await;
        assert!(matches!(caller.end.await.expect("an end"), End::ResetByRemote));
        assert!(matches!(accepted.end.await.expect("an end"), End::ResetByLocal));
        assert_eq!(world.wires.borrow().len(), 1, "the tunnel outlives its streams' resets");
    });
}

#[test]
fn a_reset_after_a_half_close_is_a_reset() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        // The caller ends its direction and then throws the connection away.
        let (mut caller, accepted) = world.pair(&pool).await;
        caller.app.shutdown().await.expect("an end");
        sleep(Duration::from_millis(10)).await;
        caller.app.reset();
        assert!(matches!(caller.end.await.expect("an end"), End::ResetByLocal));
        assert!(matches!(accepted.end.await.expect("an end"), End::ResetByRemote));
        // The called app ends its direction and then throws it away while the caller is still open.
        let (caller, mut accepted) = world.pair(&pool).await;
        accepted.app.shutdown().await.expect("an end");
        sleep(Duration::from_millis(10)).await;
        accepted.app.reset();
        assert!(matches!(accepted.end.await.expect("an end"), End::ResetByLocal));
        assert!(matches!(caller.end.await.expect("an end"), End::ResetByRemote));
    });
}

#[test]
fn a_reset_passes_an_app_that_does_not_read() {
    run(async {
        let world = World::new().await;
        let (mut caller, accepted) = world.pair(&world.pool()).await;
        // More than the called app's socket holds: the copy there waits to write.
        caller.app.write_all(&vec![1; 500_000]).await.expect("the windows take it");
        sleep(Duration::from_millis(10)).await;
        caller.app.reset();
        assert!(matches!(accepted.end.await.expect("an end"), End::ResetByRemote));
    });
}

#[test]
fn a_stopped_copy_resets_both_ends() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let stop = async { sleep(Duration::from_secs(5)).await };
        let caller = world.open_with(&pool, &world.key(), &world.connect(), stop).await.expect("opened");
        let accepted = world.accepted().await;
        expect_reset(caller.app).await;
        expect_reset(accepted.app).await;
        assert!(matches!(caller.end.await.expect("an end"), End::Stopped));
    });
}

#[test]
fn a_dropped_copy_resets_both_ends() {
    run(async {
        let world = World::new().await;
        let (caller, accepted) = world.pair(&world.pool()).await;
        sleep(Duration::from_millis(1)).await;
        caller.end.abort();
        expect_reset(caller.app).await;
        expect_reset(accepted.app).await;
    });
}

#[test]
fn a_slow_reader_holds_its_writer_up_and_nobody_else() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let (mut slow, reader) = world.pair(&pool).await;
        let writing = spawn_local(async move {
            let mut written = 0u64;
            let piece = vec![7; 64 << 10];
            while tokio::time::timeout(Duration::from_secs(5), slow.app.write_all(&piece)).await.is_ok() {
                written += piece.len() as u64;
                assert!(written < 64 << 20, "a writer without a reader is never held up");
            }
            written
        });
        let written = writing.await.expect("held up");
        // A stream's window, what the two sockets and buffers hold, and no more.
        assert!(written >= 4 << 20, "the window is open: {written}");
        assert!(written < 6 << 20, "bounded: {written}");
        let (mut caller, mut accepted) = world.pair(&pool).await;
        caller.app.write_all(b"hello").await.expect("written");
        let mut hello = [0; 5];
        accepted.app.read_exact(&mut hello).await.expect("the other stream goes on");
        drop(reader);
    });
}

#[test]
fn a_tunnel_that_breaks_resets_what_it_carries() {
    run(async {
        let world = World::new().await;
        let (caller, accepted) = world.pair(&world.pool()).await;
        world.wires.borrow()[0].reset();
        expect_reset(caller.app).await;
        expect_reset(accepted.app).await;
        assert!(matches!(caller.end.await.expect("an end"), End::Failed(_)));
        assert!(matches!(accepted.end.await.expect("an end"), End::Failed(_)));
    });
}
