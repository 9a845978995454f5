//! What text/ takes from Rust, behind a C ABI (text/rust_abi.h): tokenizers, chat templates,
//! grammars. No panic crosses the border: ffi::guarded turns it into an error.

mod ffi;
mod files;
mod grammar;
mod guards;
mod python;
mod strings;
mod template;
mod tiktoken;
mod token_table;
mod tokenizer;
mod tokenizer_abi;
