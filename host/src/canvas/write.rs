//! Storing what members send: judged by access no older than a second, committed together, then told to everyone.

use sha2::{Digest, Sha256};

use super::{
    access::Access,
    frames::{self, Refusal},
    journal::{Outcome, Submission},
    outbox::Close,
    peers::{Member, send_all},
    room::{Room, failed},
};
use crate::{bus::Hint, domain::canvas::Op, store::StoreError};

/// Bytes of one transaction, about: a message more is the next one's.
const BATCH: usize = 2 * 1024 * 1024;

/// What a member sent.
pub(super) struct Message {
    pub(super) peer: String,
    pub(super) reference: Option<String>,
    pub(super) ops: Vec<Op>,
    pub(super) text: String,
}

impl Room {
    /// Stores messages in their order and answers each.
    pub(super) async fn write(&mut self, messages: Vec<Message>) {
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let mut bytes = 0;
            let mut batch = Vec::new();
            while let Some(message) = messages.next_if(|_| bytes < BATCH) {
                bytes += message.text.len();
                batch.push(message);
            }
            self.write_batch(batch).await;
        }
    }

    async fn write_batch(&mut self, messages: Vec<Message>) {
        let (mut from, mut batch) = (Vec::new(), Vec::new());
        let fresh = self.freshen().await;
        for Message { peer, reference, ops, text } in messages {
            // Whoever is not a member any more was closed; nobody waits for an answer.
            let Some(member) = self.members.get(&peer) else { continue };
            let refusal = match (&fresh, member.access) {
                (Err(error), _) => Some(refused(error)),
                (Ok(()), Access::View) => {
                    Some(Refusal::new("denied", "you may look at this canvas but not draw on it"))
                }
                (Ok(()), Access::Edit) => None,
            };
            if let Some(refusal) = refusal {
                member.outbox.send(frames::reject(reference.as_deref(), &refusal));
                continue;
            }
            let (client, repeats) = repeats(member, &text);
            batch.push(Submission { user: member.principal.user_id, client, reference, repeats, ops, text });
            from.push(peer);
        }
        if batch.is_empty() {
            return;
        }
        let begun = tokio::time::Instant::now();
        let committed = self.journal.commit(&batch, &mut self.edits).await;
        self.pass_on(committed.others);
        match committed.outcomes {
            Ok(outcomes) => {
                metrics::histogram!("kaizen_canvas_commit_seconds").record(begun.elapsed().as_secs_f64());
                metrics::counter!("kaizen_canvas_messages_total").increment(outcomes.len() as u64);
                for ((message, outcome), peer) in batch.iter().zip(&outcomes).zip(&from) {
                    self.answer(peer, message, outcome);
                }
                if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Stored(_))) {
                    self.stored(committed.audited).await;
                }
            }
            Err(StoreError::Reference(_)) => self.close_all(Close::GONE),
            Err(error) => {
                let refusal = refused(&error);
                for (message, peer) in batch.iter().zip(&from) {
                    if let Some(member) = self.members.get(peer) {
                        member.outbox.send(frames::reject(message.reference.as_deref(), &refusal));
                    }
                }
            }
        }
    }

    fn answer(&self, peer: &str, message: &Submission, outcome: &Outcome) {
        let reference = message.reference.as_deref();
        let answer = match outcome {
            Outcome::Stored(sequence) => {
                let actor = format!("user/{}", message.user);
                send_all(&self.members, Some(peer), &frames::ops(*sequence, &actor, Some(peer), &message.text));
                frames::ack(reference, *sequence)
            }
            Outcome::Repeated(sequence) => frames::ack(reference, *sequence),
            Outcome::Rejected(rejection) => frames::reject(reference, &rejection.clone().into()),
        };
        if let Some(member) = self.members.get(peer) {
            member.outbox.send(answer);
        }
    }

    async fn stored(&mut self, audited: bool) {
        let (canvas, sequence) = (self.agent.canvas_id, self.journal.sequence());
        self.parts.bus.publish_elsewhere(Hint::Canvas { canvas, sequence });
        if audited {
            self.parts.bus.publish(Hint::Audit { organization: self.agent.organization_id });
        }
        if let Err(error) = self.journal.compact().await {
            tracing::warn!(%error, %canvas, "no snapshot was made; tried again after more messages");
        }
    }
}

/// Whose `ref` the message's is, and where its repeats are looked for: see the journal.
fn repeats(member: &Member, text: &str) -> (String, std::ops::RangeInclusive<i64>) {
    match &member.client {
        Some(name) => (format!("n:{name}"), 1..=i64::MAX),
        None => {
            let digest = Sha256::digest(text);
            let short: String = hex::encode(digest).chars().take(32).collect();
            (format!("d:{short}"), member.repeats.clone())
        }
    }
}

fn refused(error: &StoreError) -> Refusal {
    failed(error);
    let detail = "nothing of it was stored as far as is known here; send it again under the same `ref`";
    Refusal::new("unavailable", detail)
}
