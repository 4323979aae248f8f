//! sqlx pools and migrations.
