//! The handshake, by rustls' unbuffered connections, up to the moment when the keys are ours.

use std::ops::DerefMut;

use rustls::{
    ClientConfig, ExtractedSecrets, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    kernel::KernelConnection,
    pki_types::{CertificateDer, ServerName},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedConnectionCommon, UnbufferedStatus},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Fault, Stream, stream::Rekey};
use crate::transport::Link;

/// Most bytes of handshake messages from the peer that wait to be complete: 64 KiB.
const MAX_FLIGHT: usize = 64 << 10;

/// What a handshake gives.
pub(crate) struct Handshaken<L> {
    pub(crate) stream: Stream<L>,
    /// Leaf first, verified.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// The client's handshake. The name is never sent; the configuration's verifier knows whom to expect.
pub(crate) async fn connect<L: Link>(
    link: L,
    config: std::sync::Arc<ClientConfig>,
    peer: std::net::IpAddr,
) -> Result<Handshaken<L>, Fault> {
    let name = ServerName::IpAddress(peer.into());
    handshake(link, UnbufferedClientConnection::new(config, name)?).await
}

/// The server's handshake.
pub(crate) async fn accept<L: Link>(
    link: L,
    config: std::sync::Arc<ServerConfig>,
) -> Result<Handshaken<L>, Fault> {
    handshake(link, UnbufferedServerConnection::new(config)?).await
}

/// Client and server, as far as a handshake can tell them apart.
trait Side: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> {
    type Data: 'static;
    fn step<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn finish(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), rustls::Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn step<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }
    fn finish(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), rustls::Error> {
        self.dangerous_into_kernel_connection()
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn step<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }
    fn finish(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), rustls::Error> {
        self.dangerous_into_kernel_connection()
    }
}

/// What the next step of a handshake needs from the socket.
enum Need {
    Again,
    Send,
    Receive,
    Done,
}

async fn handshake<L: Link, S: Side>(mut link: L, mut side: S) -> Result<Handshaken<L>, Fault>
where
    KernelConnection<S::Data>: Rekey,
{
    let mut input: Vec<u8> = Vec::with_capacity(4096);
    let mut output: Vec<u8> = Vec::new();
    let mut early: Vec<u8> = Vec::new();
    loop {
        match step(&mut side, &mut input, &mut output, &mut early) {
            Ok(Need::Again) => {}
            Ok(Need::Send) => {
                link.write_all(&output).await?;
                link.flush().await?;
                output.clear();
            }
            Ok(Need::Done) if !side.is_handshaking() => break,
            Ok(Need::Receive | Need::Done) => {
                if input.len() > MAX_FLIGHT {
                    return Err(Fault::Record("a handshake flight of more than 64 KiB"));
                }
                if link.read_buf(&mut input).await? == 0 {
                    return Err(Fault::Closed);
                }
            }
            Err(fault) => {
                if matches!(fault, Fault::Tls(_)) {
                    last_words(&mut link, &mut side, &mut input).await;
                }
                return Err(fault);
            }
        }
    }
    let chain = side.peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
    let (secrets, kernel) = side.finish()?;
    Ok(Handshaken { stream: Stream::new(link, secrets, Box::new(kernel), early, &input)?, chain })
}

/// One step of rustls: consumes input, appends output, collects bytes that came early.
fn step<S: Side>(
    side: &mut S,
    input: &mut Vec<u8>,
    output: &mut Vec<u8>,
    early: &mut Vec<u8>,
) -> Result<Need, Fault> {
    let UnbufferedStatus { mut discard, state } = side.step(input);
    let need = match state {
        Ok(ConnectionState::EncodeTlsData(mut flight)) => {
            encode(&mut flight, output);
            Ok(Need::Again)
        }
        Ok(ConnectionState::TransmitTlsData(flight)) => {
            // It is sent before the next step, or the handshake fails altogether.
            flight.done();
            Ok(Need::Send)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Need::Receive),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Need::Done),
        Ok(ConnectionState::ReadTraffic(mut records)) => loop {
            match records.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    early.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(Need::Again),
            }
        },
        // No early data is offered or accepted; a peer that closes now does not want a tunnel.
        Ok(_) => Err(Fault::Closed),
        Err(error) => Err(error.into()),
    };
    // Also after an error: rustls remembers where in the input it stands.
    input.drain(..discard);
    need
}

fn encode<D>(flight: &mut EncodeTlsData<'_, D>, output: &mut Vec<u8>) {
    let start = output.len();
    output.resize(start + 1024, 0);
    let written = loop {
        match flight.encode(&mut output[start..]) {
            Ok(written) => break written,
            Err(EncodeError::InsufficientSize(size)) => output.resize(start + size.required_size, 0),
            Err(EncodeError::AlreadyEncoded) => break 0,
        }
    };
    output.truncate(start + written);
}

/// Tells the peer why, as far as it still listens: the alert is what rustls wants sent next. It is
/// asked only once; it would stumble over the same input again.
async fn last_words<L: Link, S: Side>(link: &mut L, side: &mut S, input: &mut Vec<u8>) {
    let mut output = Vec::new();
    let _ = step(side, input, &mut output, &mut Vec::new());
    let _ = link.write_all(&output).await;
    let _ = link.shutdown().await;
}
