//! The bytes in which one ztunnel hands its keys and certificates to the next.
