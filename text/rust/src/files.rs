//! The files of a model folder.

use crate::ffi::{invalid, Result};
use serde_json::Value;
use std::path::Path;

const FILE_BYTES_MAX: u64 = 256 << 20;

pub fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let problem = |error: std::io::Error| invalid(format!("{}: {error}", path.display()));
    let bytes = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(problem(error)),
        Ok(metadata) => metadata.len(),
    };
    if bytes > FILE_BYTES_MAX {
        return Err(invalid(format!(
            "{}: {bytes} bytes, at most {FILE_BYTES_MAX} are read",
            path.display()
        )));
    }
    std::fs::read(path).map(Some).map_err(problem)
}

/// tokenizer_config.json; an empty object if there is none.
pub fn read_config(folder: &Path) -> Result<Value> {
    let path = folder.join("tokenizer_config.json");
    let Some(bytes) = read_file(&path)? else { return Ok(Value::Object(Default::default())) };
    serde_json::from_slice(&bytes).map_err(|error| invalid(format!("{}: {error}", path.display())))
}

/// A special token of the configuration: a string, or an object with the string as "content".
pub fn configured_token<'a>(config: &'a Value, name: &str) -> Option<&'a str> {
    let value = &config[name];
    value.as_str().or_else(|| value["content"].as_str())
}
