//! A folder's tokenizer: tokenizer.json through the `tokenizers` library, or tiktoken.model.

use crate::ffi::{internal, invalid, Code, Failure, Result};
use crate::files::{configured_token, read_config, read_file};
use crate::guards::{Found, Markers};
use crate::tiktoken::Tiktoken;
use crate::token_table::{flags_of, ByteReader, Table, ADDED};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use tokenizers::normalizer::Range;
use tokenizers::{
    AddedToken, Model, ModelWrapper, NormalizedString, Normalizer, OffsetType, PreTokenizedString,
    PreTokenizer, Token,
};

enum Pipeline {
    Json(Box<tokenizers::Tokenizer>),
    Tiktoken(Tiktoken),
}

pub struct Tokenizer {
    pipeline: Pipeline,
    /// Added tokens, numbered as in `markers`.
    added: Vec<(u32, AddedToken)>,
    markers: Arc<Markers>,
    /// Added tokens that the model could also produce from plain text.
    producible: HashSet<u32>,
    prefix: Vec<i32>,
    suffix: Vec<i32>,
    pub table: Table,
    pub bos: Option<(u32, String)>,
    pub eos: Option<(u32, String)>,
    pub strips_leading_space: bool,
}

fn string_of(error: Box<dyn std::error::Error + Send + Sync>) -> Failure {
    internal(format!("tokenizer: {error}"))
}

fn ids(encoding: &tokenizers::Encoding) -> Vec<i32> {
    encoding.get_ids().iter().map(|id| *id as i32).collect()
}

impl Tokenizer {
    pub fn load(folder: &Path) -> Result<Self> {
        let config = read_config(folder)?;
        if let Some(bytes) = read_file(&folder.join("tokenizer.json"))? {
            return Self::from_json(&bytes, &config).map_err(|failure| Failure {
                message: format!("{}: {}", folder.display(), failure.message),
                ..failure
            });
        }
        let path = folder.join("tiktoken.model");
        if let Some(bytes) = read_file(&path)? {
            let tiktoken = Tiktoken::parse(&bytes, &config)
                .map_err(|message| invalid(format!("{}: {message}", path.display())))?;
            return Ok(Self::from_tiktoken(tiktoken, &config));
        }
        Err(Failure {
            code: Code::NotFound,
            message: format!("{}: neither tokenizer.json nor tiktoken.model", folder.display()),
        })
    }

    fn from_json(bytes: &[u8], config: &Value) -> Result<Self> {
        let mut json = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| invalid(format!("tokenizer.json: {error}")))?;
        json.with_padding(None);
        json.with_truncation(None).map_err(string_of)?;
        if matches!(json.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_some()) {
            return Err(invalid("tokenizer.json: model.dropout must be null to encode one way"));
        }
        let decoder = serde_json::to_value(json.get_decoder())
            .map_err(|error| invalid(format!("tokenizer.json: decoder: {error}")))?;
        let reader = ByteReader::new(&decoder)?;

        let mut added: Vec<_> = json.get_added_tokens_decoder().into_iter().collect();
        added.retain(|(_, token)| !token.content.is_empty());
        added.sort_by_key(|(id, _)| *id);
        let vocab_size = json.get_vocab(true).values().max().map_or(0, |id| id + 1);
        if vocab_size > 1 << 24 {
            return Err(invalid(format!(
                "tokenizer.json: largest id {}, at most {} is read",
                vocab_size - 1,
                (1 << 24) - 1
            )));
        }
        let mut table = Table::new();
        let mut producible = HashSet::new();
        let mut next_added = added.iter().peekable();
        for id in 0..vocab_size {
            let token = next_added.next_if(|(added_id, _)| *added_id == id).map(|(_, t)| t);
            match json.id_to_token(id) {
                Some(text) => table.push(&reader.read(&text, token.is_some()), flags_of(token)),
                None => table.push(&[], 0),
            }
            if token.is_some_and(|t| t.content.chars().count() > 1)
                && json.get_model().id_to_token(id).is_some()
            {
                producible.insert(id);
            }
        }
        let strips_leading_space = reader.strips_leading_space;
        let mut tokenizer = Self::new(Pipeline::Json(Box::new(json)), added, table, config);
        tokenizer.producible = producible;
        tokenizer.strips_leading_space = strips_leading_space;
        tokenizer.read_frame(config)?;
        Ok(tokenizer)
    }

    fn from_tiktoken(tiktoken: Tiktoken, config: &Value) -> Self {
        let mut table = Table::new();
        for token in tiktoken.tokens() {
            table.push(token, flags_of(None));
        }
        let mut added = Vec::new();
        for (content, special) in tiktoken.added() {
            let token = AddedToken::from(content.clone(), *special);
            table.push(content.as_bytes(), flags_of(Some(&token)));
            added.push((table.flags.len() as u32 - 1, token));
        }
        Self::new(Pipeline::Tiktoken(tiktoken), added, table, config)
    }

    fn new(
        pipeline: Pipeline,
        added: Vec<(u32, AddedToken)>,
        table: Table,
        config: &Value,
    ) -> Self {
        let contents = added.iter().map(|(_, token)| token.content.clone()).collect();
        let mut tokenizer = Tokenizer {
            pipeline,
            added,
            markers: Arc::new(Markers::new(contents)),
            producible: HashSet::new(),
            prefix: vec![],
            suffix: vec![],
            table,
            bos: None,
            eos: None,
            strips_leading_space: false,
        };
        let find = |name: &str| {
            let content = configured_token(config, name)?;
            Some((tokenizer.token_id(content)?, content.to_string()))
        };
        (tokenizer.bos, tokenizer.eos) = (find("bos_token"), find("eos_token"));
        tokenizer
    }

    /// What add_special_tokens adds: as the configuration says, else as the post-processor does.
    fn read_frame(&mut self, config: &Value) -> Result<()> {
        let Pipeline::Json(json) = &self.pipeline else { return Ok(()) };
        let plain = ids(&json.encode_fast("a", false).map_err(string_of)?);
        let framed = ids(&json.encode_fast("a", true).map_err(string_of)?);
        let start = framed.windows(plain.len().max(1)).position(|window| window == plain);
        if let (Some(start), false) = (start, plain.is_empty()) {
            self.prefix = framed[..start].to_vec();
            self.suffix = framed[start + plain.len()..].to_vec();
        }
        let ids_of = |add: bool, token: &Option<(u32, String)>| {
            token.iter().filter(|_| add).map(|(id, _)| *id as i32).collect()
        };
        if let Some(add) = config["add_bos_token"].as_bool() {
            self.prefix = ids_of(add, &self.bos);
        }
        if let Some(add) = config["add_eos_token"].as_bool() {
            self.suffix = ids_of(add, &self.eos);
        }
        Ok(())
    }

    pub fn markers(&self) -> &Arc<Markers> {
        &self.markers
    }

    pub fn token_id(&self, content: &str) -> Option<u32> {
        let added = self.added.iter().find(|(_, token)| token.content == content);
        added.map(|(id, _)| *id).or_else(|| match &self.pipeline {
            Pipeline::Json(json) => json.token_to_id(content),
            Pipeline::Tiktoken(tiktoken) => tiktoken.token_id(content.as_bytes()),
        })
    }

    pub fn vocab_size(&self) -> usize {
        self.table.flags.len()
    }

    /// The token's bytes and whether it is an added one.
    pub fn token(&self, id: usize) -> (&[u8], bool) {
        let (start, end) = (self.table.offsets[id] as usize, self.table.offsets[id + 1] as usize);
        (&self.table.bytes[start..end], self.table.flags[id] & ADDED != 0)
    }

    pub fn encode(&self, text: &str, frame: bool, parse_special: bool) -> Result<Vec<i32>> {
        let body = match &self.pipeline {
            Pipeline::Json(json) if parse_special => {
                ids(&json.encode_fast(text, false).map_err(string_of)?)
            }
            _ if parse_special => self.encode_marked(text, &self.markers.find(text))?,
            _ => self.encode_marked(text, &[])?,
        };
        if !frame {
            return Ok(body);
        }
        Ok([self.prefix.as_slice(), &body, self.suffix.as_slice()].concat())
    }

    /// Encodes a text in which the markers at `own`, and nothing else, are added tokens.
    pub fn encode_marked(&self, text: &str, own: &[Found]) -> Result<Vec<i32>> {
        if text.is_empty() {
            return Ok(vec![]);
        }
        let spans = self.spans(text, own);
        match &self.pipeline {
            Pipeline::Json(json) => self.encode_spans(json, text, &spans).map_err(string_of),
            Pipeline::Tiktoken(tiktoken) => {
                let mut out = Vec::new();
                for (id, start, end) in spans {
                    match id {
                        Some(id) => out.push(id as i32),
                        None => tiktoken.encode(&text[start..end], &mut out),
                    }
                }
                Ok(out)
            }
        }
    }

    /// Cuts the text into added tokens, with the white space that they swallow, and the rest.
    fn spans(&self, text: &str, own: &[Found]) -> Vec<(Option<u32>, usize, usize)> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut spans = Vec::new();
        let mut done = 0;
        for found in own {
            let (id, token) = &self.added[found.index];
            let (mut start, mut end) = (found.start, found.end);
            let within_word = text[..start].chars().next_back().is_some_and(is_word)
                || text[end..].chars().next().is_some_and(is_word);
            if start < done || (token.single_word && within_word) {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                spans.push((None, done, start));
            }
            spans.push((Some(*id), start, end));
            done = end;
        }
        if done < text.len() {
            spans.push((None, done, text.len()));
        }
        spans
    }

    fn encode_spans(
        &self,
        json: &tokenizers::Tokenizer,
        text: &str,
        spans: &[(Option<u32>, usize, usize)],
    ) -> tokenizers::Result<Vec<i32>> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, whole: NormalizedString| {
            let piece = |&(id, start, end): &(Option<u32>, usize, usize)| {
                let slice = whole.slice(Range::Normalized(start..end)).expect("spans are slices");
                let token = |id| vec![Token::new(id, text[start..end].into(), (0, end - start))];
                (slice, id.map(token))
            };
            Ok(spans.iter().map(piece).collect::<Vec<_>>())
        })?;
        if let Some(normalizer) = json.get_normalizer() {
            pieces.normalize(|piece| normalizer.normalize(piece))?;
        }
        if let Some(pre_tokenizer) = json.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let model = json.get_model();
        pieces.tokenize(|piece| Ok(self.spell_out(model, model.tokenize(piece.get())?)))?;
        Ok(ids(&pieces.into_encoding(None, 0, OffsetType::None)?))
    }

    /// Plain text never becomes an added token, even where the model's vocabulary holds it.
    fn spell_out(&self, model: &ModelWrapper, tokens: Vec<Token>) -> Vec<Token> {
        if !tokens.iter().any(|token| self.producible.contains(&token.id)) {
            return tokens;
        }
        let mut spelled = Vec::new();
        for token in tokens {
            if !self.producible.contains(&token.id) {
                spelled.push(token);
                continue;
            }
            for c in token.value.chars().map(String::from) {
                match model.token_to_id(&c) {
                    Some(id) => spelled.push(Token::new(id, c, token.offsets)),
                    None => spelled.extend(c.bytes().filter_map(|byte| {
                        let name = format!("<0x{byte:02X}>");
                        Some(Token::new(model.token_to_id(&name)?, name, token.offsets))
                    })),
                }
            }
        }
        spelled
    }
}
