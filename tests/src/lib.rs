//! Shared code of Torpor's tests: the oracle, tiers that fail or step in, real object stores and a proxy before them,
//! small stores, and the binary under test.

pub mod conformance;
pub mod durability_order;
pub mod fault;
pub mod gc_fixture;
pub mod golden;
pub mod golden_domains;
pub mod hold;
pub mod hosts;
pub mod interleaving;
pub mod model;
pub mod power_disk;
pub mod proxy;
pub mod scenario;
pub mod scripted_fuse;
pub mod servers;
pub mod sim_disk;
pub mod snapctl;
pub mod snapfs_mount;
pub mod snapfs_tree;
pub mod tenants;
pub mod vmm;

/// Whether there is time for more rounds: `cargo xtask test --long`.
pub fn is_long() -> bool {
    std::env::var_os("TORPOR_LONG").is_some_and(|value| value == "1")
}
