//! Facts read back from the JSON that a bundle holds, so that what a node saw can be judged again elsewhere.
//!
//! Not `derive(Deserialize)`: for so many types that is some hundred kilobytes of program. Here one reader walks a JSON value;
//! it goes on after a fault with some value in its place, keeps the first fault with its place, and the facts are thrown away
//! at the end. So reading a field is one call, without a way back out. `tables` names every field and every variant: one that is added
//! to a fact and not there does not compile.

mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use serde_json::Value;

use super::{LookError, Reason, Seen};

/// What can be read back.
pub(crate) trait Replay: Sized {
    /// Reads the value at which the reader stands; some value after a fault.
    fn replay(from: &mut Reader<'_>) -> Self;
}

/// Where in a JSON value something is read, and the first fault.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    value: &'a Value,
    place: Vec<Step<'a>>,
    fault: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

/// Reads the whole value.
///
/// # Errors
/// The first field that is missing or holds something else, by its place: `snapshot.routing.yes.links[3].mtu`.
pub(crate) fn replay<T: Replay>(value: &Value) -> Result<T, String> {
    let mut reader = Reader { value, place: Vec::new(), fault: None };
    let all = T::replay(&mut reader);
    reader.fault.map_or(Ok(all), Err)
}

const NOTHING: &Value = &Value::Null;

impl<'a> Reader<'a> {
    /// A field of the object here; `null` where it has none.
    pub(crate) fn field<T: Replay>(&mut self, name: &'static str) -> T {
        let value = self.get(name);
        self.inside(Step::Field(name), value)
    }

    /// A field that is left out when it says nothing.
    pub(super) fn optional<T: Replay + Default>(&mut self, name: &'static str) -> T {
        if self.get(name).is_null() { T::default() } else { self.field(name) }
    }

    /// A field that a bundle of an older version does not have: then the old value stays.
    pub(super) fn over<T: Replay>(&mut self, name: &'static str, old: &mut T) {
        if !self.get(name).is_null() {
            *old = self.field(name);
        }
    }

    /// By which of these names the value goes here, and its content: `"name"` or `{"name": content}`.
    pub(super) fn choice(&mut self, names: &[&'static str]) -> (usize, &'a Value) {
        let (name, content) = match self.value {
            Value::String(name) => (name.as_str(), NOTHING),
            Value::Object(map) if map.len() == 1 => {
                map.iter().next().map_or(("", NOTHING), |(name, content)| (name.as_str(), content))
            }
            _ => ("", NOTHING),
        };
        // Names begin with a small letter where serde is told so.
        let which = names.iter().position(|known| known.eq_ignore_ascii_case(name));
        if which.is_none() {
            self.expected(&format!("one of {}", names.join(", ")));
        }
        (which.unwrap_or(usize::MAX), content)
    }

    /// Reads a value further inside.
    pub(super) fn inside<T: Replay>(&mut self, step: Step<'a>, value: &'a Value) -> T {
        let outside = std::mem::replace(&mut self.value, value);
        self.place.push(step);
        let read = T::replay(self);
        self.place.pop();
        self.value = outside;
        read
    }

    /// The value here.
    pub(crate) fn value(&self) -> &'a Value {
        self.value
    }

    fn get(&self, name: &str) -> &'a Value {
        self.value.get(camel_case(name)).unwrap_or(NOTHING)
    }

    fn items(&mut self) -> &'a [Value] {
        let Value::Array(items) = self.value else {
            self.expected("a list");
            return &[];
        };
        items
    }

    /// An item of a list of fixed length.
    fn item<T: Replay>(&mut self, at: usize, of: usize) -> T {
        let items = self.items();
        if items.len() != of {
            self.expected(&format!("{of} values"));
        }
        self.inside(Step::Item(at), items.get(at).unwrap_or(NOTHING))
    }

    fn text(&mut self) -> &'a str {
        let Value::String(text) = self.value else {
            self.expected("a text");
            return "";
        };
        text
    }

    fn parsed<T: FromStr>(&mut self, kind: &str, otherwise: T) -> T {
        self.text().parse().unwrap_or_else(|_| {
            self.expected(kind);
            otherwise
        })
    }

    /// Notes a fault, if it is the first.
    pub(crate) fn expected(&mut self, what: &str) {
        if self.fault.is_some() {
            return;
        }
        let mut place = String::new();
        for step in &self.place {
            match step {
                Step::Field(name) if place.is_empty() => place.push_str(&camel_case(name)),
                // Writing to a String cannot fail.
                Step::Field(name) => _ = write!(place, ".{}", camel_case(name)),
                Step::Item(at) => _ = write!(place, "[{at}]"),
            }
        }
        let found = match self.value {
            Value::Null => "is missing".to_owned(),
            other => {
                let text = other.to_string();
                let end = text.char_indices().nth(60).map_or(text.len(), |(at, _)| at);
                format!("holds {}", &text[..end])
            }
        };
        self.fault = Some(format!("field {place}: {found}, and should be {what}"));
    }
}

/// `bytes_per_second` is `bytesPerSecond` in JSON.
fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut up = false;
    for c in name.chars() {
        match c {
            '_' => up = true,
            c if std::mem::take(&mut up) => out.push(c.to_ascii_uppercase()),
            c => out.push(c),
        }
    }
    out
}

macro_rules! numbers {
    ($($number:ident by $get:ident),*) => {$(
        impl Replay for $number {
            fn replay(from: &mut Reader<'_>) -> Self {
                from.value.$get().and_then(|it| it.try_into().ok()).unwrap_or_else(|| {
                    from.expected(concat!("a number (", stringify!($number), ")"));
                    0
                })
            }
        }
    )*};
}

numbers! { usize by as_u64, u8 by as_u64, u16 by as_u64, u32 by as_u64, u64 by as_u64, i32 by as_i64, i64 by as_i64 }

macro_rules! parsed {
    ($($what:ty = $otherwise:expr, $kind:literal;)*) => {$(
        impl Replay for $what {
            fn replay(from: &mut Reader<'_>) -> Self {
                from.parsed($kind, $otherwise)
            }
        }
    )*};
}

parsed! {
    char = '?', "one letter";
    IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED), "an IP address";
    SocketAddr = SocketAddr::from(([0, 0, 0, 0], 0)), "an IP address with a port";
    IpNet = IpNet::V4(Ipv4Net::default()), "a prefix";
    Timestamp = Timestamp::UNIX_EPOCH, "a time";
}

impl Replay for bool {
    fn replay(from: &mut Reader<'_>) -> Self {
        from.value.as_bool().unwrap_or_else(|| {
            from.expected("true or false");
            false
        })
    }
}

impl Replay for f64 {
    fn replay(from: &mut Reader<'_>) -> Self {
        from.value.as_f64().unwrap_or_else(|| {
            from.expected("a number");
            0.0
        })
    }
}

impl Replay for String {
    fn replay(from: &mut Reader<'_>) -> Self {
        from.text().to_owned()
    }
}

impl Replay for () {
    fn replay(_: &mut Reader<'_>) -> Self {}
}

impl<T: Replay> Replay for Option<T> {
    fn replay(from: &mut Reader<'_>) -> Self {
        (!from.value.is_null()).then(|| T::replay(from))
    }
}

impl<T: Replay> Replay for Vec<T> {
    fn replay(from: &mut Reader<'_>) -> Self {
        let items = from.items();
        items.iter().enumerate().map(|(at, item)| from.inside(Step::Item(at), item)).collect()
    }
}

impl<T: Replay> Replay for BTreeMap<String, T> {
    fn replay(from: &mut Reader<'_>) -> Self {
        let Value::Object(map) = from.value else {
            from.expected("an object");
            return BTreeMap::new();
        };
        let mut read = BTreeMap::new();
        read.extend(map.iter().map(|(key, value)| (key.clone(), from.inside(Step::Field(key), value))));
        read
    }
}

impl Replay for BTreeSet<String> {
    fn replay(from: &mut Reader<'_>) -> Self {
        let mut read = BTreeSet::new();
        read.extend(Vec::replay(from));
        read
    }
}

impl Replay for Duration {
    fn replay(from: &mut Reader<'_>) -> Self {
        Duration::from_secs(from.field("secs")) + Duration::from_nanos(from.field("nanos"))
    }
}

impl<A: Replay, B: Replay> Replay for (A, B) {
    fn replay(from: &mut Reader<'_>) -> Self {
        (from.item(0, 2), from.item(1, 2))
    }
}

impl<A: Replay, B: Replay, C: Replay> Replay for (A, B, C) {
    fn replay(from: &mut Reader<'_>) -> Self {
        (from.item(0, 3), from.item(1, 3), from.item(2, 3))
    }
}

impl<T: Replay> Replay for [T; 2] {
    fn replay(from: &mut Reader<'_>) -> Self {
        [from.item(0, 2), from.item(1, 2)]
    }
}

impl<T: Replay> Replay for Seen<T> {
    fn replay(from: &mut Reader<'_>) -> Self {
        // What a bundle of another version does not hold is not known.
        if from.value.is_null() {
            let what = from.place.iter().rev().find_map(|step| match step {
                Step::Field(name) => Some(*name),
                Step::Item(_) => None,
            });
            return Seen::Unreadable(LookError::new(
                what.unwrap_or_default(),
                Reason::Unsupported,
                "the bundle does not hold it",
            ));
        }
        match from.choice(&["Yes", "Absent", "Unreadable"]) {
            (0, content) => Seen::Yes(from.inside(Step::Field("yes"), content)),
            (1, _) => Seen::Absent,
            (_, content) => Seen::Unreadable(from.inside(Step::Field("unreadable"), content)),
        }
    }
}

impl<T: Replay, E: Replay> Replay for Result<T, E> {
    fn replay(from: &mut Reader<'_>) -> Self {
        match from.choice(&["Ok", "Err"]) {
            (0, content) => Ok(from.inside(Step::Field("Ok"), content)),
            (_, content) => Err(from.inside(Step::Field("Err"), content)),
        }
    }
}

#[cfg(test)]
mod tests;
