//! The engine: how components are compiled, where they run, and what bounds all calls together.

use std::thread;

use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Strategy};

use super::limits::{Bounds, TICK};

const MEMORIES: u32 = 2;
const TABLES: u32 = 6;

/// Builds the engine and starts its clock, which ends with it.
///
/// # Errors
/// If the machine cannot reserve the address space.
pub fn build(bounds: &Bounds) -> wasmtime::Result<Engine> {
    let engine = Engine::new(&config(bounds))?;
    let weak = engine.weak();
    thread::Builder::new().name("kaizen-epoch".into()).spawn(move || {
        while let Some(engine) = weak.upgrade() {
            engine.increment_epoch();
            drop(engine);
            thread::sleep(TICK);
        }
    })?;
    Ok(engine)
}

/// An engine that compiles for [`build`]'s and runs nothing.
///
/// # Errors
/// If this machine is not supported.
pub(super) fn for_compiling() -> wasmtime::Result<Engine> {
    let mut config = config(&Bounds::default());
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    Engine::new(&config)
}

fn config(bounds: &Bounds) -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .memory_init_cow(true)
        .max_wasm_stack(bounds.stack_bytes)
        // What the host needs on top, in functions that the guest calls.
        .async_stack_size(bounds.stack_bytes + (1 << 20))
        .wasm_component_model(true)
        .wasm_threads(false)
        .wasm_memory64(false)
        .relaxed_simd_deterministic(true)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(bounds)));
    config
}

fn pool(bounds: &Bounds) -> PoolingAllocationConfig {
    let calls = bounds.calls;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(calls)
        .total_core_instances(calls * bounds.instances)
        .total_memories(calls * MEMORIES)
        .total_tables(calls * TABLES)
        .total_stacks(calls)
        .total_gc_heaps(0)
        .max_core_instances_per_component(bounds.instances)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        .max_component_instance_size(1 << 20)
        .max_core_instance_size(1 << 20)
        .max_memory_size(bounds.call.memory_bytes)
        .table_elements(bounds.call.table_elements)
        .max_unused_warm_slots(calls)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(16 << 10)
        .async_stack_keep_resident(32 << 10);
    pool
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    use super::*;

    #[test]
    fn what_is_compiled_elsewhere_runs_here_whatever_the_settings() {
        let hash = |engine: Engine| {
            let mut hasher = DefaultHasher::new();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        let mut small = Bounds { stack_bytes: 64 << 10, instances: 2, calls: 1, ..Bounds::default() };
        small.call.memory_bytes = 2 << 20;
        let compiling = hash(for_compiling().unwrap());
        assert_eq!(compiling, hash(build(&Bounds::default()).unwrap()));
        assert_eq!(compiling, hash(build(&small).unwrap()));
    }
}
