//! `kaizen admin`: what must be possible before anybody can sign in, or when nobody can any more. Works on the database
//! itself, beside a running server.

mod rotate_key;

use std::io::Read;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use secrecy::SecretString;
use serde_json::json;

use crate::{
    app,
    audit::{self, Record},
    clock::Clock,
    config::Config,
    domain::{audit::Outcome, email::Email, fault::Fault, id::OrganizationId, name::Name},
    identity::{
        organization::{NewOrganization, create_organization},
        password::{self, Passwords},
        turns::Hashing,
    },
    store::{Store, sessions, users},
};

/// Organizations that are shown for an address that several know.
const SHOWN: i64 = 100;

/// Manage organizations and people from the command line
#[derive(Debug, Args)]
pub struct AdminCommand {
    #[command(subcommand)]
    command: Admin,
}

#[derive(Debug, Subcommand)]
enum Admin {
    /// Create an organization with its first owner; prints {"organization_id","user_id"}
    CreateOrganization(CreateOrganization),
    /// Set someone's password and end their sessions; prints {"organization_id","user_id"}
    SetPassword(SetPassword),
    RotateKey(rotate_key::RotateKey),
}

#[derive(Debug, Args)]
struct CreateOrganization {
    /// The organization's name
    #[arg(long)]
    name: Name,
    /// E-mail address of the first owner
    #[arg(long, value_name = "EMAIL")]
    owner: Email,
    /// Name of the first owner [default: what stands before the @]
    #[arg(long, value_name = "NAME")]
    owner_name: Option<Name>,
    /// Read the owner's password from standard input
    #[arg(long, required = true)]
    password_stdin: bool,
    /// The owner may also create organizations, and manage what all share
    #[arg(long)]
    platform_administrator: bool,
}

#[derive(Debug, Args)]
struct SetPassword {
    /// Whose
    #[arg(long)]
    email: Email,
    /// Where, by id, if several organizations know this address
    #[arg(long, value_name = "ID")]
    organization: Option<OrganizationId>,
    /// Read the password from standard input
    #[arg(long, required = true)]
    password_stdin: bool,
}

impl AdminCommand {
    /// Does it.
    ///
    /// # Errors
    /// One line that names what to change.
    pub async fn run(self, config: &Config) -> anyhow::Result<()> {
        let done = match self.command {
            Admin::CreateOrganization(create) => {
                let password = read_password(std::io::stdin().lock())?;
                let (store, clock, passwords) = open(config).await?;
                create.run(&store, &clock, &passwords, &password).await?
            }
            Admin::SetPassword(set) => {
                let password = read_password(std::io::stdin().lock())?;
                let (store, clock, passwords) = open(config).await?;
                set.run(&store, &clock, &passwords, &password).await?
            }
            Admin::RotateKey(rotate) => rotate.run(config).await?,
        };
        super::print(&done.to_string())
    }
}

async fn open(config: &Config) -> anyhow::Result<(Store, Clock, Passwords)> {
    let store = app::connect(config).await?;
    store.migrate().await?;
    let clock = Clock::system();
    let passwords = Passwords::new(&clock, &config.limits)?;
    Ok((store, clock, passwords))
}

impl CreateOrganization {
    async fn run(
        &self,
        store: &Store,
        clock: &Clock,
        passwords: &Passwords,
        password: &SecretString,
    ) -> anyhow::Result<serde_json::Value> {
        let new = NewOrganization {
            name: &self.name,
            owner: &self.owner,
            owner_name: self.owner_name.as_ref(),
            password: Some(password),
            platform_administrator: self.platform_administrator,
            actor: "system",
        };
        let (organization, user_id) = create_organization(store, clock, passwords, &new).await?;
        Ok(json!({ "organization_id": organization.id, "user_id": user_id }))
    }
}

impl SetPassword {
    async fn run(
        &self,
        store: &Store,
        clock: &Clock,
        passwords: &Passwords,
        password: &SecretString,
    ) -> anyhow::Result<serde_json::Value> {
        let mut faults = Vec::new();
        password::check("password", password, &self.email, &mut faults);
        if let Some(Fault { pointer, message }) = faults.pop() {
            bail!("{pointer}: {message}");
        }
        let hash = passwords.hash(clock, password, Hashing::Operator).await?;
        let mut tx = store.begin().await?;
        let found = users::credentials(&mut tx, &self.email, self.organization, SHOWN).await?;
        let user = match found.as_slice() {
            [] => bail!("nobody has the address {} here: check --email and --organization", self.email),
            [user] => user,
            several => {
                let list: Vec<_> =
                    several.iter().map(|u| format!("{} ({})", u.organization_id, u.organization_name)).collect();
                bail!("several organizations know {}: choose one with --organization: {}", self.email, list.join(", "));
            }
        };
        let (organization_id, user_id) = (user.organization_id, user.user_id);
        users::set_password(&mut tx, organization_id, user_id, &hash, clock.now()).await?;
        let ended = sessions::revoke_user(&mut tx, organization_id, user_id, None, clock.now()).await?;
        let event = Record {
            organization_id,
            actor: "system".to_owned(),
            action: "user.update",
            target: format!("user/{user_id}"),
            outcome: Outcome::Success,
            details: json!({ "changes": { "password": "set from the command line", "sessions_ended": ended } }),
        };
        audit::record(&mut tx, clock, event).await?;
        tx.commit().await?;
        Ok(json!({ "organization_id": organization_id, "user_id": user_id }))
    }
}

/// The password as piped in, without the line's end.
fn read_password(from: impl Read) -> anyhow::Result<SecretString> {
    let mut text = String::new();
    from.take(4096).read_to_string(&mut text).context("--password-stdin: standard input is not UTF-8 text")?;
    let length = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(length);
    if text.is_empty() {
        bail!(
            "--password-stdin: standard input is empty: pipe the password in, e.g. `printf %s \"$PASSWORD\" | kaizen admin …`"
        );
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_password_is_read_without_its_line_end() {
        assert_eq!(read_password("gentle otter drums\r\n".as_bytes()).unwrap().expose_secret(), "gentle otter drums");
        assert_eq!(read_password(" spaces stay ".as_bytes()).unwrap().expose_secret(), " spaces stay ");
        assert!(read_password("\n".as_bytes()).is_err());
        assert!(read_password([0xff, 0xfe].as_slice()).is_err());
    }
}
