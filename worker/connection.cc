#include "worker/connection.h"

#include <utility>

#include "base/log.h"
#include "cluster/grpc/control_client.h"
#include "cluster/version.h"

namespace epic::worker {

Connection::Connection(Env env, std::string address, v1::WorkerIdentity identity,
                       std::optional<cluster::JoinToken> token, Handlers handlers)
    : env_(env),
      address_(std::move(address)),
      identity_(std::move(identity)),
      token_(std::move(token)),
      handlers_(std::move(handlers)) {
  Dial();
}

void Connection::Dial() {
  generation_ = env_.random.Next();
  v1::ControlHello hello;
  hello.set_generation(generation_);
  hello.set_build_id(cluster::kBuildId);
  *hello.mutable_worker() = identity_;
  link_ = cluster::DialControl(env_, address_, hello,
                               {.on_message = handlers_.on_message,
                                .on_down = [this](absl::Status why) { OnDown(std::move(why)); }},
                               token_);
  handlers_.on_link(link_.get());
}

void Connection::OnDown(absl::Status why) {
  LOG_WARNING("the coordinator's link is down: {}", std::string(why.message()));
  if (absl::IsFailedPrecondition(why)) refusal_ = std::move(why);
  Renew();
}

void Connection::Renew() {
  // The link may be on the stack.
  env_.loop.Post([this, left = generation_] {
    if (left != generation_) return;
    handlers_.on_link(nullptr);
    link_.reset();
    if (refusal_.ok()) Dial();
  });
}

}  // namespace epic::worker
