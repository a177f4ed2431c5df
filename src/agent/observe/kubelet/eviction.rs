//! When the kubelet evicts: `evictionHard` and `evictionSoft`, from its configuration or its arguments.

use super::{Configuration, Texts, quantity};
use crate::facts::{EvictionThresholds, Quantity};

/// `evictionHard` when nobody sets it (`pkg/kubelet/eviction/defaults_linux.go`).
const DEFAULT: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];
/// `imageGCHighThresholdPercent` when nobody sets it (`pkg/kubelet/apis/config/v1beta1/defaults.go`).
pub(super) const IMAGE_GC_HIGH: u8 = 85;

/// Hard and soft thresholds. A flag replaces what the files say. As soon as one hard key is set in the configuration file,
/// those that are not set are off, unless it asks for the defaults to be merged (`mergeDefaultEvictionSettings`).
pub(super) fn thresholds(
    configuration: &Configuration,
    [hard, soft]: [Option<String>; 2],
) -> Result<[EvictionThresholds; 2], String> {
    let hard = hard.as_deref().map_or_else(|| hard_settings(configuration), pairs);
    let soft = soft.as_deref().map_or_else(|| configuration.eviction_soft.clone().unwrap_or_default(), pairs);
    Ok([parse("evictionHard", &hard)?, parse("evictionSoft", &soft)?])
}

/// The hard thresholds of the configuration file with the defaults that are in force.
pub(super) fn hard_settings(configuration: &Configuration) -> Texts {
    let defaults = || DEFAULT.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    match &configuration.eviction_hard {
        None => defaults().collect(),
        Some(set) if configuration.merge_default_eviction_settings == Some(true) => {
            defaults().chain(set.clone()).collect()
        }
        Some(set) => set.clone(),
    }
}

/// `memory.available<1Gi,nodefs.available<10%`.
fn pairs(flag: &str) -> Texts {
    let pairs = flag.split(',').filter_map(|pair| pair.split_once('<'));
    pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect()
}

fn parse(setting: &str, set: &Texts) -> Result<EvictionThresholds, String> {
    let threshold = |key: &str| match set.get(key).map(|text| (text, quantity::parse(text))) {
        // The kubelet takes no notice of all of it (`parseThresholdStatement`).
        None | Some((_, Some(Quantity::Percent(100.0)))) => Ok(Quantity::Absolute(0)),
        Some((_, Some(quantity))) => Ok(quantity),
        Some((text, None)) => Err(format!("{setting} {key} is {text:?}, which is no quantity")),
    };
    Ok(EvictionThresholds {
        memory: threshold("memory.available")?,
        nodefs: threshold("nodefs.available")?,
        nodefs_inodes: threshold("nodefs.inodesFree")?,
        imagefs: threshold("imagefs.available")?,
        imagefs_inodes: threshold("imagefs.inodesFree")?,
        pid: threshold("pid.available")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_both_tables_agree() {
        let [hard, soft] = thresholds(&Configuration::default(), [None, None]).expect("good");
        assert_eq!((hard, soft), (EvictionThresholds::default(), EvictionThresholds::NONE));
        assert_eq!(crate::facts::CapacitySettings::default().image_gc_high_percent, Some(IMAGE_GC_HIGH));
    }
}
