// Sockets of the exchange: non-blocking, close-on-exec, and made so that a loss is noticed.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/unique_fd.h"
#include "cluster/transport/transport.h"

namespace epic::cluster {

struct TcpListener {
  UniqueFd socket;
  std::string host;  // numeric
  int port = 0;
};

// `host` may be a name and is resolved (this may block); port 0: any that is free.
absl::StatusOr<TcpListener> ListenTcp(const std::string& host, int port);

// Begins to connect to HOST:PORT ([HOST]:PORT for IPv6), with a numeric host: a name would have to
// be waited for. The socket is writable once it is known how it went (ConnectError).
absl::StatusOr<UniqueFd> DialTcp(const std::string& address);

// The numeric form of a host; this may block.
absl::StatusOr<std::string> ResolveHost(const std::string& host);
std::string HostPort(const std::string& host, int port);

// TCP_NODELAY, TCP_USER_TIMEOUT, and keepalive for connections that are silent.
absl::Status SetTcpOptions(int socket, absl::Duration user_timeout);

// Nobody finds the path before the socket can be connected to: it is bound under another name, and
// then renamed.
absl::StatusOr<UniqueFd> ListenUnix(const std::string& path);
absl::StatusOr<UniqueFd> DialUnix(const std::string& path);
// PermissionDenied unless the other end's process runs as this one's user.
absl::Status CheckPeerUser(int socket);

// Says why a connect that has ended has failed; OK if it has not.
absl::Status ConnectError(int socket);
// Names the other end: its numeric address without the port, or process and user for a unix socket.
std::string RemoteName(int socket);

// Sends all `bytes`, and `descriptor` with them unless it is -1. Unavailable if the socket does not
// take them at once.
absl::Status SendAll(int socket, Bytes bytes, int descriptor);
// Receives up to `into.size()` bytes and returns how many; 0 means that none are there now.
// Descriptors that come along are added. Unavailable at the end of the stream.
absl::StatusOr<size_t> ReceiveSome(int socket, std::span<std::byte> into,
                                   std::vector<UniqueFd>* descriptors);

}  // namespace epic::cluster
