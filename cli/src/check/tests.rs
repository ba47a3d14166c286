//! Each check: objects in, findings out.
