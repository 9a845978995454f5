// BrowserRules: which web pages may use the HTTP interface (CORS), and under which names a browser
// may reach a server that listens on loopback alone.
//
// Sources: the Fetch standard for CORS. DNS rebinding: a page of evil.example lets its own name
// resolve to 127.0.0.1, so that the browser takes this server for the page's own; the Host header
// still says evil.example.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace epic::coordinator {

struct BrowserOptions {
  // Origins as browsers send them ("https://chat.example.com"), or "*" for all. Empty: pages that
  // were loaded from a loopback address.
  std::vector<std::string> origins;
  // Names, without a port, that clients use for this server beside the loopback ones.
  std::vector<std::string> hosts;
  // Whether the server listens on loopback alone. Only then names are checked.
  bool loopback = true;
};

// Immutable; any thread may call.
class BrowserRules {
 public:
  BrowserRules() = default;
  explicit BrowserRules(BrowserOptions options) : options_(std::move(options)) {}

  // What Access-Control-Allow-Origin must say to a page of `origin` that asked for `host` (the
  // header, with its port); empty: the page may not read answers. A page of the same host may.
  std::string AllowedOrigin(std::string_view origin, std::string_view host) const;
  // PermissionDenied if `host` (the header; empty: absent) is a name that somebody else may own.
  // Addresses, loopback names and names without a dot, which nobody can register, always pass.
  absl::Status CheckHost(std::string_view host) const;

 private:
  BrowserOptions options_;
};

// "localhost", "x.localhost", "127.0.0.1", "[::1]" and the like. No port.
bool IsLoopbackHost(std::string_view host);

// InvalidArgument unless `origin` is "*", "null" or scheme://host[:port].
absl::Status CheckOrigin(std::string_view origin);

}  // namespace epic::coordinator
