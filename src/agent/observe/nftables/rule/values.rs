//! Values in a rule's expressions: addresses, ports, names of links.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::agent::observe::netlink::{Attributes, Malformed, find, text};
use crate::agent::observe::nftables::wire::number;
use crate::facts::{Family, Is};

/// `NFTA_DATA_VALUE`.
const DATA_VALUE: u16 = 1;

/// Attributes of an expression by their number; those above are of no interest.
pub(super) type Fields<'a> = [Option<&'a [u8]>; 8];

pub(super) fn fields(data: &[u8]) -> Result<Fields<'_>, Malformed> {
    let mut fields = [None; 8];
    for attribute in Attributes(data) {
        let (kind, value) = attribute?;
        if let Some(field) = fields.get_mut(usize::from(kind)) {
            *field = Some(value);
        }
    }
    Ok(fields)
}

/// A number in a field; a field that is not there is as good as one that no value fits.
pub(super) fn value(field: Option<&[u8]>) -> Result<u32, Malformed> {
    field.map_or(Ok(u32::MAX), number)
}

/// The bytes of a `NFTA_DATA_VALUE`.
pub(super) fn data(field: Option<&[u8]>) -> Result<&[u8], Malformed> {
    let inner = field.map(|field| find(Attributes(field), DATA_VALUE)).transpose()?.flatten();
    Ok(inner.unwrap_or_default())
}

/// Sets a condition; false when there is no value for it, or when there is a condition already.
pub(crate) fn set<T>(condition: &mut Option<Is<T>>, value: Option<T>, not: bool) -> bool {
    let free = condition.is_none();
    let understood = value.is_some() && free;
    if let Some(value) = value.filter(|_| free) {
        *condition = Some(Is::new(value, not));
    }
    understood
}

/// A number in the machine's order.
pub(super) fn host(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

pub(super) fn port(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().copied().map(u16::from_be_bytes)
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// The name of a link; one that is cut off before its end stands for all names that begin like it.
pub(super) fn link(bytes: &[u8]) -> Option<String> {
    let whole = bytes.contains(&0) || bytes.len() == 16;
    let name = text(bytes);
    (!name.is_empty()).then(|| if whole { name.into_owned() } else { format!("{name}+") })
}

/// A prefix from the first bytes of an address, with a mask or as long as there are bytes.
pub(super) fn prefix(family: Family, bytes: &[u8], mask: Option<&[u8]>) -> Option<IpNet> {
    let bits = |bytes: &[u8]| {
        let mut all = [0_u8; 16];
        all.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(all)
    };
    let length = match mask {
        Some(mask) => {
            let mask = u128::from_be_bytes(bits(mask)?);
            let ones = mask.leading_ones();
            (mask.count_ones() == ones).then_some(ones)?
        }
        None => u32::try_from(bytes.len() * 8).ok()?,
    };
    let all = bits(bytes)?;
    let address = match family {
        Family::V4 => IpAddr::from(*all.first_chunk::<4>()?),
        Family::V6 => IpAddr::from(all),
    };
    IpNet::new(address, u8::try_from(length).ok()?).ok()
}
