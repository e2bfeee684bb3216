//! What a provider meets in real life: one situation a row.

use std::time::Duration;

/// The wait that the far side asks for with its 429.
pub const ASKED_WAIT: Duration = Duration::from_secs(7);
/// The same as a date, in [`Situation::ClockOff`].
pub const DATED_WAIT: Duration = Duration::from_secs(30);
/// How far the plugin's clock is off.
pub const OFF_HOURS: i64 = 2;

/// One situation. The far side stays in it for the whole call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Situation {
    /// Everything works.
    Good,
    /// 401: the credentials are not accepted.
    Unauthorized,
    /// 404: what is asked for is not there.
    NotFound,
    /// 429 with `Retry-After`.
    TooMany,
    /// 500.
    ServerError,
    /// Nothing listens there.
    NoConnection,
    /// The connection ends in the middle of the answer.
    Cut,
    /// The answer comes a byte at a time and does not end.
    Drip,
    /// 50 MB where a few bytes are expected.
    Huge,
    /// 200 with half a JSON document.
    Malformed,
    /// A redirect to the cloud's metadata service.
    PrivateRedirect,
    /// Good answers, while the plugin's clock is two hours fast.
    ClockFast,
    /// 429 with a date to wait for, while the plugin's clock is two hours slow.
    ClockOff,
    /// A folder stands where the plugin keeps its file.
    FileBlocked,
    /// An ID token without `sub`.
    NoSubject,
    /// An address that nobody vouches for.
    Unverified,
    /// Groups and names of other types than usual.
    OddClaims,
}

/// What a plugin speaks to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reaches {
    /// It asks for HTTP.
    pub http: bool,
    /// It asks for TCP.
    pub tcp: bool,
    /// It asks for a folder.
    pub folder: bool,
    /// Sign-ins bring claims.
    pub claims: bool,
}

impl Situation {
    /// All, in the order of the table.
    pub const ALL: [Situation; 17] = [
        Situation::Good,
        Situation::Unauthorized,
        Situation::NotFound,
        Situation::TooMany,
        Situation::ServerError,
        Situation::NoConnection,
        Situation::Cut,
        Situation::Drip,
        Situation::Huge,
        Situation::Malformed,
        Situation::PrivateRedirect,
        Situation::ClockFast,
        Situation::ClockOff,
        Situation::FileBlocked,
        Situation::NoSubject,
        Situation::Unverified,
        Situation::OddClaims,
    ];

    /// Those in which the far side does something, for plugins that speak to none.
    pub const OF_THE_FAR_SIDE: [Situation; 11] = [
        Situation::Unauthorized,
        Situation::NotFound,
        Situation::TooMany,
        Situation::ClockOff,
        Situation::ServerError,
        Situation::NoConnection,
        Situation::Cut,
        Situation::Drip,
        Situation::Huge,
        Situation::Malformed,
        Situation::PrivateRedirect,
    ];

    /// As the table and the JUnit file call it.
    pub fn name(self) -> &'static str {
        match self {
            Situation::Good => "good answers",
            Situation::Unauthorized => "401",
            Situation::NotFound => "404",
            Situation::TooMany => "429, Retry-After: 7",
            Situation::ServerError => "500",
            Situation::NoConnection => "no connection",
            Situation::Cut => "cut half-way",
            Situation::Drip => "slow drip",
            Situation::Huge => "50 MB body",
            Situation::Malformed => "malformed JSON",
            Situation::PrivateRedirect => "redirect to 169.254.169.254",
            Situation::ClockFast => "clock two hours fast",
            Situation::ClockOff => "429 with a date, clock two hours slow",
            Situation::FileBlocked => "its file cannot be written",
            Situation::NoSubject => "claims without sub",
            Situation::Unverified => "email not verified",
            Situation::OddClaims => "claims of odd types",
        }
    }

    /// Whether it can happen to this export of a plugin that speaks to these.
    pub fn applies(self, export: &str, reaches: Reaches) -> bool {
        let identify = export == "identify" && reaches.claims;
        match self {
            Situation::Good | Situation::ClockFast => true,
            Situation::NoConnection | Situation::Cut | Situation::Drip => reaches.http || reaches.tcp,
            Situation::FileBlocked => reaches.folder && !reaches.http,
            Situation::NoSubject | Situation::Unverified | Situation::OddClaims => identify,
            _ => reaches.http,
        }
    }
}
