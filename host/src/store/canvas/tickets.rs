//! Tickets: for browsers, whose sockets cannot carry a token.

use chrono::{DateTime, Utc};

use super::super::{Connection, StoreError, Tx};
use crate::{
    domain::id::{CanvasId, OrganizationId, SessionId, UserId},
    on,
};

/// Whom a ticket lets in, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Ticket {
    /// Where.
    pub organization_id: OrganizationId,
    /// To which canvas.
    pub canvas_id: CanvasId,
    /// Whom.
    pub user_id: UserId,
    /// The sign-in it was issued to.
    pub session_id: Option<SessionId>,
}

/// Keeps a ticket by its SHA-256, and forgets those that nobody came with.
///
/// # Errors
/// [`StoreError::Reference`] if the canvas or the user is not the organization's.
pub async fn issue_ticket(
    tx: &mut Tx,
    hash: &[u8],
    ticket: &Ticket,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sweep = "DELETE FROM canvas_tickets WHERE expires_at < $1";
    on!(tx, |c| sqlx::query(sweep).bind(now).execute(c).await.map(drop))?;
    let sql = "INSERT INTO canvas_tickets (hash, organization_id, canvas_id, user_id, session_id, expires_at)
               VALUES ($1, $2, $3, $4, $5, $6)";
    on!(tx, |c| sqlx::query(sql)
        .bind(hash)
        .bind(ticket.organization_id)
        .bind(ticket.canvas_id)
        .bind(ticket.user_id)
        .bind(ticket.session_id)
        .bind(expires_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Whether [`redeem_ticket`] may find this ticket. Asked first: whoever comes with a made-up one takes no write lock.
///
/// # Errors
/// As the database says.
pub async fn ticket_exists(
    c: &mut impl Connection,
    hash: &[u8],
    canvas: CanvasId,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let sql = "SELECT COUNT(*) FROM canvas_tickets WHERE hash = $1 AND canvas_id = $2 AND expires_at > $3";
    let count: i64 = on!(c, |c| sqlx::query_scalar(sql).bind(hash).bind(canvas).bind(now).fetch_one(c).await)?;
    Ok(count > 0)
}

/// Takes a ticket, so that it cannot be taken again on any host. The one query that does not name an organization: the
/// ticket tells it, as a session's cookie does.
///
/// # Errors
/// As the database says.
pub async fn redeem_ticket(
    tx: &mut Tx,
    hash: &[u8],
    canvas: CanvasId,
    now: DateTime<Utc>,
) -> Result<Option<Ticket>, StoreError> {
    let sql = "DELETE FROM canvas_tickets WHERE hash = $1 AND canvas_id = $2 AND expires_at > $3
               RETURNING organization_id, canvas_id, user_id, session_id";
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(hash).bind(canvas).bind(now).fetch_optional(c).await)?)
}
