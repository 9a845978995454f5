// HttpOptions: where the HTTP interface listens, and how much it bears.
#pragma once

#include <cstddef>
#include <string>

#include "absl/time/time.h"

namespace epic::coordinator {

struct HttpOptions {
  std::string host = "127.0.0.1";  // an address or a name
  int port = 8000;                 // 0: any free one
  int thread_count = 2;
  size_t body_bytes_max = 8 << 20;                      // 413 beyond
  size_t header_bytes_max = 32 << 10;                   // 431 beyond
  int connection_count_max = 8192;                      // 503 beyond
  absl::Duration request_timeout = absl::Seconds(60);   // for a begun request to arrive: 408
  absl::Duration idle_timeout = absl::Seconds(120);     // of a connection between requests
  absl::Duration write_timeout = absl::Minutes(5);      // of a client that takes nothing
  absl::Duration comment_interval = absl::Seconds(15);  // keeps waiting streams alive
};

}  // namespace epic::coordinator
