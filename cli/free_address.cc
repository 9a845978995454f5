#include "cli/free_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::cli {
namespace {

// Returns 0, or the errno of binding. SO_REUSEADDR is set as servers set it: connections that a
// dead server left in TIME_WAIT must not count as somebody who listens. A socket that listens still
// refuses a second one. This one never listens, so no client can reach it.
int BindError(const addrinfo& where) {
  const int fd = socket(where.ai_family, where.ai_socktype, where.ai_protocol);
  if (fd < 0) return errno;
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const int error = bind(fd, where.ai_addr, where.ai_addrlen) == 0 ? 0 : errno;
  close(fd);
  return error;
}

}  // namespace

absl::Status CheckFree(const std::string& flag, const std::string& address) {
  CHECK(absl::StartsWith(flag, "--")) << flag;
  // The last colon ends the host: an IPv6 address has colons of its own.
  const size_t colon = address.rfind(':');
  if (absl::StartsWith(address, "unix:") || colon == std::string::npos) return absl::OkStatus();
  std::string host = address.substr(0, colon);
  const std::string port = address.substr(colon + 1);
  if (port == "0") return absl::OkStatus();
  if (host.size() > 1 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  const addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return absl::OkStatus();
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owned(found, freeaddrinfo);
  // All other errors are left to the listener, which meets them itself and names them better.
  if (BindError(*found) != EADDRINUSE) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      flag, ": another process listens on ", address, "; give this one an address of its own"));
}

}  // namespace epic::cli
