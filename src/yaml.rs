//! YAML in and out, by way of a JSON value: one copy of the reader and the writer in the program instead of one per type.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a text could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum YamlError {
    /// It is no YAML. The text does not quote the input, which may hold secrets.
    #[error("line {line}: {text}")]
    NotYaml {
        /// Where.
        line: u64,
        /// What the parser says.
        text: String,
    },
    /// It is YAML, but a field is unknown or has the wrong type.
    #[error("{0}")]
    Field(#[from] serde_json::Error),
}

impl YamlError {
    /// Where, if that is known.
    pub(crate) fn line(&self) -> Option<u64> {
        match self {
            YamlError::NotYaml { line, .. } => Some(*line),
            YamlError::Field(_) => None,
        }
    }
}

/// Reads YAML or JSON.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| YamlError::NotYaml {
        line: error.location().map_or(1, |place| place.line()),
        text: error.without_snippet().to_string(),
    })?;
    Ok(serde_json::from_value(value)?)
}

/// Writes YAML.
pub(crate) fn write<T: Serialize>(value: &T) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(&serde_json::to_value(value)?)?)
}
