//! What Azure knows of the virtual machine that has an identity.

use std::collections::BTreeSet;
use std::time::SystemTime;

use ah_spire_wire::azure::Caller;
use ah_spire_wire::sigv4::percent_encoded;
use serde::Deserialize;

use crate::node::azure::{Interface, Reference, resource};

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    value: Vec<Reference>,
    #[serde(rename = "nextLink")]
    next: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Machine {
    properties: Properties,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Properties {
    network_profile: Option<Profile>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Profile {
    network_interfaces: Vec<Reference>,
}

/// The values of the selectors of the machine of `subscription` whose identity is `principal`, which is a UUID.
pub(super) async fn values(
    caller: &Caller,
    subscription: &str,
    principal: &str,
    now: SystemTime,
) -> Result<BTreeSet<String>, String> {
    let id = id_of(caller, subscription, principal, now).await;
    let id =
        id.map_err(|error| format!("unable to get resource for principal {principal:?}: {error}"))?;
    let kind = ["Microsoft.Compute", "virtualMachines"];
    let [group, name] = resource(&id, "virtual machine", kind)?;
    let mut values = BTreeSet::from([
        format!("subscription-id:{subscription}"),
        format!("vm-name:{group}:{name}"),
    ]);
    let of = |group: &str, provider: &str, name: &str, version: &str| {
        format!(
            "/subscriptions/{}/resourceGroups/{}/providers/{provider}/{}?api-version={version}",
            percent_encoded(subscription),
            percent_encoded(group),
            percent_encoded(name)
        )
    };
    let path = of(
        group,
        "Microsoft.Compute/virtualMachines",
        name,
        "2024-07-01",
    );
    let machine: Machine = caller
        .manager(&path, None, now)
        .await
        .map_err(|error| format!("unable to get virtual machine \"{group}:{name}\": {error}"))?;
    let profile = machine.properties.network_profile.unwrap_or_default();
    for id in profile
        .network_interfaces
        .iter()
        .filter_map(|it| it.id.as_deref())
    {
        let kind = ["Microsoft.Network", "networkInterfaces"];
        let [group, name] = resource(id, "network interface", kind)?;
        let path = of(
            group,
            "Microsoft.Network/networkInterfaces",
            name,
            "2024-05-01",
        );
        let interface: Interface = caller.manager(&path, None, now).await.map_err(|error| {
            format!("unable to get network interface \"{group}:{name}\": {error}")
        })?;
        let interface = interface.properties;
        if let Some((group, name)) = interface.security_group()? {
            values.insert(format!("network-security-group:{group}:{name}"));
        }
        for subnet in interface.subnets()? {
            let place = format!("{}:{}", subnet.group, subnet.network);
            values.insert(format!("virtual-network:{place}"));
            values.insert(format!("virtual-network-subnet:{place}:{}", subnet.name));
        }
    }
    Ok(values)
}

/// The resource id of the machine.
async fn id_of(
    caller: &Caller,
    subscription: &str,
    principal: &str,
    now: SystemTime,
) -> Result<String, String> {
    let filter = format!(
        "resourceType eq 'Microsoft.Compute/virtualMachines' and identity/principalId eq '{principal}'"
    );
    let path = format!(
        "/subscriptions/{}/resources?api-version=2021-04-01&$filter={}",
        percent_encoded(subscription),
        percent_encoded(&filter)
    );
    let told = |error: String| format!("unable to list virtual machine by principal: {error}");
    let mut page: Page = caller.manager(&path, None, now).await.map_err(told)?;
    let mut found = Vec::new();
    loop {
        found.append(&mut page.value);
        match page.next.take().filter(|next| !next.is_empty()) {
            None => break,
            Some(next) => page = caller.next(&next, now).await.map_err(told)?,
        }
    }
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (None, _) => Err(format!("principal {principal:?} not found")),
        (Some(one), None) => one
            .id
            .filter(|id| !id.is_empty())
            .ok_or_else(|| "virtual machine resource missing ID".into()),
        _ => Err(format!(
            "expected one result for principal {principal:?} at most"
        )),
    }
}
