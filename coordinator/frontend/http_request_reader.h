// HttpRequestReader: reads the requests of one connection out of its bytes, however these arrive.
//
//   reader.Add(bytes);
//   if (reader.Read() == HttpRequestReader::State::kWhole) Answer(reader.Take());
//
// Empty lines before a request are skipped (RFC 9112, section 2.2).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "coordinator/frontend/http_api.h"
#include "coordinator/frontend/http_options.h"

namespace epic::coordinator {

// A request, and how its answer must be sent.
struct HttpMessage {
  HttpRequest request;
  bool keep_alive = false;  // the client may send another one
  bool chunked = false;     // the client reads chunks (HTTP/1.1)
  bool head_only = false;   // HEAD: the answer has no body
};

// One thread at a time.
class HttpRequestReader {
 public:
  enum class State {
    kEmpty,    // no byte of a request is here
    kPartial,  // the begin of one is here
    kInvites,  // as kPartial, and the client waits for "100 Continue": said once
    kWhole,    // Take must come next
    kRefused,  // what came is no request, or too large: see refusal; nothing more can be read
  };
  struct Refusal {
    int status = 400;
    std::string message;
    HttpRequest head;  // what is known of the request
  };

  // `options` outlives this.
  explicit HttpRequestReader(const HttpOptions& options);
  ~HttpRequestReader();

  void Add(std::string_view bytes) { buffer_.append(bytes); }
  // Reads on in what was added, up to the end of one request.
  State Read();
  // After kWhole.
  HttpMessage Take();
  // After kRefused.
  const Refusal& refusal() const { return refusal_; }
  // What is known of the request that is being read.
  HttpRequest head() const;
  // Bytes that were added and not read.
  size_t buffered() const { return buffer_.size(); }

 private:
  struct Parser;

  State Refuse(int status, std::string message);

  const HttpOptions& options_;
  std::string buffer_;
  std::unique_ptr<Parser> parser_;  // of the request that has begun
  bool invited_ = false;
  Refusal refusal_;
};

}  // namespace epic::coordinator
