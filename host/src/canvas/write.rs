//! Storing what members send: judged by access no older than a second, committed together, then told to everyone.

use std::collections::HashMap;

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Parts,
    access::Access,
    frames::{self, Refusal},
    journal::{Committed, Outcome, Submission},
    outbox::Close,
    patience,
    peers::{Member, send_all},
    quota,
    room::Room,
};
use crate::{
    audit::denials::{Denial, Trail},
    authz::{Action, Context},
    bus::Hint,
    domain::{canvas::Op, id::UserId, principal::Principal},
    store::StoreError,
};

/// Bytes of one transaction, about: a message more is the next one's.
const BATCH: usize = 2 * 1024 * 1024;

/// What a member sent.
pub(super) struct Message {
    pub(super) peer: String,
    pub(super) reference: Option<String>,
    pub(super) ops: Vec<Op>,
    pub(super) text: String,
    /// Its place in the inbox, until it is answered.
    pub(super) place: OwnedSemaphorePermit,
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
        let (mut batch, mut places) = (Vec::new(), Vec::new());
        if self.writable
            && let Err(error) = self.freshen().await
        {
            self.lost(&error);
            // Not known to be away, and still nothing may be done.
            self.reject_all(&messages, &unavailable());
            return;
        }
        // In the messages' order: who sent it, and why it was refused before anything was stored.
        let mut turns: Vec<(String, Option<frames::Frame>)> = Vec::new();
        let mut denied: HashMap<UserId, (Principal, u64)> = HashMap::new();
        for Message { peer, reference, ops, text, place } in messages {
            // Whoever is not a member any more was closed; nobody waits for an answer.
            let Some(access) = self.members.get(&peer).map(|member| member.access) else { continue };
            let refusal = self.refusal(access, &ops, text.len());
            let Some(member) = self.members.get(&peer) else { continue };
            places.push(place);
            if let Some(refusal) = refusal {
                if refusal.code == DENIED {
                    metrics::counter!("kaizen_denials_total", "action" => super::edits::ACTION).increment(1);
                    let (_, messages) =
                        denied.entry(member.principal.user_id).or_insert_with(|| (member.principal.clone(), 0));
                    *messages += 1;
                }
                turns.push((peer, Some(frames::reject(reference.as_deref(), &refusal))));
                continue;
            }
            let digest = Sha256::digest(&text).to_vec();
            let (client, repeats) = repeats(member, &digest);
            batch.push(Submission { user: member.principal.user_id, client, reference, repeats, ops, text, digest });
            turns.push((peer, None));
        }
        for (principal, messages) in denied.into_values() {
            self.tell_of_refusals(&principal, messages).await;
        }
        if batch.is_empty() {
            for (peer, refused) in turns {
                refused.into_iter().for_each(|reject| self.answer_with(&peer, reject));
            }
            return;
        }
        let begun = tokio::time::Instant::now();
        let committed = self.commit(&batch).await;
        match committed.outcomes {
            Ok(outcomes) => {
                metrics::histogram!("kaizen_canvas_commit_seconds").record(begun.elapsed().as_secs_f64());
                metrics::counter!("kaizen_canvas_messages_total").increment(outcomes.len() as u64);
                let mut stored = batch.iter().zip(&outcomes);
                for (peer, refused) in turns {
                    match refused {
                        Some(reject) => self.answer_with(&peer, reject),
                        None => {
                            let Some((message, outcome)) = stored.next() else { break };
                            self.answer(&peer, message, outcome, &committed.in_full);
                        }
                    }
                }
                if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Stored(_))) {
                    self.stored(committed.audited).await;
                }
            }
            Err(StoreError::Reference(_)) => self.close_all(Close::GONE),
            Err(error) => {
                self.lost(&error);
                let mut unstored = batch.iter().map(|message| message.reference.as_deref());
                for (peer, refused) in turns {
                    let reject = refused.or_else(|| Some(frames::reject(unstored.next()?, &unavailable())));
                    reject.into_iter().for_each(|reject| self.answer_with(&peer, reject));
                }
            }
        }
    }

    /// Commits a batch; where the journal cannot follow what was stored elsewhere, the canvas is read anew and the batch
    /// tried once more.
    async fn commit(&mut self, batch: &[Submission]) -> Committed {
        let mut committed = self.journal.commit(batch, &mut self.edits).await;
        self.pass_on(std::mem::take(&mut committed.others));
        if matches!(committed.outcomes, Err(StoreError::Stale)) && self.reopen().await.is_ok() {
            committed = self.journal.commit(batch, &mut self.edits).await;
            self.pass_on(std::mem::take(&mut committed.others));
        }
        committed
    }

    /// Why a message of one with this access is refused before it is looked at.
    fn refusal(&mut self, access: Access, ops: &[Op], bytes: usize) -> Option<Refusal> {
        if access == Access::View {
            return Some(Refusal::new(DENIED, "you may look at this canvas but not draw on it"));
        }
        if !self.writable {
            return Some(unavailable());
        }
        if let Some(refusal) = self.no_space_for(ops) {
            return Some(refusal);
        }
        let taken = self.messages.take(quota::cost(bytes), tokio::time::Instant::now());
        taken.err().map(|wait| Refusal::rate("on this canvas, everyone's together", wait))
    }

    fn reject_all(&self, messages: &[Message], refusal: &Refusal) {
        for message in messages {
            self.answer_with(&message.peer, frames::reject(message.reference.as_deref(), refusal));
        }
    }

    /// Records that somebody who may only look tried to draw, with the decision; repeats are counted, and all of them where nothing
    /// can be recorded.
    async fn tell_of_refusals(&mut self, principal: &Principal, messages: u64) {
        let Parts { authz, denials, store, clock, bus, .. } = &*self.parts;
        let (agent, resource) = (&self.agent, super::access::resource(&self.agent));
        let denial = Denial {
            organization: agent.organization_id,
            actor: format!("user/{}", principal.user_id),
            action: super::edits::ACTION,
            kind: resource.kind.as_str(),
            target: format!("agent/{}", agent.id),
        };
        let undecided = json!({ "canvas_id": agent.canvas_id });
        if !self.writable {
            return denials.record_later(clock, &denial, undecided, messages);
        }
        let deadline = self.parts.deadline();
        let context = Context::default();
        let decided = authz.check(store, principal, Action::AgentUpdate, &resource, &context);
        let told = match patience::until(deadline, decided).await {
            Ok(decision) => {
                let details = json!({ "canvas_id": agent.canvas_id, "decision": decision.to_json() });
                patience::until(deadline, denials.record(Trail { store, clock, bus }, denial, details, messages)).await
            }
            Err(error) => {
                denials.record_later(clock, &denial, undecided, messages);
                Err(error)
            }
        };
        if let Err(error) = told {
            self.lost(&error);
        }
    }

    fn answer(&self, peer: &str, message: &Submission, outcome: &Outcome, in_full: &HashMap<i64, String>) {
        let reference = message.reference.as_deref();
        let answer = match outcome {
            Outcome::Stored(sequence) => {
                let actor = format!("user/{}", message.user);
                let full = in_full.get(sequence);
                let ops = full.unwrap_or(&message.text);
                send_all(&self.members, Some(peer), &frames::ops(*sequence, &actor, Some(peer), ops));
                frames::ack(reference, *sequence, full.map(String::as_str))
            }
            Outcome::Repeated(sequence) => frames::ack(reference, *sequence, None),
            Outcome::Reused(sequence) => {
                let detail =
                    format!("another message was sent under this `ref` and stored as {sequence}: use each once");
                frames::reject(reference, &Refusal::new("ref_reused", detail))
            }
            Outcome::Rejected(rejection) => frames::reject(reference, &rejection.clone().into()),
        };
        self.answer_with(peer, answer);
    }

    async fn stored(&mut self, audited: bool) {
        self.count_memory();
        let (canvas, sequence) = (self.agent.canvas_id, self.journal.sequence());
        self.parts.bus.publish_elsewhere(Hint::Canvas { canvas, sequence });
        if audited {
            self.parts.bus.publish(Hint::Audit { organization: self.agent.organization_id });
        }
        self.compact().await;
    }
}

/// The code of what policies refuse.
const DENIED: &str = "denied";

/// Whose `ref` the message's is, and where its repeats are looked for: see the journal.
fn repeats(member: &Member, digest: &[u8]) -> (String, std::ops::RangeInclusive<i64>) {
    match &member.client {
        Some(name) => (format!("n:{name}"), 1..=i64::MAX),
        None => {
            let short: String = hex::encode(digest).chars().take(32).collect();
            (format!("d:{short}"), member.repeats.clone())
        }
    }
}

fn unavailable() -> Refusal {
    let detail = "nothing of it was stored as far as is known here; send it again under the same `ref`";
    Refusal::new("unavailable", detail)
}
