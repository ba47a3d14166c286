//! Whom a caller asks for in TLS: the first message of the handshake, as rustls reads it. Nothing is answered.

use rustls::server::Acceptor;

/// The longest beginning that is waited for, in bytes: a message is 64 KiB at most, in records of their own heads.
const MOST: usize = 72 << 10;

/// Why there is no such message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoHello {
    #[error("what the caller has begun with is no ClientHello: {0}")]
    Other(String),
    #[error("the caller ended before its ClientHello did")]
    Ended,
    #[error("the caller did not say its ClientHello in time")]
    Silent,
}

/// The message on its way.
#[derive(Default)]
pub(crate) struct Hello {
    acceptor: Acceptor,
    read: usize,
}

impl Hello {
    /// Takes what comes next. Once the message is whole: the name of the server, in lower case, where there is one.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<Option<Option<String>>, NoHello> {
        let other = |reason: String| NoHello::Other(reason);
        self.read += bytes.len();
        if self.read > MOST {
            return Err(other(format!("it is longer than {MOST} bytes")));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            self.acceptor.read_tls(&mut rest).map_err(|error| other(error.to_string()))?;
            match self.acceptor.accept() {
                Ok(Some(accepted)) => {
                    let server = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                    return Ok(Some(server));
                }
                Ok(None) => {}
                // The alert is not for us to send: no server has been asked yet.
                Err((error, _)) => return Err(other(error.to_string())),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs::default_provider,
        pki_types::ServerName,
    };

    use super::*;

    /// What a client begins with.
    fn hello(server: &str, protocols: usize) -> Vec<u8> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = vec![vec![b'x'; 200]; protocols];
        let server = ServerName::try_from(server.to_owned()).unwrap();
        let mut bytes = Vec::new();
        let mut client = ClientConnection::new(Arc::new(config), server).unwrap();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Option<Option<String>>, NoHello> {
        let mut hello = Hello::default();
        for piece in bytes.chunks(piece) {
            if let Some(found) = hello.read(piece)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    #[test]
    fn the_server_is_told_in_however_many_pieces_the_message_comes() {
        // The long one takes several records.
        for (server, protocols, name) in [
            ("a.example.com", 0, Some("a.example.com")),
            ("a.example.com", 200, Some("a.example.com")),
            ("10.0.0.1", 0, None),
        ] {
            let bytes = hello(server, protocols);
            for piece in [1, 7, 1000, bytes.len()] {
                let found = read(&bytes, piece).unwrap().expect("it is whole");
                assert_eq!(found.as_deref(), name, "{server} {protocols} {piece}");
            }
            assert!(read(&bytes[..bytes.len() - 1], 100).unwrap().is_none(), "it is not whole");
        }
    }

    #[test]
    fn what_is_no_hello_is_told_and_nothing_is_waited_for_without_end() {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x00\x05\x02\0\0\0\0", &[0; 100]] {
            assert!(read(bytes, 3).is_err(), "{bytes:?}");
        }
        // Of a message that claims to be as long as can be.
        let endless = [&b"\x16\x03\x01\x40\x00\x01\x00\xff\xff"[..], &[0; 16380]].concat();
        let record = [&b"\x16\x03\x01\x40\x00"[..], &[0; 16384]].concat();
        let said = [endless, record.repeat(8)].concat();
        assert!(read(&said, 1000).is_err());
    }
}
