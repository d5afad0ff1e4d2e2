//! What Azure knows of a virtual machine.

use std::collections::BTreeMap;
use std::time::SystemTime;

use ah_spire_wire::azure::Caller;
use ah_spire_wire::sigv4::percent_encoded;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::node::azure::{Interface, InterfaceProperties};

const GRAPH: &str = "/providers/Microsoft.ResourceGraph/resources?api-version=2021-03-01";

/// A virtual machine, with what is used of it.
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) location: String,
    pub(super) resource_group: String,
    pub(super) tags: BTreeMap<String, Value>,
    pub(super) interfaces: Vec<InterfaceProperties>,
}

/// Rows of the resource graph.
async fn rows<T: DeserializeOwned>(
    caller: &Caller,
    subscription: &str,
    query: &str,
    now: SystemTime,
) -> Result<Vec<T>, String> {
    #[derive(Deserialize)]
    struct Answer<T> {
        data: Vec<T>,
    }
    let body = json!({
        "query": query,
        "subscriptions": [subscription],
        "options": {"resultFormat": "objectArray"},
    });
    let answer: Answer<T> = caller.manager(GRAPH, Some(&body), now).await?;
    if answer.data.is_empty() {
        return Err("resource not found".into());
    }
    Ok(answer.data)
}

fn one<T>(rows: Vec<T>) -> Result<T, String> {
    let mut rows = rows.into_iter();
    match (rows.next(), rows.next()) {
        (Some(row), None) => Ok(row),
        _ => Err("expected one result for resource at most".into()),
    }
}

/// The machine `id`, which is a UUID, of `subscription`.
pub(super) async fn alone(
    caller: &Caller,
    id: &str,
    subscription: &str,
    now: SystemTime,
) -> Result<Machine, String> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Row {
        id: String,
        name: String,
        location: String,
        resource_group: String,
        tags: Option<BTreeMap<String, Value>>,
    }

    let query = format!(
        "resources | where type =~ 'microsoft.compute/virtualmachines' and properties.vmId == '{id}' \
         | project id, name, location, tags, resourceGroup"
    );
    let told = |what: &str, error: String| format!("unable to get {what}: {error}");
    let found = rows(caller, subscription, &query, now).await;
    let found: Row = found
        .and_then(one)
        .map_err(|error| told("virtual machine", error))?;
    // What stands between the quotes of a query ends with them.
    if found.id.contains(['\'', '\\', '"']) {
        return Err(format!("malformed virtual machine ID {:?}", found.id));
    }
    // Azure writes the id in another case here and there.
    let query = format!(
        "resources | where type =~ 'microsoft.network/networkinterfaces' \
         and tostring(properties.virtualMachine.id) =~ '{}' | project properties",
        found.id
    );
    let interfaces: Vec<Interface> = rows(caller, subscription, &query, now)
        .await
        .map_err(|error| told("network interfaces", error))?;
    Ok(Machine {
        name: found.name,
        location: found.location,
        resource_group: found.resource_group,
        tags: found.tags.unwrap_or_default(),
        interfaces: interfaces.into_iter().map(|it| it.properties).collect(),
    })
}

/// The machine `id` of the scale set `name`.
pub(super) async fn of_scale_set(
    caller: &Caller,
    id: &str,
    subscription: &str,
    name: &str,
    now: SystemTime,
) -> Result<Machine, String> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Row {
        resource_group: String,
    }
    #[derive(Deserialize)]
    struct Page {
        #[serde(default)]
        value: Vec<Member>,
        #[serde(rename = "nextLink")]
        next: Option<String>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Member {
        name: String,
        location: String,
        tags: Option<BTreeMap<String, Value>>,
        properties: Properties,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Properties {
        vm_id: String,
        network_profile_configuration: Option<Network>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Network {
        network_interface_configurations: Vec<Interface>,
    }

    check_name(name).map_err(|error| format!("invalid VMSS name: {error}"))?;
    let query = format!(
        "resources | where type =~ 'microsoft.compute/virtualmachinescalesets' and name == '{name}' \
         | project resourceGroup"
    );
    let found = rows(caller, subscription, &query, now).await;
    let group: Row = found
        .and_then(one)
        .map_err(|error| format!("unable to get VMSS info: {error}"))?;
    let path = format!(
        "/subscriptions/{subscription}/resourceGroups/{}/providers/Microsoft.Compute/virtualMachineScaleSets/{name}/virtualMachines?api-version=2024-07-01",
        percent_encoded(&group.resource_group)
    );
    let told = |error: String| format!("unable to list VMSS instances: {error}");
    let mut page: Page = caller.manager(&path, None, now).await.map_err(told)?;
    loop {
        let mut members = page.value.into_iter();
        if let Some(member) = members.find(|member| member.properties.vm_id == id) {
            let network = member.properties.network_profile_configuration;
            let interfaces = network.unwrap_or_default().network_interface_configurations;
            return Ok(Machine {
                name: member.name,
                location: member.location,
                resource_group: group.resource_group,
                tags: member.tags.unwrap_or_default(),
                interfaces: interfaces.into_iter().map(|it| it.properties).collect(),
            });
        }
        let next = page.next.filter(|next| !next.is_empty());
        let next = next.ok_or_else(|| format!("VMSS instance {id:?} not found"))?;
        page = caller.next(&next, now).await.map_err(told)?;
    }
}

/// Azure's rules for names of scale sets. The name came from the agent.
fn check_name(name: &str) -> Result<(), &'static str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let (Some(first), Some(last)) = (name.bytes().next(), name.bytes().next_back()) else {
        return Err("VMSS name must be at least 1 character(s) long, got 0");
    };
    if name.len() > 64 {
        return Err("VMSS name must be at most 64 characters long");
    }
    if !name.bytes().all(fits) {
        return Err(
            "VMSS name can only contain alphanumeric characters, underscores, periods, and hyphens",
        );
    }
    if !first.is_ascii_alphanumeric() {
        return Err("VMSS name must start with an alphanumeric character");
    }
    if !last.is_ascii_alphanumeric() && last != b'_' {
        return Err("VMSS name must end with an alphanumeric character or an underscore");
    }
    Ok(())
}
