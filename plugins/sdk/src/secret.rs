//! Secrets: used by name, seen only where that was granted.

use std::fmt;

use crate::{Error, Result};

/// One of the connection's secrets, by the name of its [`SecretSlot`](crate::SecretSlot).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secret {
    name: &'static str,
}

impl Secret {
    /// The access token of the sign-in under way, in [`IdentityProvider::identify`](crate::IdentityProvider::identify).
    pub const ACCESS_TOKEN: Self = Self::named("access-token");

    /// The secret with this name.
    pub const fn named(name: &'static str) -> Self {
        Self { name }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// What stands for the secret in a request header: `{{secret:NAME}}`. The server replaces it on the way out. In a
    /// URL or a body it is refused.
    pub fn placeholder(self) -> String {
        format!("{{{{secret:{}}}}}", self.name)
    }

    /// The value of an `Authorization` header (RFC 6750): `Bearer {{secret:NAME}}`.
    pub fn bearer(self) -> String {
        format!("Bearer {}", self.placeholder())
    }

    /// The secret itself, for a plugin granted [`Capability::RevealSecret`](crate::Capability::RevealSecret).
    ///
    /// # Errors
    /// [`Error::Config`] if it was not granted or not supplied, saying which.
    pub fn reveal(self) -> Result<Revealed> {
        #[cfg(target_os = "wasi")]
        let value = crate::bindings::shared::kaizen::plugin::secrets::reveal(self.name);
        #[cfg(not(target_os = "wasi"))]
        let value = crate::testing::revealed(self.name);
        value.map(Revealed).map_err(|why| Error::Config(format!("secret `{}`: {why}", self.name)))
    }
}

/// A secret's value. `Debug` doesn't show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Revealed(String);

impl Revealed {
    /// The value. Never log it or put it into an error.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Revealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Revealed(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_what_the_server_looks_for() {
        assert_eq!(Secret::named("api-key").placeholder(), "{{secret:api-key}}");
        assert_eq!(Secret::named("api-key").bearer(), "Bearer {{secret:api-key}}");
    }

    #[test]
    fn a_revealed_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Revealed("hunter2".into())), "Revealed(…)");
    }
}
