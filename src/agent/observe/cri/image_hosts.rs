//! The registries of the images that the runtime keeps.

use std::collections::BTreeMap;

use super::messages::ListImagesResponse;

/// So many names are kept, those of most images first.
const MOST: usize = 8;

/// The registries that images name, those of most images first.
pub(super) fn hosts(answer: &ListImagesResponse) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for image in &answer.images {
        let name = image.repo_tags.first().or(image.repo_digests.first());
        if let Some(host) = name.and_then(|name| host(name)) {
            *counts.entry(host).or_default() += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable_by_key(|(host, count)| (std::cmp::Reverse(*count), *host));
    counts.into_iter().take(MOST).map(|(host, _)| host.to_owned()).collect()
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
    use super::super::messages::Image;
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

    #[test]
    fn most_first_and_few() {
        let image = |name: &str| Image { repo_tags: vec![name.into()], repo_digests: vec![] };
        let digest = Image { repo_tags: vec![], repo_digests: vec!["b.example/x@sha256:0".into()] };
        let images = vec![image("a.example/x:1"), image("b.example/x:1"), digest, image("x:1")];
        assert_eq!(hosts(&ListImagesResponse { images }), ["b.example", "a.example"]);
        let images = (0..20).map(|at| image(&format!("r{at}.example/x:1"))).collect();
        assert_eq!(hosts(&ListImagesResponse { images }).len(), MOST);
    }
}
