//! A node that stands alone, its reals and its clients; the front; and the lab that all of it runs in.

mod fault;
mod forwarding;
mod front;
mod health;
mod lab;
mod mtu;
mod operation;
mod restart;
mod service;
mod table;
