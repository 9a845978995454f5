//! The C ABI of tokenizer.rs.

use crate::ffi::{guarded, Buffer, Slice};
use crate::tokenizer::Tokenizer;
use std::path::Path;
use std::sync::Arc;

/// Views into the tokenizer, valid while it lives.
#[repr(C)]
pub struct TokenizerInfo {
    bytes: *const u8,
    offsets: *const u32,
    flags: *const u8,
    vocab_size: usize,
    bos_id: i32,
    eos_id: i32,
    bos_token: *const u8,
    bos_token_len: usize,
    eos_token: *const u8,
    eos_token_len: usize,
    strips_leading_space: bool,
}

pub type Handle = Arc<Tokenizer>;

#[no_mangle]
pub unsafe extern "C" fn epic_text_tokenizer_load(
    folder: Slice,
    out: *mut *mut Handle,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        let tokenizer = Tokenizer::load(Path::new(folder.text().as_ref()))?;
        Ok(Box::into_raw(Box::new(Arc::new(tokenizer))))
    })
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_tokenizer_free(tokenizer: *mut Handle) {
    drop(Box::from_raw(tokenizer));
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_tokenizer_info(
    tokenizer: *const Handle,
    out: *mut TokenizerInfo,
) {
    let tokenizer: &Tokenizer = &*tokenizer;
    let table = &tokenizer.table;
    let id = |token: &Option<(u32, String)>| token.as_ref().map_or(-1, |(id, _)| *id as i32);
    let bos = tokenizer.bos.as_ref().map_or("", |(_, text)| text);
    let eos = tokenizer.eos.as_ref().map_or("", |(_, text)| text);
    out.write(TokenizerInfo {
        bytes: table.bytes.as_ptr(),
        offsets: table.offsets.as_ptr(),
        flags: table.flags.as_ptr(),
        vocab_size: table.flags.len(),
        bos_id: id(&tokenizer.bos),
        eos_id: id(&tokenizer.eos),
        bos_token: bos.as_ptr(),
        bos_token_len: bos.len(),
        eos_token: eos.as_ptr(),
        eos_token_len: eos.len(),
        strips_leading_space: tokenizer.strips_leading_space,
    });
}

/// The id of an added token or vocabulary entry; -1 if there is none.
#[no_mangle]
pub unsafe extern "C" fn epic_text_tokenizer_id(tokenizer: *const Handle, content: Slice) -> i32 {
    (*tokenizer).token_id(&content.text()).map_or(-1, |id| id as i32)
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_tokenizer_encode(
    tokenizer: *const Handle,
    text: Slice,
    add_special_tokens: bool,
    parse_special: bool,
    out: *mut Buffer<i32>,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        Ok((*tokenizer).encode(&text.text(), add_special_tokens, parse_special)?.into())
    })
}
