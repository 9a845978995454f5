//! Values as Python writes them: str(), repr(), json.dumps() and strftime().

use crate::guards::is_guard;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write;

fn failure(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The shortest digits that read back as the same number, in Python's choice of notation.
fn float(number: f64) -> String {
    if !number.is_finite() {
        let name = if number.is_nan() { "nan" } else { "inf" };
        return if number < 0.0 { format!("-{name}") } else { name.to_string() };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("{:e} prints an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is an integer");
    if (-4..16).contains(&exponent) {
        return format!("{number:?}").replace("e0", "");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// What `{{ value }}` prints.
pub fn str(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_string()),
        ValueKind::Undefined => Ok(String::new()),
        _ => repr(value),
    }
}

fn repr(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::None => "None".to_string(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_string(),
        ValueKind::Number => number(value),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items: Result<Vec<_>, _> = value.try_iter()?.map(|item| repr(&item)).collect();
            format!("[{}]", items?.join(", "))
        }
        ValueKind::Map => {
            let mut entries = Vec::new();
            for key in value.try_iter()? {
                entries.push(format!("{}: {}", repr(&key)?, repr(&value.get_item(&key)?)?));
            }
            format!("{{{}}}", entries.join(", "))
        }
        _ => value.to_string(),
    })
}

pub struct JsonOptions {
    pub ensure_ascii: bool,
    pub indent: Option<usize>,
    pub separators: Option<(String, String)>,
    pub sort_keys: bool,
}

pub fn separators(value: &Value) -> Result<Option<(String, String)>, Error> {
    if value.is_none() || value.is_undefined() {
        return Ok(None);
    }
    let parts: Vec<String> = value.try_iter()?.map(|part| part.to_string()).collect();
    match <[String; 2]>::try_from(parts) {
        Ok([item, key]) => Ok(Some((item, key))),
        Err(_) => Err(failure("tojson: separators must be a pair".to_string())),
    }
}

/// json.dumps(value, ensure_ascii=False, …): no HTML escaping, keys in their order.
pub fn json(value: &Value, options: &JsonOptions) -> Result<String, Error> {
    let mut out = String::new();
    write_json(value, options, 0, &mut out)?;
    Ok(out)
}

fn write_json(
    value: &Value,
    options: &JsonOptions,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_json_string(value.as_str().unwrap_or_default(), options, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_json_block(('[', ']'), &items, options, depth, out, |item, out| {
                write_json(item, options, depth + 1, out)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if options.sort_keys {
                keys.sort();
            }
            let separator = options.separators.as_ref().map_or(": ", |pair| &pair.1);
            write_json_block(('{', '}'), &keys, options, depth, out, |key, out| {
                write_json_string(&str(key)?, options, out);
                out.push_str(separator);
                write_json(&value.get_item(key)?, options, depth + 1, out)
            })?;
        }
        kind => return Err(failure(format!("tojson: a value of type {kind} is not JSON"))),
    }
    Ok(())
}

fn write_json_block(
    (open, close): (char, char),
    items: &[Value],
    options: &JsonOptions,
    depth: usize,
    out: &mut String,
    mut write: impl FnMut(&Value, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let default = if options.indent.is_some() { "," } else { ", " };
    let separator = options.separators.as_ref().map_or(default, |pair| &pair.0);
    let line = |depth: usize, out: &mut String| {
        if let (Some(indent), false) = (options.indent, items.is_empty()) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(separator);
        }
        line(depth + 1, out);
        write(item, out)?;
    }
    line(depth, out);
    out.push(close);
    Ok(())
}

fn write_json_string(text: &str, options: &JsonOptions, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c if options.ensure_ascii && (c as u32) > 0x7e && !is_guard(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Year, month (1–12) and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// time.strftime in UTC. `%-d` and its like print without padding.
pub fn strftime(format: &str, unix_seconds: i64) -> Result<String, Error> {
    let days = unix_seconds.div_euclid(86_400);
    let second_of_day = unix_seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second_of_day / 3600, second_of_day / 60 % 60);
    let weekday = (days + 4).rem_euclid(7) as usize;
    let day_of_year = (1..=366).find(|n| civil(days - n + 1).1 == 1 && civil(days - n + 1).2 == 1);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let padded = code != Some('-');
        if !padded {
            code = chars.next();
        }
        let mut put = |number: i64, width: usize| {
            let width = if padded { width } else { 0 };
            let _ = write!(out, "{number:0width$}");
        };
        match code {
            Some('Y') => put(year, 4),
            Some('y') => put(year.rem_euclid(100), 2),
            Some('m') => put(month, 2),
            Some('d') => put(day, 2),
            Some('j') => put(day_of_year.unwrap_or(1), 3),
            Some('H') => put(hour, 2),
            Some('I') => put((hour + 11) % 12 + 1, 2),
            Some('M') => put(minute, 2),
            Some('S') => put(second_of_day % 60, 2),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('A') => out.push_str(DAYS[weekday]),
            Some('a') => out.push_str(&DAYS[weekday][..3]),
            Some('B') => out.push_str(MONTHS[month as usize - 1]),
            Some('b') => out.push_str(&MONTHS[month as usize - 1][..3]),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('F') => out.push_str(&strftime("%Y-%m-%d", unix_seconds)?),
            Some('T') => out.push_str(&strftime("%H:%M:%S", unix_seconds)?),
            Some('%') => out.push('%'),
            other => {
                let code = other.map_or(String::new(), String::from);
                return Err(failure(format!("strftime_now: %{code} is not supported")));
            }
        }
    }
    Ok(out)
}
