//! The properties of a swap-grade disk.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One property: whether it holds, and what that is read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Property {
    /// It does.
    pub held: bool,
    /// One sentence.
    pub detail: String,
}

/// Properties by name, in the order in which they are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(Vec<(String, Property)>);

impl Properties {
    /// From pairs of name and property.
    pub(crate) fn new(named: Vec<(&'static str, Property)>) -> Self {
        let named = named.into_iter();
        Self(
            named
                .map(|(name, property)| (name.to_owned(), property))
                .collect(),
        )
    }

    /// Each of them is held.
    pub fn all_held(&self) -> bool {
        self.0.iter().all(|(_, property)| property.held)
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, property)| (name, property)))
    }
}

impl JsonSchema for Properties {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Properties".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        BTreeMap::<String, Property>::json_schema(generator)
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Properties;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("properties by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Properties, A::Error> {
                let mut named = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    named.push(entry);
                }
                Ok(Properties(named))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_kept() {
        let property = |held| Property {
            held,
            detail: "so".to_owned(),
        };
        let properties = Properties::new(vec![("z", property(true)), ("a", property(false))]);
        let text = serde_json::to_string(&properties).unwrap();
        assert!(text.starts_with(r#"{"z":{"held":true,"#), "{text}");
        let read: Properties = serde_json::from_str(&text).unwrap();
        assert_eq!(read, properties);
        assert!(!read.all_held());
    }
}
