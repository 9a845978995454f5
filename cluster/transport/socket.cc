#include "cluster/transport/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status.h"

namespace epic::cluster {
namespace {

// A world that begins dials all at once; the kernel caps it by net.core.somaxconn.
constexpr int kBacklog = 128;
constexpr int kSocketFlags = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;

struct FreeAddresses {
  void operator()(addrinfo* info) const { freeaddrinfo(info); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

absl::StatusOr<Addresses> Resolve(const std::string& host, int port, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("host \"", host, "\": ", gai_strerror(error)));
  }
  return Addresses(found);
}

absl::Status Errno(int error, const std::string& what) { return absl::ErrnoToStatus(error, what); }

std::string NumericHost(const sockaddr* address, socklen_t size) {
  char host[NI_MAXHOST];
  if (getnameinfo(address, size, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) != 0) return "?";
  return host;
}

absl::StatusOr<sockaddr_un> UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // At most 107 bytes on Linux: deep temporary folders do not fit.
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("socket path ", path, " has ", path.size(),
                                                   " bytes, at most ",
                                                   sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

const sockaddr* Generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

}  // namespace

std::string HostPort(const std::string& host, int port) {
  const bool v6 = host.find(':') != std::string::npos;
  return v6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

absl::StatusOr<std::string> ResolveHost(const std::string& host) {
  // The first address counts, here and below: the system's resolver has sorted them by preference.
  ASSIGN_OR_RETURN(const Addresses addresses, Resolve(host, 0, 0));
  return NumericHost(addresses->ai_addr, addresses->ai_addrlen);
}

absl::StatusOr<TcpListener> ListenTcp(const std::string& host, int port) {
  const std::string where = HostPort(host, port);
  ASSIGN_OR_RETURN(const Addresses addresses, Resolve(host, port, AI_PASSIVE));
  TcpListener listener;
  listener.socket.reset(socket(addresses->ai_family, kSocketFlags, 0));
  if (!listener.socket.valid()) return Errno(errno, absl::StrCat("socket for ", where));
  const int fd = listener.socket.get(), on = 1;
  // A worker that is started again must have its port while the old connections time out.
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd, addresses->ai_addr, addresses->ai_addrlen) != 0 || listen(fd, kBacklog) != 0) {
    return Errno(errno, absl::StrCat("listen on ", where));
  }
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    return Errno(errno, absl::StrCat("getsockname of ", where));
  }
  listener.host = NumericHost(reinterpret_cast<sockaddr*>(&bound), size);
  listener.port =
      ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                        : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
  return listener;
}

absl::StatusOr<UniqueFd> DialTcp(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port <= 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("address \"", address, "\" is no HOST:PORT"));
  }
  absl::string_view host = absl::string_view(address).substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  // Numbers only: a look-up could block the loop for seconds. Names are resolved at start.
  ASSIGN_OR_RETURN(const Addresses addresses, Resolve(std::string(host), port, AI_NUMERICHOST));
  UniqueFd fd(socket(addresses->ai_family, kSocketFlags, 0));
  if (!fd.valid()) return Errno(errno, absl::StrCat("socket for ", address));
  if (connect(fd.get(), addresses->ai_addr, addresses->ai_addrlen) != 0 && errno != EINPROGRESS) {
    return absl::UnavailableError(absl::StrCat("connect: ", std::strerror(errno)));
  }
  return fd;
}

absl::Status SetTcpOptions(int socket, absl::Duration user_timeout) {
  // Rows must not wait for Nagle's algorithm. A peer whose machine is gone is noticed by keepalive
  // after about 4 s while nothing is sent, and by TCP_USER_TIMEOUT while something is.
  const int on = 1, silent_seconds = 1, probe_count = 3;
  const auto timeout_ms = static_cast<unsigned int>(absl::ToInt64Milliseconds(user_timeout));
  const auto set = [socket](int level, int name, const auto& value) {
    return setsockopt(socket, level, name, &value, sizeof(value)) == 0;
  };
  const bool all = set(IPPROTO_TCP, TCP_NODELAY, on) && set(SOL_SOCKET, SO_KEEPALIVE, on) &&
                   set(IPPROTO_TCP, TCP_KEEPIDLE, silent_seconds) &&
                   set(IPPROTO_TCP, TCP_KEEPINTVL, silent_seconds) &&
                   set(IPPROTO_TCP, TCP_KEEPCNT, probe_count) &&
                   set(IPPROTO_TCP, TCP_USER_TIMEOUT, timeout_ms);
  return all ? absl::OkStatus()
             : absl::UnavailableError(absl::StrCat("setsockopt: ", std::strerror(errno)));
}

absl::StatusOr<UniqueFd> ListenUnix(const std::string& path) {
  const std::string early = absl::StrCat(path, ".new");
  ASSIGN_OR_RETURN(const sockaddr_un address, UnixAddress(early));
  UniqueFd fd(socket(AF_UNIX, kSocketFlags, 0));
  if (!fd.valid()) return Errno(errno, "unix socket");
  // Bound under another name and renamed: whoever finds the path finds a socket that listens.
  unlink(early.c_str());
  if (bind(fd.get(), Generic(address), sizeof(address)) != 0 || listen(fd.get(), kBacklog) != 0 ||
      rename(early.c_str(), path.c_str()) != 0) {
    return Errno(errno, absl::StrCat("listen on ", path));
  }
  return fd;
}

absl::StatusOr<UniqueFd> DialUnix(const std::string& path) {
  ASSIGN_OR_RETURN(const sockaddr_un address, UnixAddress(path));
  UniqueFd fd(socket(AF_UNIX, kSocketFlags, 0));
  if (!fd.valid()) return Errno(errno, "unix socket");
  if (connect(fd.get(), Generic(address), sizeof(address)) != 0) {
    // A full backlog passes; all else means that this wire will not do, and TCP is taken.
    if (errno == EAGAIN) return absl::UnavailableError(absl::StrCat(path, ": its backlog is full"));
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  return fd;
}

absl::Status CheckPeerUser(int socket) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return absl::PermissionDeniedError(absl::StrCat("SO_PEERCRED: ", std::strerror(errno)));
  }
  // The kernel's word on who has connected; a folder's permissions alone could be wrong.
  if (peer.uid == geteuid()) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("process ", peer.pid, " is of user ", peer.uid, ", not ", geteuid()));
}

absl::Status ConnectError(int socket) {
  int error = 0;
  socklen_t size = sizeof(error);
  // A connect that did not wait leaves its result here.
  getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("connect: ", std::strerror(error)));
}

std::string RemoteName(int socket) {
  sockaddr_storage remote{};
  socklen_t size = sizeof(remote);
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&remote), &size) != 0) return "?";
  if (remote.ss_family == AF_UNIX) {
    ucred peer{};
    size = sizeof(peer);
    getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size);
    return absl::StrCat("process ", peer.pid, " of user ", peer.uid);
  }
  return NumericHost(reinterpret_cast<sockaddr*>(&remote), size);
}

absl::Status SendAll(int socket, Bytes bytes, int descriptor) {
  iovec stretch{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &stretch;
  message.msg_iovlen = 1;
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &descriptor, sizeof(int));
  }
  // A hello is smaller than any socket's buffer: a short send means that the peer does not read.
  const ssize_t sent = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent == static_cast<ssize_t>(bytes.size())) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("send: ", sent < 0 ? std::strerror(errno) : "the socket is full"));
}

absl::StatusOr<size_t> ReceiveSome(int socket, std::span<std::byte> into,
                                   std::vector<UniqueFd>* descriptors) {
  iovec stretch{into.data(), into.size()};
  // Room for more than the one that is expected, so that a peer that sends several is found out.
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
  msghdr message{};
  message.msg_iov = &stretch;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  // MSG_CMSG_CLOEXEC: the memory of a pair must not reach a program that this process starts.
  const ssize_t count = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
  if (count < 0) return absl::UnavailableError(absl::StrCat("receive: ", std::strerror(errno)));
  // More than fit are closed by the kernel.
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + at, sizeof(int));
      // Taken into ownership at once, so that all are closed whatever the hello turns out to be.
      descriptors->emplace_back(fd);
    }
  }
  if (count == 0) return absl::UnavailableError("the peer closed the connection");
  return static_cast<size_t>(count);
}

}  // namespace epic::cluster
