//! The page that people look at: the cluster at a glance, live, from what `/api/v1/report` answers.
//!
//! Its three files need nothing from elsewhere and refer to each other and to the report by relative addresses, so that
//! they work behind the API server's service proxy as well.

use crate::http::Page;

const HTML: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
/// What `/api/v1` answers, as OpenAPI 3.
const OPENAPI: &str = include_str!("page/openapi.json");

/// The page or one of its parts.
pub(super) fn get(path: &str) -> Option<Page> {
    let (content_type, text) = match path {
        "/" => ("text/html; charset=utf-8", HTML),
        "/api/v1/openapi.json" => ("application/json", OPENAPI),
        "/page.css" => ("text/css; charset=utf-8", STYLE),
        "/page.js" => ("text/javascript; charset=utf-8", SCRIPT),
        _ => return None,
    };
    Some(Page { status: 200, content_type, body: text.as_bytes().to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_has_nothing_in_line() {
        for text in [HTML, STYLE, SCRIPT] {
            assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("//cdn"), "{text}");
            assert!(!text.contains("innerHTML") && !text.contains("insertAdjacentHTML") && !text.contains("eval("));
        }
        assert!(!HTML.contains("<style") && !HTML.contains(" style=") && !HTML.contains(" onclick="));
        let scripts: Vec<_> = HTML.match_indices("<script").collect();
        assert_eq!(scripts.len(), 1);
        // Relative addresses only: behind a proxy the page is not at the root.
        assert!(!HTML.contains("=\"/") && !SCRIPT.contains("'/") && !SCRIPT.contains("`/"), "an absolute address");
    }

    #[test]
    fn every_part_that_the_page_refers_to_is_there() {
        for part in ["page.css", "page.js"] {
            assert!(HTML.contains(&format!("\"{part}\"")), "{part}");
            assert!(get(&format!("/{part}")).is_some(), "{part}");
        }
        assert!(get("/favicon.ico").is_none());
    }
}
