//! What both ends say in their SETTINGS, and the timeouts around a tunnel. Sizes in bytes.

use std::time::Duration;

/// The shape of every tunnel of this process. The defaults are those that peers expect.
#[derive(Debug, Clone)]
pub struct Settings {
    /// INITIAL_WINDOW_SIZE of a stream: 4 MiB.
    pub stream_window: u32,
    /// Receive window of a whole tunnel: 16 MiB.
    pub connection_window: u32,
    /// MAX_FRAME_SIZE: 1 MiB.
    pub max_frame: u32,
    /// MAX_HEADER_LIST_SIZE that a client announces: 16 KiB.
    pub client_header_list: u32,
    /// MAX_HEADER_LIST_SIZE that a server announces: 64 KiB.
    pub server_header_list: u32,
    /// Most streams in one tunnel, announced by the server and kept to by the client even where the
    /// peer would take more: 200.
    pub max_streams: u32,
    /// Bytes one stream may have queued before its socket is read no further: 512 KiB.
    pub send_buffer: usize,
    /// A PING is sent this often: 10 s; sooner where something has moved and nothing has come back.
    pub ping_every: Duration,
    /// …and must be answered within: 20 s.
    pub ping_timeout: Duration,
    /// TCP dial: 10 s.
    pub dial_timeout: Duration,
    /// TLS handshake, both sides: 10 s.
    pub handshake_timeout: Duration,
    /// From the CONNECT to its answer; the peer dials its app in between: 20 s.
    pub connect_timeout: Duration,
    /// A tunnel without streams is closed after: client 60 s, server 5 min.
    pub client_idle: Duration,
    pub server_idle: Duration,
    /// Most tunnels of one key; beyond them an open fails. 512.
    pub max_tunnels: usize,
    /// Most tunnels of one key that are made only to get out of the way of bulk streams: 4.
    pub max_bulk_tunnels: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_frame: 1 << 20,
            client_header_list: 16 << 10,
            server_header_list: 64 << 10,
            max_streams: 200,
            send_buffer: 512 << 10,
            ping_every: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            dial_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(20),
            client_idle: Duration::from_secs(60),
            server_idle: Duration::from_secs(300),
            max_tunnels: 512,
            max_bulk_tunnels: 4,
        }
    }
}
