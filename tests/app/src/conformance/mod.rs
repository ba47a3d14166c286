//! A stand-in for `echo-advanced`, the image that the Gateway API's mesh conformance suite makes its pods of: a server
//! that tells what reached it, and a client that is run inside a pod and prints what it was told. Both write the lines
//! that the suite reads (`utils/echo/parse.go`), as Istio's echo, which the image holds, does.

use std::{fmt::Display, fmt::Write as _, fs};

pub(crate) mod client;
pub(crate) mod server;
mod tls;

/// The one method of gRPC.
const ECHO: &str = "/proto.EchoTestService/Echo";
/// Before each message of gRPC: not compressed, and its length.
const PREFIX: usize = 5;

/// What is asked and answered by gRPC.
#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    message: String,
}

impl Text {
    /// As it is sent.
    fn framed(&self) -> Vec<u8> {
        use prost::Message as _;
        let message = self.encode_to_vec();
        let mut framed = vec![0];
        framed.extend((message.len() as u32).to_be_bytes());
        framed.extend(message);
        framed
    }

    /// The first message of a body.
    fn read(body: &[u8]) -> Option<Self> {
        use prost::Message as _;
        let (prefix, rest) = body.split_at_checked(PREFIX)?;
        let length = u32::from_be_bytes(prefix[1..].try_into().ok()?) as usize;
        (prefix[0] == 0).then(|| Self::decode(rest.get(..length)?).ok()).flatten()
    }
}

/// One line, `Name=value`.
fn field(lines: &mut String, name: &str, value: impl Display) {
    // Writing to a string does not fail.
    _ = writeln!(lines, "{name}={value}");
}

/// The pod's name, as its own kernel has it.
fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_framed() {
        let text = Text { message: "Hostname=echo-v1-abc-1\n".to_owned() };
        let framed = text.framed();
        assert_eq!(framed[..7], [0, 0, 0, 0, 25, 10, 23]);
        assert_eq!(Text::read(&framed), Some(text));
        assert_eq!(Text::read(&framed[..20]), None);
        assert_eq!(Text::read(&[]), None);
    }
}
