//! Takes this product's traces off a Node.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{patch, read_node};
use crate::verdict::Told;

/// What became of the traces of this product on a Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cleaned {
    /// There were none.
    Before,
    /// They were removed.
    Now,
}

/// Removes all conditions and annotations of this product from a Node; a dry run lets the API server say whether it would.
pub(crate) async fn clean_node(client: &kube::Client, node: &str, dry_run: bool) -> Result<Cleaned, kube::Error> {
    let now = read_node(client, node).await?;
    let nothing = Told { conditions: Vec::new(), annotations: BTreeMap::new() };
    let Some(patch) = patch::patch(&now, &nothing, Timestamp::now()) else { return Ok(Cleaned::Before) };
    let dry_run = if dry_run { "&dryRun=All" } else { "" };
    let request =
        http::Request::patch(format!("/api/v1/nodes/{node}/status?fieldManager=nodevitals-uninstall{dry_run}"))
            .header(http::header::CONTENT_TYPE, "application/strategic-merge-patch+json")
            .body(patch.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
    super::node::request(client, request).await.map(|_| Cleaned::Now)
}
