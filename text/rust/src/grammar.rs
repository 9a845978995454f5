//! Grammars over a tokenizer's vocabulary, by llguidance.

use crate::ffi::{guarded, internal, invalid, Buffer, Result, Slice};
use crate::tokenizer::Tokenizer;
use crate::tokenizer_abi::Handle;
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use std::sync::Arc;
use toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

/// Clients send grammars, and compilation takes quadratic time in the length of a regular expression
/// and recurses along rules and brackets: length and nesting are bounded, the stack is large.
const REGEX_BYTES_MAX: usize = 8 << 10;
const LARK_BYTES_MAX: usize = 16 << 10;
const SCHEMA_BYTES_MAX: usize = 128 << 10;
const NESTING_MAX: usize = 64;
const COMPILE_STACK_BYTES: usize = 256 << 20;

struct Environment {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let ids = self.tokenizer.encode(text, false, false).unwrap_or_default();
            ids.into_iter().map(|id| id as TokenId).collect()
        })
    }
}

pub struct Vocabulary {
    factory: ParserFactory,
}

impl Vocabulary {
    fn new(tokenizer: &Arc<Tokenizer>, vocab_size: usize, end_ids: &[u32]) -> Result<Self> {
        if vocab_size < tokenizer.vocab_size() {
            return Err(invalid(format!(
                "vocab_size {vocab_size} is less than the tokenizer's {}",
                tokenizer.vocab_size()
            )));
        }
        if end_ids.is_empty() || end_ids.iter().any(|id| *id as usize >= vocab_size) {
            return Err(invalid(format!("end_ids {end_ids:?}: at least one, below {vocab_size}")));
        }
        let mut words = vec![vec![]; vocab_size];
        for (id, word) in words.iter_mut().enumerate().take(tokenizer.vocab_size()) {
            let (bytes, is_added) = tokenizer.token(id);
            if is_added {
                word.push(TokTrie::SPECIAL_TOKEN_MARKER);
            }
            word.extend_from_slice(bytes);
        }
        let info = TokRxInfo::new(vocab_size as u32, end_ids[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(end_ids);
        let environment: TokEnv = Arc::new(Environment { trie, tokenizer: tokenizer.clone() });
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
        let mut factory = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|error| internal(format!("grammar: {error}")))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Vocabulary { factory })
    }

    fn compile(&self, kind: i32, text: &str) -> Result<Matcher> {
        let grammar = match kind {
            0 => {
                check_bounds(text, SCHEMA_BYTES_MAX)?;
                let schema = serde_json::from_str(text)
                    .map_err(|error| invalid(format!("grammar: {error}")))?;
                check_patterns(&schema)?;
                TopLevelGrammar::from_json_schema(schema)
            }
            1 => {
                check_bounds(text, REGEX_BYTES_MAX)?;
                TopLevelGrammar::from_regex(text)
            }
            _ => {
                check_bounds(text, LARK_BYTES_MAX)?;
                TopLevelGrammar::from_lark(text.to_string())
            }
        };
        let matcher = stacker::grow(COMPILE_STACK_BYTES, || {
            Matcher::new(self.factory.create_parser(grammar))
        });
        match matcher.get_error() {
            Some(error) => Err(invalid(format!("grammar: {error}"))),
            None => Ok(matcher),
        }
    }
}

fn check_bounds(text: &str, bytes_max: usize) -> Result<()> {
    if text.len() > bytes_max {
        return Err(invalid(format!("grammar: {} bytes, at most {bytes_max}", text.len())));
    }
    let mut depth = 0usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_MAX {
            return Err(invalid(format!("grammar: brackets nest deeper than {NESTING_MAX}")));
        }
    }
    Ok(())
}

/// The regular expressions within a schema.
fn check_patterns(schema: &Value) -> Result<()> {
    match schema {
        Value::Object(entries) => entries.iter().try_for_each(|(name, value)| {
            match value {
                Value::String(pattern) if name == "pattern" => {
                    check_bounds(pattern, REGEX_BYTES_MAX)?;
                }
                _ if name == "patternProperties" => value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .try_for_each(|(pattern, _)| check_bounds(pattern, REGEX_BYTES_MAX))?,
                _ => {}
            }
            check_patterns(value)
        }),
        Value::Array(items) => items.iter().try_for_each(check_patterns),
        _ => Ok(()),
    }
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_vocabulary_new(
    tokenizer: *const Handle,
    vocab_size: usize,
    end_ids: *const u32,
    end_id_count: usize,
    out: *mut *mut Vocabulary,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        let end_ids = match end_id_count {
            0 => &[],
            count => std::slice::from_raw_parts(end_ids, count),
        };
        Ok(Box::into_raw(Box::new(Vocabulary::new(&*tokenizer, vocab_size, end_ids)?)))
    })
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_vocabulary_free(vocabulary: *mut Vocabulary) {
    drop(Box::from_raw(vocabulary));
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_matcher_new(
    vocabulary: *const Vocabulary,
    kind: i32,
    grammar: Slice,
    out: *mut *mut Matcher,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        Ok(Box::into_raw(Box::new((*vocabulary).compile(kind, &grammar.text())?)))
    })
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_matcher_free(matcher: *mut Matcher) {
    drop(Box::from_raw(matcher));
}

/// Writes `word_count` words of the mask.
#[no_mangle]
pub unsafe extern "C" fn epic_text_matcher_mask(
    matcher: *mut Matcher,
    words: *mut u32,
    word_count: usize,
    out: *mut bool,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        let mask = (*matcher)
            .compute_mask_or_eos()
            .map_err(|error| internal(format!("grammar: {error}")))?;
        let words = std::slice::from_raw_parts_mut(words, word_count);
        words.fill(0);
        for (to, from) in words.iter_mut().zip(mask.as_slice()) {
            *to = *from;
        }
        Ok(true)
    })
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_matcher_consume(
    matcher: *mut Matcher,
    token: u32,
    out: *mut bool,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        let consumed = (*matcher)
            .try_consume_tokens(&[token])
            .map_err(|error| internal(format!("grammar: {error}")))?;
        if consumed == 0 {
            return Err(invalid(format!("token {token} is not allowed by the grammar here")));
        }
        Ok(true)
    })
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_matcher_rollback(
    matcher: *mut Matcher,
    token_count: usize,
    out: *mut bool,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        (*matcher).rollback(token_count).map_err(|error| internal(format!("grammar: {error}")))?;
        Ok(true)
    })
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_matcher_forced(
    matcher: *mut Matcher,
    out: *mut Buffer<i32>,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        let tokens = (*matcher).compute_ff_tokens();
        Ok(tokens.into_iter().map(|id| id as i32).collect::<Vec<_>>().into())
    })
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_matcher_is_accepting(
    matcher: *mut Matcher,
    out: *mut bool,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        (*matcher).is_accepting().map_err(|error| internal(format!("grammar: {error}")))
    })
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_matcher_is_stopped(matcher: *const Matcher) -> bool {
    (*matcher).is_stopped()
}
