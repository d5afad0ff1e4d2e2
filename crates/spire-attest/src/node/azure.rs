//! What both attestors of Azure have in common.

use ah_spire_wire::azure::{self, Azure};
use serde::Deserialize;

/// The version of the metadata service's interface that is spoken.
pub(super) const METADATA_VERSION: &str = "2025-04-07";

/// What the metadata service says of its virtual machine.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Instance {
    pub(super) compute: Compute,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Compute {
    name: String,
    pub(super) subscription_id: String,
    resource_group_name: String,
    pub(super) vm_scale_set_name: String,
}

impl Instance {
    /// The one that this process runs on.
    pub(super) async fn own(azure: &Azure) -> Result<Self, String> {
        let path = format!("/metadata/instance?api-version={METADATA_VERSION}&format=json");
        let own: Self = azure::metadata(azure, &path).await?;
        for (value, what) in [
            (&own.compute.name, "name"),
            (&own.compute.subscription_id, "subscription id"),
            (&own.compute.resource_group_name, "resource group name"),
        ] {
            if value.is_empty() {
                return Err(format!("response missing instance {what}"));
            }
        }
        Ok(own)
    }
}

/// Something that has an id.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Reference {
    pub(super) id: Option<String>,
}

/// A network interface, as far as selectors go.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Interface {
    pub(super) properties: InterfaceProperties,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct InterfaceProperties {
    network_security_group: Option<Reference>,
    ip_configurations: Vec<IpConfiguration>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct IpConfiguration {
    properties: Option<IpProperties>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct IpProperties {
    subnet: Option<Reference>,
}

/// A subnet: resource group, network, and its own name.
pub(super) struct Subnet {
    pub(super) group: String,
    pub(super) network: String,
    pub(super) name: String,
}

impl InterfaceProperties {
    /// Resource group and name of the security group.
    pub(super) fn security_group(&self) -> Result<Option<(String, String)>, String> {
        let group = self.network_security_group.as_ref();
        let Some(id) = group.and_then(|group| group.id.as_deref()) else {
            return Ok(None);
        };
        let [group, name] = resource(
            id,
            "network security group",
            ["Microsoft.Network", "networkSecurityGroups"],
        )?;
        Ok(Some((group.to_owned(), name.to_owned())))
    }

    pub(super) fn subnets(&self) -> Result<Vec<Subnet>, String> {
        let configurations = self.ip_configurations.iter();
        let subnets = configurations.filter_map(|it| it.properties.as_ref()?.subnet.as_ref());
        let ids = subnets.filter_map(|subnet| subnet.id.as_deref());
        ids.map(|id| {
            let malformed = || format!("malformed virtual network subnet ID {id:?}");
            let (network, name) = id.rsplit_once("/subnets/").ok_or_else(malformed)?;
            if name.is_empty() || name.contains('/') {
                return Err(malformed());
            }
            let kind = ["Microsoft.Network", "virtualNetworks"];
            let [group, network] =
                resource(network, "virtual network subnet", kind).map_err(|_| malformed())?;
            Ok(Subnet {
                group: group.to_owned(),
                network: network.to_owned(),
                name: name.to_owned(),
            })
        })
        .collect()
    }
}

/// Resource group and name of `id`, which is of a resource of `kind`: provider and type. Their case is not looked at, as
/// Azure Resource Manager does not.
pub(super) fn resource<'a>(
    id: &'a str,
    what: &str,
    kind: [&str; 2],
) -> Result<[&'a str; 2], String> {
    let malformed = || format!("malformed {what} ID {id:?}");
    let parts: Vec<_> = id.split('/').collect();
    let [
        empty,
        subscriptions,
        subscription,
        groups,
        group,
        providers,
        provider,
        of,
        name,
    ] = parts.as_slice()
    else {
        return Err(malformed());
    };
    let fixed = [
        (*empty, ""),
        (*subscriptions, "subscriptions"),
        (*groups, "resourceGroups"),
        (*providers, "providers"),
        (*provider, kind[0]),
        (*of, kind[1]),
    ];
    let fits = fixed.iter().all(|(is, be)| is.eq_ignore_ascii_case(be));
    let named = [subscription, group, name]
        .iter()
        .all(|part| !part.is_empty());
    (fits && named)
        .then_some([*group, *name])
        .ok_or_else(malformed)
}

/// Whether `text` is a UUID in the form that Azure writes, and so means nothing in a URL or a query.
pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}
