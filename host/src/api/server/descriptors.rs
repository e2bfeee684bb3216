//! File descriptors: as many as the system grants, and connections only as many as those leave room for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::limits::ServerLimits;

/// Raises the soft limit of open files to the hard one (`RLIMIT_NOFILE`, getrlimit(2)), and returns it. Shells and service
/// managers leave the soft limit at 1024 for the sake of `select`, which nothing here uses.
pub fn raise() -> u64 {
    // macOS takes no more than this where it says that there is no limit.
    const UNLIMITED: u64 = 10_240;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(UNLIMITED);
    let current = limit.current.unwrap_or(most);
    if current >= most {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum }) {
        Ok(()) => most,
        Err(error) => {
            tracing::warn!(%error, current, most, "the limit of open files could not be raised");
            current
        }
    }
}

/// Connections to the API that this many file descriptors leave room for, once the database, the plugins' connections, the
/// operators' listener, files and those being turned away have theirs.
pub fn connections(limits: &ServerLimits, descriptors: u64) -> usize {
    /// Files, logs, Redis, sign-in at providers, and what libraries hold.
    const OTHERS: u64 = 256;
    let taken = OTHERS
        + u64::from(limits.database_connections)
        + 2 * u64::from(limits.plugin_calls)
        + u64::from(limits.ops_connections) * 9 / 8
        + super::SHEDDING as u64;
    // While some are being closed to make room, there is an eighth more for a moment.
    let room = descriptors.saturating_sub(taken) * 8 / 9;
    usize::try_from(room.min(limits.connections.into()).max(16)).unwrap_or(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        let limits = ServerLimits::default();
        assert_eq!(connections(&limits, 1_048_576), 10_000, "the setting");
        let few = connections(&limits, 1024);
        assert!((300..700).contains(&few), "{few}");
        assert!(few * 9 / 8 + 20 + 2 * 64 + 72 + 64 + 256 <= 1024, "{few}");
        assert_eq!(connections(&limits, 64), 16, "never none");
    }
}
