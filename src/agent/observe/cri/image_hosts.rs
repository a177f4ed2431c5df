//! The registries of the images that the runtime keeps, and which of them containers are of.

use std::collections::{BTreeMap, HashSet};

use super::digest;
use super::messages::{Container, Image, ListImagesResponse};

/// So many names are kept, those that are used first, and of these those of most images.
const MOST: usize = 8;

/// A registry that images here are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageHost {
    /// As images name it: `docker.io`.
    pub(crate) name: String,
    /// Whether a container, also one that has ended, is of one of them; or whether that is not known.
    pub(crate) used: bool,
}

/// Names and ids of the images that containers are of, by their digests.
pub(super) fn used(containers: &[Container]) -> HashSet<u64> {
    let names = containers.iter().flat_map(|container| {
        let named = container.image.as_ref().map(|image| image.image.as_str());
        named.into_iter().chain([container.image_ref.as_str()])
    });
    names.filter(|name| !name.is_empty()).map(digest).collect()
}

/// The registries that images name. Without what containers are of, each counts as used.
pub(super) fn hosts(answer: &ListImagesResponse, used: Option<&HashSet<u64>>) -> Vec<ImageHost> {
    let is_used = |image: &Image| {
        let mut names = [&image.id].into_iter().chain(&image.repo_tags).chain(&image.repo_digests);
        image.pinned || is_of_sandboxes(image) || used.is_none_or(|used| names.any(|name| used.contains(&digest(name))))
    };
    let mut counts: BTreeMap<&str, (bool, usize)> = BTreeMap::new();
    for image in &answer.images {
        let name = image.repo_tags.first().or(image.repo_digests.first());
        if let Some(host) = name.and_then(|name| host(name)) {
            let (used, count) = counts.entry(host).or_default();
            (*used, *count) = (*used || is_used(image), *count + 1);
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable_by_key(|(host, (used, count))| (std::cmp::Reverse((*used, *count)), *host));
    counts.into_iter().take(MOST).map(|(host, (used, _))| ImageHost { name: host.to_owned(), used }).collect()
}

/// The image of sandboxes, of which no container is: not all runtimes say that they keep it.
fn is_of_sandboxes(image: &Image) -> bool {
    image.repo_tags.iter().any(|tag| tag.contains("/pause:"))
}

/// The registry of an image's name; none for one that is of no registry.
fn host(name: &str) -> Option<&str> {
    let first = name
        .split_once('/')
        .map(|(first, _)| first)
        .filter(|first| first.contains(['.', ':']) || *first == "localhost");
    // Without a registry it is Docker's; runtimes write that out, but for images that were loaded from a file.
    first.filter(|host| *host != "localhost" && !host.starts_with("localhost:"))
}

#[cfg(test)]
mod tests {
    use super::super::messages::ImageSpec;
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            ("docker.io/library/nginx:1", Some("docker.io")),
            ("registry.k8s.io/pause:3.9", Some("registry.k8s.io")),
            ("10.0.0.1:5000/a@sha256:0", Some("10.0.0.1:5000")),
            ("localhost/a:1", None),
            ("localhost:5000/a:1", None),
            ("import-2024-01-01@sha256:0", None),
            ("nginx:1.2", None),
            ("", None),
        ] {
            assert_eq!(host(name), expected, "{name}");
        }
    }

    fn image(name: &str) -> Image {
        Image { id: format!("sha256:{name}"), repo_tags: vec![name.into()], ..Image::default() }
    }

    fn told(hosts: &[ImageHost]) -> Vec<(&str, bool)> {
        hosts.iter().map(|host| (host.name.as_str(), host.used)).collect()
    }

    #[test]
    fn most_first_and_few() {
        let digest = Image { repo_digests: vec!["b.example/x@sha256:0".into()], ..Image::default() };
        let images = vec![image("a.example/x:1"), image("b.example/x:1"), digest, image("x:1")];
        let found = hosts(&ListImagesResponse { images }, None);
        assert_eq!(told(&found), [("b.example", true), ("a.example", true)], "which are used is not known");
        let images = (0..20).map(|at| image(&format!("r{at}.example/x:1"))).collect();
        assert_eq!(hosts(&ListImagesResponse { images }, None).len(), MOST);
    }

    #[test]
    fn those_that_containers_are_of_come_first() {
        let container = |image: &str, image_ref: &str| Container {
            image: Some(ImageSpec { image: image.into() }),
            image_ref: image_ref.into(),
            ..Container::default()
        };
        let by_digest = Image { repo_digests: vec!["digest.example/x@sha256:0".into()], ..image("digest.example/x:1") };
        let images = vec![
            image("left.example/x:1"),
            image("left.example/x:2"),
            // By what the pull answered, as the kubelet names it; by the name; by the digest, as CRI-O does.
            image("id.example/x:1"),
            image("name.example/x:1"),
            by_digest,
            Image { pinned: true, ..image("pinned.example/sandbox:1") },
            image("sandbox.example/pause:3.9"),
        ];
        let containers = [
            container("sha256:id.example/x:1", ""),
            container("name.example/x:1", "sha256:other"),
            container("", "digest.example/x@sha256:0"),
        ];
        let used = used(&containers);
        assert_eq!(used.len(), 4);
        let found = hosts(&ListImagesResponse { images }, Some(&used));
        let all = ["digest", "id", "name", "pinned", "sandbox"].map(|name| format!("{name}.example"));
        let expected = all.iter().map(|name| (name.as_str(), true)).chain([("left.example", false)]);
        assert_eq!(told(&found), expected.collect::<Vec<_>>());
    }
}
