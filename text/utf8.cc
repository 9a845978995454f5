#include "text/utf8.h"

#include <cstdint>

namespace epic::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Lead {
  int length;                      // bytes of the character; 0 for a byte that starts none
  uint8_t second_min, second_max;  // of the byte after it
};

// Table 3-7 of the Unicode standard: the range of the second byte excludes overlong forms, the
// surrogates and what lies above U+10FFFF.
Lead ReadLead(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// How many bytes from the start of `bytes` belong to one character, whole or begun.
int ValidPrefix(std::string_view bytes, const Lead& lead) {
  int count = 1;
  while (count < lead.length && static_cast<size_t>(count) < bytes.size()) {
    const uint8_t byte = static_cast<uint8_t>(bytes[count]);
    const bool fits = count == 1 ? byte >= lead.second_min && byte <= lead.second_max
                                 : byte >= 0x80 && byte <= 0xBF;
    if (!fits) break;
    ++count;
  }
  return count;
}

}  // namespace

size_t AppendValidUtf8(std::string_view bytes, bool final, std::string* out) {
  size_t position = 0;
  while (position < bytes.size()) {
    const std::string_view rest = bytes.substr(position);
    const Lead lead = ReadLead(static_cast<uint8_t>(rest[0]));
    const int count = ValidPrefix(rest, lead);
    if (count == lead.length) {
      out->append(rest.substr(0, count));
    } else if (lead.length != 0 && static_cast<size_t>(count) == rest.size() && !final) {
      // A character that may still be completed: the caller keeps these bytes for the next call.
      return position;
    } else {
      out->append(kReplacement);
    }
    position += count;
  }
  return position;
}

std::string LossyUtf8(std::string_view bytes) {
  std::string text;
  AppendValidUtf8(bytes, /*final=*/true, &text);
  return text;
}

}  // namespace epic::text
