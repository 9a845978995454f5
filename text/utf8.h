// UTF-8 in the lossy reading that Python, Rust and the WHATWG share: bytes that can never be part
// of a character become U+FFFD, one per maximal invalid subpart.
#pragma once

#include <string>
#include <string_view>

namespace epic::text {

// Appends the decoded part of `bytes` to `*out` and returns how many bytes it consumed. The rest
// (at most 3 bytes) is the start of a character whose end is still to come; with `final` it
// becomes one U+FFFD and everything is consumed.
size_t AppendValidUtf8(std::string_view bytes, bool final, std::string* out);

// The whole of `bytes`, read lossily.
std::string LossyUtf8(std::string_view bytes);

}  // namespace epic::text
