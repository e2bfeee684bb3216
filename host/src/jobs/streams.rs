//! How many event streams are open: bounded for the host and for each user.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::domain::id::UserId;

/// Streams that a host holds open at once.
const EACH_HOST: usize = 1000;
/// Streams that one user holds open at once.
const EACH_USER: usize = 20;

/// Counts open streams. Cheap to clone.
#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<std::collections::HashMap<UserId, usize>>>);

/// One open stream; dropping it makes room for another.
pub struct Stream {
    streams: Streams,
    user: UserId,
}

impl Streams {
    /// Room for one more, if there is.
    pub fn open(&self, user: UserId) -> Option<Stream> {
        let mut open = self.0.lock();
        let (all, own) = (open.values().sum::<usize>(), open.get(&user).copied().unwrap_or(0));
        if all >= EACH_HOST || own >= EACH_USER {
            return None;
        }
        open.insert(user, own + 1);
        Some(Stream { streams: self.clone(), user })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock();
        match open.get_mut(&self.user) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.remove(&self.user)),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn one_user_cannot_take_all_streams_and_closing_makes_room() {
        let streams = Streams::default();
        let (ada, ben) = (UserId(Uuid::from_u128(1)), UserId(Uuid::from_u128(2)));
        let mut held: Vec<Stream> = (0..EACH_USER).map(|_| streams.open(ada).expect("room")).collect();
        assert!(streams.open(ada).is_none());
        assert!(streams.open(ben).is_some());
        held.pop();
        assert!(streams.open(ada).is_some());
        drop(held);
        assert!(streams.0.lock().is_empty());
    }

    #[test]
    fn the_host_holds_a_bounded_number() {
        let streams = Streams::default();
        let held: Vec<Stream> =
            (0..EACH_HOST as u128).map(|n| streams.open(UserId(Uuid::from_u128(n))).expect("room")).collect();
        assert!(streams.open(UserId(Uuid::max())).is_none());
        drop(held);
        assert!(streams.open(UserId(Uuid::max())).is_some());
    }
}
