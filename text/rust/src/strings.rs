//! The string methods and filters that must look through guards (guards.rs). All else is
//! minijinja-contrib's Python compatibility.

use crate::guards::{is_guard, without_guards, Markers, CLOSE, OPEN};
use crate::python;
use minijinja::value::{from_args, Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use std::sync::Arc;

/// The variable that carries the markers of a guarded rendering.
pub const MARKERS: &str = "epic markers";

#[derive(Debug)]
pub struct MarkersObject(pub Arc<Markers>);
impl minijinja::value::Object for MarkersObject {}

fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn in_set<'a>(chars: Option<&'a str>) -> impl Fn(char) -> bool + 'a {
    move |c| chars.map_or_else(|| is_space(c), |set| set.contains(c))
}

/// Guards stay, as what they frame does.
fn strip_start(text: &str, strip: impl Fn(char) -> bool) -> String {
    let mut guards = String::new();
    for (start, c) in text.char_indices() {
        if is_guard(c) {
            guards.push(c);
        } else if !strip(c) {
            return guards + &text[start..];
        }
    }
    guards
}

fn strip_end(text: &str, strip: impl Fn(char) -> bool) -> String {
    let mut guards = Vec::new();
    let mut end = 0;
    for (start, c) in text.char_indices().rev() {
        if is_guard(c) {
            guards.push(c);
        } else if !strip(c) {
            end = start + c.len_utf8();
            break;
        }
    }
    let mut kept = text[..end].to_string();
    kept.extend(guards.into_iter().rev());
    kept
}

fn strip(text: &str, chars: Option<&str>) -> String {
    strip_end(&strip_start(text, in_set(chars)), in_set(chars))
}

fn markers_of(state: &State) -> Option<Arc<Markers>> {
    let value = state.lookup(MARKERS)?;
    Some(value.downcast_object_ref::<MarkersObject>()?.0.clone())
}

/// Cuts at every separator, framed or not; a frame goes with its separator.
fn split(text: &str, separator: &str, count_max: Option<i64>) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let cuts = count_max.filter(|count| *count >= 0).map_or(usize::MAX, |count| count as usize);
    let mut parts: Vec<&str> = text.splitn(cuts.saturating_add(1), separator).collect();
    for right in 1..parts.len() {
        if let (Some(before), Some(after)) =
            (parts[right - 1].strip_suffix(OPEN), parts[right].strip_prefix(CLOSE))
        {
            parts[right - 1] = before;
            parts[right] = after;
        }
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

fn guard_parts(state: &State, parts: Value) -> Result<Value, Error> {
    let Some(markers) = markers_of(state) else { return Ok(parts) };
    let guard = |part: Value| Value::from(markers.guard_part(part.as_str().unwrap_or_default()));
    Ok(parts.try_iter()?.map(guard).collect())
}

fn plain(value: &Value) -> Value {
    match (value.as_str(), value.kind()) {
        (Some(text), _) if text.contains(is_guard) => Value::from(without_guards(text)),
        (None, ValueKind::Seq) => value.try_iter().map_or(value.clone(), |items| {
            items.map(|item| plain(&item)).collect::<Vec<_>>().into()
        }),
        _ => value.clone(),
    }
}

fn replace(state: &State, text: &str, old: &str, new: &str, count: Option<i64>) -> String {
    let count = count.filter(|count| *count >= 0).map_or(usize::MAX, |count| count as usize);
    match markers_of(state) {
        Some(markers) => markers.replace(text, old, new, count),
        None => text.replacen(old, new, count),
    }
}

fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, name, args);
    };
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Ok(Value::from(match name {
                "strip" => strip(text, chars),
                "lstrip" => strip_start(text, in_set(chars)),
                _ => strip_end(text, in_set(chars)),
            }))
        }
        "split" => {
            let (separator, count, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let count = count.or(kwargs.get::<Option<i64>>("maxsplit")?);
            let parts = match separator {
                Some(separator) => split(text, separator, count)?,
                None => {
                    let count = count.filter(|count| *count >= 0);
                    let args = [Value::from(()), count.map_or(Value::from(()), Value::from)];
                    unknown_method_callback(state, value, name, &args)?
                }
            };
            guard_parts(state, parts)
        }
        "splitlines" => guard_parts(state, unknown_method_callback(state, value, name, args)?),
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            Ok(Value::from(replace(state, text, old, new, count)))
        }
        "startswith" | "endswith" => {
            let args: Vec<Value> = args.iter().map(plain).collect();
            unknown_method_callback(state, &plain(value), name, &args)
        }
        _ => unknown_method_callback(state, value, name, args),
    }
}

fn trim_filter(value: &Value, chars: Option<&str>) -> Result<String, Error> {
    Ok(strip(&python::str(value)?, chars))
}

/// minijinja would also go through none, as if it were empty.
fn is_iterable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::None => false,
        ValueKind::String | ValueKind::Undefined => true,
        _ => value.try_iter().is_ok(),
    }
}

fn replace_filter(
    state: &State,
    value: &Value,
    old: &Value,
    new: &Value,
    count: Option<i64>,
) -> Result<String, Error> {
    let [text, old, new] = [value, old, new].map(python::str);
    Ok(replace(state, &text?, &old?, &new?, count))
}

fn tojson_filter(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Value, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(named.or_else(|| args.get(index).cloned()).unwrap_or_default())
    };
    let options = python::JsonOptions {
        ensure_ascii: argument(0, "ensure_ascii")?.is_true(),
        indent: argument(1, "indent")?.as_usize(),
        separators: python::separators(&argument(2, "separators")?)?,
        sort_keys: argument(3, "sort_keys")?.is_true(),
    };
    python::json(value, &options)
}

pub fn install(environment: &mut Environment) {
    environment.set_unknown_method_callback(method);
    environment.add_test("iterable", is_iterable);
    environment.add_filter("trim", trim_filter);
    environment.add_filter("replace", replace_filter);
    environment.add_filter("tojson", tojson_filter);
    environment.add_filter("string", python::str);
    environment
        .set_formatter(|out, _, value| out.write_str(&python::str(value)?).map_err(Error::from));
}
