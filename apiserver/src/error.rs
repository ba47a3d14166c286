//! Why a request came to nothing.

use crate::ANSWER;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the API server refuses ({code}): {message}{}", advice(*code))]
    Refused { code: u16, message: String },
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the API server does not answer within {ANSWER:?}")]
    Silent,
    #[error("the answer of the API server makes no sense: {0}")]
    Nonsense(String),
}

fn advice(code: u16) -> &'static str {
    match code {
        401 => "; is the caller's token there, and still valid?",
        403 => "; give the caller this right (control's are in docs/kubernetes-control.md)",
        _ => "",
    }
}

impl ApiError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unreachable(_) | Self::Silent | Self::Nonsense(_) => None,
        }
    }

    /// The caller may not (403).
    pub fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// There is no such thing (404).
    pub fn is_absent(&self) -> bool {
        self.code() == Some(404)
    }

    /// Somebody else was first, or owns what was to be written (409).
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// What was asked from is too long ago (410).
    pub fn is_gone(&self) -> bool {
        self.code() == Some(410)
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let message = if status.message.is_empty() { &status.reason } else { &status.message };
                Self::Refused { code: status.code, message: message.clone() }
            }
            kube::Error::SerdeError(error) => Self::Nonsense(error.to_string()),
            other => Self::Unreachable(chain(&other)),
        }
    }
}

/// An error with all that caused it: kube's own text ends where it gets interesting.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
