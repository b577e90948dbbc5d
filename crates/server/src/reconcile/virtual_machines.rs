//! Finds virtual machines again after a restart, and notices when one has ended.
