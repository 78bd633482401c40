//! How the SDK's small enums are written down in calls that travel: by the codes of the function contract. (The SDK has
//! no serde, because functions are built without std.)

macro_rules! codes {
    ($name:ident, $type:ty, $to:expr, $from:expr) => {
        pub mod $name {
            use serde::de::Error;
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            pub fn serialize<S: Serializer>(value: &$type, serializer: S) -> Result<S::Ok, S::Error> {
                let code: u32 = $to(*value);
                code.serialize(serializer)
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                let code = u32::deserialize(deserializer)?;
                let unknown = || D::Error::custom(format_args!("unknown {} {code}", stringify!($name)));
                $from(code).ok_or_else(unknown)
            }
        }
    };
}

codes!(dtype, catchment_sdk::Dtype, |dtype| dtype as u32, catchment_sdk::Dtype::from_code);
codes!(rule, catchment_sdk::Rule, catchment_sdk::abi::rule_code, catchment_sdk::abi::rule_from);
codes!(kind, catchment_sdk::Kind, catchment_sdk::abi::kind_code, catchment_sdk::abi::kind_from);
