//! TLS under a tunnel: rustls makes the handshake, then its keys seal and open records here, in
//! place, in our own buffers.
//!
//! rustls' own stream reads 4 KiB at a time and copies each byte twice more; a tunnel is bulk. What
//! is done here is what kernel TLS does with the same keys ([`rustls::kernel`]): the record layer of
//! RFC 8446 section 5, key updates (4.6.3), alerts (6). Handshakes, certificates and key schedules
//! stay with rustls.

mod handshake;
mod input;
mod output;
mod record;
mod stream;

pub(crate) use handshake::{accept, connect};
pub(crate) use stream::Stream;

use std::{io, rc::Rc};

use rustls::AlertDescription;

/// How TLS failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{0}")]
    Io(Rc<io::Error>),
    #[error("the connection was closed in the handshake")]
    Closed,
    /// The peer told us off.
    #[error("the peer sent the alert {0:?}")]
    Alert(AlertDescription),
    /// The peer (or its certificate) is not as it should be.
    #[error("{0}")]
    Tls(Rc<rustls::Error>),
    #[error("the peer broke the record layer: {0}")]
    Record(&'static str),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(Rc::new(error))
    }
}

impl From<rustls::Error> for Fault {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(alert) => Self::Alert(alert),
            error => Self::Tls(Rc::new(error)),
        }
    }
}

impl Fault {
    /// What to tell the peer of it: nothing where the peer spoke last or is gone.
    fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Tls(error) if matches!(**error, rustls::Error::DecryptError) => {
                Some(AlertDescription::BadRecordMac)
            }
            Self::Record(_) => Some(AlertDescription::UnexpectedMessage),
            Self::Io(_) | Self::Closed | Self::Alert(_) | Self::Tls(_) => None,
        }
    }

    /// The socket failed, not TLS.
    pub(crate) fn is_io(&self) -> bool {
        matches!(self, Self::Io(_))
    }

    /// Whether the peer says that it is our certificate it does not want (RFC 8446 section 6.2).
    pub(crate) fn rejects_our_certificate(&self) -> bool {
        use AlertDescription as A;
        matches!(
            self,
            Self::Alert(
                A::BadCertificate
                    | A::UnsupportedCertificate
                    | A::CertificateRevoked
                    | A::CertificateExpired
                    | A::CertificateUnknown
                    | A::UnknownCA
                    | A::AccessDenied
                    | A::CertificateRequired
                    | A::DecryptError
            )
        )
    }
}
