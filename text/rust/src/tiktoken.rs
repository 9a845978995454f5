//! tiktoken.model of Kimi and Moonlight: byte-pair encoding by rank, where the rank is the id.

use serde_json::Value;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use tokenizers::utils::SysRegex;

const PATTERN: &str = concat!(
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

/// Ids after the ranks that are added tokens, named by the configuration or reserved.
const ADDED_COUNT: usize = 258;

pub struct Tiktoken {
    ranks: HashMap<Vec<u8>, u32>,
    tokens: Vec<Vec<u8>>,
    added: Vec<(String, bool)>,
    pattern: SysRegex,
}

impl Tiktoken {
    pub fn parse(file: &[u8], config: &Value) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let lines = file.split(|byte| *byte == b'\n').enumerate();
        for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let problem = |what: &str| format!("line {}: {what}", number + 1);
            let line = std::str::from_utf8(line).map_err(|_| problem("not UTF-8"))?;
            let (token, rank) = line.split_once(' ').ok_or_else(|| problem("no rank"))?;
            let token = base64::decode(token).map_err(|_| problem("token is not base64"))?;
            if rank.trim_end().parse() != Ok(tokens.len()) {
                return Err(problem(&format!("rank {rank}, expected {}", tokens.len())));
            }
            tokens.push(token);
        }
        let ranks: HashMap<_, _> =
            tokens.iter().enumerate().map(|(rank, token)| (token.clone(), rank as u32)).collect();
        for byte in 0..=255u8 {
            if !ranks.contains_key([byte].as_slice()) {
                return Err(format!("no token for the byte {byte}"));
            }
        }
        let added = (tokens.len()..tokens.len() + ADDED_COUNT).map(|id| {
            let entry = &config["added_tokens_decoder"][id.to_string()];
            match entry["content"].as_str() {
                Some(content) => (content.to_string(), entry["special"].as_bool().unwrap_or(true)),
                None => (format!("<|reserved_token_{id}|>"), true),
            }
        });
        let added = added.collect();
        let pattern = SysRegex::new(PATTERN).map_err(|error| error.to_string())?;
        Ok(Tiktoken { ranks, tokens, added, pattern })
    }

    pub fn tokens(&self) -> &[Vec<u8>] {
        &self.tokens
    }

    pub fn added(&self) -> &[(String, bool)] {
        &self.added
    }

    pub fn token_id(&self, bytes: &[u8]) -> Option<u32> {
        self.ranks.get(bytes).copied()
    }

    pub fn encode(&self, text: &str, out: &mut Vec<i32>) {
        let mut done = 0;
        for (start, end) in self.pattern.find_iter(text) {
            self.encode_piece(&text.as_bytes()[done..start], out);
            self.encode_piece(&text.as_bytes()[start..end], out);
            done = end;
        }
        self.encode_piece(&text.as_bytes()[done..], out);
    }

    /// Merges the adjacent pair of lowest rank, the leftmost of equals, until no pair is a token.
    fn encode_piece(&self, piece: &[u8], out: &mut Vec<i32>) {
        if let Some(rank) = self.ranks.get(piece) {
            out.push(*rank as i32);
            return;
        }
        // Part `start` reaches to next[start]; a part merged away has alive = false.
        let end = piece.len();
        let mut next: Vec<usize> = (1..=end).collect();
        let mut previous: Vec<Option<usize>> = (0..end).map(|i| i.checked_sub(1)).collect();
        let mut alive = vec![true; end];
        let mut pairs = BinaryHeap::new();
        let rank_of = |start: usize, next: &[usize]| {
            let middle = next[start];
            let stop = *next.get(middle)?;
            self.ranks.get(&piece[start..stop]).map(|rank| Reverse((*rank, start, stop)))
        };
        pairs.extend((0..end).filter_map(|start| rank_of(start, &next)));
        while let Some(Reverse((_, start, stop))) = pairs.pop() {
            let current = alive[start] && next.get(next[start]) == Some(&stop);
            if !current {
                continue;
            }
            alive[next[start]] = false;
            next[start] = stop;
            if stop < end {
                previous[stop] = Some(start);
            }
            pairs.extend(rank_of(start, &next));
            pairs.extend(previous[start].and_then(|before| rank_of(before, &next)));
        }
        let mut start = 0;
        while start < end {
            out.push(self.ranks[&piece[start..next[start]]] as i32);
            start = next[start];
        }
    }
}
