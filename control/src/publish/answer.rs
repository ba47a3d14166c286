//! An answer on its way: encoded a piece at a time, while it is sent. A first answer holds the whole mesh, and
//! hundreds of nodes may ask for theirs at once; none of them costs more than a piece and a list of pointers.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    vec::IntoIter,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
#[cfg(test)]
use proto::discovery::DeltaDiscoveryResponse;
use tokio::sync::mpsc;
use tonic::Status;

use super::{
    Resource, Type,
    encode::{field_len, put_head, put_text},
};

/// A piece is sent when it has this many bytes.
const PIECE: usize = 64 * 1024;
/// Fields of `DeltaDiscoveryResponse`.
const SYSTEM_VERSION: u32 = 1;
const RESOURCES: u32 = 2;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const REMOVED: u32 = 6;

/// What a client is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) r#type: Type,
    /// For people.
    pub(super) generation: u64,
    pub(super) nonce: String,
    pub(super) resources: Vec<Arc<Resource>>,
    pub(super) removed: Vec<Arc<str>>,
}

impl Answer {
    /// As a message of its own.
    #[cfg(test)]
    pub(super) fn message(&self) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            system_version_info: self.generation.to_string(),
            resources: self.resources.iter().map(|resource| resource.on_the_wire()).collect(),
            type_url: self.r#type.url().to_owned(),
            nonce: self.nonce.clone(),
            removed_resources: self.removed.iter().map(ToString::to_string).collect(),
        }
    }

    /// Everything but the resources.
    fn head(&self) -> BytesMut {
        let mut head = BytesMut::new();
        put_text(&mut head, SYSTEM_VERSION, self.generation.to_string().as_bytes());
        put_text(&mut head, TYPE_URL, self.r#type.url().as_bytes());
        put_text(&mut head, NONCE, self.nonce.as_bytes());
        for name in &self.removed {
            put_text(&mut head, REMOVED, name.as_bytes());
        }
        head
    }
}

/// An answer that is being sent.
struct Sending {
    /// What comes before the resources that are left.
    head: BytesMut,
    left: IntoIter<Arc<Resource>>,
}

impl Sending {
    /// `None` if it is longer than a message can be.
    fn new(answer: Answer) -> Option<Self> {
        let fields = answer.head();
        let resources: usize =
            answer.resources.iter().map(|resource| field_len(RESOURCES, resource.put_len())).sum();
        let mut head = BytesMut::with_capacity(5 + fields.len() + resources.min(PIECE + PIECE / 8));
        // gRPC: not compressed, and so long.
        head.put_u8(0);
        head.put_u32(u32::try_from(fields.len() + resources).ok()?);
        head.extend_from_slice(&fields);
        Some(Self { head, left: answer.resources.into_iter() })
    }

    /// The next piece; `None` after the last.
    fn piece(&mut self) -> Option<Bytes> {
        let mut piece = std::mem::take(&mut self.head);
        while piece.len() < PIECE {
            let Some(resource) = self.left.next() else { break };
            if piece.capacity() == 0 {
                piece.reserve(PIECE + PIECE / 8);
            }
            let length = resource.put_len();
            put_head(&mut piece, RESOURCES, length);
            resource.put(&mut piece);
        }
        (!piece.is_empty()).then(|| piece.freeze())
    }
}

/// The body of a discovery stream.
pub(super) struct Answers {
    answers: mpsc::Receiver<Result<Answer, Status>>,
    sending: Option<Sending>,
    over: bool,
}

impl Answers {
    pub(super) fn new(answers: mpsc::Receiver<Result<Answer, Status>>) -> Self {
        Self { answers, sending: None, over: false }
    }

    fn end(&mut self, status: Status) -> Frame<Bytes> {
        self.over = true;
        let mut trailers = HeaderMap::new();
        // A status of which the words are no header goes without them.
        let _ = status.add_header(&mut trailers);
        Frame::trailers(trailers)
    }
}

impl http_body::Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if self.over {
                return Poll::Ready(None);
            }
            if let Some(piece) = self.sending.as_mut().and_then(Sending::piece) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.sending = None;
            let frame = match ready!(self.answers.poll_recv(cx)) {
                Some(Ok(answer)) => match Sending::new(answer) {
                    Some(sending) => {
                        self.sending = Some(sending);
                        continue;
                    }
                    None => self.end(Status::resource_exhausted("the mesh is larger than a message may be")),
                },
                Some(Err(status)) => self.end(status),
                None => self.end(Status::ok("")),
            };
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use mesh::Workload;
    use prost::Message;

    use super::*;
    use crate::publish::encode;

    #[tokio::test]
    async fn pieces_make_the_message() {
        let workload = |number: usize| {
            let name = format!("c//Pod/a/{number}");
            Arc::new(encode::workload(
                &Workload::named(name, "a", number.to_string()),
                &mut Default::default(),
            ))
        };
        for count in [0, 1, 5000] {
            let answer = Answer {
                r#type: Type::Address,
                generation: 7,
                nonce: "3".to_owned(),
                resources: (0..count).map(workload).collect(),
                removed: vec!["gone".into(), "lost".into()],
            };
            let message = answer.message();
            let (sender, receiver) = mpsc::channel(2);
            sender.send(Ok(answer)).await.unwrap();
            sender.send(Err(Status::aborted("enough"))).await.unwrap();
            let mut body = Answers::new(receiver);
            let (mut bytes, mut pieces, mut trailers) = (BytesMut::new(), 0, None);
            while let Some(frame) = body.frame().await {
                match frame.unwrap().into_data() {
                    Ok(piece) => {
                        assert!(piece.len() < 2 * PIECE);
                        bytes.extend_from_slice(&piece);
                        pieces += 1;
                    }
                    Err(frame) => trailers = frame.into_trailers().ok(),
                }
            }
            assert_eq!(bytes[..5], [&[0][..], &(message.encoded_len() as u32).to_be_bytes()].concat());
            assert_eq!(DeltaDiscoveryResponse::decode(&bytes[5..]).unwrap(), message);
            assert_eq!(pieces > 1, count == 5000);
            assert_eq!(trailers.unwrap()["grpc-status"], "10");
        }
    }
}
