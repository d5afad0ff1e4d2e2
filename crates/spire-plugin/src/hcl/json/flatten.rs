//! JSON cannot say `NodeAttestor "x" { }` twice, so objects of objects stand for labels and lists of objects for
//! repeated blocks.

use super::super::{Item, Value};

/// The items as HCL would have them.
pub(super) fn items(items: Vec<Item>) -> Vec<Item> {
    let mut flat = Vec::with_capacity(items.len());
    for item in items {
        push(item, &mut flat);
    }
    for item in &mut flat {
        descend(&mut item.value);
    }
    flat
}

fn push(item: Item, flat: &mut Vec<Item>) {
    match item.value {
        Value::Object(object)
            if !object.items.is_empty() && object.items.iter().all(is_object_item) =>
        {
            for inner in object.items {
                let keys = item.keys.iter().cloned().chain(inner.keys).collect();
                let value = inner.value;
                push(Item { keys, value }, flat);
            }
        }
        Value::List(list) if !list.values.is_empty() && list.values.iter().all(is_object) => {
            for value in list.values {
                let keys = item.keys.clone();
                push(Item { keys, value }, flat);
            }
        }
        value => flat.push(Item {
            keys: item.keys,
            value,
        }),
    }
}

fn descend(value: &mut Value) {
    match value {
        Value::Literal(_) => {}
        Value::Object(object) => object.items = items(std::mem::take(&mut object.items)),
        Value::List(list) => list.values.iter_mut().for_each(descend),
    }
}

fn is_object_item(item: &Item) -> bool {
    is_object(&item.value)
}

fn is_object(value: &Value) -> bool {
    matches!(value, Value::Object(_))
}
