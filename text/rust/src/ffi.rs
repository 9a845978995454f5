//! The border: how slices, results and errors cross it.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Numbered as absl::StatusCode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Code {
    InvalidArgument = 3,
    NotFound = 5,
    Internal = 13,
}

#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

pub fn invalid(message: impl Into<String>) -> Failure {
    Failure { code: Code::InvalidArgument, message: message.into() }
}

pub fn internal(message: impl Into<String>) -> Failure {
    Failure { code: Code::Internal, message: message.into() }
}

/// Borrowed bytes of the caller.
#[repr(C)]
pub struct Slice {
    data: *const u8,
    len: usize,
}

impl Slice {
    /// # Safety
    /// `data` is readable for `len` bytes while the result lives.
    pub unsafe fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        std::slice::from_raw_parts(self.data, self.len)
    }

    /// # Safety
    /// As bytes().
    pub unsafe fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.bytes())
    }
}

/// A vector handed to the caller, who gives it back to the function that frees its type.
#[repr(C)]
pub struct Buffer<T> {
    data: *mut T,
    len: usize,
    capacity: usize,
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(vector: Vec<T>) -> Self {
        let mut vector = std::mem::ManuallyDrop::new(vector);
        Buffer { data: vector.as_mut_ptr(), len: vector.len(), capacity: vector.capacity() }
    }
}

impl<T> Buffer<T> {
    unsafe fn free(self) {
        if !self.data.is_null() {
            drop(Vec::from_raw_parts(self.data, self.len, self.capacity));
        }
    }
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_free_bytes(buffer: Buffer<u8>) {
    buffer.free();
}

#[no_mangle]
pub unsafe extern "C" fn epic_text_free_ids(buffer: Buffer<i32>) {
    buffer.free();
}

fn panic_message(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => match payload.downcast::<&str>() {
            Ok(text) => text.to_string(),
            Err(_) => "unknown panic".to_string(),
        },
    }
}

/// Runs `body`; stores its value in `*out` and returns 0, or its error in `*error` and returns the
/// code.
pub unsafe fn guarded<T>(
    out: *mut T,
    error: *mut Buffer<u8>,
    body: impl FnOnce() -> Result<T>,
) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => {
            out.write(value);
            return 0;
        }
        Ok(Err(failure)) => failure,
        Err(payload) => internal(panic_message(payload)),
    };
    error.write(failure.message.into_bytes().into());
    failure.code as i32
}
