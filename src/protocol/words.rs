//! The words of answers, each set in one table. Where a newer extentd has one
//! more, it is shown as it is.

use std::borrow::Cow;
use std::fmt;

use mapping::KindName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::options::config::Swap;

/// A set of words.
pub trait Word: Copy + PartialEq + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// As it is written.
    fn word(self) -> &'static str;
}

/// A word of a set, or one that is not known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named<T> {
    /// Of the set.
    Known(T),
    /// As extentd writes it.
    Other(String),
}

impl<T> Named<T> {
    /// The word, if it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Named::Known(word) => Some(word),
            Named::Other(_) => None,
        }
    }
}

impl<T: Word> Named<T> {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Named::Known(word) => word.word(),
            Named::Other(text) => text,
        }
    }
}

impl<T> From<T> for Named<T> {
    fn from(word: T) -> Self {
        Named::Known(word)
    }
}

impl<T: Default> Default for Named<T> {
    fn default() -> Self {
        Named::Known(T::default())
    }
}

impl<T: Word> PartialEq<T> for Named<T> {
    fn eq(&self, other: &T) -> bool {
        self.known() == Some(other)
    }
}

impl<T: Word> fmt::Display for Named<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<T: Word> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<T: Word> JsonSchema for Named<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Word".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words = T::ALL.iter().map(|word| word.word());
        // A newer extentd may have more.
        json_schema!({ "type": "string", "examples": words.collect::<Vec<_>>() })
    }
}

impl<'de, T: Word> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match T::ALL.iter().find(|word| word.word() == text) {
            Some(word) => Named::Known(*word),
            None => Named::Other(text),
        })
    }
}

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$meaning])* $variant,)*
        }

        impl Word for $name {
            const ALL: &'static [Self] = &[$($name::$variant,)*];

            fn word(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)*
                }
            }
        }
    };
}

words! {
    /// Where requests go.
    #[derive(Default)]
    Way {
        /// By the file: always possible.
        #[default]
        File = "file",
        /// Straight to the device under it.
        Disk = "disk",
    }
}

words! {
    /// What an image is.
    ImageKind {
        /// A regular file.
        File = "file",
        /// A block device.
        BlockDevice = "block device",
    }
}

words! {
    /// How operations are given to the kernel.
    EngineName {
        /// By rings.
        IoUring = "io_uring",
        /// By plain system calls.
        Sync = "sync",
    }
}

words! {
    /// How a device is read and written.
    DeviceIo {
        /// It interrupts when it is done.
        Queued = "queued",
        /// By the workers themselves, as it takes nothing without waiting.
        Inline = "inline",
        /// It is looked at, so that it need not interrupt.
        Polled = "polled",
    }
}

impl Word for Swap {
    const ALL: &'static [Self] = &[Swap::Demanded, Swap::BestEffort];

    fn word(self) -> &'static str {
        match self {
            Swap::Demanded => "demanded",
            Swap::BestEffort => "best-effort",
        }
    }
}

impl Word for KindName {
    const ALL: &'static [Self] = &KindName::ALL;

    fn word(self) -> &'static str {
        self.as_str()
    }
}

/// What a kind of extent is, in an image.
pub fn meaning(kind: KindName) -> &'static str {
    match kind {
        KindName::Written => "data of this image alone",
        KindName::Unwritten => "has a place, reads as zeros",
        KindName::Hole => "no place, reads as zeros",
        KindName::Shared => "data that other files use too",
        KindName::Opaque => "not for the disk path",
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::options::args::SwapArg;

    #[test]
    fn known_words_are_known_again_and_new_ones_are_kept() {
        for way in Way::ALL {
            let text = serde_json::to_string(&Named::from(*way)).unwrap();
            assert_eq!(serde_json::from_str::<Named<Way>>(&text).unwrap(), *way);
        }
        let newer: Named<Way> = serde_json::from_str("\"snapshot\"").unwrap();
        assert_eq!((newer.known(), newer.as_str()), (None, "snapshot"));
        assert_eq!(serde_json::to_value(&newer).unwrap(), "snapshot");
        assert!(serde_json::from_str::<Named<Way>>("7").is_err());
    }

    #[test]
    fn the_mode_is_shown_as_it_is_typed() {
        for typed in SwapArg::value_variants() {
            let name = typed.to_possible_value().unwrap();
            assert_eq!(Swap::from(*typed).word(), name.get_name());
        }
    }
}
