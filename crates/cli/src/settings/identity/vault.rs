//! The vault provider's settings (contract §4).

use std::path::{Path, PathBuf};

use ah_daemon::layer::Origin;
use ah_identity_provider::Explained;
use ah_identity_provider::vault::{
    CertificateRequest, LoginMethod, Material, Retry, Secret, VaultConfig, VaultLogin, VaultTls,
};

use super::{Context, usage};
use crate::args::{VaultArgs, VaultAuthArg};

/// Where Kubernetes puts a pod's token.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The vault provider's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultSettings {
    /// What the provider works with.
    pub config: VaultConfig,
    /// Secrets that were given as flags, and the variable to use instead (VA-14).
    pub exposed: Vec<(&'static str, &'static str)>,
}

impl VaultSettings {
    pub(super) fn resolve(
        args: &VaultArgs,
        context: &Context<'_>,
        faults: &mut Vec<Explained>,
    ) -> Option<Self> {
        let before = faults.len();
        let flag = context.flag();
        if args.vault_addr.is_empty() {
            let text = format!("{flag} vault needs --vault-addr");
            faults.push(usage(text).hint(
                "give it, such as --vault-addr https://vault.example.com:8200, or set VAULT_ADDR",
            ));
        }
        if args.vault_pki_path.is_none() {
            let text = format!("{flag} vault needs --vault-pki-path");
            faults.push(usage(text).hint(
                "give MOUNT/sign/ROLE or MOUNT/issue/ROLE, such as --vault-pki-path pki_int/sign/executor",
            ));
        }
        refuse_skip_verify(args, faults);
        let tls = tls(args, faults);
        let login = login(args, context, &tls, faults);
        let token_cache = if args.no_vault_token_cache {
            None
        } else {
            match context.paths.state() {
                Ok(state) => Some(state.to_owned()),
                Err(error) => {
                    let hint = "set one of them, or give --no-vault-token-cache";
                    faults.push(usage(error.to_string()).hint(hint));
                    None
                }
            }
        };
        let common_name = match (&args.vault_cert_cn, context.name) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => gethostname::gethostname().to_string_lossy().into_owned(),
        };
        let pki = args.vault_pki_path.clone()?;
        let login = login?;
        if faults.len() > before {
            return None;
        }
        Some(Self {
            config: VaultConfig {
                addresses: args.vault_addr.clone(),
                // An empty variable is a way to unset one.
                namespace: args.vault_namespace.clone().filter(|name| !name.is_empty()),
                tls,
                pki,
                login,
                request: CertificateRequest {
                    common_name,
                    uris: args.vault_cert_san_uri.clone(),
                    dns: args.vault_cert_san_dns.clone(),
                    ips: args.vault_cert_san_ip.clone(),
                    ttl: args.vault_cert_ttl,
                },
                renewal_threshold: args.vault_renewal_threshold,
                retry: Retry {
                    max: args.vault_retry_max,
                    delay: args.vault_retry_delay,
                },
                token_cache,
            },
            exposed: exposed(context),
        })
    }

    /// The files it reads.
    pub(super) fn files(&self) -> Vec<&Path> {
        let tls = &self.config.tls;
        let mut files: Vec<&PathBuf> = tls.ca.iter().collect();
        if let Some((cert, key)) = &tls.client {
            files.extend([cert, key]);
        }
        match &self.config.login.method {
            LoginMethod::AppRole {
                role_id, secret_id, ..
            } => {
                files.extend(file(role_id));
                files.extend(secret_id.as_ref().and_then(file));
            }
            LoginMethod::Kubernetes { jwt, .. } | LoginMethod::Jwt { jwt, .. } => files.push(jwt),
            LoginMethod::Cert { .. } => {}
            LoginMethod::Token(token) => files.extend(file(token)),
        }
        files.into_iter().map(PathBuf::as_path).collect()
    }
}

fn file(material: &Material) -> Option<&PathBuf> {
    match material {
        Material::File(path) => Some(path),
        Material::Given(_) => None,
    }
}

/// VA-8
fn refuse_skip_verify(args: &VaultArgs, faults: &mut Vec<Explained>) {
    let Some(value) = &args.vault_skip_verify else {
        return;
    };
    if matches!(
        value.to_ascii_lowercase().as_str(),
        "" | "0" | "f" | "false"
    ) {
        return;
    }
    faults.push(
        usage("VAULT_SKIP_VERIFY is refused: Vault's certificate is always verified")
            .cause("unverified, anybody between could take the login and hand out certificates")
            .hint("unset it (`unset VAULT_SKIP_VERIFY`), and name the authority of Vault's certificate with --vault-ca or VAULT_CACERT"),
    );
}

fn tls(args: &VaultArgs, faults: &mut Vec<Explained>) -> VaultTls {
    let client = match (&args.vault_client_cert, &args.vault_client_key) {
        (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
        (None, None) => None,
        (cert, _) => {
            let (given, missing) = match cert {
                Some(_) => ("--vault-client-cert", "--vault-client-key"),
                None => ("--vault-client-key", "--vault-client-cert"),
            };
            faults.push(
                usage(format!("{given} needs {missing}"))
                    .hint("give both, or set VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"),
            );
            None
        }
    };
    VaultTls {
        ca: args.vault_ca.clone(),
        client,
    }
}

fn login(
    args: &VaultArgs,
    context: &Context<'_>,
    tls: &VaultTls,
    faults: &mut Vec<Explained>,
) -> Option<VaultLogin> {
    let role_id = either(
        context,
        ("vault-role-id", args.vault_role_id.as_ref()),
        ("vault-role-id-file", args.vault_role_id_file.as_deref()),
        faults,
    );
    let method = args.vault_auth.unwrap_or(match role_id {
        Some(_) => VaultAuthArg::AppRole,
        None => VaultAuthArg::Token,
    });
    let mut missing = |what: &str, hint: &str| {
        faults.push(usage(format!("{what} is missing for vault")).hint(hint));
    };
    let method = match method {
        VaultAuthArg::AppRole => {
            let secret_id = either(
                context,
                ("vault-secret-id", args.vault_secret_id.as_ref()),
                ("vault-secret-id-file", args.vault_secret_id_file.as_deref()),
                faults,
            );
            if args.vault_secret_id_wrapped && secret_id.is_none() {
                faults.push(
                    usage("--vault-secret-id-wrapped needs a secret id")
                        .hint("give --vault-secret-id-file, or set VAULT_SECRET_ID"),
                );
            }
            let Some(role_id) = role_id else {
                faults
                    .push(usage("--vault-auth approle needs a role id").hint(
                        "set VAULT_ROLE_ID, or give --vault-role-id or --vault-role-id-file",
                    ));
                return None;
            };
            LoginMethod::AppRole {
                role_id,
                secret_id,
                wrapped: args.vault_secret_id_wrapped,
            }
        }
        VaultAuthArg::Kubernetes => {
            let Some(role) = args.vault_k8s_role.clone() else {
                missing(
                    "--vault-k8s-role",
                    "name the role of the Kubernetes auth mount",
                );
                return None;
            };
            let jwt = args.vault_k8s_token_file.clone();
            LoginMethod::Kubernetes {
                role,
                jwt: jwt.unwrap_or_else(|| SERVICE_ACCOUNT.into()),
            }
        }
        VaultAuthArg::Jwt => {
            let Some(jwt) = args.vault_jwt_file.clone() else {
                missing("--vault-jwt-file", "name the file that holds the JWT");
                return None;
            };
            LoginMethod::Jwt {
                role: args.vault_jwt_role.clone(),
                jwt,
            }
        }
        VaultAuthArg::Cert => {
            if tls.client.is_none() {
                missing(
                    "the client certificate",
                    "give --vault-client-cert and --vault-client-key, or set VAULT_CLIENT_CERT and VAULT_CLIENT_KEY",
                );
                return None;
            }
            LoginMethod::Cert {
                role: args.vault_cert_role.clone(),
            }
        }
        VaultAuthArg::Token => {
            let token = either(
                context,
                ("vault-token", args.vault_token.as_ref()),
                ("vault-token-file", args.vault_token_file.as_deref()),
                faults,
            );
            let Some(token) = token else {
                faults.push(
                    usage("nothing is given to log in to vault with").hint(
                        "set VAULT_ROLE_ID and VAULT_SECRET_ID, or VAULT_TOKEN, or choose another way with --vault-auth",
                    ),
                );
                return None;
            };
            LoginMethod::Token(token)
        }
    };
    let mount = args.vault_auth_mount.as_deref().map(|mount| {
        // As the API's paths and people have it.
        mount.strip_prefix("auth/").unwrap_or(mount).to_owned()
    });
    Some(VaultLogin {
        mount: mount.unwrap_or_else(|| method.as_str().to_owned()),
        method,
    })
}

/// A value or the file that holds it. A file named here beats a variable that other programs read too.
fn either(
    context: &Context<'_>,
    (value_flag, value): (&str, Option<&Secret>),
    (file_flag, file): (&str, Option<&Path>),
    faults: &mut Vec<Explained>,
) -> Option<Material> {
    let value = value.filter(|value| !value.is_empty());
    match (value, file) {
        (Some(_), Some(_)) if context.is_given(value_flag) => {
            faults.push(
                usage(format!("--{value_flag} and --{file_flag} are both given"))
                    .hint("leave one of them out; the file can be replaced while the process runs"),
            );
            None
        }
        (_, Some(path)) => Some(Material::File(path.to_owned())),
        (Some(value), None) => Some(Material::Given(value.clone())),
        (None, None) => None,
    }
}

/// VA-14
fn exposed(context: &Context<'_>) -> Vec<(&'static str, &'static str)> {
    let secrets = [
        ("vault-secret-id", "VAULT_SECRET_ID"),
        ("vault-token", "VAULT_TOKEN"),
    ];
    let by_flag = |(flag, _): &(&str, &str)| context.origins.get(*flag) == Some(&Origin::Flag);
    secrets.into_iter().filter(by_flag).collect()
}
