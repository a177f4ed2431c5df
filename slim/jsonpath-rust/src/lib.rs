//! What kube asks of the crate jsonpath-rust: the values at one place of a JSON document, which a kubeconfig names for the
//! token in the answer of a login command (`token-key: '{.credential.access_token}'`).
//!
//! Names and numbers of elements are understood (`$.a.b`, `$['a.b']`, `$.items[0]`), which is what such a place consists of;
//! wildcards, slices and filters are refused.

use serde_json::Value;

/// The values at a place.
pub trait JsonPath {
    /// The value at `path`, or none.
    ///
    /// # Errors
    ///
    /// What in the path is not understood.
    fn query(&self, path: &str) -> Result<Vec<&Value>, String>;
}

impl JsonPath for Value {
    fn query(&self, path: &str) -> Result<Vec<&Value>, String> {
        let mut rest = path.strip_prefix('$').ok_or_else(|| format!("{path:?} does not begin with $"))?;
        let mut at = Some(self);
        while !rest.is_empty() {
            let (step, after) = next(rest).ok_or_else(|| format!("{rest:?} of {path:?} is neither a name nor a number"))?;
            at = at.and_then(|value| match step {
                Step::Name(name) => value.get(name),
                Step::Number(number) => value.get(number),
            });
            rest = after;
        }
        Ok(at.into_iter().collect())
    }
}

enum Step<'a> {
    Name(&'a str),
    Number(usize),
}

/// The first step of a path, and the rest.
fn next(path: &str) -> Option<(Step<'_>, &str)> {
    if let Some(name) = path.strip_prefix('.') {
        let (name, rest) = name.split_at(name.find(['.', '[']).unwrap_or(name.len()));
        let plain = !name.is_empty() && !name.contains(['*', '?', '@', ' ', ']']);
        return plain.then_some((Step::Name(name), rest));
    }
    let bracket = path.strip_prefix('[')?;
    for quote in ['\'', '"'] {
        if let Some(name) = bracket.strip_prefix(quote) {
            let (name, rest) = name.split_once(quote)?;
            return Some((Step::Name(name), rest.strip_prefix(']')?));
        }
    }
    let (number, rest) = bracket.split_once(']')?;
    Some((Step::Number(number.parse().ok()?), rest))
}
