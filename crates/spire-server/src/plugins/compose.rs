//! `CredentialComposer` plugins.

use std::sync::Arc;

use ah_spire_plugin_host::compose::{Composer as Plugin, wire};
use ah_spire_plugin_host::keys::blocking;
use serde_json::{Map, Value};
use spiffe::SpiffeId;
use tonic::Status;

use super::external::Running;
use crate::ca::{
    Composer, Composers, Extension, Holder, ObjectId, Subject, UniqueId, X509Attributes,
};

/// Who changes what is signed.
#[derive(Clone)]
pub(crate) enum ComposerWanted {
    UniqueId,
    /// The name of the plugin.
    External(String),
}

impl ComposerWanted {
    /// Those that are wanted, in the order of the file.
    pub(super) fn open(wanted: &[Self], running: &Running) -> Result<Composers, String> {
        let all = wanted.iter().map(|wanted| match wanted {
            Self::UniqueId => Ok(Arc::new(UniqueId) as Arc<dyn Composer>),
            Self::External(name) => {
                let composer: Arc<dyn Composer> = Arc::new(External(running.composer(name)?));
                Ok(composer)
            }
        });
        Ok(Composers::new(all.collect::<Result<_, String>>()?))
    }
}

/// A plugin in a process of its own. Signing waits for it, as it does for keys that are in one.
struct External(Plugin);

impl Composer for External {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn x509_ca(&self, mut attributes: X509Attributes) -> Result<X509Attributes, String> {
        let request = wire::X509caAttributes {
            subject: Some(to_name(&attributes.subject)),
            policy_identifiers: attributes
                .policies
                .iter()
                .map(ToString::to_string)
                .collect(),
            extra_extensions: to_extensions(&attributes.extensions),
        };
        let Some(told) = blocking(self.0.x509_ca(request)).map_err(text)? else {
            return Ok(attributes);
        };
        attributes.subject = subject(told.subject)?;
        let policies = told.policy_identifiers.iter().map(|id| oid(id));
        attributes.policies = policies.collect::<Result<_, _>>()?;
        attributes.extensions = extensions(told.extra_extensions)?;
        Ok(attributes)
    }

    fn x509_svid(
        &self,
        of: Holder<'_>,
        mut attributes: X509Attributes,
    ) -> Result<X509Attributes, String> {
        let request = wire::X509svidAttributes {
            subject: Some(to_name(&attributes.subject)),
            dns_sans: attributes.dns_names.clone(),
            extra_extensions: to_extensions(&attributes.extensions),
        };
        let told = match of {
            Holder::Server => blocking(self.0.server_svid(request)),
            Holder::Agent(id, spki) => {
                blocking(self.0.agent_svid(id.to_string(), spki.to_vec(), request))
            }
            Holder::Workload(id, spki) => {
                blocking(self.0.workload_svid(id.to_string(), spki.to_vec(), request))
            }
        };
        let Some(told) = told.map_err(text)? else {
            return Ok(attributes);
        };
        attributes.subject = subject(told.subject)?;
        attributes.dns_names = told.dns_sans;
        attributes.extensions = extensions(told.extra_extensions)?;
        Ok(attributes)
    }

    fn jwt_svid(
        &self,
        id: &SpiffeId,
        claims: Map<String, Value>,
    ) -> Result<Map<String, Value>, String> {
        let told = blocking(self.0.workload_jwt(id.to_string(), &claims));
        Ok(told.map_err(text)?.unwrap_or(claims))
    }
}

fn text(status: Status) -> String {
    status.message().to_owned()
}

fn to_name(subject: &Subject) -> wire::DistinguishedName {
    let extra = subject.extra.iter();
    wire::DistinguishedName {
        country: subject.country.clone(),
        organization: subject.organization.clone(),
        organizational_unit: subject.organizational_unit.clone(),
        locality: subject.locality.clone(),
        province: subject.province.clone(),
        street_address: subject.street_address.clone(),
        postal_code: subject.postal_code.clone(),
        serial_number: subject.serial_number.clone(),
        common_name: subject.common_name.clone(),
        extra_names: extra
            .map(|(id, value)| wire::AttributeTypeAndValue {
                oid: id.to_string(),
                string_value: value.clone(),
            })
            .collect(),
    }
}

fn subject(told: Option<wire::DistinguishedName>) -> Result<Subject, String> {
    let told = told.ok_or("the plugin's answer has no subject")?;
    let extra = told.extra_names.into_iter();
    Ok(Subject {
        country: told.country,
        organization: told.organization,
        organizational_unit: told.organizational_unit,
        locality: told.locality,
        province: told.province,
        street_address: told.street_address,
        postal_code: told.postal_code,
        common_name: told.common_name,
        serial_number: told.serial_number,
        extra: extra
            .map(|name| Ok((oid(&name.oid)?, name.string_value)))
            .collect::<Result<_, String>>()?,
    })
}

fn to_extensions(extensions: &[Extension]) -> Vec<wire::X509Extension> {
    let extensions = extensions.iter().map(|extension| wire::X509Extension {
        oid: extension.id.to_string(),
        value: extension.value.clone(),
        critical: extension.critical,
    });
    extensions.collect()
}

fn extensions(told: Vec<wire::X509Extension>) -> Result<Vec<Extension>, String> {
    let told = told.into_iter().map(|extension| {
        Ok(Extension {
            id: oid(&extension.oid)?,
            critical: extension.critical,
            value: extension.value,
        })
    });
    told.collect()
}

fn oid(text: &str) -> Result<ObjectId, String> {
    text.parse()
        .map_err(|error| format!("the plugin's answer makes no sense: {error}"))
}
