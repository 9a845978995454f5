//! What each token id stands for, in bytes.

use crate::ffi::{invalid, Result};
use serde_json::Value;
use std::collections::HashMap;
use tokenizers::AddedToken;

const EXISTS: u8 = 1;
pub const ADDED: u8 = 2;
const SPECIAL: u8 = 4;

/// What each id stands for.
#[derive(Default)]
pub struct Table {
    pub bytes: Vec<u8>,
    pub offsets: Vec<u32>,
    pub flags: Vec<u8>,
}

fn alphabet() -> Vec<(char, u8)> {
    let itself = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let entry = |byte: u8| {
        if itself(byte) {
            return (byte as char, byte);
        }
        next += 1;
        (char::from_u32(next - 1).expect("U+0100 to U+0143 are characters"), byte)
    };
    (0..=255).map(entry).collect()
}

/// How the decoder turns the text of a token into bytes.
pub struct ByteReader {
    byte_level: bool,
    space: Option<char>,
    pub strips_leading_space: bool,
    bytes: HashMap<char, u8>,
}

impl ByteReader {
    pub fn new(decoder: &Value) -> Result<Self> {
        let mut reader = ByteReader {
            byte_level: false,
            space: None,
            strips_leading_space: false,
            bytes: alphabet().into_iter().collect(),
        };
        reader.add(decoder)?;
        Ok(reader)
    }

    fn add(&mut self, decoder: &Value) -> Result<()> {
        match decoder["type"].as_str().unwrap_or("none") {
            "ByteLevel" => self.byte_level = true,
            "Sequence" => {
                for part in decoder["decoders"].as_array().into_iter().flatten() {
                    self.add(part)?;
                }
            }
            "Replace" if decoder["content"] == " " => {
                self.space = decoder["pattern"]["String"].as_str().and_then(|s| s.chars().next());
            }
            "Metaspace" => {
                self.space = decoder["replacement"].as_str().and_then(|s| s.chars().next());
                self.strips_leading_space = decoder["prepend_scheme"] != "never";
            }
            "Strip" if decoder["content"] == " " => {
                self.strips_leading_space = decoder["start"].as_u64().unwrap_or(0) > 0;
            }
            "ByteFallback" | "Fuse" => {}
            other => {
                return Err(invalid(format!(
                    "tokenizer.json: decoder {other} is not supported; ByteLevel, Metaspace, \
                     Replace, ByteFallback, Fuse and Strip are"
                )))
            }
        }
        Ok(())
    }

    pub fn read(&self, token: &str, is_added: bool) -> Vec<u8> {
        if self.byte_level {
            let bytes: Option<Vec<u8>> =
                token.chars().map(|c| self.bytes.get(&c).copied()).collect();
            return bytes.unwrap_or_else(|| token.as_bytes().to_vec());
        }
        let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if let Some(byte) =
            hex.filter(|h| h.len() == 2).and_then(|h| u8::from_str_radix(h, 16).ok())
        {
            return vec![byte];
        }
        match self.space {
            Some(space) if !is_added => token.replace(space, " ").into_bytes(),
            _ => token.as_bytes().to_vec(),
        }
    }
}

impl Table {
    pub fn push(&mut self, bytes: &[u8], flags: u8) {
        self.bytes.extend_from_slice(bytes);
        self.offsets.push(self.bytes.len() as u32);
        self.flags.push(flags);
    }

    pub fn new() -> Self {
        Table { offsets: vec![0], ..Default::default() }
    }
}

pub fn flags_of(added: Option<&AddedToken>) -> u8 {
    match added {
        None => EXISTS,
        Some(token) if token.special => EXISTS | ADDED | SPECIAL,
        Some(_) => EXISTS | ADDED,
    }
}
