//! One CONNECT stream: two directions of bytes within a tunnel.

/// One CONNECT stream. Dropping it before both directions have ended resets it (CANCEL), which the
/// other end carries on as a TCP reset.
pub struct Tunnel {
    _private: (),
}

impl Tunnel {
    /// Resets both directions now.
    pub fn reset(self) {
        panic!("stub")
    }
}
