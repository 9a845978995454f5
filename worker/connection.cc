#include "worker/connection.h"

#include <string>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "cluster/version.h"

namespace epic::worker {

Connection::Connection(Env env, ControlDialer dial, Handlers handlers)
    : env_(env), dial_(std::move(dial)), handlers_(std::move(handlers)) {
  CHECK(dial_ && handlers_.identity && handlers_.on_message && handlers_.on_link);
}

void Connection::Dial() {
  CHECK(link_ == nullptr && !retired_ && refusal_.ok());
  generation_ = env_.random.Next();
  v1::ControlHello hello;
  hello.set_generation(generation_);
  hello.set_build_id(cluster::kBuildId);
  *hello.mutable_worker() = handlers_.identity();
  link_ = dial_(std::move(hello),
                {.on_message = handlers_.on_message,
                 .on_down = [this](absl::Status why) { OnDown(std::move(why)); }});
  handlers_.on_link(link_.get());
}

void Connection::OnDown(absl::Status why) {
  if (!retired_) LOG_WARNING("the coordinator's link is down: {}", std::string(why.message()));
  // Another generation would be refused for the same reason.
  if (absl::IsFailedPrecondition(why)) refusal_ = std::move(why);
  Renew();
}

void Connection::Renew() {
  // The link may be on the stack, so it must not be destroyed here. The same link can be left for
  // two reasons (revoked, then down): the second task finds another generation, or no link.
  env_.loop.Post([this, left = generation_] {
    if (left != generation_ || link_ == nullptr) return;
    handlers_.on_link(nullptr);
    link_.reset();
    if (refusal_.ok() && !retired_) Dial();
  });
}

}  // namespace epic::worker
