//! What to log in with, read anew each time, and what a refusal of it means (VA-3 to VA-7, ER-13).

use std::collections::BTreeMap;
use std::path::Path;

use super::Secret;
use super::config::{LoginMethod, Material, VaultConfig};
use super::fault::login_refused;
use super::read::{self, Reading};
use super::secret::fingerprint;
use crate::Explained;

const ROLE_ID: Place = Place::new("--vault-role-id-file", "VAULT_ROLE_ID");
const SECRET_ID: Place = Place::new("--vault-secret-id-file", "VAULT_SECRET_ID");
const TOKEN: Place = Place::new("--vault-token-file", "VAULT_TOKEN");

/// Where a person puts something.
struct Place {
    file: &'static str,
    variable: &'static str,
}

impl Place {
    const fn new(file: &'static str, variable: &'static str) -> Self {
        Self { file, variable }
    }

    fn read(&self, material: &Material) -> Result<Secret, Explained> {
        match material {
            Material::Given(secret) => Ok(secret.clone()),
            Material::File(path) => read::secret(path, self.file),
        }
    }

    /// `put it in …`
    fn put(&self, material: &Material) -> String {
        match material {
            Material::File(path) => {
                format!(
                    "put it in {}: it is taken up within seconds",
                    path.display()
                )
            }
            Material::Given(_) => format!(
                "restart with it in {}, or keep it in a file ({}), which is read again by itself",
                self.variable, self.file
            ),
        }
    }
}

/// Something to log in with.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    /// What is sent to `auth/<mount>/login`, or the token itself.
    pub(super) form: Form,
    /// Tells this from another credential of the same settings.
    pub(super) fingerprint: String,
}

#[derive(Clone, Debug)]
pub(super) enum Form {
    /// Fields of a login request; `wrapped` is unwrapped first and becomes `secret_id`.
    Login {
        fields: Vec<(&'static str, Secret)>,
        wrapped: Option<Secret>,
    },
    /// A token that somebody else obtained.
    Token(Secret),
}

/// Reads the credential of `config` as its files are now. Blocks.
pub(super) fn credential(config: &VaultConfig) -> Result<Credential, Explained> {
    let mount = config.login.mount.as_str();
    let plain = |text: &str| Secret::new(text.to_owned());
    let (form, fingerprint) = match &config.login.method {
        LoginMethod::AppRole {
            role_id,
            secret_id,
            wrapped,
        } => {
            let role = ROLE_ID.read(role_id)?;
            let secret = match secret_id {
                Some(material) => SECRET_ID.read(material)?,
                None => plain(""),
            };
            let fingerprint = secret.fingerprint(&["approle", mount, role.expose()]);
            let mut fields = vec![("role_id", role)];
            let wrapped = if *wrapped {
                Some(secret)
            } else {
                if !secret.is_empty() {
                    fields.push(("secret_id", secret));
                }
                None
            };
            (Form::Login { fields, wrapped }, fingerprint)
        }
        LoginMethod::Kubernetes { role, jwt } => {
            let jwt = read::secret(jwt, "--vault-k8s-token-file")?;
            let fingerprint = jwt.fingerprint(&["kubernetes", mount, role]);
            (
                login(vec![("role", plain(role)), ("jwt", jwt)]),
                fingerprint,
            )
        }
        LoginMethod::Jwt { role, jwt } => {
            let jwt = read::secret(jwt, "--vault-jwt-file")?;
            let named = role.as_deref().unwrap_or_default();
            let fingerprint = jwt.fingerprint(&["jwt", mount, named]);
            let role = role.as_deref().map(|role| ("role", plain(role)));
            (
                login(role.into_iter().chain([("jwt", jwt)]).collect()),
                fingerprint,
            )
        }
        LoginMethod::Cert { role } => {
            let presented = match &config.tls.client {
                Some((cert, _)) => presented(cert)?,
                None => String::new(),
            };
            let named = role.as_deref().unwrap_or_default();
            let fields = role.as_deref().map(|role| ("name", plain(role)));
            let print = fingerprint(["cert", mount, named, presented.as_str()]);
            (login(fields.into_iter().collect()), print)
        }
        LoginMethod::Token(material) => {
            let token = TOKEN.read(material)?;
            let fingerprint = token.fingerprint(&["token"]);
            (Form::Token(token), fingerprint)
        }
    };
    Ok(Credential { form, fingerprint })
}

fn login(fields: Vec<(&'static str, Secret)>) -> Form {
    Form::Login {
        fields,
        wrapped: None,
    }
}

/// The client certificate that logs in, as far as it matters whether it was replaced.
fn presented(cert: &Path) -> Result<String, Explained> {
    let bytes = read::file(cert, "--vault-client-cert").map_err(Reading::explained)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The fields as a request has them.
pub(super) fn body<'a>(fields: &'a [(&'static str, Secret)]) -> BTreeMap<&'a str, &'a str> {
    fields
        .iter()
        .map(|(name, secret)| (*name, secret.expose()))
        .collect()
}

/// Whether something was kept in files, so that it can be replaced while the process runs.
pub(super) fn in_files(method: &LoginMethod) -> bool {
    let file = |material: &Material| matches!(material, Material::File(_));
    match method {
        LoginMethod::AppRole {
            role_id, secret_id, ..
        } => file(role_id) || secret_id.as_ref().is_some_and(file),
        LoginMethod::Kubernetes { .. } | LoginMethod::Jwt { .. } | LoginMethod::Cert { .. } => true,
        LoginMethod::Token(material) => file(material),
    }
}

/// ER-13 with what is known of this method. `lost` says that an earlier login got no answer.
pub(super) fn refused(config: &VaultConfig, why: &str, lost: bool) -> Explained {
    let mut explained = login_refused(why).cause(format!("method {}", described(config)));
    if let Some(namespace) = &config.namespace {
        explained = explained.cause(format!("the namespace is {namespace}"));
    }
    if lost && matches!(config.login.method, LoginMethod::AppRole { .. }) {
        explained = explained.cause(
            "an earlier login got no answer and may have been carried out: a one-time secret id is then spent",
        );
    }
    explained.hint(what_to_put(config))
}

/// ER-13 for a wrapped secret id that cannot be unwrapped.
pub(super) fn not_unwrapped(config: &VaultConfig, why: &str) -> Explained {
    login_refused(why)
        .cause("the secret id is wrapped, and its wrapping token cannot be used: it is past its time, or it was used before; if not by this process, somebody else has the secret id")
        .hint(what_to_put(config))
}

/// The method as a person knows it.
fn described(config: &VaultConfig) -> String {
    let (method, mount) = (config.login.method.as_str(), &config.login.mount);
    match &config.login.method {
        LoginMethod::Token(_) => method.to_owned(),
        _ => format!("{method}, mounted at auth/{mount}"),
    }
}

/// What somebody has to put where so that a login works again.
pub(super) fn what_to_put(config: &VaultConfig) -> String {
    let mount = &config.login.mount;
    match &config.login.method {
        LoginMethod::AppRole {
            role_id,
            secret_id: Some(secret_id),
            ..
        } => {
            let role = match role_id {
                Material::File(path) => format!("role id in {}", path.display()),
                Material::Given(_) => "role id".to_owned(),
            };
            format!(
                "issue another secret id (`vault write -f auth/{mount}/role/<role>/secret-id`) and {}; check the {role} and the role's secret_id_num_uses, secret_id_ttl, token_ttl and token_max_ttl",
                SECRET_ID.put(secret_id)
            )
        }
        LoginMethod::AppRole { role_id, .. } => format!(
            "check the role id with `vault read auth/{mount}/role/<role>/role-id` and {}; unless the role has bind_secret_id=false, a secret id is needed too ({})",
            ROLE_ID.put(role_id),
            SECRET_ID.file
        ),
        LoginMethod::Kubernetes { role, jwt } => format!(
            "check the role with `vault read auth/{mount}/role/{role}`: its bound service account names and namespaces, and that {} holds the token of that service account",
            jwt.display()
        ),
        LoginMethod::Jwt { role, jwt } => format!(
            "check the role with `vault read auth/{mount}/role/{}`: its bound audiences, subject and claims, and that {} holds a JWT that is not past its time",
            role.as_deref().unwrap_or("<default role>"),
            jwt.display()
        ),
        LoginMethod::Cert { role } => format!(
            "check `vault read auth/{mount}/certs/{}` and the certificate of --vault-client-cert",
            role.as_deref().unwrap_or("<name>")
        ),
        LoginMethod::Token(material) => {
            format!(
                "create another token (`vault token create`) and {}",
                TOKEN.put(material)
            )
        }
    }
}
