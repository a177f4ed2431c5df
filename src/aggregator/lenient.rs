//! Reading objects that others wrote: what has the wrong shape costs itself, never the object around it.

use std::fmt;
use std::marker::PhantomData;

use jiff::Timestamp;
use serde::de::{
    Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer,
};

/// A value that says which shapes of JSON it can be read from. All others are drained and give nothing.
pub(super) trait Shape: Sized {
    fn of_str(_text: &str) -> Option<Self> {
        None
    }

    fn of_bool(_flag: bool) -> Option<Self> {
        None
    }

    fn of_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Option<Self>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn of_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// For `deserialize_with`: the value, or its default when the shape is wrong.
pub(super) fn lenient<'de, D: Deserializer<'de>, T: Shape + Default>(input: D) -> Result<T, D::Error> {
    Ok(input.deserialize_any(Any(PhantomData))?.unwrap_or_default())
}

/// Reads a struct from an object; for [`Shape::of_map`].
pub(super) fn object<'de, T: Deserialize<'de>, A: MapAccess<'de>>(map: A) -> Result<Option<T>, A::Error> {
    T::deserialize(MapAccessDeserializer::new(map)).map(Some)
}

/// Lets these structs be read from a JSON object; all other shapes give the default.
macro_rules! read_from_an_object {
    ($($name:ty),*) => {$(
        impl Shape for $name {
            fn of_map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
                object(map)
            }
        }
    )*};
}
pub(super) use read_from_an_object;

impl Shape for String {
    fn of_str(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Shape for bool {
    fn of_bool(flag: bool) -> Option<Self> {
        Some(flag)
    }
}

impl Shape for Option<Timestamp> {
    fn of_str(text: &str) -> Option<Self> {
        text.parse().ok().map(Some)
    }
}

impl<T: Shape> Shape for Vec<T> {
    fn of_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Option<Self>, A::Error> {
        let mut list = Vec::new();
        while let Some(Element(element)) = seq.next_element::<Element<T>>()? {
            list.extend(element);
        }
        Ok(Some(list))
    }
}

/// An element of a list: nothing when its shape is wrong.
struct Element<T>(Option<T>);

impl<'de, T: Shape> Deserialize<'de> for Element<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(Any(PhantomData)).map(Element)
    }
}

struct Any<T>(PhantomData<T>);

impl<'de, T: Shape> Visitor<'de> for Any<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(T::of_str(text))
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Self::Value, E> {
        Ok(T::of_bool(flag))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        T::of_seq(seq)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::of_map(map)
    }
}
