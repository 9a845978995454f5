//! Chat templates, in the environment that Hugging Face gives them.

use crate::ffi::{guarded, invalid, Buffer, Code, Failure, Result, Slice};
use crate::files::{configured_token, read_config, read_file};
use crate::guards::{split_guarded, without_guards, Markers};
use crate::python::strftime;
use crate::strings::{install, MarkersObject, MARKERS};
use crate::tokenizer_abi::Handle;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

const RECURSION_MAX: usize = 120;

pub struct Template {
    environment: Environment<'static>,
    special_tokens: Vec<(&'static str, String)>,
    text_bytes_max: usize,
}

fn raise_exception(message: String) -> std::result::Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `{% generation %}` marks what a trainer learns from; here its body is simply printed.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        let Some(end) = tag.find("%}") else { break };
        let name = tag[..end].trim_matches(['-', '+']).trim();
        let body = match name {
            "generation" => tag[..end].replace("generation", "if true"),
            "endgeneration" => tag[..end].replace("endgeneration", "endif"),
            _ => tag[..end].to_string(),
        };
        out.push_str(before);
        out.push_str(&body);
        rest = &tag[end..];
    }
    out + rest
}

fn message(error: &Error) -> String {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    if let Some(line) = error.line() {
        text += &format!(" (line {line})");
    }
    without_guards(&text)
}

/// Ends a rendering whose text grows beyond a limit.
struct Limited {
    text: Vec<u8>,
    bytes_max: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + bytes.len() > self.bytes_max {
            return Err(std::io::Error::other("too long"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The templates of a folder by name; the only one is called "default".
fn read_sources(folder: &Path, config: &serde_json::Value) -> Result<Vec<(String, String)>> {
    if let Some(bytes) = read_file(&folder.join("chat_template.jinja"))? {
        let source = String::from_utf8_lossy(&bytes).into_owned();
        return Ok(vec![("default".into(), source)]);
    }
    match &config["chat_template"] {
        serde_json::Value::String(source) => Ok(vec![("default".into(), source.clone())]),
        serde_json::Value::Array(entries) => entries
            .iter()
            .map(|entry| match (entry["name"].as_str(), entry["template"].as_str()) {
                (Some(name), Some(source)) => Ok((name.to_string(), source.to_string())),
                _ => Err(invalid("chat_template: an entry lacks its name or template")),
            })
            .collect(),
        serde_json::Value::Null => Err(Failure {
            code: Code::NotFound,
            message: format!(
                "{}: neither chat_template.jinja nor chat_template in tokenizer_config.json",
                folder.display()
            ),
        }),
        _ => Err(invalid("chat_template: neither a string nor a list of {name, template}")),
    }
}

impl Template {
    pub fn load(folder: &Path, fuel: u64, text_bytes_max: usize) -> Result<Self> {
        let config = read_config(folder)?;
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(fuel));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_function("raise_exception", raise_exception);
        install(&mut environment);
        for (name, source) in read_sources(folder, &config)? {
            environment
                .add_template_owned(name, without_generation_tags(&without_guards(&source)))
                .map_err(|error| invalid(format!("chat template: {}", message(&error))))?;
        }
        let names = ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token"];
        let special_tokens = names
            .into_iter()
            .filter_map(|name| Some((name, configured_token(&config, name)?.to_string())))
            .collect();
        Ok(Template { environment, special_tokens, text_bytes_max })
    }

    /// `request`: messages, tools, template_kwargs, add_generation_prompt, now. With markers, what
    /// the client wrote comes out guarded.
    fn render(
        &self,
        request: &serde_json::Value,
        markers: Option<&Arc<Markers>>,
    ) -> Result<String> {
        let guard = |value: &serde_json::Value| {
            Value::from_serialize(markers.map_or(value.clone(), |m| m.guard_json(value, "")))
        };
        let arguments = &request["template_kwargs"];
        let arguments = markers.map_or(arguments.clone(), |m| m.guard_arguments(arguments));
        let mut context = BTreeMap::new();
        for (name, value) in arguments.as_object().into_iter().flatten() {
            context.insert(name.clone(), Value::from_serialize(value));
        }
        let mut set = |name: &str, value: Value| context.insert(name.to_string(), value);
        for (name, token) in &self.special_tokens {
            set(name, Value::from(token.as_str()));
        }
        set("messages", guard(&request["messages"]));
        set("tools", guard(&request["tools"]));
        set("add_generation_prompt", Value::from_serialize(&request["add_generation_prompt"]));
        let now = request["now"].as_i64().unwrap_or(0);
        set("strftime_now", Value::from_function(move |format: &str| strftime(format, now)));
        if let Some(markers) = markers {
            set(MARKERS, Value::from_object(MarkersObject(markers.clone())));
        }
        self.run(request["tools"].is_null(), context)
    }

    fn run(&self, without_tools: bool, context: BTreeMap<String, Value>) -> Result<String> {
        let with_tools = self.environment.get_template("tool_use").ok();
        let template = match with_tools.filter(|_| !without_tools) {
            Some(template) => template,
            None => self
                .environment
                .get_template("default")
                .map_err(|_| invalid("chat_template: no template is named default"))?,
        };
        let mut limited = Limited { text: Vec::new(), bytes_max: self.text_bytes_max };
        let rendered = template.render_captured_to(Value::from_iter(context), &mut limited);
        rendered.map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => invalid("chat template: too many steps"),
            ErrorKind::WriteFailure => invalid(format!(
                "chat template: the text is longer than {} bytes",
                self.text_bytes_max
            )),
            _ => invalid(format!("chat template: {}", message(&error))),
        })?;
        Ok(String::from_utf8(limited.text).expect("templates write UTF-8"))
    }
}

unsafe fn parse_request(request: &Slice) -> Result<serde_json::Value> {
    serde_json::from_slice(request.bytes())
        .map_err(|error| invalid(format!("chat request: {error}")))
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_template_load(
    folder: Slice,
    fuel: u64,
    text_bytes_max: usize,
    out: *mut *mut Template,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        let template = Template::load(Path::new(folder.text().as_ref()), fuel, text_bytes_max)?;
        Ok(Box::into_raw(Box::new(template)))
    })
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_template_free(template: *mut Template) {
    drop(Box::from_raw(template));
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_template_render(
    template: *const Template,
    request: Slice,
    out: *mut Buffer<u8>,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        Ok((*template).render(&parse_request(&request)?, None)?.into_bytes().into())
    })
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_template_render_ids(
    template: *const Template,
    tokenizer: *const Handle,
    request: Slice,
    out: *mut Buffer<i32>,
    error: *mut Buffer<u8>,
) -> i32 {
    guarded(out, error, || {
        let tokenizer = &*tokenizer;
        let markers = tokenizer.markers();
        let rendered = (*template).render(&parse_request(&request)?, Some(markers))?;
        let (text, own) = split_guarded(markers, &rendered);
        Ok(tokenizer.encode_marked(&text, &own)?.into())
    })
}
