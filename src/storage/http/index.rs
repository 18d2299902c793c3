//! What a directory has, by its index page: as nginx, Apache, Caddy and Python make them, or nginx's
//! JSON.
//!
//! A page is as little to be trusted as any listing. Only links to one name directly below the page's
//! own address count; a name may have any bytes once it is decoded, and is checked by whoever makes a
//! path of it.

use crate::protocol::manifest::Timestamp;

/// A link to something directly in the directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// The name, decoded.
    pub name: Vec<u8>,
    /// The link ends with a slash.
    pub is_directory: bool,
    /// What the page says of a file; in bytes.
    pub size: Option<u64>,
    pub modified: Option<Timestamp>,
}

/// Finds the links of an HTML page whose own path is `page`, which begins and ends with a slash and is
/// encoded as in a request. Each name counts once.
pub fn links_of_html(html: &str, page: &str) -> Vec<Link> {
    let mut links: Vec<Link> = Vec::new();
    let mut known = std::collections::HashSet::new();
    for target in targets(html) {
        let Some(link) = link(&target, page) else { continue };
        if known.insert((link.name.clone(), link.is_directory)) {
            links.push(link);
        }
    }
    links
}

/// The links of nginx's `autoindex_format json`; `None` if it is something else.
pub fn links_of_json(json: &[u8]) -> Option<Vec<Link>> {
    let values: Vec<serde_json::Value> = serde_json::from_slice(json).ok()?;
    let mut links = Vec::with_capacity(values.len());
    for value in values {
        let name = value.get("name")?.as_str()?.as_bytes().to_vec();
        let is_directory = match value.get("type")?.as_str()? {
            "directory" => true,
            "file" => false,
            _ => continue,
        };
        links.push(Link {
            name,
            is_directory,
            size: value.get("size").and_then(serde_json::Value::as_u64),
            modified: None,
        });
    }
    Some(links)
}

/// Whether a page is one that lists all of a directory, and not any page with links.
pub fn is_index(html: &str) -> bool {
    // Caddy's has the directory's name only.
    let is_caddy =
        html.contains("href=\"https://caddyserver.com") && html.contains("id=\"summary\"");
    let mut tags = html.split('<');
    is_caddy
        || tags.any(|tag| {
            let Some((name, text)) = tag.split_once('>') else { return false };
            let name = name.split_ascii_whitespace().next().unwrap_or_default();
            let is_heading = name.eq_ignore_ascii_case("title") || name.eq_ignore_ascii_case("h1");
            is_heading && TITLES.iter().any(|title| begins_with(text.trim_start(), title))
        })
}

fn begins_with(text: &str, beginning: &str) -> bool {
    text.get(..beginning.len()).is_some_and(|it| it.eq_ignore_ascii_case(beginning))
}

/// What pages say that list a directory: nginx, Apache and lighttpd; Python.
const TITLES: [&str; 2] = ["index of", "directory listing for"];

/// The values of all `href` attributes of anchors, with their character references resolved.
fn targets(html: &str) -> impl Iterator<Item = String> {
    let mut rest = html;
    std::iter::from_fn(move || {
        loop {
            let open = rest.find('<')?;
            rest = &rest[open + 1..];
            let is_anchor = rest.get(..2).is_some_and(|it| {
                it.as_bytes()[0].eq_ignore_ascii_case(&b'a')
                    && it.as_bytes()[1].is_ascii_whitespace()
            });
            if !is_anchor {
                continue;
            }
            let tag = &rest[..tag_end(rest)];
            rest = &rest[tag.len()..];
            if let Some(value) = href(tag) {
                return Some(resolved(value));
            }
        }
    })
}

/// Where a tag ends: at the first `>` outside of quotes.
fn tag_end(text: &str) -> usize {
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => return at,
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    text.len()
}

fn href(tag: &str) -> Option<&str> {
    let mut rest = tag;
    loop {
        let at = rest.as_bytes().windows(4).position(|it| it.eq_ignore_ascii_case(b"href"))?;
        let is_word = at > 0 && rest.as_bytes()[at - 1].is_ascii_whitespace();
        rest = rest.get(at + 4..)?;
        let Some(value) = rest.trim_start().strip_prefix('=').filter(|_| is_word) else { continue };
        let value = value.trim_start();
        return match value.as_bytes().first()? {
            quote @ (b'"' | b'\'') => value[1..].split(char::from(*quote)).next(),
            _ => value.split_ascii_whitespace().next(),
        };
    }
}

/// Resolves the character references that pages of file names have.
fn resolved(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let known = [
            ("&amp;", '&'),
            ("&lt;", '<'),
            ("&gt;", '>'),
            ("&quot;", '"'),
            ("&#39;", '\''),
            ("&#x27;", '\''),
            ("&apos;", '\''),
        ];
        let found = known.iter().find(|(reference, _)| rest.starts_with(reference));
        let (reference, character) = found.unwrap_or(&("&", '&'));
        out.push(*character);
        rest = &rest[reference.len()..];
    }
    out.push_str(rest);
    out
}

/// The link that a target is, if it leads to one name directly below the page.
fn link(target: &str, page: &str) -> Option<Link> {
    let target = target.split(['?', '#']).next()?;
    let relative = match target.strip_prefix('/') {
        // An absolute path has to begin with the page's own.
        Some(_) => target.strip_prefix(page)?,
        None => target.strip_prefix("./").unwrap_or(target),
    };
    let is_directory = relative.ends_with('/');
    let name = relative.strip_suffix('/').unwrap_or(relative);
    // A colon is that of a scheme, unless it is encoded.
    if name.is_empty() || name.contains(['/', ':', '\\']) || name == "." || name == ".." {
        return None;
    }
    Some(Link { name: decoded(name)?, is_directory, size: None, modified: None })
}

/// Decodes `%XX`; `None` where it is no valid encoding.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (high, low) = (char::from(bytes.next()?), char::from(bytes.next()?));
        out.push(u8::try_from(high.to_digit(16)? * 16 + low.to_digit(16)?).ok()?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
    use proptest::prelude::*;

    use super::*;

    fn names(html: &str, page: &str) -> Vec<(String, bool)> {
        let links = links_of_html(html, page).into_iter();
        links.map(|it| (String::from_utf8(it.name).unwrap(), it.is_directory)).collect()
    }

    #[test]
    fn the_pages_of_servers_are_read() {
        let nginx = "<html>\r\n<head><title>Index of /files/</title></head>\r\n<body>\r\n\
                     <h1>Index of /files/</h1><hr><pre><a href=\"../\">../</a>\r\n\
                     <a href=\"dir/\">dir/</a>   24-Nov-2026 10:00   -\r\n\
                     <a href=\"a%20b%26.txt\">a b&amp;.txt</a>  24-Nov-2026 10:00  12\r\n</pre>";
        let files = [("dir".to_owned(), true), ("a b&.txt".to_owned(), false)];
        assert_eq!(names(nginx, "/files/"), files);
        let apache = "<table><tr><th><a href=\"?C=N;O=D\">Name</a></th></tr>\
                      <tr><td><a href=\"/\">Parent Directory</a></td></tr>\
                      <tr><td><a href='/files/dir/'>dir/</a></td></tr>\
                      <tr><td><A class=x HREF=\"a%20b&amp;.txt\">a</A></td></tr></table>";
        assert_eq!(names(apache, "/files/"), files);
        let caddy = "<a href=\"./dir/\">x</a><a href=./a%20b%26.txt>y</a><a href=\"./dir/\">x</a>";
        assert_eq!(names(caddy, "/files/"), files);
    }

    #[test]
    fn pages_that_list_a_directory_say_so() {
        for html in [
            "<html><head><title>Index of /files/</title></head>",
            "<H1 class=x>\n INDEX OF /</H1>",
            "<title>Directory listing for /x/</title>",
            "<div id=\"summary\"></div><a rel=x href=\"https://caddyserver.com\">Caddy</a>",
        ] {
            assert!(is_index(html), "{html}");
        }
        for html in ["", "<p>Index of x</p>", "<title>Our index of x</title>", "<title>Index"] {
            assert!(!is_index(html), "{html}");
        }
    }

    #[test]
    fn what_leads_elsewhere_is_no_link() {
        let html = "<a href=\"http://evil/x\">1</a><a href=\"//evil/x\">2</a><a href=\"/etc/passwd\">3</a>\
                    <a href=\"..\">4</a><a href=\"a/b\">5</a><a href=\"javascript:x\">6</a><a href=\"\">7</a>\
                    <a href=\"/files/\">8</a><a name=\"x\">9</a><a data-href=\"no\">10</a><a href=\"%zz\">11</a>\
                    <a href='\\x'>12</a><abbr href=\"no\">13</abbr><a href=\"/files/../x\">14</a>";
        assert_eq!(names(html, "/files/"), []);
        // It has the name that it says, and that is no name; whoever makes a path of it finds out.
        assert_eq!(names("<a href=\"%2e%2e\">", "/"), [("..".to_owned(), false)]);
    }

    #[test]
    fn json_has_sizes() {
        let json =
            br#"[{"name":"d","type":"directory","mtime":"x"},{"name":"f","type":"file","size":5}]"#;
        let links = links_of_json(json).unwrap();
        assert_eq!(links.iter().map(|it| it.size).collect::<Vec<_>>(), [None, Some(5)]);
        assert_eq!(links_of_json(b"<html>"), None);
        assert_eq!(links_of_json(br#"{"name":"f"}"#), None);
    }

    proptest! {
        #[test]
        fn any_page_can_be_read(html in any::<String>(), tag in "<a[ a-z='\"<>&;#%/]{0,40}") {
            links_of_html(&html, "/");
            links_of_html(&tag, "/x/");
        }

        #[test]
        fn what_is_encoded_is_decoded(name in proptest::collection::vec(any::<u8>(), 0..50)) {
            let encoded = percent_encode(&name, NON_ALPHANUMERIC).to_string();
            prop_assert_eq!(decoded(&encoded), Some(name));
        }
    }
}
