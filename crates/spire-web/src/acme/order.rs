//! What is asked of the ACME server.

use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use zeroize::Zeroizing;

use super::challenge::Challenges;
use super::http::Web;

/// All of an order.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// How long the ACME server may look at the proof, and then at the request.
const LOOKING: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(4 * 60));

/// Why there is no certificate.
pub(super) struct Fault {
    pub(super) text: String,
    /// The ACME server does not know the account.
    pub(super) no_account: bool,
}

impl Fault {
    fn during(what: &str, error: &Error) -> Self {
        let no_account = match error {
            Error::Api(problem) => { problem.r#type.as_deref() }
                .is_some_and(|kind| kind == "urn:ietf:params:acme:error:accountDoesNotExist"),
            _ => false,
        };
        Self {
            text: format!("{what}: {error}"),
            no_account,
        }
    }
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self {
            text,
            no_account: false,
        }
    }
}

/// The account that was `kept`, or a new one and what there is to keep of it.
pub(super) async fn account(
    web: &Web,
    directory: &str,
    email: &str,
    kept: Option<AccountCredentials>,
) -> Result<(Account, Option<AccountCredentials>), String> {
    let builder = || Account::builder_with_http(Box::new(web.clone()));
    if let Some(kept) = kept {
        let account = builder().from_credentials(kept).await;
        return Ok((account.map_err(|error| format!("account: {error}"))?, None));
    }
    let contact = format!("mailto:{email}");
    let account = NewAccount {
        contact: &[&contact],
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let made = builder().create(&account, directory.to_owned(), None).await;
    let (account, credentials) = made.map_err(|error| format!("account: {error}"))?;
    Ok((account, Some(credentials)))
}

/// A new key and the chain of certificates for it, as PEM.
pub(super) async fn order(
    account: &Account,
    domain: &str,
    challenges: &Challenges,
) -> Result<Zeroizing<String>, Fault> {
    tokio::time::timeout(PATIENCE, Box::pin(ordered(account, domain, challenges)))
        .await
        .unwrap_or_else(|_| Err(format!("not done within {}s", PATIENCE.as_secs()).into()))
}

async fn ordered(
    account: &Account,
    domain: &str,
    challenges: &Challenges,
) -> Result<Zeroizing<String>, Fault> {
    let identifiers = [Identifier::Dns(domain.to_owned())];
    let order = account.new_order(&NewOrder::new(&identifiers)).await;
    let mut order = order.map_err(|error| Fault::during("order", &error))?;
    prove(&mut order, domain, challenges).await?;
    match order.poll_ready(&LOOKING).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) => return Err(why_invalid(&mut order).await.into()),
        // What it found is not told of the order.
        Err(Error::Api(_)) => return Err(why_invalid(&mut order).await.into()),
        Err(error) => return Err(Fault::during("proof", &error)),
    }
    let request = |error: rcgen::Error| format!("the request cannot be made: {error}");
    let mut params = CertificateParams::new([domain.to_owned()]).map_err(request)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, domain);
    let key = KeyPair::generate().map_err(request)?;
    let signed = params.serialize_request(&key).map_err(request)?;
    let issuing = |error: Error| Fault::during("issuing", &error);
    order.finalize_csr(signed.der()).await.map_err(issuing)?;
    let chain = order.poll_certificate(&LOOKING).await.map_err(issuing)?;
    let key = Zeroizing::new(key.serialize_pem());
    let mut all = Zeroizing::new(String::with_capacity(key.len() + chain.len()));
    all.push_str(&key);
    all.push_str(&chain);
    Ok(all)
}

/// Shows the proofs that are asked for, and says so.
async fn prove(order: &mut Order, domain: &str, challenges: &Challenges) -> Result<(), Fault> {
    let failed = |error: Error| Fault::during("proof", &error);
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(failed)?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let mut challenge = authorization
            .challenge(ChallengeType::TlsAlpn01)
            .ok_or_else(|| "the ACME server offers no proof by tls-alpn-01".to_owned())?;
        let authorized = challenge.key_authorization();
        challenges.put(domain, authorized.digest().as_ref())?;
        challenge.set_ready().await.map_err(failed)?;
    }
    Ok(())
}

/// What the ACME server found wrong.
async fn why_invalid(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        let mut faults =
            { state.challenges.iter() }.filter_map(|challenge| challenge.error.as_ref());
        if let Some(fault) = faults.next_back() {
            return format!("the ACME server does not take the proof: {fault}");
        }
    }
    "the ACME server does not take the proof".to_owned()
}
