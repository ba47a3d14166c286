//! A tunnel's stream that is read and written as a socket is.

use hbone::copy::End;
use sim::{Rng, World, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    task::spawn_local,
};

#[test]
fn bytes_are_exact_both_ways_and_each_direction_ends_on_its_own() {
    for seed in 0..8 {
        run(async move {
            let world = World::new().await;
            world.chop.set(Some(seed));
            let (stream, accepted) = world.stream(&world.pool()).await;
            let (mut from_here, mut to_there) = split(stream);
            let (mut from_there, mut to_here) = split(accepted.app);
            let bytes = |seed, most: usize| {
                let mut rng = Rng::new(seed);
                (0..most).map(|_| rng.draw() as u8).collect::<Vec<u8>>()
            };
            let (there, back) = (bytes(seed, 300_000), bytes(seed + 50, 100_000));
            let (sent, returned) = (there.clone(), back.clone());
            let writing = spawn_local(async move {
                for piece in sent.chunks(7001) {
                    to_there.write_all(piece).await.expect("the other side reads");
                }
                to_there.shutdown().await.expect("an end");
            });
            let mut got = Vec::new();
            from_there.read_to_end(&mut got).await.expect("no reset");
            assert!(got == there, "bytes differ on the way there, seed {seed}");
            // The other direction is open still.
            let answering = spawn_local(async move {
                to_here.write_all(&returned).await.expect("the other side reads");
                to_here.shutdown().await.expect("an end");
            });
            let mut got = Vec::new();
            from_here.read_to_end(&mut got).await.expect("no reset");
            assert!(got == back, "bytes differ on the way back, seed {seed}");
            writing.await.expect("written");
            answering.await.expect("answered");
            assert!(matches!(accepted.end.await.expect("an end"), End::Finished));
        });
    }
}

#[test]
fn what_is_dropped_before_both_have_ended_is_reset() {
    run(async {
        let world = World::new().await;
        let (mut stream, accepted) = world.stream(&world.pool()).await;
        stream.write_all(b"half a request").await.expect("written");
        drop(stream);
        assert!(matches!(accepted.end.await.expect("an end"), End::ResetByRemote));
    });
}

#[test]
fn a_reset_of_the_other_end_is_an_error_and_no_end() {
    run(async {
        let world = World::new().await;
        let (mut stream, accepted) = world.stream(&world.pool()).await;
        accepted.app.reset();
        let mut byte = [0];
        let error = stream.read(&mut byte).await.expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}
