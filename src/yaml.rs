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
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| not_yaml(&error))?;
    Ok(serde_json::from_value(value)?)
}

/// All documents of a text, without those that have nothing in them. Only `true` and `false` are booleans: `n` is a name.
pub(crate) fn documents(text: &str) -> Result<Vec<serde_json::Value>, YamlError> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let values: Result<Vec<serde_json::Value>, _> = serde_saphyr::from_multiple_with_options(text, options);
    let values = values.map_err(|error| not_yaml(&error))?;
    Ok(values.into_iter().filter(|value| !value.is_null()).collect())
}

fn not_yaml(error: &serde_saphyr::Error) -> YamlError {
    YamlError::NotYaml {
        line: error.location().map_or(1, |place| place.line()),
        text: error.without_snippet().to_string(),
    }
}

/// Writes JSON for people, by the same way: the one copy of what turns a report into a value serves both.
pub(crate) fn write_json<T: Serialize>(value: &T) -> anyhow::Result<String> {
    // `Display` says the same in pieces through a formatter, in twice the time.
    let mut text = serde_json::to_string_pretty(&serde_json::to_value(value)?)?;
    text.push('\n');
    Ok(text)
}

/// Writes YAML.
pub(crate) fn write<T: Serialize>(value: &T) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(&serde_json::to_value(value)?)?)
}
