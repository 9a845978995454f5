#include "coordinator/frontend/browser_rules.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace epic::coordinator {
namespace {

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

// Lower case, without port, brackets and the dot of a fully qualified name.
std::string HostName(std::string_view host) {
  const bool address6 = !host.empty() && host[0] == '[';
  const size_t end = address6 ? host.find(']') : host.find(':');
  std::string name = absl::AsciiStrToLower(View(host.substr(0, end)));
  if (address6) name.erase(0, 1);
  if (!name.empty() && name.back() == '.') name.pop_back();
  return name;
}

// What follows the scheme; empty if there is none.
std::string_view HostOfOrigin(std::string_view origin) {
  const size_t scheme_end = origin.find("://");
  return scheme_end == origin.npos ? std::string_view() : origin.substr(scheme_end + 3);
}

// Digits and dots, or an IPv6 address: no name of the DNS looks like this.
bool IsAddress(std::string_view name) {
  return name.find(':') != name.npos ||
         std::ranges::all_of(name, [](char c) { return absl::ascii_isdigit(c) || c == '.'; });
}

}  // namespace

bool IsLoopbackHost(std::string_view host) {
  const std::string name = host.starts_with("::") ? std::string(host) : HostName(host);
  // 127.evil.example begins like a loopback address, and its owner may point it anywhere.
  return name == "localhost" || absl::EndsWith(name, ".localhost") || name == "::1" ||
         (absl::StartsWith(name, "127.") && IsAddress(name));
}

std::string BrowserRules::AllowedOrigin(std::string_view origin, std::string_view host) const {
  if (origin.empty()) return "";
  const auto is = [&](std::string_view allowed) {
    return absl::EqualsIgnoreCase(View(origin), View(allowed));
  };
  // "*" is safe where keys guard: no answer allows credentials, so a browser adds no secret that
  // the page itself does not have.
  if (std::ranges::count(options_.origins, "*") > 0) return "*";
  const std::string_view page_host = HostOfOrigin(origin);
  // A proxy that ends TLS changes the scheme, so same origin means same host and port here.
  const bool same = !page_host.empty() && absl::EqualsIgnoreCase(View(page_host), View(host));
  const bool named = options_.origins.empty() ? !page_host.empty() && IsLoopbackHost(page_host)
                                              : std::ranges::any_of(options_.origins, is);
  return same || named ? std::string(origin) : "";
}

absl::Status BrowserRules::CheckHost(std::string_view host) const {
  // Behind another address the server is called by names that it cannot know. All browsers send
  // Host, so a request without it comes from no page.
  if (!options_.loopback || host.empty()) return absl::OkStatus();
  const std::string name = HostName(host);
  const bool unowned = name.find('.') == name.npos || IsAddress(name) || IsLoopbackHost(name);
  const bool given = std::ranges::any_of(options_.hosts, [&](const std::string& allowed) {
    return absl::EqualsIgnoreCase(allowed, name);
  });
  if (unowned || given) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("the header Host is ", View(host.substr(0, 100)),
                   ", but this server listens on loopback: name it with --allowed-hosts"));
}

absl::Status CheckOrigin(std::string_view origin) {
  if (origin == "*" || origin == "null") return absl::OkStatus();
  const std::string_view host = HostOfOrigin(origin);
  if (!host.empty() && !origin.starts_with("://") && host.find_first_of("/?# ") == host.npos) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      View(origin), " is not an origin: it must be *, null or scheme://host[:port]"));
}

}  // namespace epic::coordinator
