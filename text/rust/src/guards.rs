//! Guards keep a client's text from becoming added tokens while templates work on it; the scheme is
//! described in text/chat_template.h.

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;
use std::collections::HashSet;

/// Noncharacters, which no text for interchange contains: before and after what a client wrote, and
/// between what a template put side by side.
pub const OPEN: char = '\u{fdd0}';
pub const CLOSE: char = '\u{fdd1}';
pub const BREAK: char = '\u{fdd2}';

pub fn is_guard(c: char) -> bool {
    (OPEN..=BREAK).contains(&c)
}

pub fn without_guards(text: &str) -> String {
    text.chars().filter(|c| !is_guard(*c)).collect()
}

#[derive(Debug)]
/// The contents of a tokenizer's added tokens, in the forms that searching needs.
pub struct Markers {
    /// All contents in lower case, one a line.
    lines: String,
    exact: AhoCorasick,
    /// Templates change case, so what differs by case only is guarded as well.
    any_case: AhoCorasick,
    prefixes: HashSet<String>,
    suffixes: HashSet<String>,
    len_max: usize,
}

/// Where marker number `index` stands.
pub struct Found {
    pub index: usize,
    pub start: usize,
    pub end: usize,
}

fn searcher(contents: &[String], ignore_case: bool, kind: MatchKind) -> AhoCorasick {
    AhoCorasick::builder()
        .match_kind(kind)
        .ascii_case_insensitive(ignore_case)
        .build(contents)
        .expect("the contents of added tokens fit a searcher")
}

impl Markers {
    pub fn new(contents: Vec<String>) -> Self {
        let mut prefixes = HashSet::new();
        let mut suffixes = HashSet::new();
        for content in &contents {
            let lower = content.to_ascii_lowercase();
            for (cut, _) in lower.char_indices().skip(1) {
                prefixes.insert(lower[..cut].to_string());
                suffixes.insert(lower[cut..].to_string());
            }
        }
        Markers {
            exact: searcher(&contents, false, MatchKind::LeftmostLongest),
            any_case: searcher(&contents, true, MatchKind::LeftmostLongest),
            len_max: contents.iter().map(String::len).max().unwrap_or(0),
            lines: contents.join("\n").to_ascii_lowercase(),
            prefixes,
            suffixes,
        }
    }

    /// Leftmost-longest, without overlap.
    pub fn find(&self, text: &str) -> Vec<Found> {
        let found = |m: aho_corasick::Match| Found {
            index: m.pattern().as_usize(),
            start: m.start(),
            end: m.end(),
        };
        self.exact.find_iter(text).map(found).collect()
    }

    /// `text` with every spelled marker framed, and its ends guarded where they could complete a
    /// marker together with what a template puts beside them.
    pub fn guard(&self, text: &str, is_name: bool) -> String {
        let text: String = text.chars().map(|c| if is_guard(c) { '\u{fffd}' } else { c }).collect();
        let mut guarded = String::with_capacity(text.len() + 8);
        let mut done = 0;
        for found in self.any_case.find_iter(&text) {
            guarded.push_str(&text[done..found.start()]);
            guarded.push(OPEN);
            guarded.push_str(&text[found.start()..found.end()]);
            guarded.push(CLOSE);
            done = found.end();
        }
        guarded.push_str(&text[done..]);
        if is_name {
            return guarded;
        }
        self.guard_ends(&guarded)
    }

    pub fn guard_ends(&self, text: &str) -> String {
        let mut guarded = String::with_capacity(text.len() + 8);
        if self.may_complete_at_start(text) {
            guarded.push(OPEN);
        }
        guarded.push_str(text);
        if self.may_complete_at_end(text) {
            guarded.push(CLOSE);
        }
        guarded
    }

    /// A part that a template cut out of a text: its ends are new, a name stays comparable.
    pub fn guard_part(&self, part: &str) -> String {
        if is_identifier(part) {
            return part.to_string();
        }
        self.guard_ends(part)
    }

    fn may_complete_at_start(&self, text: &str) -> bool {
        let end = floor_boundary(text, self.len_max.min(text.len()));
        let lower = text[..end].to_ascii_lowercase();
        let starts = (1..=lower.len())
            .any(|len| lower.get(..len).is_some_and(|part| self.suffixes.contains(part)));
        let whole = || !text.is_empty() && text.len() < self.len_max && self.lines.contains(&lower);
        starts || whole()
    }

    fn may_complete_at_end(&self, text: &str) -> bool {
        (1..self.len_max.min(text.len() + 1)).any(|len| {
            text.get(text.len() - len..)
                .is_some_and(|part| self.prefixes.contains(&part.to_ascii_lowercase()))
        })
    }

    /// Guards every string within a client's JSON. `key` is the name the value goes by.
    pub fn guard_json(&self, value: &Value, key: &str) -> Value {
        match value {
            Value::String(text) => {
                let is_name = matches!(key, "role" | "type") && is_identifier(text);
                Value::String(self.guard(text, is_name))
            }
            Value::Array(items) => items.iter().map(|item| self.guard_json(item, key)).collect(),
            Value::Object(entries) => entries
                .iter()
                .map(|(name, item)| {
                    (self.guard(name, is_identifier(name)), self.guard_json(item, name))
                })
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other.clone(),
        }
    }

    /// The arguments of a template: their names, and values that are names, pass as they are.
    pub fn guard_arguments(&self, arguments: &Value) -> Value {
        let Value::Object(entries) = arguments else { return arguments.clone() };
        let guarded = entries.iter().map(|(name, item)| {
            let item = match item {
                Value::String(text) => Value::String(self.guard(text, is_identifier(text))),
                other => self.guard_json(other, name),
            };
            (name.clone(), item)
        });
        guarded.collect::<serde_json::Map<_, _>>().into()
    }

    /// `old` replaced by `new`; a marker that comes into being across a seam is broken there.
    pub fn replace(&self, text: &str, old: &str, new: &str, count: usize) -> String {
        let mut result = String::with_capacity(text.len());
        let mut seams = Vec::new();
        let mut done = 0;
        for (start, part) in text.match_indices(old).take(count) {
            result.push_str(&text[done..start]);
            seams.push(result.len());
            result.push_str(new);
            seams.push(result.len());
            done = start + part.len();
        }
        result.push_str(&text[done..]);
        let crossed = |seam: usize| {
            let from = floor_boundary(&result, seam.saturating_sub(self.len_max));
            let to = floor_boundary(&result, (seam + self.len_max).min(result.len()));
            let inside = |m: aho_corasick::Match| from + m.start() < seam && seam < from + m.end();
            self.any_case.find_iter(&result[from..to]).any(inside)
        };
        seams.dedup();
        let cuts: Vec<usize> = seams.iter().copied().filter(|seam| crossed(*seam)).collect();
        for cut in cuts.into_iter().rev() {
            result.insert(cut, BREAK);
        }
        result
    }
}

fn floor_boundary(text: &str, mut position: usize) -> usize {
    while !text.is_char_boundary(position) {
        position -= 1;
    }
    position
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A rendered text with its guards taken out, and where the template's own markers stand in it.
pub fn split_guarded(markers: &Markers, rendered: &str) -> (String, Vec<Found>) {
    let mut text = String::with_capacity(rendered.len());
    let mut own = Vec::new();
    let mut done = 0;
    for found in markers.find(rendered) {
        let framed =
            rendered[..found.start].ends_with(OPEN) || rendered[found.end..].starts_with(CLOSE);
        if framed {
            continue;
        }
        text.extend(rendered[done..found.start].chars().filter(|c| !is_guard(*c)));
        let start = text.len();
        text.push_str(&rendered[found.start..found.end]);
        own.push(Found { index: found.index, start, end: text.len() });
        done = found.end;
    }
    text.extend(rendered[done..].chars().filter(|c| !is_guard(*c)));
    (text, own)
}
