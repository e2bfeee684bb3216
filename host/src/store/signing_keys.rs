//! Public signing keys of all hosts.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;

use super::{Connection, StoreError, Tx};
use crate::on;

/// An RSA public key for verifying RS256, as a JWK (RFC 7517 and 7518). It has no private members to leak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = JsonWebKey)]
pub struct PublicJwk {
    /// The type of the key: `RSA`.
    #[schema(example = "RSA")]
    pub kty: String,
    /// What the key is for: `sig`, verifying signatures.
    #[serde(rename = "use")]
    #[schema(example = "sig")]
    pub usage: String,
    /// The algorithm that the key is used with: `RS256`.
    #[schema(example = "RS256")]
    pub alg: String,
    /// The id of the key, as in the header of tokens: its thumbprint (RFC 7638).
    #[schema(example = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs")]
    pub kid: String,
    /// The modulus of the key, base64url.
    pub n: String,
    /// The exponent of the key, base64url.
    #[schema(example = "AQAB")]
    pub e: String,
}

/// Publishes a host's key, or moves its end on.
///
/// # Errors
/// As the database says.
pub async fn publish(
    tx: &mut Tx,
    jwk: &PublicJwk,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO signing_keys (kid, jwk, created_at, expires_at) VALUES ($1, $2, $3, $4)
               ON CONFLICT (kid) DO UPDATE SET expires_at = excluded.expires_at";
    on!(tx, |c| sqlx::query(sql).bind(&jwk.kid).bind(Json(jwk)).bind(now).bind(expires_at).execute(c).await.map(drop))?;
    Ok(())
}

/// The keys that are live at `now`, newest first; more hosts than 1,000 there are not.
///
/// # Errors
/// As the database says.
pub async fn live(c: &mut impl Connection, now: DateTime<Utc>) -> Result<Vec<(PublicJwk, DateTime<Utc>)>, StoreError> {
    let sql = "SELECT jwk, expires_at FROM signing_keys WHERE expires_at > $1 ORDER BY created_at DESC LIMIT 1000";
    let rows: Vec<(Json<PublicJwk>, DateTime<Utc>)> = on!(c, |c| sqlx::query_as(sql).bind(now).fetch_all(c).await?);
    Ok(rows.into_iter().map(|(jwk, expires_at)| (jwk.0, expires_at)).collect())
}
