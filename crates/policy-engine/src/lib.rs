//! Policy without I/O.
