#include "coordinator/frontend/http_api.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/frontend/answer_source.h"
#include "coordinator/frontend/api_key.h"
#include "coordinator/frontend/errors.h"
#include "coordinator/frontend/generation.h"
#include "coordinator/frontend/openai_answer.h"
#include "coordinator/frontend/openai_request.h"
#include "coordinator/frontend/request_builder.h"
#include "coordinator/metrics/metrics_page.h"
#include "coordinator/metrics/rank_columns.h"

namespace epic::coordinator {
namespace {

// The limit is chosen: ids of tracing systems fit, and it can come back in a header.
constexpr size_t kRequestIdBytesMax = 128;
constexpr const char* kModelPath = "/v1/models/";

HttpReply JsonReply(const Json& body, int status = 200) {
  return {.answer = {.status = status, .body = Dump(body)}};
}

std::string Path(const HttpRequest& request) {
  return request.target.substr(0, request.target.find_first_of("?#"));
}

// "%2F" and the like; what is not an escape stays.
std::string Unescape(std::string_view text) {
  // Names of models may hold slashes, which clients escape in /v1/models/NAME.
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const std::string_view digits = text.substr(std::min(i + 1, text.size()), 2);
    const bool escaped = text[i] == '%' && digits.size() == 2 && absl::ascii_isxdigit(digits[0]) &&
                         absl::ascii_isxdigit(digits[1]);
    plain += escaped ? absl::HexStringToBytes(std::string(digits)) : std::string(1, text[i]);
    if (escaped) i += 2;
  }
  return plain;
}

// A HEAD is answered as its GET; the server leaves the body out.
std::string Method(const HttpRequest& request) {
  return request.method == "HEAD" ? "GET" : request.method;
}

// A page that names no headers may send those of OpenAI's clients.
constexpr const char* kPageHeaders = "authorization, content-type, x-request-id";
// The limit is chosen; a longer list is not echoed.
constexpr size_t kPreflightHeadersBytesMax = 2048;

// Whether the text is a list of header names and nothing else. Such a list may be echoed: no
// character in it can end the header and begin another one.
bool IsHeaderList(const std::string& text) {
  return !text.empty() && text.size() <= kPreflightHeadersBytesMax &&
         std::ranges::all_of(text, [](char c) {
           return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == ',' || c == ' ';
         });
}

absl::Status CheckRequestId(const std::string& id) {
  // The id comes back in a header, and a control character in it could forge another header.
  const bool visible =
      std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
  if (visible && id.size() <= kRequestIdBytesMax) return absl::OkStatus();
  return FieldError("X-Request-Id", absl::StrCat("X-Request-Id has ", id.size(),
                                                 " bytes; it must be visible ASCII, at most ",
                                                 kRequestIdBytesMax, " bytes"));
}

absl::StatusOr<HttpReply> Generate(const FrontendContext& context,
                                   absl::StatusOr<OpenAiRequest> request) {
  if (!request.ok()) return std::move(request).status();
  ASSIGN_OR_RETURN(std::unique_ptr<Generation> generation,
                   Generation::Start(context, std::move(request->requests)));
  HttpReply reply;
  reply.source = NewAnswerSource(context, *std::move(request), std::move(generation));
  if (reply.source->streams()) {
    reply.answer.content_type = "text/event-stream; charset=utf-8";
    // nginx collects an answer before it passes it on, unless the second header forbids it.
    reply.answer.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  }
  return reply;
}

Json RankJson(const RankStatus& rank) {
  Json json = {{"rank", rank.rank},
               {"state", rank.state},
               {"description", rank.description},
               {"profile", rank.profile}};
  // The numbers come from the one table, so /ready, /metrics and operators never contradict each
  // other.
  for (const RankColumn& column : RankColumns()) {
    const double value = column.read(rank);
    json[column.name] = column.whole() ? Json(static_cast<int64_t>(value)) : Json(value);
  }
  return json;
}

}  // namespace

// Keys guard what computes or names the model. Probes and scrapers, which ask for the last four,
// send none.
const HttpApi::Route HttpApi::kRoutes[] = {
    {"POST", "/v1/chat/completions", true, &HttpApi::Chat},
    {"POST", "/v1/completions", true, &HttpApi::Complete},
    {"GET", "/v1/models", true, &HttpApi::Models},
    {"POST", "/tokenize", true, &HttpApi::Tokenize},
    {"POST", "/v1/tokenize", true, &HttpApi::Tokenize},
    {"POST", "/detokenize", true, &HttpApi::Detokenize},
    {"POST", "/v1/detokenize", true, &HttpApi::Detokenize},
    {"GET", "/health", false, &HttpApi::Health},
    {"GET", "/ready", false, &HttpApi::Ready},
    {"GET", "/metrics", false, &HttpApi::Metrics},
    {"GET", "/version", false, &HttpApi::Version},
};

HttpAnswer ErrorAnswer(const absl::Status& status) {
  HttpAnswer answer{.status = HttpStatus(status.code()), .body = ErrorBody(status)};
  if (const int seconds = RetryAfterSeconds(status.code()); seconds > 0) {
    answer.headers.emplace_back("Retry-After", absl::StrCat(seconds));
  }
  return answer;
}

HttpReply HttpApi::Handle(const HttpRequest& request) const {
  absl::Status id_status = CheckRequestId(request.request_id);
  const bool echo_id = id_status.ok() && !request.request_id.empty();
  // The id in the header is for the client's own records. The requests of the core have other ids,
  // which nobody can guess (OpenAiRequest::id).
  const std::string id = echo_id ? request.request_id : DrawId(context_.random);
  absl::StatusOr<HttpReply> reply =
      id_status.ok() ? Dispatch(request) : absl::StatusOr<HttpReply>(id_status);
  if (!reply.ok()) reply = HttpReply{.answer = ErrorAnswer(reply.status())};
  reply->answer.headers.emplace_back("X-Request-Id", id);
  // Errors get these headers too: without them a page could not read why it was refused.
  AddBrowserHeaders(request, &reply->answer);
  return *std::move(reply);
}

HttpAnswer HttpApi::Refuse(const HttpRequest& request, int status,
                           const std::string& message) const {
  HttpAnswer answer = ErrorAnswer(absl::InvalidArgumentError(message));
  answer.status = status;
  AddBrowserHeaders(request, &answer);
  return answer;
}

void HttpApi::AddBrowserHeaders(const HttpRequest& request, HttpAnswer* answer) const {
  if (request.origin.empty()) return;
  // A page that is not allowed gets this header too: a cache must not give its answer to another
  // page.
  answer->headers.emplace_back("Vary", "Origin");
  const std::string allowed = context_.browser.AllowedOrigin(request.origin, request.host);
  if (allowed.empty()) return;
  answer->headers.emplace_back("Access-Control-Allow-Origin", allowed);
  // By default a page reads only a few standard headers; these two are not among them.
  answer->headers.emplace_back("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
}

// A preflight is answered without a key, because browsers send none with it. It asks what the page
// may do, and does nothing.
HttpReply HttpApi::Preflight(const HttpRequest& request) const {
  constexpr const char* kMethods = "GET, HEAD, POST, OPTIONS";
  HttpReply reply{.answer = {.status = 204, .content_type = "", .headers = {{"Allow", kMethods}}}};
  if (context_.browser.AllowedOrigin(request.origin, request.host).empty()) return reply;
  auto& headers = reply.answer.headers;
  headers.emplace_back("Access-Control-Allow-Methods", kMethods);
  headers.emplace_back("Access-Control-Allow-Headers", IsHeaderList(request.preflight_headers)
                                                           ? request.preflight_headers
                                                           : kPageHeaders);
  // The time is chosen: a page asks again after ten minutes, so a changed --cors-origins is soon
  // known.
  headers.emplace_back("Access-Control-Max-Age", "600");
  // Chromium asks this before a page of a public site may reach a private or loopback address.
  if (request.preflight_private) {
    headers.emplace_back("Access-Control-Allow-Private-Network", "true");
  }
  return reply;
}

absl::StatusOr<HttpReply> HttpApi::Dispatch(const HttpRequest& request) const {
  // This check comes first, because a page that has rebound its name must learn nothing, not even
  // which paths there are.
  RETURN_IF_ERROR(context_.browser.CheckHost(request.host));
  if (request.method == "OPTIONS") return Preflight(request);
  const std::string path = Path(request), method = Method(request);
  // The model's name is a part of the path, so this route cannot be a row of the table.
  if (method == "GET" && absl::StartsWith(path, kModelPath)) {
    RETURN_IF_ERROR(CheckApiKey(context_.api_keys, request.authorization));
    return Model(Unescape(path.substr(std::string_view(kModelPath).size())));
  }
  std::string allowed;
  for (const Route& route : kRoutes) {
    if (path != route.path) continue;
    if (method == route.method) {
      if (route.guarded) {
        RETURN_IF_ERROR(CheckApiKey(context_.api_keys, request.authorization));
      }
      return (this->*route.handler)(request);
    }
    allowed = route.method;
  }
  if (allowed.empty()) {
    return absl::NotFoundError(absl::StrCat("there is nothing at ", path.substr(0, 100)));
  }
  HttpAnswer answer = ErrorAnswer(absl::InvalidArgumentError(
      absl::StrCat("the method of ", path, " is ", allowed, ", not ", request.method)));
  answer.status = 405;
  // RFC 9110, section 15.5.6, demands it with a 405. No path of the table has two methods.
  answer.headers.emplace_back("Allow", allowed);
  return HttpReply{.answer = std::move(answer)};
}

absl::StatusOr<HttpReply> HttpApi::Chat(const HttpRequest& request) const {
  ASSIGN_OR_RETURN(const Json body, ParseObject(request.body));
  return Generate(context_, ReadChatRequest(context_, body));
}

absl::StatusOr<HttpReply> HttpApi::Complete(const HttpRequest& request) const {
  ASSIGN_OR_RETURN(const Json body, ParseObject(request.body));
  return Generate(context_, ReadCompletionRequest(context_, body));
}

Json HttpApi::Card(const std::string& name) const {
  const ModelInfo model = context_.inference.model();
  return {{"id", name},
          {"object", "model"},
          // Clients of OpenAI expect a date, and a folder of weights has none.
          {"created", absl::ToUnixSeconds(context_.clock.Now())},
          {"owned_by", "epic"},
          {"root", ModelName(context_)},
          {"parent", nullptr},
          {"max_model_len", model.max_model_len}};
}

absl::StatusOr<HttpReply> HttpApi::Models(const HttpRequest&) const {
  Json cards = Json::array();
  for (const std::string& name : context_.inference.model().names) cards.push_back(Card(name));
  return JsonReply({{"object", "list"}, {"data", std::move(cards)}});
}

absl::StatusOr<HttpReply> HttpApi::Model(const std::string& name) const {
  if (name.empty()) return absl::NotFoundError("the name of a model is missing");
  RETURN_IF_ERROR(CheckModel(context_, name));
  return JsonReply(Card(name));
}

absl::StatusOr<HttpReply> HttpApi::Health(const HttpRequest&) const {
  // This says that the process answers, and no more. A probe on /health must not restart the
  // coordinator, which would end all requests, because a worker is missing; /ready tells that.
  return JsonReply({{"status", "ok"}});
}

absl::StatusOr<HttpReply> HttpApi::Ready(const HttpRequest&) const {
  const ClusterStatus status = context_.inference.status();
  Json ranks = Json::array();
  for (const RankStatus& rank : status.ranks) ranks.push_back(RankJson(rank));
  Json body = {{"ready", status.ready},
               {"reason", status.reason},
               {"requests_running", status.requests_running},
               {"requests_waiting", status.requests_waiting},
               {"ranks", std::move(ranks)}};
  HttpReply reply = JsonReply(body, status.ready ? 200 : 503);
  if (!status.ready) {
    reply.answer.headers.emplace_back(
        "Retry-After", absl::StrCat(RetryAfterSeconds(absl::StatusCode::kUnavailable)));
  }
  return reply;
}

absl::StatusOr<HttpReply> HttpApi::Metrics(const HttpRequest&) const {
  // The version is that of Prometheus' text format, by which scrapers choose their parser.
  return HttpReply{.answer = {.content_type = "text/plain; version=0.0.4; charset=utf-8",
                              .body = context_.metrics_page.Text()}};
}

absl::StatusOr<HttpReply> HttpApi::Version(const HttpRequest&) const {
  return JsonReply({{"version", context_.version}});
}

absl::StatusOr<HttpReply> HttpApi::Tokenize(const HttpRequest& request) const {
  ASSIGN_OR_RETURN(const Json body, ParseObject(request.body));
  FieldReader fields(body);
  const std::string model = fields.String("model").value_or("");
  const std::optional<std::string> prompt = fields.String("prompt");
  const bool add_special = fields.Bool("add_special_tokens").value_or(true);
  const bool with_texts = fields.Bool("return_token_strs").value_or(false);
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(CheckModel(context_, model));
  std::vector<int32_t> ids;
  if (prompt) {
    ASSIGN_OR_RETURN(ids, PromptFromText(context_, *prompt, add_special));
  } else if (fields.Find("messages") != nullptr) {
    ASSIGN_OR_RETURN(const text::ChatInput input, ReadChatInput(context_, body));
    ASSIGN_OR_RETURN(ids, PromptFromChat(context_, input));
  } else {
    return FieldError("prompt", "prompt or messages is missing");
  }
  // The field is null, as in vLLM, unless the client asked for the texts.
  Json texts;
  if (with_texts) {
    texts = Json::array();
    for (const int32_t id : ids) texts.push_back(TokenText(*context_.tokenizer, id));
  }
  return JsonReply({{"count", ids.size()},
                    {"max_model_len", context_.inference.model().max_model_len},
                    {"tokens", std::move(ids)},
                    {"token_strs", std::move(texts)}});
}

absl::StatusOr<HttpReply> HttpApi::Detokenize(const HttpRequest& request) const {
  ASSIGN_OR_RETURN(const Json body, ParseObject(request.body));
  FieldReader fields(body);
  const std::string model = fields.String("model").value_or("");
  const std::vector<int32_t> ids = fields.Ids("tokens");
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(CheckModel(context_, model));
  // Ids gives an empty list for a field that is absent as well.
  if (fields.Find("tokens") == nullptr) return FieldError("tokens", "tokens is missing");
  RETURN_IF_ERROR(CheckIds(context_, "tokens", ids));
  // Special tokens are printed: the client wants to see what its ids are.
  return JsonReply({{"prompt", context_.tokenizer->Decode(ids, /*skip_special=*/false)}});
}

}  // namespace epic::coordinator
