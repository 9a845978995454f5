#include "coordinator/frontend/http_request_reader.h"

#include <boost/beast/http.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::coordinator {
namespace {

namespace http = boost::beast::http;

template <typename View>
std::string Text(const View& view) {
  return std::string(view.data(), view.size());
}

HttpRequest HeadOf(const http::request<http::string_body>& message) {
  return {.method = Text(message.method_string()),
          .target = Text(message.target()),
          .authorization = Text(message[http::field::authorization]),
          .request_id = Text(message["X-Request-Id"]),
          .host = Text(message[http::field::host]),
          .origin = Text(message[http::field::origin]),
          .preflight_headers = Text(message[http::field::access_control_request_headers]),
          .preflight_private = message["Access-Control-Request-Private-Network"] == "true"};
}

}  // namespace

struct HttpRequestReader::Parser : http::request_parser<http::string_body> {
  explicit Parser(const HttpOptions& options) {
    header_limit(static_cast<uint32_t>(options.header_bytes_max));
    body_limit(options.body_bytes_max);
    eager(true);
  }

  bool invites() const {
    return is_header_done() &&
           absl::EqualsIgnoreCase(Text(get()[http::field::expect]), "100-continue");
  }
};

HttpRequestReader::HttpRequestReader(const HttpOptions& options) : options_(options) {}
HttpRequestReader::~HttpRequestReader() = default;

HttpRequestReader::State HttpRequestReader::Read() {
  if (parser_ == nullptr) {
    buffer_.erase(0, std::min(buffer_.find_first_not_of("\r\n"), buffer_.size()));
    if (buffer_.empty()) return State::kEmpty;
    parser_ = std::make_unique<Parser>(options_);
    invited_ = false;
  }
  boost::system::error_code error;
  while (!buffer_.empty() && !parser_->is_done()) {
    // The parser compares a length that the header announces with the limit, so a body that is too
    // large is refused before the client is invited to send it.
    const size_t used = parser_->put(boost::asio::buffer(buffer_), error);
    buffer_.erase(0, used);
    if (error == http::error::need_more) break;
    if (error == http::error::body_limit) {
      return Refuse(413,
                    absl::StrCat("the body is larger than ", options_.body_bytes_max, " bytes"));
    }
    if (error && error != http::error::header_limit) {
      return Refuse(400, absl::StrCat("not an HTTP request: ", error.message()));
    }
    if (error) break;
  }
  // A request that is complete counts, whatever follows it in the buffer: that is the next
  // request's.
  if (parser_->is_done()) return State::kWhole;
  // The parser bounds the header, but not the lines between chunks. These stay in the buffer until
  // they are whole, so the buffer is bounded here.
  if (error == http::error::header_limit || buffer_.size() > options_.header_bytes_max) {
    return Refuse(431,
                  absl::StrCat("the header is larger than ", options_.header_bytes_max, " bytes"));
  }
  if (invited_ || !parser_->invites()) return State::kPartial;
  invited_ = true;
  return State::kInvites;
}

HttpMessage HttpRequestReader::Take() {
  CHECK(parser_ != nullptr && parser_->is_done()) << "no whole request was read";
  http::request<http::string_body> message = parser_->release();
  // A parser reads one message; what is behind it stays in the buffer for the next parser.
  parser_.reset();
  HttpMessage taken{.request = HeadOf(message),
                    .keep_alive = message.keep_alive(),
                    .chunked = message.version() >= 11,
                    .head_only = message.method() == http::verb::head};
  taken.request.body = std::move(message.body());
  return taken;
}

HttpRequest HttpRequestReader::head() const {
  return parser_ == nullptr ? HttpRequest() : HeadOf(parser_->get());
}

HttpRequestReader::State HttpRequestReader::Refuse(int status, std::string message) {
  // The head goes along, because a page may read the refusal only if its origin is named there.
  refusal_ = {.status = status, .message = std::move(message), .head = head()};
  return State::kRefused;
}

}  // namespace epic::coordinator
