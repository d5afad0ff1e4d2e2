//! What AWS knows of an instance.

use std::collections::BTreeMap;
use std::time::SystemTime;

use ah_spire_wire::aws::{Caller, Service};
use roxmltree::{Document, Node};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const EC2: Service = Service::regional("EC2", "ec2");
const IAM: Service = Service::global("IAM", "iam");

/// How far apart the attachments of root volume and first network interface may be, in seconds. As upstream.
const MAX_DISPARITY: i64 = 60;

/// An instance, with what is used of it.
pub(super) struct Instance {
    pub(super) tags: BTreeMap<String, String>,
    /// Id and name of each.
    pub(super) security_groups: Vec<(String, String)>,
    /// The ARN of its instance profile.
    pub(super) profile: Option<String>,
    devices: Devices,
}

struct Devices {
    root_type: String,
    root_name: String,
    /// By name, with the time of the attachment.
    blocks: Vec<(String, String)>,
    /// By index, with the time of the attachment.
    interfaces: Vec<(String, String)>,
}

pub(super) fn parsed(answer: &str) -> Result<Document<'_>, String> {
    Document::parse(answer).map_err(|error| format!("the answer is no XML: {error}"))
}

/// Elements below `node` whose names are `path`, one a level.
pub(super) fn below<'a, 'b>(node: Node<'a, 'b>, path: &[&str]) -> Vec<Node<'a, 'b>> {
    let Some((name, rest)) = path.split_first() else {
        return vec![node];
    };
    let children = node
        .children()
        .filter(|child| child.tag_name().name() == *name);
    children.flat_map(|child| below(child, rest)).collect()
}

pub(super) fn text(node: Node<'_, '_>, path: &[&str]) -> String {
    let found = below(node, path);
    let text = found.first().and_then(Node::text);
    text.unwrap_or_default().trim().to_owned()
}

/// The instance `id`, if it is pending or running.
pub(super) async fn instance(
    caller: &Caller,
    id: &str,
    now: SystemTime,
) -> Result<Instance, String> {
    let form = [
        ("Action", "DescribeInstances"),
        ("Version", "2016-11-15"),
        ("InstanceId.1", id),
        ("Filter.1.Name", "instance-state-name"),
        ("Filter.1.Value.1", "pending"),
        ("Filter.1.Value.2", "running"),
    ];
    let answer = caller.query(EC2, &form, now).await;
    let answer = answer.map_err(|error| format!("failed to describe instance: {error}"))?;
    let document = parsed(&answer)?;
    let none = |what| format!("failed to query AWS via describe-instances: returned no {what}");
    let root = document.root_element();
    let reservations = below(root, &["reservationSet", "item"]);
    let reservation = reservations.first().ok_or_else(|| none("reservations"))?;
    let instances = below(*reservation, &["instancesSet", "item"]);
    let node = instances.first().ok_or_else(|| none("instances"))?;
    let described = text(*node, &["instanceId"]);
    if described != id {
        return Err(format!(
            "failed to query AWS via describe-instances: asked for {id}, and {described:?} was described"
        ));
    }
    let pairs = |path: &[&str], first: &[&str], second: &[&str]| -> Vec<(String, String)> {
        let nodes = below(*node, path).into_iter();
        nodes
            .map(|item| (text(item, first), text(item, second)))
            .collect()
    };
    let profile = text(*node, &["iamInstanceProfile", "arn"]);
    Ok(Instance {
        tags: pairs(&["tagSet", "item"], &["key"], &["value"])
            .into_iter()
            .collect(),
        security_groups: pairs(&["groupSet", "item"], &["groupId"], &["groupName"]),
        profile: Some(profile).filter(|arn| !arn.is_empty()),
        devices: Devices {
            root_type: text(*node, &["rootDeviceType"]),
            root_name: text(*node, &["rootDeviceName"]),
            blocks: pairs(
                &["blockDeviceMapping", "item"],
                &["deviceName"],
                &["ebs", "attachTime"],
            ),
            interfaces: pairs(
                &["networkInterfaceSet", "item"],
                &["attachment", "deviceIndex"],
                &["attachment", "attachTime"],
            ),
        },
    })
}

impl Instance {
    /// Whether the root volume came with the instance: somebody who moves a volume to another instance takes what is on it
    /// along.
    pub(super) fn check_block_device(&self) -> Result<(), String> {
        let devices = &self.devices;
        let mut interfaces = devices.interfaces.iter();
        let (_, interface) = interfaces
            .find(|(index, _)| index == "0")
            .ok_or("the EC2 instance network interface with device index 0 is inaccessible")?;
        if devices.root_type == "instance-store" {
            return Ok(());
        }
        let root = devices.blocks.iter();
        let mut root = root.filter(|(name, _)| *name == devices.root_name);
        let (_, root) = root.next().ok_or_else(|| {
            format!(
                "failed to locate the root device block mapping with name {:?}",
                devices.root_name
            )
        })?;
        let seconds = |of: &str, time: &str| {
            OffsetDateTime::parse(time, &Rfc3339)
                .map(OffsetDateTime::unix_timestamp)
                .map_err(|error| format!("the time that the {of} was attached at: {error}"))
        };
        let interface = seconds("network interface", interface)?;
        let disparity = interface.abs_diff(seconds("root device", root)?);
        if disparity > MAX_DISPARITY.unsigned_abs() {
            return Err(format!(
                "failed checking the disparity device attach times, root BlockDeviceMapping and NetworkInterface[0] \
                 attach times differ by {disparity} seconds"
            ));
        }
        Ok(())
    }
}

/// The ARNs of the roles that the instance profile `arn` has.
pub(super) async fn roles(
    caller: &Caller,
    arn: &str,
    now: SystemTime,
) -> Result<Vec<String>, String> {
    // arn:<partition>:iam:<region>:<account>:instance-profile/<path>/<name>
    let resource = arn.splitn(6, ':').nth(5);
    let name = resource.and_then(|resource| resource.strip_prefix("instance-profile"));
    let name = name.and_then(|path| path.rsplit(['/', ':']).next());
    let name = name
        .filter(|name| !name.is_empty())
        .ok_or_else(|| format!("arn is not for an instance profile: {arn:?}"))?;
    let form = [
        ("Action", "GetInstanceProfile"),
        ("Version", "2010-05-08"),
        ("InstanceProfileName", name),
    ];
    let answer = caller.query(IAM, &form, now).await;
    let answer = answer.map_err(|error| format!("failed to get instance profile: {error}"))?;
    let document = parsed(&answer)?;
    let path = [
        "GetInstanceProfileResult",
        "InstanceProfile",
        "Roles",
        "member",
        "Arn",
    ];
    let roles = below(document.root_element(), &path).into_iter();
    Ok(roles
        .filter_map(|role| role.text())
        .map(|arn| arn.trim().to_owned())
        .collect())
}
