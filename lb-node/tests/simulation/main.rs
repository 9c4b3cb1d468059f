//! Whole clusters under a clock that is ours: real leaders, followers, probes' schedules and tables, on a store in this
//! process that fails on command.

mod smoke;
mod world;
